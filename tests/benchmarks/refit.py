"""Does training once more on everything, validation data included, help? (`[training] refit`)

    python tests/benchmarks/refit.py run.toml [--seeds 3] [--set table.key=value ...]

Under leave-one-out: one model stops early by each user's last item but one; another learns from that item as well, for
the number of steps found best. Both are asked for the last item, with the same history. The interval of the gain is
over the questions and, if there are several, the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from features.sequences.seen_items import SeenItems
from features.sequences.split import leave_one_out
from features.tables.tables import read_tables
from towers.warnings_filter import quiet_imports
from training.config import read_run_config
from training.evaluation.comparison import Comparison
from training.evaluation.evaluate import Evaluation, evaluate
from training.loop.fit import fit, refit


def main() -> None:
    """Train both models for each seed and print N@10 and R@10 of each, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    quiet_imports()
    runs: list[list[Evaluation]] = []
    for seed in range(given.seeds):
        config = read_run_config(given.settings, (*given.overrides, f"training.seed={seed}"))
        tables = read_tables(config.features, given.settings.parent)
        sequences = tables.interactions.sequences(tables.catalog)
        split = leave_one_out(sequences, len(tables.catalog), seen_items=SeenItems.of(config.features.recommend_seen))
        assert split.test is not None
        early = fit(config, tables, split, device=torch.device("cpu"))
        refitted = refit(config, tables, split.test.history, early)
        found = [
            evaluate(
                learned.recommender(config.features.max_history),
                split.test,
                split.candidates,
                seen_items=split.seen_items,
            )
            for learned in (early, refitted)
        ]
        for name, one in zip(("stopped early", "refitted"), found, strict=True):
            print(f"seed {seed}  {name:14s} R@10 {one.means['recall_at_10']:.4f}  N@10 {one.means['ndcg_at_10']:.4f}")
        runs.append(found)
    compared = Comparison.of(runs)
    gain, before = compared.lead(1, 0, "ndcg_at_10"), compared.metric(0, "ndcg_at_10").mean
    seeds = "one seed" if len(runs) == 1 else f"{len(runs)} seeds"
    print(
        f"N@10 of the refitted: {gain.mean / before:+.1%}, {gain.low / before:+.1%} to {gain.high / before:+.1%} "
        f"(95 % interval; {seeds})"
    )


if __name__ == "__main__":
    main()
