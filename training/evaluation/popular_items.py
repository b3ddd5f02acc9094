"""Popular items: what unknown users get, as in the service, and how much better recent popularity is than all-time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Sequences
from features.sequences.split import Split, leave_one_out
from features.sequences.timeline import Timeline
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.baselines.recent_popularity import DAYS, RecentPopularity
from training.evaluation.baselines.tuning import ndcg_on, sample, search
from training.evaluation.evaluate import ScoringModel

LEAST_QUESTIONS = 20
"""If fewer validation questions are without a history, all of them choose the window."""

TREND_GAIN = 2.0
"""How many times the N@10 of all-time popularity recent popularity must have to be proposed as part of the score.

On public data, next item: MovieTweetings 2.2, MovieLens-1M 1.7 (of 0.014), the generated shop 1.2, MovieLens
latest-small 1.0.
"""
TREND_DAYS = (1.0, 7.0, 30.0)
"""Windows that are compared with all time."""
MOST_TREND_QUESTIONS, LEAST_TREND_QUESTIONS = 2_000, 100
"""Maximum number of questions, a sample; and the minimum that says anything."""
MOST_TREND_EVENTS = 2_000_000
"""Of more events only the newest are looked at."""

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


@dataclass(frozen=True)
class PopularityGain:
    """N@10 of popularity, for the last item of each user.

    Attributes:
        recent: Of the events in a window before each question, for the best of `TREND_DAYS`.
        all_time: Of all events but the answers, those after a question included.
        num_questions: How many were asked.
    """

    recent: float
    all_time: float
    num_questions: int

    @property
    def is_clear(self) -> bool:
        """Whether recent popularity is so much better that it should be part of the score."""
        return self.num_questions >= LEAST_TREND_QUESTIONS and self.recent > TREND_GAIN * self.all_time


def popularity_gain(sequences: Sequences, num_items: int, seen_items: SeenItems) -> PopularityGain | None:
    """Return how good recent and all-time popularity are; None without times or questions.

    Args:
        sequences: All interactions, with catalogue rows.
        num_items: Size of the catalogue.
        seen_items: Whether items of the history are recommended again.
    """
    if sequences.times is None or not sequences.num_events:
        return None
    if sequences.num_events > MOST_TREND_EVENTS:
        since = np.partition(sequences.times, -MOST_TREND_EVENTS)[-MOST_TREND_EVENTS]
        sequences = sequences.keep(sequences.times >= since)
    split = leave_one_out(sequences, num_items, seen_items=seen_items, test=False)
    asked = split.validation.sample(MOST_TREND_QUESTIONS, seed=0)
    if not len(asked):
        return None
    within, ndcg = _within(split.train, num_items, split.timeline), ndcg_on(split, sample(asked, num_items))
    return PopularityGain(max(ndcg(within(days)) for days in TREND_DAYS), ndcg(within("all")), len(asked))


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
