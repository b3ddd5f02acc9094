"""What each strategy of negatives is worth: quality, speed and memory after the same number of steps.

    python tests/benchmarks/negatives.py [run.toml] [--size small] [--steps 1500] [--negatives 512] [--seeds 3]
        [--only NAME ...] [--set table.key=value ...]

Without a run.toml a shop of the given size is generated, with the settings that `towers init` writes for it. Under
leave-one-out each strategy learns from the training part for as many steps, without early stopping, and is asked for
each user's last item. Each training runs in a process of its own; memory is the highest resident memory above what the
process had when its data was ready. The strategies draw the same number of items; what is hard or remembered comes on
top. A large batch sees more interactions in as many steps.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.seen_items import SeenItems
from features.sequences.split import leave_one_out
from features.tables.tables import read_tables
from towers.warnings_filter import quiet_imports
from training.config import read_run_config
from training.evaluation.evaluate import evaluate
from training.loop.build import TrainingData, build
from training.loop.fit import TrainedModel
from training.loop.trainer import Trainer

LARGE = 8
"""How many times as large a large batch is."""
FIGURES = ("N@10", "R@10", "events/s", "MiB")


def strategies(negatives: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """Return the settings of each strategy, each of which draws so many items."""
    uniform = {"uniform_negatives": negatives, "in_batch_negatives": 0}
    in_batch = {"uniform_negatives": 0, "in_batch_negatives": negatives}
    mixed = {"uniform_negatives": negatives // 2, "in_batch_negatives": negatives - negatives // 2}
    sampled = {
        "uniform": uniform,
        "in-batch": in_batch,
        "in-batch, classic log-Q": {**in_batch, "log_q": "all"},
        "in-batch, no log-Q": {**in_batch, "log_q": "none"},
        "mixed": mixed,
        "mixed, classic log-Q": {**mixed, "log_q": "all"},
        "mixed and hard": {**mixed, "hard_negatives": 4},
        "mixed and hard, 10 skipped": {**mixed, "hard_negatives": 4, "hard_negatives_skip": 10},
        "mixed and hard, below 0.95": {**mixed, "hard_negatives": 4, "hard_negatives_score_ratio": 0.95},
        "mixed and remembered": {**mixed, "cross_batch_negatives": 4 * negatives},
        "mixed, large batch": {**mixed, "batch_size": LARGE * batch_size},
        "mixed, large batch in chunks": {
            **mixed,
            "batch_size": LARGE * batch_size,
            "gradient_cache_chunk": batch_size,
        },
    }
    return {"all": {"negatives": "all"}, **{name: {"negatives": "sampled", **own} for name, own in sampled.items()}}


def measure(settings: Path, overrides: list[str], steps: int) -> dict[str, float]:
    """Train once for so many steps, and return the figures."""
    config = read_run_config(settings, tuple(overrides))
    tables = read_tables(config.features, settings.parent)
    sequences = tables.interactions.sequences(tables.catalog)
    split = leave_one_out(sequences, len(tables.catalog), seen_items=SeenItems.of(config.features.recommend_seen))
    assert split.test is not None
    featurizer = Featurizer.fit(Schema.from_config(config.features), tables.catalog, tables.users, split.train)
    data = TrainingData.prepare(split.train, tables.catalog, tables.users, featurizer)
    trainer = Trainer(build(config, data, torch.device("cpu")), steps=steps, quiet=True)
    trainer.batches.batch_size = config.training.batch_size  # as large as asked, however small the table
    before = _forget_peak()
    began = time.perf_counter()
    model = trainer.fit()
    seconds = time.perf_counter() - began
    peak = _peak_bytes() - before
    learned = TrainedModel(model, data, trainer.progress, seconds)
    means = evaluate(
        learned.recommender(config.features.max_history),
        split.test,
        split.candidates,
        seen_items=split.seen_items,
        cutoffs=(10,),
    ).means
    events = steps / trainer.batches.num_batches(0) * split.train.num_events
    return dict(zip(FIGURES, (means["ndcg_at_10"], means["recall_at_10"], events / seconds, peak / 2**20), strict=True))


def _forget_peak() -> int:
    """Let the highest resident memory begin anew, and return the bytes it begins with."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    """Return the highest resident memory of this process since it was forgotten, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def shop(folder: Path, size: str) -> Path:
    """Generate a shop and the settings for it, and return the path of these."""
    tables = [
        word for name in ("interactions", "items", "users") for word in (f"--{name}", f"data/shop/{name}.parquet")
    ]
    for words in (["dataset", "shop", "--size", size], ["init", *tables]):
        subprocess.run([sys.executable, "-m", "towers", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "run.toml"


def compare(settings: Path, given: argparse.Namespace) -> None:
    """Train each strategy with each seed, and print a line for each: the mean, and the deviation between seeds."""
    chosen = [name for name in strategies(2, 1) if not given.only or name in given.only]
    width = max(map(len, chosen))
    print(f"{given.steps:,} steps of {given.batch_size:,} interactions, {given.negatives:,} items drawn")
    print(f"seeds 0 to {given.seeds - 1}, {torch.get_num_threads()} threads\n")
    print(" " * width + "".join(f"{figure:>18s}" for figure in FIGURES), flush=True)
    for name in chosen:
        runs = [_in_a_process(settings, name, seed, given) for seed in range(given.seeds)]
        cells = [_mean_and_deviation([run[figure] for run in runs]) for figure in FIGURES]
        print(f"{name:{width}s}" + "".join(f"{cell:>18s}" for cell in cells), flush=True)


def _mean_and_deviation(values: list[float]) -> str:
    form = ".4f" if np.mean(values) < 1 else ",.0f"
    return f"{np.mean(values):{form}} ± {np.std(values):{form}}"


def _in_a_process(settings: Path, name: str, seed: int, given: argparse.Namespace) -> dict[str, float]:
    own = {"batch_size": given.batch_size, **strategies(given.negatives, given.batch_size)[name], "seed": seed}
    overrides = [*given.overrides, *(f"training.{key}={json.dumps(value)}" for key, value in own.items())]
    words = [sys.executable, __file__, str(settings), "--steps", str(given.steps), "--worker"]
    words += [word for override in overrides for word in ("--set", override)]
    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{name}, seed {seed}: ended with {ended.returncode}: {shlex.join(words)}")
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure the strategies, each training in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, nargs="?")
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--negatives", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(strategies(2, 1)), metavar="NAME")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    quiet_imports()
    if given.worker:
        print(json.dumps(measure(given.settings, given.overrides, given.steps)))
    elif given.settings is not None:
        compare(given.settings, given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(shop(Path(folder), given.size), given)


if __name__ == "__main__":
    main()
