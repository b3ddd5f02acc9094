"""Is a model that is continued every day as good as one that is trained from nothing every day, and at what cost?

    python tests/benchmarks/continued.py run.toml [--days 30] [--seeds 1] [--set table.key=value ...]

The last days of the interactions are gone through one by one. At the end of each, one model is trained from nothing on
all interactions so far, and another continues the one of the day before; both are asked for the new items of each user
on the next day, with the history up to then, all items ranked. What is trained on ends before the questions are asked.

Time is that of the processor in `fit` and `continue_fit`: tables are read before, and neither a report nor baselines
are made, which take longer after a training from nothing. The day before the first is trained from nothing for both.
The intervals are over the days, paired; with several seeds over all their days.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from features.errors import DataError
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import Split, window_questions
from features.sequences.trained_events import TrainedEvents
from features.tables.tables import SECONDS_PER_DAY, Tables, read_tables
from towers.bundle.continuation import Continuation
from towers.warnings_filter import quiet_imports
from training.config import RunConfig, read_run_config
from training.evaluation.evaluate import evaluate
from training.evaluation.intervals import Answered, Resampled
from training.evaluation.report import PRIMARY_METRIC
from training.loop.continuation import Origin, continue_fit
from training.loop.fit import TrainedModel, fit
from training.tasks.protocols import early_stopping_split

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Day:
    """One day: what is known at its end, and what is asked about the next one.

    Attributes:
        end: Unix seconds.
        known: The interactions before.
        questions: Asked at the end.
    """

    end: int
    known: Sequences
    questions: Queries


@dataclass(frozen=True)
class Measured:
    """N@10 and processor seconds of one day.

    Attributes:
        quality: Continued, and trained from nothing.
        seconds: Likewise.
    """

    quality: tuple[float, float]
    seconds: tuple[float, float]


def days_of(sequences: Sequences, count: int, seen_items: SeenItems) -> Iterator[Day]:
    """Yield the last days but one before the interactions end, and before these the day to begin with.

    Raises:
        DataError: There are no times, or not so many days.
    """
    if sequences.times is None:
        raise DataError("days need the time of every interaction; name the column in [features.columns] timestamp")
    last = int(sequences.times.max()) // SECONDS_PER_DAY * SECONDS_PER_DAY
    first = last - count * SECONDS_PER_DAY
    if first <= sequences.times.min():
        raise DataError(f"--days {count}: the interactions end after fewer days; ask for fewer")
    for end in range(first, last + 1, SECONDS_PER_DAY):
        known = sequences.keep(sequences.times < end)
        active = known.take(np.flatnonzero(known.lengths))
        yield Day(end, active, window_questions(sequences, end, end + SECONDS_PER_DAY, seen_items))


def origin_of(learned: TrainedModel) -> Origin:
    """Return what a trained model would keep in its bundle to be continued."""
    assert learned.table_states is not None, "one process trained it"
    kept = Continuation(TrainedEvents.of(learned.data.train), learned.table_states)
    return Origin(learned.model, learned.data.featurizer, kept)


def n_at_10(learned: TrainedModel, day: Day, config: RunConfig, tables: Tables, split: Split) -> float:
    """Return the mean N@10 of a day's questions."""
    found = evaluate(
        learned.recommender(config.features.max_history, split.timeline),
        day.questions,
        np.ones(len(tables.catalog), dtype=bool),
        seen_items=split.seen_items,
        cutoffs=(10,),
        with_coverage=False,
    )
    return found.means[PRIMARY_METRIC]


def measure(config: RunConfig, tables: Tables, count: int) -> Iterator[Measured]:
    """Yield what was measured of each day."""
    sequences = tables.interactions.sequences(tables.catalog)
    origin: Origin | None = None
    for day in days_of(sequences, count, SeenItems.of(config.features.recommend_seen)):
        split = early_stopping_split(config, day.known, len(tables.catalog))
        began = time.process_time()
        anew = fit(config, tables, split, device=CPU)
        middle = time.process_time()
        if origin is None:
            origin = origin_of(anew)
            continue
        continued = continue_fit(config, tables, split.train, origin, device=CPU)
        seconds = (time.process_time() - middle, middle - began)
        origin = origin_of(continued)
        quality = tuple(n_at_10(one, day, config, tables, split) for one in (continued, anew))
        yield Measured((quality[0], quality[1]), seconds)


def line(days: list[Measured], seeds: int) -> str:
    """Return what the days say together."""
    quality = np.array([day.quality for day in days])
    seconds = np.array([day.seconds for day in days]).sum(axis=0)
    resampled = Resampled.of([Answered([quality[:, 0], quality[:, 1]], np.arange(len(days)))])
    lead = resampled.interval(0, 1)
    ratios = resampled.draws[:, 0, 0] / np.maximum(resampled.draws[:, 0, 1], 1e-12)
    low, high = np.quantile(ratios, [0.025, 0.975])
    mean = quality.mean(axis=0)
    return (
        f"N@10 continued {mean[0]:.4f}, from nothing {mean[1]:.4f}: {lead.mean:+.4f}, {lead.low:+.4f} to "
        f"{lead.high:+.4f}; ratio {mean[0] / max(mean[1], 1e-12):.3f}, {low:.3f} to {high:.3f}; processor seconds "
        f"{seconds[0]:,.0f} and {seconds[1]:,.0f}, ratio {seconds[0] / max(seconds[1], 1e-12):.3f} "
        f"({len(days)} days in all, {seeds} seed{'s' if seeds > 1 else ''})"
    )


def main() -> None:
    """Go through the days for each seed, and print each and what they say together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    quiet_imports()
    found: list[Measured] = []
    for seed in range(given.seeds):
        config = read_run_config(given.settings, (*given.overrides, f"training.seed={seed}"))
        tables = read_tables(config.features, given.settings.parent)
        for number, day in enumerate(measure(config, tables, given.days), start=1):
            found.append(day)
            print(
                f"seed {seed}, day {number:2d}: N@10 {day.quality[0]:.4f} and {day.quality[1]:.4f}, seconds "
                f"{day.seconds[0]:.1f} and {day.seconds[1]:.1f}",
                flush=True,
            )
        print(line(found, seed + 1), flush=True)


if __name__ == "__main__":
    main()
