"""What each place takes whose memory or time could grow with the interactions, the users or the items.

    python tests/benchmarks/bounds_at_size.py [--events 1000000 4000000] [--items 100000] [--places read spectral ...]

Each place runs as the commands call it, in a process of its own, on random interactions: 20 to a user on average, items
by a power law, and one user in 10,000 with 5,000. Memory is what a process holds for itself (`RssAnon`, sampled every
20 ms) above what it held with its input, over the number of events; so a place that is bounded shows fewer bytes an
event at the larger size. Time is that of the processor. `pairs/s` of `mining` are pairs of a user and an item.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from towers.process import prepared_environment

HERE = Path(__file__).parents[2]
MEAN_LENGTH, LONG_LENGTH, LONG_SHARE = 20, 5_000, 1e-4
QUESTIONS = 500
STEPS = 40
WIDTH = 64

Place = Callable[[Sequences, int], Callable[[], Any]]
"""Prepares its input, which is not measured, and returns what is."""


def interactions(events: int, items: int) -> Sequences:
    """Return random sequences with times."""
    rng = np.random.default_rng(0)
    lengths = rng.geometric(1 / MEAN_LENGTH, events // MEAN_LENGTH)
    lengths[rng.random(len(lengths)) < LONG_SHARE] = LONG_LENGTH
    rows = (items * rng.random(int(lengths.sum())) ** 3).astype(np.int64)
    times = np.sort(rng.integers(1_600_000_000, 1_700_000_000, len(rows)))
    by_user = np.lexsort((times, rng.permutation(np.repeat(np.arange(len(lengths)), lengths))))
    return Sequences(np.arange(len(lengths)), offsets_of(lengths), rows, times[by_user], is_ordered=True)


def read(sequences: Sequences, items: int) -> Callable[[], Any]:
    """Tables from a Parquet file, in memory (`towers prepare` has `prepare.py`)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from features.config import ColumnSettings, FeaturesConfig, FeatureSettings
    from features.tables.tables import read_tables

    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR")))
    columns = {"user_id": sequences.event_users, "item_id": sequences.item_rows, "timestamp": sequences.times}
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    config = FeaturesConfig(
        interactions="interactions.parquet",
        columns=ColumnSettings(timestamp="timestamp"),
        item={"item_id": FeatureSettings(kind="id")},
        prepare="never",
    )

    def run() -> Any:
        tables = read_tables(config, folder)
        return tables.interactions.sequences(tables.catalog)

    return run


def leave_one_out(sequences: Sequences, items: int) -> Callable[[], Any]:
    """Leave-one-out, with a test."""
    from features.sequences.split import leave_one_out

    return lambda: leave_one_out(sequences, items)


def time_split(sequences: Sequences, items: int) -> Callable[[], Any]:
    """One cut in time."""
    from features.sequences.split import time_split

    return lambda: time_split(sequences, items)


def ranker(sequences: Sequences, items: int) -> Callable[[], Any]:
    """What the learned re-ranker counts of items, with their neighbours."""
    import pandas as pd

    from features.tables.tables import Catalog
    from towers.rerankers.item_statistics import ItemStatistics

    catalog = Catalog(pd.DataFrame({"item_id": np.arange(items)}))
    return lambda: ItemStatistics.of(sequences, catalog, {})


def _baseline(name: str) -> Place:
    """Preparing and fitting a baseline of the reports with its default hyperparameters."""

    def place(sequences: Sequences, items: int) -> Callable[[], Any]:
        from features.sequences.split import leave_one_out
        from training.evaluation.baselines.baseline import BaselineData
        from training.evaluation.baselines.suite import BASELINES
        from training.tasks.train import BASELINE_BYTES

        (baseline,) = (one for one in BASELINES if one.name == name)
        data = BaselineData(leave_one_out(sequences, items, test=False), None, BASELINE_BYTES)
        defaults = {key: grid.default for key, grid in baseline.grids.items()}
        return lambda: baseline.prepare(data)(**defaults)

    return place


def ties(sequences: Sequences, items: int) -> Callable[[], Any]:
    """Judging popularity, whose ties are many, on 500 questions."""
    from features.sequences.split import leave_one_out
    from training.evaluation.baselines.popularity import PopularityBaseline
    from training.evaluation.evaluate import evaluate

    split = leave_one_out(sequences, items, test=False)
    model = PopularityBaseline.fit(split.train, items)
    questions = split.validation.take(np.arange(QUESTIONS))
    return lambda: evaluate(model, questions, split.candidates, seen_items=split.seen_items)


def spectral(sequences: Sequences, items: int) -> Callable[[], Any]:
    """The spectral start, without attributes."""
    from features.sequences.matrix import interaction_matrix
    from training.loop.spectral_init import decompose

    return lambda: decompose(
        interaction_matrix(sequences, items), {}, 4 * WIDTH, regularisation=300.0, attributes=0.0, seed=0
    )


def mining(sequences: Sequences, items: int) -> Callable[[], Any]:
    """Hard negatives of every user."""
    trainer = _trainer(sequences, items, hard_negatives=8)
    trainer.progress.epoch = 1
    return trainer._mine_hard_negatives


def steps(sequences: Sequences, items: int) -> Callable[[], Any]:
    """Forty steps of 2,048 events with 512 sampled negatives, the averaging of weights included."""
    trainer = _trainer(sequences, items)
    batches = trainer.batches.epoch(0, 0)
    some = [next(batches) for _ in range(STEPS)]
    return lambda: [trainer.step(batch) for batch in some]


def _trainer(sequences: Sequences, items: int, **training: Any) -> Any:
    import pandas as pd
    import torch

    from features.config import FeaturesConfig, FeatureSettings
    from features.featurizer.featurizer import Featurizer
    from features.schema import Schema
    from features.tables.tables import Catalog
    from towers.config import TowersConfig
    from training.config import RunConfig, TrainingConfig
    from training.loop.build import TrainingData, build
    from training.loop.trainer import Trainer

    config = RunConfig(
        features=FeaturesConfig(
            interactions="none.parquet", item={"item_id": FeatureSettings(kind="id")}, max_history=50
        ),
        towers=TowersConfig(embedding_dim=WIDTH, history_encoder="mean"),
        training=TrainingConfig(negatives="sampled", uniform_negatives=512, track=False, batch_size=2_048, **training),
    )
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(items)}))
    featurizer = Featurizer.fit(Schema.from_config(config.features), catalog, None, sequences)
    data = TrainingData.prepare(sequences, catalog, None, featurizer)
    return Trainer(build(config, data, torch.device("cpu")), quiet=True)


PLACES: Mapping[str, Place] = {
    "read": read,
    "leave-one-out": leave_one_out,
    "time-split": time_split,
    "ranker": ranker,
    "item-cosine": _baseline("item-item cosine"),
    "sequential": _baseline("sequential neighbours"),
    "session-knn": _baseline("session kNN"),
    "recent-popularity": _baseline("recent popularity"),
    "ties": ties,
    "spectral": spectral,
    "mining": mining,
    "steps": steps,
}


def measured(name: str, events: int, items: int) -> dict[str, float]:
    """Run one place in this process and return what it took."""
    sequences = interactions(events, items)
    run = PLACES[name](sequences, items)
    before, peak, over = _own_bytes(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], _own_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begun = time.process_time()
    kept = run()
    seconds = time.process_time() - begun
    over.set()
    watcher.join()
    most = max(peak[0], _own_bytes()) - before
    del kept
    return {"seconds": seconds, "bytes": most, "events": sequences.num_events, "users": len(sequences)}


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def measured_apart(name: str, events: int, items: int) -> dict[str, float]:
    """Return what `measured` finds in a process of its own."""
    numbers = ["--events", str(events), "--items", str(items)]
    command = [sys.executable, __file__, "--one", name, *numbers]
    environment = {**prepared_environment(os.environ), "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"ended with {done.returncode}"
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure all, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--one", choices=PLACES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measured(given.one, given.events[0], given.items)))
        return
    print(f"{given.items:,} items")
    for name in given.places:
        for events in given.events:
            try:
                found = measured_apart(name, events, given.items)
            except RuntimeError as error:
                print(f"{events:>12,}  {name:18} failed: {error}", flush=True)
                continue
            pairs = f"  {found['users'] * given.items / found['seconds']:.1e} pairs/s" if name == "mining" else ""
            print(
                f"{events:>12,}  {name:18} {found['bytes'] / found['events']:8,.0f} bytes an event "
                f"{found['bytes'] / 2**20:8,.0f} MiB {found['seconds']:8.1f} s{pairs}",
                flush=True,
            )


if __name__ == "__main__":
    main()
