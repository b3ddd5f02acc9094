"""Popular items: the fallback for unknown users.

Counts may grow while requests are answered: the order of unchanged items is computed once, and changed items are merged
into it by each request.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from features.sequences.sequences import Sequences
from features.values.times import SECONDS_PER_DAY
from serving.search.results import ScoredRows


def popularity_of(histories: Sequences, num_items: int, days: float = math.inf) -> Float64[np.ndarray, " items"]:
    """Return the number of recent interactions of each item; its interactions at any time add less than one.

    Args:
        histories: All interactions.
        num_items: Size of the catalogue.
        days: How long before the newest of them an interaction is recent; inf, or no times: always.

    Example:
        >>> times = np.array([0, 86_400 * 9, 86_400 * 10])
        >>> one = Sequences(np.array([7]), np.array([0, 3]), np.array([0, 1, 1]), times, is_ordered=True)
        >>> popularity_of(one, num_items=3, days=2).tolist()
        [0.3333333333333333, 2.6666666666666665, 0.0]
    """
    counts = histories.item_counts(num_items).astype(np.float64)
    if histories.times is None or math.isinf(days) or not len(histories.times):
        return counts
    is_recent = histories.times > histories.times.max() - days * SECONDS_PER_DAY
    recent = np.bincount(histories.item_rows[is_recent], minlength=num_items)
    return np.asarray(recent + counts / (counts.max() + 1))


class ItemPopularity:
    """The items by their number of interactions; safe to use from several threads."""

    def __init__(self, counts: Float64[np.ndarray, " items"], order: np.ndarray | None = None) -> None:
        """Sort the items of a catalogue.

        Args:
            counts: Number of interactions of each item, by row; see `popularity_of`.
            order: The rows by count, the highest first, ties in ascending order. None: it is computed.
        """
        self._counts = counts
        self._num_rows = len(counts)
        self._total = float(counts.sum())
        self._order = np.lexsort((np.arange(len(counts)), -counts)) if order is None else order
        self._unchanged = self._order
        self._changed: dict[int, None] = {}
        self._num_settled = 0
        self._lock = threading.Lock()

    def growing(self) -> ItemPopularity:
        """Return a copy whose counts may grow."""
        return ItemPopularity(self._counts.copy(), self._order)

    def best(self, depth: int, excluded: np.ndarray, may: Bool[np.ndarray, " items"] | None = None) -> ScoredRows:
        """Return the rows with the most interactions, and their shares of these interactions.

        Args:
            depth: Number of rows.
            excluded: Rows to leave out.
            may: Which rows are allowed; rows beyond its end are not. None: all.
        """
        with self._lock:
            parts, counts, total = self._parts(), self._counts, max(1, self._total)
        if may is not None:
            parts = [part[part < len(may)] for part in parts]
            parts = [part[may[part]] for part in parts]
        rows = parts[0][: depth + len(excluded)]
        if len(parts[1]):
            rows = np.concatenate([rows, parts[1]])
            rows = rows[np.lexsort((rows, -counts[rows]))][: depth + len(excluded)]
        rows = rows[~np.isin(rows, excluded)][:depth]
        return rows, (counts[rows] / total).astype(np.float32)

    def shares(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
        """Return each row's share of these interactions, 0 to 1."""
        return np.asarray((self._counts[rows] / max(1, self._total)).astype(np.float32))

    def of(self, row: int) -> float:
        """Return the number of interactions of an item."""
        return float(self._counts[row])

    @property
    def greatest_share(self) -> float:
        """The greatest of these shares; 0 without items."""
        return float(self.shares(self._order[:1]).max(initial=0))

    def count(self, row: int, times: int = 1) -> None:
        """Count `times` more interactions with an item."""
        with self._lock:
            self._counts[row] += times
            self._total += times
            self._changed[row] = None

    def remove(self, row: int) -> None:
        """Remove an item's interactions from the total; callers of `best` must exclude it by `may`."""
        with self._lock:
            self._total -= float(self._counts[row])

    def append(self, count: float) -> None:
        """Add an item with `count` interactions at the end."""
        with self._lock:
            if self._num_rows == len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros(max(64, self._num_rows))])
            self._counts[self._num_rows] = count
            self._total += count
            self._changed[self._num_rows] = None
            self._num_rows += 1

    def _parts(self) -> list[np.ndarray]:
        """Return the rows whose count never changed, in order, and the others."""
        changed = np.fromiter(self._changed, dtype=np.int64, count=len(self._changed))
        if len(changed) != self._num_settled:
            self._unchanged = self._unchanged[~np.isin(self._unchanged, changed[self._num_settled :])]
            self._num_settled = len(changed)
        return [self._unchanged, changed]
