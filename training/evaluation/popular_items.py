"""What unknown users get: popular items, as in the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from features.sequences.sequences import Sequences
from features.sequences.split import Split
from features.sequences.timeline import Timeline
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.baselines.recent_popularity import DAYS, RecentPopularity
from training.evaluation.baselines.tuning import ndcg_on, sample, search
from training.evaluation.evaluate import ScoringModel

LEAST_QUESTIONS = 20
"""If fewer validation questions are without a history, all of them choose the window."""


Days = float | Literal["auto", "all"]
"""A value of `[features] popular_days`; `auto` is as `all`."""


def popular_items(
    train: Sequences, num_items: int, days: Days | None, timeline: Timeline | None = None
) -> ScoringModel | None:
    """Return the recommender of popular items; None for a search, whose users are queries.

    Args:
        train: The training data.
        num_items: Size of the catalogue.
        days: Length of the window. None: it is a search.
        timeline: The events that are known: of a question, those before it. None: those of the training data, as in an
            index that is made at its end.
    """
    return None if days is None else _within(train, num_items, timeline)(days)


def choose_popular_days(split: Split) -> float | Literal["all"]:
    """Return the window whose popular items are best for the validation questions without a history.

    They are counted at the end of the training data, as in an index that is made then.
    """
    if split.train.times is None or split.train.folder is not None:
        return "all"
    num_items = len(split.candidates)
    within = _within(split.train, num_items, None)
    unknown = np.flatnonzero(split.validation.history.lengths == 0)
    asked = split.validation if len(unknown) < LEAST_QUESTIONS else split.validation.take(unknown)
    ndcg = ndcg_on(split, sample(asked, num_items))
    best = search(lambda days: within(days), {"days": DAYS}, ndcg)
    return "all" if ndcg(within("all")) >= best.ndcg else float(best.settings["days"])


def _within(train: Sequences, num_items: int, timeline: Timeline | None) -> Callable[[Days], ScoringModel]:
    """Return how to recommend what is popular within so many days; for the arguments see `popular_items`."""
    counts = train.item_counts(num_items).astype(np.float32)
    at = None
    if timeline is None and (timeline := Timeline.of(train)) is not None:
        at = int(timeline.times.max(initial=0)) + 1

    def within(days: Days) -> ScoringModel:
        if timeline is None or isinstance(days, str):
            return PopularityBaseline(counts)
        return RecentPopularity("popular items", timeline, counts, days=days, at=at)

    return within
