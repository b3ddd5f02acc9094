"""How many seconds of training a quality takes: when each validation N@10 was first reached, validation included.

    python tests/benchmarks/time_to_quality.py run.toml [--goals 0.17 0.18 0.19] [--seeds 1] [--set table.key=value]

The split is that of `towers evaluate` under leave-one-out; the clock starts before the tables are featurized.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from features.sequences.seen_items import SeenItems
from features.sequences.split import leave_one_out
from features.tables.tables import read_tables
from towers.warnings_filter import quiet_imports
from training.config import read_run_config
from training.loop.fit import fit
from training.loop.trainer import Progress


def main() -> None:
    """Train once for each seed and print the seconds to each goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--goals", type=float, nargs="+", default=[0.15, 0.17, 0.18, 0.19])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    quiet_imports()
    for seed in range(given.seeds):
        reached = seconds_to(given.goals, given.settings, (*given.overrides, f"training.seed={seed}"))
        for goal, seconds in reached.items():
            said = "not reached" if seconds is None else f"{seconds:,.0f} s"
            print(f"seed {seed}  validation N@10 {goal:.3f}: {said}", flush=True)


def seconds_to(goals: list[float], settings: Path, overrides: tuple[str, ...]) -> dict[float, float | None]:
    """Return after how many seconds each goal was first reached; None where it was not."""
    config = read_run_config(settings, overrides)
    tables = read_tables(config.features, settings.parent)
    sequences = tables.interactions.sequences(tables.catalog)
    split = leave_one_out(sequences, len(tables.catalog), seen_items=SeenItems.of(config.features.recommend_seen))
    reached: dict[float, float | None] = dict.fromkeys(goals)
    began = time.monotonic()

    def look(progress: Progress, measured: dict[str, float]) -> None:
        for goal in goals:
            if reached[goal] is None and measured["validation_ndcg_at_10"] >= goal:
                reached[goal] = time.monotonic() - began

    fit(config, tables, split, device=torch.device("cpu"), on_epoch=look)
    return reached


if __name__ == "__main__":
    main()
