"""What `speed.py` and `evenness.py` share: public tables known by ids alone, and a training of ours on the clock.

The tables are read from the folder that TOWERS_DATA names, or from `../shared/data` beside the repository.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.seen_items import EXCLUDE
from features.sequences.split import Split, leave_one_out
from features.tables.tables import Tables, read_tables
from towers.model.two_tower import TwoTower
from towers.process import prepared_environment
from training.config import RunConfig
from training.evaluation.evaluate import ScoringModel, evaluate
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.loop.build import TrainingData, build
from training.loop.fit import TrainedModel
from training.loop.trainer import Progress, Trainer

ROOT = Path(__file__).parents[2]
LENGTHS = {"ml-1m": 200, "amazon-beauty": 50, "goodbooks": 200}
"""How many items of a history are read, as in the literature."""
TITLES = {"ml-1m": "MovieLens-1M", "amazon-beauty": "Amazon Beauty", "goodbooks": "goodbooks"}


@dataclass(frozen=True)
class Task:
    """Interactions whose last items are held out, and what is learned from the others."""

    config: RunConfig
    tables: Tables
    split: Split

    @property
    def num_events(self) -> int:
        """How many interactions an epoch reads: the newest of each history, and the one before them."""
        return self.split.train.last(self.config.features.max_history + 1).num_events

    @property
    def num_positions(self) -> int:
        """How many predictions an epoch makes: of every item of the histories as they are read, but the first."""
        lengths = self.split.train.last(self.config.features.max_history + 1).lengths
        return int((lengths - 1).clip(min=0).sum())

    def ndcg(self, recommender: ScoringModel) -> float:
        """Return the validation N@10, over all items."""
        split = self.split
        result = evaluate(
            recommender, split.validation, split.candidates, seen_items=EXCLUDE, cutoffs=(10,), with_coverage=False
        )
        return result.means["ndcg_at_10"]


@dataclass(frozen=True)
class Measured:
    """One training.

    Attributes:
        seconds: Of each epoch, the first among them, which is slower, without those of measuring.
        steps: Of an epoch.
        peak_bytes: The highest resident memory of the process, libraries and tables included.
        ndcg: Validation N@10 in the end.
        ndcg_after: Validation N@10 after each epoch; empty where that was not measured.
    """

    seconds: list[float]
    steps: int
    peak_bytes: int
    ndcg: float
    ndcg_after: list[float] = field(default_factory=list)

    @property
    def epoch_seconds(self) -> float:
        """The mean of an epoch, without the first."""
        return float(np.mean(self.seconds[1:]))

    def seconds_to(self, goal: float) -> float | None:
        """Return the seconds of training until the end of the first epoch with such a validation N@10; None: never."""
        reached = [place for place, ndcg in enumerate(self.ndcg_after) if ndcg >= goal]
        return sum(self.seconds[: reached[0] + 1]) if reached else None


def folder_of(data: str) -> Path:
    """Return the folder of a public data set; it need not be there."""
    return Path(os.environ.get("TOWERS_DATA") or ROOT.parent / "shared" / "data") / data


def is_there(data: str) -> bool:
    """Whether a public data set is there; if not, say so and how to mend it."""
    found = (folder_of(data) / "interactions.parquet").is_file()
    if not found:
        print(f"{data}: left out, there is no {folder_of(data)}; set TOWERS_DATA to the folder of the public data sets")
    return found


def read(data: str, towers: dict[str, Any], training: dict[str, Any]) -> Task:
    """Read the interactions of a data set, in the order of `position`, and hold out each user's last two items."""
    features = {
        "interactions": "interactions.parquet",
        "columns": {"position": "position"},
        "max_history": LENGTHS[data],
    }
    config = RunConfig.model_validate({"features": features, "towers": towers, "training": training})
    tables = read_tables(config.features, folder_of(data))
    sequences = tables.interactions.sequences(tables.catalog)
    return Task(config, tables, leave_one_out(sequences, len(tables.catalog)))


def spread(values: Sequence[float], form: str) -> str:
    """Return the mean and, after ±, the standard deviation."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form}}"


def processor() -> str:
    """Return what the processor is called."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a processor")


def run(words: Sequence[str], threads: int) -> dict[str, Any]:
    """Run a program in the environment that `towers` gives itself, and return the JSON of its last line."""
    environment = prepared_environment({**os.environ, "OMP_NUM_THREADS": str(threads)})
    ended = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def measure(task: Task, *, after_each: bool = False) -> Measured:
    """Train for the epochs of the settings and return what it took; the steps are as large as asked, however many.

    Args:
        task: What is learned.
        after_each: Whether to measure N@10 after each epoch, which stops training early as in use.
    """
    config = task.config
    featurizer = Featurizer.fit(Schema.from_config(config.features), task.tables.catalog, None, task.split.train)
    data = TrainingData.prepare(task.split.train, task.tables.catalog, None, featurizer)
    ends: list[float] = []
    steps: list[int] = []
    after: list[float] = []
    paused = 0.0

    def validate(model: TwoTower) -> float:
        nonlocal paused
        began = time.perf_counter()
        towers = TwoTowerRecommender(model, featurizer, data.item_features, None, config.features.max_history)
        after.append(task.ndcg(towers))
        paused += time.perf_counter() - began
        return after[-1]

    def look(progress: Progress, measured: dict[str, float]) -> None:
        ends.append(time.perf_counter() - paused)
        steps.append(progress.batch)

    built = build(config, data, torch.device("cpu"))
    trainer = Trainer(built, validate=validate if after_each else None, on_epoch=look, quiet=True)
    trainer.batches.batch_size = config.training.batch_size
    dealt = sum(len(batch.item_rows) - len(batch.users) for batch in trainer.batches.epoch(0))
    assert dealt == task.num_positions, "an epoch of ours is not what the rival learns from"
    began = time.perf_counter()
    model = trainer.fit()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    learned = TrainedModel(model, data, trainer.progress, ends[-1] - began)
    seconds = [end - before for before, end in zip([began, *ends[:-1]], ends, strict=True)]
    ndcg = task.ndcg(learned.recommender(config.features.max_history))
    return Measured(seconds, steps[-1], peak, ndcg, after)
