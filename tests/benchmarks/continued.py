"""Is a model that is continued every day as good as one that is trained from nothing, and at what cost?

    python tests/benchmarks/continued.py run.toml [--days 30] [--every 5] [--ahead 5] [--before 0] [--set ...]

The last days of the interactions are gone through one by one, and at the end of each a model continues the one of the
day before. At the end of every fifth day (`--every`) another is trained from nothing on all interactions so far. Both,
and the model of the beginning as it was (`left`), are asked for the new items of each user on the next five days
(`--ahead`), with the history up to then, all items ranked. What is trained on ends before the questions are asked.
`--before 30` ends 30 days earlier: settings are chosen there, and judged on days that chose nothing.

`old` are questions of users who were there at the beginning, about items that were there at the beginning: what a
continued model may have forgotten. Time is that of the processor in `fit` and `continue_fit`, for one day each; tables
are read before, and neither a report nor baselines are made, which take longer after a training from nothing. Intervals
are over the users.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped

from features.errors import DataError
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import Split, window_questions
from features.sequences.trained_events import TrainedEvents
from features.tables.tables import SECONDS_PER_DAY, Tables, read_tables
from towers.bundle.continuation import Continuation
from towers.warnings_filter import quiet_imports
from training.config import RunConfig, read_run_config
from training.evaluation.evaluate import Evaluation, evaluate
from training.evaluation.intervals import Answered, Resampled
from training.evaluation.report import PRIMARY_METRIC
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.loop.continuation import Origin, continue_fit
from training.loop.fit import TrainedModel, fit
from training.tasks.protocols import early_stopping_split

CPU = torch.device("cpu")
CONTINUED, ANEW, LEFT = range(3)
WAYS = ("continued", "from nothing", "left")


@dataclass(frozen=True)
class Day:
    """One day: what is known at its end, and what is asked then.

    Attributes:
        end: Unix seconds.
        known: The interactions before.
        questions: Asked at the end, about the days ahead. None: nothing is compared.
    """

    end: int
    known: Sequences
    questions: Queries | None


@dataclass(frozen=True)
class Answers:
    """N@10 of some questions.

    Attributes:
        users: Who asks.
        columns: By way, in the order of `WAYS`.
    """

    users: Shaped[np.ndarray, "questions"]
    columns: Float[np.ndarray, "questions ways"]

    @classmethod
    def of(cls, found: Sequence[Evaluation | None]) -> Answers:
        """Return the answers of evaluations by way, on the same questions; None where there are no questions."""
        some = [one for one in found if one is not None]
        if not some:
            return cls(np.zeros(0, dtype=object), np.zeros((0, len(WAYS))))
        return cls(some[0].users, np.stack([one.per_question[PRIMARY_METRIC] for one in some], axis=1))

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Return the answers of several days."""
        return cls(np.concatenate([one.users for one in parts]), np.concatenate([one.columns for one in parts]))


@dataclass(frozen=True)
class Measured:
    """What one day gave.

    Attributes:
        seconds: Processor seconds by way, 0 where nothing was trained from nothing.
        answers: All, and those about what was there at the beginning; empty where nothing is compared.
    """

    seconds: tuple[float, float]
    answers: tuple[Answers, ...] = ()


def days_of(
    sequences: Sequences, count: int, every: int, ahead: int, before: int, seen_items: SeenItems
) -> Iterator[Day]:
    """Yield the day to begin with, and the days after it, the last of them `ahead + before` days before the end.

    Raises:
        DataError: There are no times, or not so many days.
    """
    if sequences.times is None:
        raise DataError("days need the time of every interaction; name the column in [features.columns] timestamp")
    last = (int(sequences.times.max()) // SECONDS_PER_DAY + 1 - ahead - before) * SECONDS_PER_DAY
    first = last - count * SECONDS_PER_DAY
    if first <= sequences.times.min():
        raise DataError(f"--days {count}: the interactions end after fewer days; ask for fewer")
    for number in range(count + 1):
        end = first + number * SECONDS_PER_DAY
        known = sequences.keep(sequences.times < end)
        asked = window_questions(sequences, end, end + ahead * SECONDS_PER_DAY, seen_items)
        is_compared = number > 0 and number % every == 0
        yield Day(end, known.take(np.flatnonzero(known.lengths)), asked if is_compared else None)


def origin_of(learned: TrainedModel) -> Origin:
    """Return what a trained model would keep in its bundle to be continued."""
    assert learned.table_states is not None, "one process trained it"
    kept = Continuation(TrainedEvents.of(learned.data.train), learned.table_states)
    return Origin(learned.model, learned.data.featurizer, kept)


def measure(config: RunConfig, tables: Tables, days: Iterator[Day]) -> Iterator[Measured]:
    """Yield what was measured of each day after the first, whose model is the beginning."""
    first = next(days)
    beginning = origin = origin_of(fit(config, tables, _split(config, first, tables), device=CPU))
    for day in days:
        split = _split(config, day, tables)
        began = time.process_time()
        continued = continue_fit(config, tables, split.train, origin, device=CPU)
        seconds = time.process_time() - began
        origin = origin_of(continued)
        if day.questions is None:
            yield Measured((seconds, 0.0))
            continue
        began = time.process_time()
        anew = fit(config, tables, split, device=CPU)
        seconds_anew = time.process_time() - began
        ways = (continued.model, anew.model, beginning.model)
        featurizers = (continued.data.featurizer, anew.data.featurizer, beginning.featurizer)
        models = [
            TwoTowerRecommender(
                model,
                featurizer,
                featurizer.item_features(tables.catalog),
                tables.users,
                config.features.max_history,
                split.timeline,
            )
            for model, featurizer in zip(ways, featurizers, strict=True)
        ]
        found = [_evaluate(one, day.questions, split) for one in models]
        is_old = _are_old(day.questions, first.known)
        yield Measured((seconds, seconds_anew), (Answers.of(found), Answers.of([one.only(is_old) for one in found])))


def _split(config: RunConfig, day: Day, tables: Tables) -> Split:
    return early_stopping_split(config, day.known, len(tables.catalog))


def _evaluate(model: TwoTowerRecommender, questions: Queries, split: Split) -> Evaluation:
    candidates = np.ones(len(split.candidates), dtype=bool)
    return evaluate(model, questions, candidates, seen_items=split.seen_items, cutoffs=(10,), with_coverage=False)


def _are_old(questions: Queries, beginning: Sequences) -> np.ndarray:
    """Return which targets are items that were there at the beginning, of users who were."""
    is_known = np.isin(questions.history.user_ids, beginning.user_ids)
    is_old: np.ndarray = np.isin(questions.target_rows, beginning.item_rows)
    return is_old & np.repeat(is_known, np.diff(questions.target_offsets))


def lines(days: Sequence[Measured]) -> list[str]:
    """Return what the days say together."""
    continued = np.mean([day.seconds[CONTINUED] for day in days])
    anew = np.mean([day.seconds[ANEW] for day in days if day.answers])
    compared = [day.answers for day in days if day.answers]
    every, old = (_quality(Answers.joined(answers)) for answers in zip(*compared, strict=True))
    seconds = (
        f"continued {continued:.1f}, from nothing {anew:.1f}, ratio {continued / anew:.3f} ({len(days)} days, "
        f"{len(compared)} compared)"
    )
    return [f"all: {every}", f"old: {old}", f"processor seconds a day: {seconds}"]


def _quality(answers: Answers) -> str:
    if not len(answers.users):
        return "no questions"
    resampled = Resampled.of([Answered(list(answers.columns.T), answers.users)])
    draws, means = resampled.draws[:, 0], answers.columns.mean(axis=0)
    low, high = np.quantile(draws[:, CONTINUED] / np.maximum(draws[:, ANEW], 1e-12), [0.025, 0.975])
    named = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(WAYS, means, strict=True))
    return (
        f"N@10 {named}; continued / from nothing {means[CONTINUED] / max(means[ANEW], 1e-12):.3f} ({low:.3f} to "
        f"{high:.3f}), left / from nothing {means[LEFT] / max(means[ANEW], 1e-12):.3f} ({len(answers.users):,} "
        "questions)"
    )


def main() -> None:
    """Go through the days, and print each and what they say together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--ahead", type=int, default=5)
    parser.add_argument("--before", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    quiet_imports()
    config = read_run_config(given.settings, (*given.overrides, f"training.seed={given.seed}"))
    tables = read_tables(config.features, given.settings.parent)
    sequences = tables.interactions.sequences(tables.catalog)
    seen_items = SeenItems.of(config.features.recommend_seen)
    days = days_of(sequences, given.days, given.every, given.ahead, given.before, seen_items)
    found: list[Measured] = []
    for number, day in enumerate(measure(config, tables, days), start=1):
        found.append(day)
        print(f"day {number:2d}: continued in {day.seconds[CONTINUED]:.1f} processor seconds", flush=True)
        if day.answers:
            print("\n".join(lines(found)), flush=True)


if __name__ == "__main__":
    main()
