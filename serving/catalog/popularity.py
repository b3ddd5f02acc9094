"""How often each item was had: what someone gets of whom nothing is known.

Counts may grow while others ask: the order of the many that did not change is made once, and those that did are put in
their places when somebody asks.
"""

from __future__ import annotations

import threading

import numpy as np
from jaxtyping import Bool, Float32, Int64

from serving.search.results import ScoredRows


class ItemPopularity:
    """The items by how often they were had; safe to use from several threads."""

    def __init__(self, counts: Int64[np.ndarray, " items"], order: np.ndarray | None = None) -> None:
        """Take the counts of a catalogue.

        Args:
            counts: How often each item was had, by row.
            order: The rows by count, the highest first and equal ones in order. None: it is made.
        """
        self._counts = counts
        self._num_rows = len(counts)
        self._total = int(counts.sum())
        self._order = np.lexsort((np.arange(len(counts)), -counts)) if order is None else order
        self._unchanged = self._order
        self._changed: dict[int, None] = {}
        self._num_settled = 0
        self._turn = threading.Lock()

    def growing(self) -> ItemPopularity:
        """Return a copy whose counts may grow."""
        return ItemPopularity(self._counts.copy(), self._order)

    def best(self, depth: int, barred: np.ndarray, may: Bool[np.ndarray, " items"] | None = None) -> ScoredRows:
        """Return the rows that were had most often, and the share of all interactions that each has.

        Args:
            depth: How many.
            barred: Rows that must not be among them.
            may: Whether a row may be; rows beyond its end may not. None: all may.
        """
        with self._turn:
            parts, counts, total = self._parts(), self._counts, max(1, self._total)
        if may is not None:
            parts = [part[part < len(may)] for part in parts]
            parts = [part[may[part]] for part in parts]
        rows = parts[0][: depth + len(barred)]
        if len(parts[1]):
            rows = np.concatenate([rows, parts[1]])
            rows = rows[np.lexsort((rows, -counts[rows]))][: depth + len(barred)]
        rows = rows[~np.isin(rows, barred)][:depth]
        return rows, (counts[rows] / total).astype(np.float32)

    def shares(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
        """Return the share of all interactions that each row has."""
        return np.asarray((self._counts[rows] / max(1, self._total)).astype(np.float32))

    @property
    def greatest_share(self) -> float:
        """The greatest of these shares; 0 where there are no items."""
        return float(self.shares(self._order[:1]).max(initial=0))

    def count(self, row: int, times: int = 1) -> None:
        """Count an item as had so many times more."""
        with self._turn:
            self._counts[row] += times
            self._total += times
            self._changed[row] = None

    def remove(self, row: int) -> None:
        """Let an item's times no longer count; whoever asks says by `may` that it must not be found."""
        with self._turn:
            self._total -= int(self._counts[row])

    def append(self, count: int) -> None:
        """Add an item at the end that was had `count` times."""
        with self._turn:
            if self._num_rows == len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros(max(64, self._num_rows), np.int64)])
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
