"""Features of each candidate for the learned re-ranker: of the item, the user, both, and the retriever's score.

One function makes them, for training and for the service alike. Each is a number, or NaN if it is unknown; all of a
kind are a block of columns, named by `RankFeatures.names`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from towers.rerankers.item_statistics import ItemStatistics
from towers.rerankers.reranker import Shortlist

NEWEST = 20
"""Number of the newest history items for co-occurrence features."""
HALF = 5
"""After so many items, one of a history counts half."""
SPANS = {"day": 86_400, "week": 7 * 86_400, "month": 30 * 86_400}

PAST = 100
"""Maximum number of history items that are read; older ones are ignored."""

_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class RankFeatures:
    """Makes the features of a shortlist.

    Attributes:
        statistics: Statistics of the items.
    """

    statistics: ItemStatistics

    @property
    def names(self) -> list[str]:
        """Name of each column."""
        fixed = [
            "score", "score_below_best", "place",
            "similar_last", "similar_before_last", "similar_newest_mean", "similar_newest_max", "similar_past",
            "follows_last", "follows_newest", "together_last", "together_newest", "together_past",
            "count", *(f"count_{span}" for span in SPANS), "rising", "age_days", "idle_days",
            "history", "idle_user_days", "mainstream", "beyond_mainstream",
        ]  # fmt: skip
        by_value = [f"{name}_{part}" for name in self.statistics.values for part in ("last", "newest")]
        by_number = [f"{name}_{part}" for name in self.statistics.numbers for part in ("value", "beyond_newest")]
        return [*fixed, *by_value, *by_number]

    def of(self, shortlist: Shortlist) -> Float32[np.ndarray, "candidates features"]:
        """Return the features of each candidate."""
        known = shortlist.rows >= 0
        columns = [
            *_retrieval(shortlist),
            *_similarity(shortlist),
            *(_where(known, column) for column in self._of_rows(shortlist, shortlist.rows[known])),
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    def _of_rows(self, shortlist: Shortlist, rows: Int64[np.ndarray, " known"]) -> Iterator[np.ndarray]:
        """Yield the features of the candidates that the statistics have."""
        had = shortlist.history_rows[shortlist.history_rows >= 0]
        past = had[::-1][:PAST]
        newest = past[:NEWEST]
        yield from self._neighbours(past, rows)
        yield from self._popularity(shortlist, newest, rows)
        for values in self.statistics.values.values():
            yield values.shared(newest[:1], rows) if len(newest) else _unknown(rows)
            yield values.shared(newest, rows) if len(newest) else _unknown(rows)
        for numbers in self.statistics.numbers.values():
            yield numbers[rows]
            yield numbers[rows] - _mean(numbers[newest])

    def _neighbours(self, past: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield how much the items follow, and occur together with, the newest history items, newest first."""
        newest = past[:NEWEST]
        one, fading = np.ones(1, np.float32), (0.5 ** (np.arange(len(newest)) / HALF)).astype(np.float32)
        for neighbours in (self.statistics.follows, self.statistics.together):
            yield neighbours.sums(newest[:1], one[: len(newest)], rows)
            yield neighbours.sums(newest, fading, rows)
        yield self.statistics.together.sums(past, np.full(len(past), 1 / max(1, len(past)), np.float32), rows)

    def _popularity(self, shortlist: Shortlist, newest: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the popularity of the items before now, and how it fits the user's history."""
        statistics = self.statistics
        now = statistics.newest + 1 if shortlist.now is None else min(shortlist.now, statistics.newest + 1)
        counts = statistics.counts(rows, now)
        popularity = np.log1p(counts)
        yield popularity
        recent = [counts - statistics.counts(rows, now - seconds) for seconds in SPANS.values()]
        if statistics.has_times:
            yield from map(np.log1p, recent)
            yield np.log((1 + recent[1]) / (1 + recent[2]))
            yield _days(now - statistics.first(rows), counts > 0)
            yield _days(now - statistics.last(rows, counts), counts > 0)
        else:
            for _ in range(len(SPANS) + 3):
                yield _unknown(rows)
        yield np.full(len(rows), np.log1p(len(shortlist.history_rows)))
        yield np.full(len(rows), _idle_days(shortlist))
        mainstream = _mean(np.log1p(statistics.counts(newest, now)))
        yield np.full(len(rows), mainstream)
        yield popularity - mainstream


def _retrieval(shortlist: Shortlist) -> Iterator[np.ndarray]:
    yield shortlist.scores
    yield shortlist.scores.max(initial=-1) - shortlist.scores
    yield np.log2(2 + np.arange(len(shortlist)))


def _similarity(shortlist: Shortlist) -> Iterator[np.ndarray]:
    """Yield how similar the candidates are to the history items."""
    past = shortlist.history_vectors[::-1][:PAST]
    if not len(past):
        yield from (_unknown(shortlist.rows) for _ in range(5))
        return
    similar = shortlist.vectors @ past.T
    yield similar[:, 0]
    yield similar[:, min(1, len(past) - 1)]
    yield similar[:, :NEWEST].mean(axis=1)
    yield similar[:, :NEWEST].max(axis=1)
    yield similar.mean(axis=1)


def _days(seconds: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    """Return seconds as days, on a log scale; NaN if unknown."""
    return np.where(is_known, np.log1p(np.where(is_known, seconds, 0) / _SECONDS_A_DAY), np.nan)


def _idle_days(shortlist: Shortlist) -> float:
    """Return how long ago the newest event was."""
    if shortlist.now is None or shortlist.history_times is None or not len(shortlist.history_times):
        return np.nan
    return float(np.log1p(max(0, shortlist.now - int(shortlist.history_times[-1])) / _SECONDS_A_DAY))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def _unknown(rows: np.ndarray) -> Float32[np.ndarray, " rows"]:
    return np.full(len(rows), np.nan, dtype=np.float32)


def _where(known: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return a column of all candidates from one of those that are known."""
    whole = np.full(len(known), np.nan, dtype=np.float32)
    whole[known] = column
    return whole
