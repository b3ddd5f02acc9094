"""The baselines of every evaluation.

Each is fitted on the same training data as the model, with hyperparameters chosen on validation questions, within a
budget of time and memory. All can score for new users, from their history. What the budget or the data does not allow
is left out, and the notes say so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from features.errors import DataError
from features.sequences.sequences import Queries
from features.sequences.split import Split
from training.evaluation.baselines import (
    cease,
    ease,
    ials,
    item_cosine,
    popularity,
    recent_popularity,
    sequential,
    session_knn,
    text_neighbours,
)
from training.evaluation.baselines.baseline import GIB, Baseline, BaselineData, LeftOutError
from training.evaluation.baselines.mix import Mix, choose_mix
from training.evaluation.baselines.tuning import Choice, Grid, ndcg_on, sample, search
from training.evaluation.evaluate import ScoringModel

DAYS = Grid((1, 3, 7, 14, 30, 90), 7, lowest=1 / 24, highest=3_650)
HALF_LIFE = Grid(
    (1, 2, 4, 8, 16, 32, math.inf), math.inf, lowest=0.25, highest=math.inf, unit="events", needs_order=True
)
REGULARISATION = Grid((30, 100, 300, 1_000), 300, lowest=1, highest=100_000, growth=3)

BASELINES = (
    Baseline("popularity", popularity.prepare),
    Baseline("popularity (end of training)", recent_popularity.prepare_at_training_end, {"days": DAYS}),
    Baseline("recent popularity", recent_popularity.prepare_known_at_question, {"days": DAYS}),
    Baseline("item-item cosine", item_cosine.prepare, {"half_life": HALF_LIFE}),
    Baseline(
        "sequential neighbours",
        sequential.prepare,
        {
            "half_life": Grid((0.5, 1, 2, 4), 1, lowest=0.25, highest=64, unit="events", needs_order=True),
            "row_power": Grid((0, 0.5, 1), 0.5, lowest=0, highest=1),
            "column_power": Grid((0, 0.25, 0.5), 0, lowest=0, highest=1),
        },
    ),
    Baseline(
        "session kNN",
        session_knn.prepare,
        {
            "half_life": Grid((1, 2, 4, 8, 16), 4, lowest=0.25, highest=64, unit="events"),
            "neighbours": Grid((128, 256, 512), 256, lowest=16, highest=4096),
        },
    ),
    # The half-life first: its trials need no other weights, so that little time is enough for them.
    Baseline("EASE", ease.prepare, {"half_life": HALF_LIFE, "regularisation": REGULARISATION}),
    Baseline(
        "CEASE",
        cease.prepare,
        {
            "half_life": HALF_LIFE,
            "attribute_weight": Grid((1, 3, 10, 30), 10, lowest=0.1, highest=1_000, growth=3),
            "regularisation": REGULARISATION,
        },
        finds_cold_items=True,
    ),
    Baseline(
        "iALS",
        ials.prepare,
        {
            "confidence": Grid((1, 3, 10, 40), 3, lowest=0.1, highest=1_000),
            "regularisation": Grid((3, 10, 30), 10, lowest=0.1, highest=1_000, growth=3),
            "frequency_power": Grid((0, 0.5, 1), 1, lowest=0, highest=1),
            "factors": Grid((64, 128, 256), 128, lowest=16, highest=512),
        },
        rounds=1,
    ),
    Baseline("TF-IDF", text_neighbours.prepare, {"half_life": HALF_LIFE}, finds_cold_items=True),
)
"""In the order of the report."""


@dataclass(frozen=True)
class Budget:
    """What fitting all baselines may take.

    Attributes:
        seconds: Once they are over, no further hyperparameters are tried. Each baseline has an equal share of what the
            ones before it left; its first fit is made in any case.
        memory_bytes: Most memory for the matrices of one baseline; one that needs more is left out.
    """

    seconds: float = 1_200.0
    memory_bytes: float = 4 * GIB

    @classmethod
    def of_minutes(cls, minutes: float, memory_bytes: float = memory_bytes) -> Budget:
        """Return the budget that `--baseline-minutes` and `baseline_minutes=` name.

        Raises:
            DataError: The minutes are negative.
        """
        if not minutes >= 0:
            raise DataError(f"baseline_minutes: expected a number from 0 on, found {minutes!r}")
        return cls(60 * minutes, memory_bytes)


def fit_baselines(
    split: Split,
    *,
    texts: Sequence[str] | None = None,
    budget: Budget = Budget(),
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[ScoringModel], list[str]]:
    """Fit every baseline that the data and the budget allow, with the best hyperparameters on validation questions.

    Args:
        split: Training data and validation questions.
        texts: What is written of each item, `[items]`, as `item_texts` gives it; None: nothing is.
        budget: What they may take.
        say: Gets a line about each baseline when it is fitted.

    Returns:
        The recommenders, the best mix of two of them at the end, and what a reader of the report should know about
        them, one line each.
    """
    data = BaselineData(split, texts, budget.memory_bytes)
    questions = sample(split.validation, data.num_items)
    clock = _Clock(budget.seconds, len(BASELINES) + 1)
    choices, notes = [], []
    for baseline in BASELINES:
        try:
            choice, found, note = _fitted(baseline, data, questions, clock.share())
        except LeftOutError as reason:
            found = note = f"{baseline.name} is left out: {reason}." if str(reason) else ""
        else:
            choices.append(choice)
        notes.append(note)
        say(f"{clock.elapsed():5,.0f} s  {found or baseline.name}")
    recommenders: list[ScoringModel] = [choice.model for choice in choices]
    if len(recommenders) > 1:
        mix, found, note = _mixed(choices, data, questions, clock.share())
        recommenders.append(mix)
        notes.append(note)
        say(f"{clock.elapsed():5,.0f} s  {found}")
    return recommenders, [note for note in notes if note]


class _Clock:
    """Divides the time of a budget: each step has an equal share of what the steps before it left."""

    def __init__(self, seconds: float, steps: int) -> None:
        self._begun, self._seconds, self._steps = time.monotonic(), seconds, steps

    def elapsed(self) -> float:
        return time.monotonic() - self._begun

    def share(self) -> Callable[[], bool]:
        """Return whether the step that begins now has time left, to be called at any time."""
        begun = self.elapsed()
        deadline = begun + (self._seconds - begun) / self._steps
        self._steps -= 1
        return lambda: self.elapsed() < deadline


def _fitted(
    baseline: Baseline, data: BaselineData, questions: Queries, has_time: Callable[[], bool]
) -> tuple[Choice[ScoringModel], str, str]:
    """Return a baseline with its best hyperparameters, these in a line, and what the report says of them."""
    split = data.split
    fit = baseline.prepare(data)
    can_tune = baseline.finds_cold_items or bool(split.warm_items[questions.target_rows].any())
    grids = {
        name: grid
        for name, grid in baseline.grids.items()
        if can_tune and (split.train.is_ordered or not grid.needs_order)
    }
    fixed = {name: grid.default for name, grid in baseline.grids.items() if name not in grids}
    with _bar(baseline.name) as bar:
        choice = search(
            lambda **settings: fit(**fixed, **settings),
            grids,
            ndcg_on(split, questions, progress=bar),
            rounds=baseline.rounds,
            has_time=has_time,
        )
    settings = fixed | choice.settings
    described = ", ".join(f"{_label(name)} {_value(settings[name], grid)}" for name, grid in baseline.grids.items())
    found = f"{baseline.name}: {described}" if described else ""
    if not grids:
        reason = "" if can_tune else ", not tuned, as training has seen none of the answers"
        return choice, found, f"{found}{reason}." if found else ""
    return choice, found, f"{found}, the best on {len(questions):,} validation questions of {_tried(choice)}"


def _mixed(
    choices: Sequence[Choice[ScoringModel]], data: BaselineData, questions: Queries, has_time: Callable[[], bool]
) -> tuple[Mix, str, str]:
    """Return the best mix of two baselines, in a line what it is, and what the report says of it."""
    most = int(data.memory_bytes / 2 / (4 * data.num_items * len(choices)))
    questions = questions.take(np.arange(len(questions))[:: math.ceil(len(questions) / max(1, most))])
    with _bar(Mix.name) as bar:
        mix, choice, num_pairs = choose_mix(
            [choice.model for choice in choices],
            [choice.ndcg for choice in choices],
            questions,
            ndcg_on(data.split, questions, progress=bar),
            has_time=has_time,
        )
    found = f"{mix.name}: {mix.parts}, standardised scores, the second counting {mix.share:g} against the first"
    return (
        mix,
        found,
        f"{found}, the best of {num_pairs:,} pairs on {len(questions):,} validation questions, with {_tried(choice)}",
    )


def _bar(name: str) -> tqdm[Any]:
    return tqdm(desc=f"{name}, choosing hyperparameters", unit=" trials", leave=False, disable=None)


def _tried(choice: Choice[Any]) -> str:
    """Return which values were tried, and whether the best may lie beyond them."""
    tried = "; ".join(
        f"{_label(name)} {', '.join(f'{value:g}' for value in values)}" for name, values in choice.tried.items()
    )
    if not choice.is_complete:
        return f"{tried} until the time was over."
    ends = [
        _label(name)
        for name, values in choice.tried.items()
        if choice.settings[name] in {values[0], values[-1]} - {0, math.inf}
    ]
    return f"{tried}." + (f" The best {' and '.join(ends)} is the last that may be tried." if ends else "")


def _label(name: str) -> str:
    return name.replace("half_life", "half-life").replace("_", " ")


def _value(value: float, grid: Grid) -> str:
    return f"{value:g} {grid.unit}".rstrip()
