"""What users get of whom nothing is known: popular items, as the service answers them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from features.sequences.sequences import Sequences
from features.sequences.split import Split
from features.sequences.timeline import Timeline
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.baselines.recent_popularity import RecentPopularity
from training.evaluation.baselines.tuning import ndcg_on, sample
from training.evaluation.evaluate import ScoringModel

DAYS = (1.0, 3.0, 7.0, 14.0, 30.0, 90.0, math.inf)
"""Windows to choose from."""
LEAST_QUESTIONS = 20
"""If fewer validation questions are without a history, all of them choose the window."""


def popular_items(
    train: Sequences, num_items: int, days: float | Literal["auto", "all"], timeline: Timeline | None = None
) -> ScoringModel:
    """Return the recommender of popular items.

    Args:
        train: The training data.
        num_items: Size of the catalogue.
        days: As `[features] popular_days`; `auto` is as `all`.
        timeline: The events that are known: of a question, those before it. None: those of the training data, as in an
            index that is made at its end.
    """
    counts = train.item_counts(num_items).astype(np.float32)
    at = None
    if timeline is None and (timeline := Timeline.of(train)) is not None:
        at = int(timeline.times.max(initial=0)) + 1
    if timeline is None or isinstance(days, str):
        return PopularityBaseline(counts)
    return RecentPopularity("popular items", timeline, counts, days=days, at=at)


def choose_popular_days(split: Split) -> float | Literal["all"]:
    """Return the window whose popular items are best for the validation questions without a history.

    They are counted at the end of the training data, as in an index that is made then.
    """
    if Timeline.of(split.train) is None:
        return "all"
    unknown = np.flatnonzero(split.validation.history.lengths == 0)
    asked = split.validation if len(unknown) < LEAST_QUESTIONS else split.validation.take(unknown)
    num_items = len(split.candidates)
    ndcg = ndcg_on(split, sample(asked, num_items))
    best = max(DAYS[::-1], key=lambda days: ndcg(popular_items(split.train, num_items, days)))
    return "all" if math.isinf(best) else best
