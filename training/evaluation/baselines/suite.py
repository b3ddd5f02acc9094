"""The baselines of every evaluation.

Each is fitted on the same training data as the model, with hyperparameters chosen on validation questions, within a
budget of time and memory. All can score for new users, from their history. What the budget or the data does not allow
is left out, and the notes say so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from features.sequences.split import Split
from training.evaluation.baselines import (
    ease,
    ials,
    item_cosine,
    popularity,
    recent_popularity,
    sequential,
    text_neighbours,
)
from training.evaluation.baselines.baseline import GIB, Baseline, BaselineData, LeftOutError
from training.evaluation.baselines.tuning import Choice, Grid, ndcg_on, sample, search
from training.evaluation.evaluate import ScoringModel

DAYS = Grid((1, 3, 7, 14, 30, 90), 7, lowest=1 / 24, highest=3_650, unit="days")
HALF_LIFE = Grid(
    (1, 2, 4, 8, 16, 32, math.inf), math.inf, lowest=0.25, highest=math.inf, unit="events", needs_order=True
)
REGULARISATION = Grid((30, 100, 300, 1_000), 300, lowest=1, highest=100_000, growth=3)

BASELINES = (
    Baseline("popularity", popularity.prepare),
    Baseline("popularity, newest of training", recent_popularity.prepare_at_training_end, {"days": DAYS}),
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
    Baseline("EASE", ease.prepare, {"regularisation": REGULARISATION, "half_life": HALF_LIFE}),
    Baseline(
        "iALS",
        ials.prepare,
        {
            "confidence": Grid((1, 3, 10, 40), 3, lowest=0.1, highest=1_000),
            "regularisation": Grid((1, 10), 10, lowest=0.1, highest=1_000),
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
        say: Is told how each baseline went, one line each.

    Returns:
        The recommenders, and what a reader of the report should know about them, one line each.
    """
    data = BaselineData(split, texts, budget.memory_bytes)
    end = time.monotonic() + budget.seconds
    recommenders, notes = [], []
    for place, baseline in enumerate(BASELINES):
        begun = time.monotonic()
        deadline = begun + (end - begun) / (len(BASELINES) - place)
        try:
            choice, note = _fitted(baseline, data, deadline)
        except LeftOutError as reason:
            note = f"{baseline.name} is left out: {reason}." if str(reason) else ""
        else:
            recommenders.append(choice.model)
        if note:
            notes.append(note)
            say(f"{note} ({time.monotonic() - begun:,.0f} s)")
    return recommenders, notes


def _fitted(baseline: Baseline, data: BaselineData, deadline: float) -> tuple[Choice[ScoringModel], str]:
    """Return a baseline with its best hyperparameters, and what the report says of them."""
    split, questions = data.split, sample(data.split.validation, data.num_items)
    fit = baseline.prepare(data)
    can_tune = baseline.finds_cold_items or bool(split.warm_items[questions.target_rows].any())
    grids = {
        name: grid
        for name, grid in baseline.grids.items()
        if can_tune and (split.train.is_ordered or not grid.needs_order)
    }
    fixed = {name: grid.default for name, grid in baseline.grids.items() if name not in grids}
    choice = search(
        lambda **settings: fit(**fixed, **settings),
        grids,
        ndcg_on(split, questions),
        rounds=baseline.rounds,
        has_time=lambda: time.monotonic() < deadline,
    )
    if not baseline.grids:
        return choice, ""
    told = f"{baseline.name}: {_settings(baseline, fixed | choice.settings)}"
    if not can_tune:
        return choice, f"{told}, not tuned, as training has seen none of the answers."
    if not grids:
        return choice, f"{told}."
    tried = "; ".join(f"{_label(name)} {_values(values)}" for name, values in choice.tried.items())
    cut = "" if choice.is_complete else " until its share of the time was over"
    edges = [
        _label(name)
        for name, values in choice.tried.items()
        if choice.is_complete and choice.settings[name] in {values[0], values[-1]} - {0, math.inf}
    ]
    at_edge = f" The best {_and(edges)} is the last that may be tried." if edges else ""
    return choice, f"{told}, the best on {len(questions):,} validation questions of {tried}{cut}.{at_edge}"


def _settings(baseline: Baseline, settings: dict[str, float]) -> str:
    return ", ".join(f"{_label(name)} {settings[name]:g} {grid.unit}".rstrip() for name, grid in baseline.grids.items())


def _label(name: str) -> str:
    return name.replace("half_life", "half-life").replace("_", " ")


def _values(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)
