"""The items that were popular lately."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from features.sequences.sequences import UNKNOWN_TIME, Queries
from features.sequences.timeline import Timeline
from features.values.times import SECONDS_PER_DAY
from training.evaluation.baselines.baseline import BaselineData, LeftOutError
from training.evaluation.baselines.tuning import Grid

DAYS = Grid((1, 3, 7, 14, 30, 90), 7, lowest=1 / 24, highest=3_650)


class RecentPopularity:
    """Recommends the items with the most events in the last days.

    `score(i) = events of i in [t - days, t)`; items with equally many are ordered by their events in the training data.
    There are two variants. With t the time of the question, what others did in the evaluated period counts as far as it
    is earlier than the question, which a service with a live log knows. With t the end of the training data, all users
    get the same and no log is needed.
    """

    def __init__(
        self, name: str, timeline: Timeline, earlier: Float32[np.ndarray, "items"], *, days: float, at: int | None
    ) -> None:
        """Take the events that may be known.

        Args:
            name: In reports.
            timeline: Events by time.
            earlier: Number of training events of each item, `[items]`.
            days: Length of the window.
            at: Where the window ends, Unix seconds; None: at the time of each question.
        """
        self.name = name
        self.days = days
        self._timeline = timeline
        self._at = at
        self._order = earlier / (earlier.max(initial=0) + 1)  # below one, so that it only decides between equals

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the number of events of each item in the window of each question."""
        moments = np.full(len(queries), UNKNOWN_TIME if self._at is None else self._at)
        if self._at is None and queries.times is not None:
            moments = queries.times
        scores = self._timeline.counts(moments, self.days * SECONDS_PER_DAY, len(self._order))
        scores += self._order
        return scores


def prepare_known_at_question(data: BaselineData) -> Callable[..., RecentPopularity]:
    """Return how to fit recent popularity as it is known at the time of each question."""
    if data.split.timeline is None:
        raise LeftOutError("it needs the times of the interactions")
    return _fitter("recent popularity", data, data.split.timeline, at=None)


def prepare_at_training_end(data: BaselineData) -> Callable[..., RecentPopularity]:
    """Return how to fit popularity at the end of the training data."""
    timeline = Timeline.of(data.split.train)
    if timeline is None:
        raise LeftOutError("")  # said of the other variant
    at = int(timeline.times[-1]) + 1 if len(timeline.times) else 0
    return _fitter("popularity (end of training)", data, timeline, at=at)


def _fitter(name: str, data: BaselineData, timeline: Timeline, *, at: int | None) -> Callable[..., RecentPopularity]:
    earlier = np.bincount(data.split.train.item_rows, minlength=data.num_items).astype(np.float32)

    def fit(days: float) -> RecentPopularity:
        return RecentPopularity(name, timeline, earlier, days=days, at=at)

    return fit
