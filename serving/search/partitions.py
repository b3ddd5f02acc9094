"""The catalogue divided into regions of items that are alike: how filtered items are found without comparing them all.

Any filter cuts each region down to its allowed items. They are compared region by region, the nearest first, in rounds
that each look at as many items as all before it; when a round changes next to nothing, the rest would change less, and
the search ends. So it costs at most what comparing every allowed item costs, whatever the filter lets through and
however it is related to the taste of the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64
from safetensors.numpy import load_file, save_file

from features.sequences.ragged import offsets_of, ragged_arange
from serving import deadline
from serving.search.results import SLACK, AllowedItems

FILE = "regions.safetensors"
# Regions that say how much is allowed near a user.
_NEAR = 16
# Eligible items looked at before the first question whether that was enough.
_FIRST_ROUND = 1024
# A round that brings less than this share of the results is the last; judged by this many results, if fewer are asked.
_NEXT_TO_NOTHING = 0.02
_JUDGED = 100
# Where this share was looked at and the last round still brought this much, all the rest is looked at in one round.
_NOT_PAYING = 0.25


@dataclass(frozen=True)
class Partitions:
    """Which region each item is in.

    Attributes:
        centres: Where each region lies, `[regions, width]`.
        of_item: The region of each item, `[items]`.
    """

    centres: Float32[np.ndarray, "regions width"]
    of_item: Int32[np.ndarray, " items"]

    def save(self, path: Path) -> None:
        """Write the regions to `path`."""
        save_file({"centres": self.centres, "of_item": self.of_item}, path)

    @classmethod
    def load(cls, path: Path) -> Partitions:
        """Return the regions that `save` wrote to `path`.

        Raises:
            ValueError: An item is in none of them.
        """
        found = load_file(path)
        centres, of_item = found["centres"], found["of_item"]
        if centres.ndim != 2 or of_item.ndim != 1 or (centres.dtype, of_item.dtype) != (np.float32, np.int32):
            raise ValueError(f"regions of shapes {centres.shape} and {of_item.shape}")
        if len(of_item) and not 0 <= of_item.min() <= of_item.max() < len(centres):
            raise ValueError(f"an item in region {of_item.max()} of {len(centres)}")
        return cls(centres, of_item)

    @property
    def num_bytes(self) -> int:
        """The memory that they take."""
        return self.centres.nbytes + 2 * self.of_item.nbytes

    def candidates(
        self,
        vectors: Float32[np.ndarray, "items width"],
        query: Float32[np.ndarray, " width"],
        needed: int,
        allowed: AllowedItems,
    ) -> tuple[Int64[np.ndarray, " candidates"], Float32[np.ndarray, " candidates"], int]:
        """Return a little more than `needed` allowed rows, very likely with the best of them among them.

        With them their scores, in single precision, and how many allowed items were compared for it.

        Args:
            vectors: The items' unit vectors.
            query: The user's.
            needed: How many items are wanted, no more than are allowed.
            allowed: What can be found at all.
        """
        rows, starts = self._arranged(allowed)
        sizes = np.diff(starts)
        nearest = np.argsort(-(self.centres @ query))
        nearest = nearest[sizes[nearest] > 0]
        seen = np.cumsum(sizes[nearest])
        best = _Best(needed + SLACK, max(needed, _JUDGED))
        start, so_far, looked_at = 0, 0, max(_FIRST_ROUND, 2 * needed)
        while start < len(nearest):
            deadline.check()
            stop = int(np.searchsorted(seen, looked_at)) + 1
            chosen = nearest[start:stop]
            some = rows[ragged_arange(starts[chosen], sizes[chosen])]
            news = best.add(some, np.take(vectors, some, axis=0) @ query)
            so_far = int(seen[min(stop, len(seen)) - 1])
            if start and news <= _NEXT_TO_NOTHING and best.is_full:
                break
            pays = so_far < _NOT_PAYING * len(rows) or news < _NOT_PAYING
            start, looked_at = stop, 2 * so_far if pays else len(rows)
        return best.rows, best.scores, so_far

    def shares_near(
        self, queries: Float32[np.ndarray, "users width"], allowed: AllowedItems
    ) -> Float64[np.ndarray, " users"]:
        """Return which part of the items in the regions nearest to each user is allowed."""
        num_near = min(_NEAR, len(self.centres))
        # One by one: a product of matrices depends on how many there are.
        near = np.empty((len(queries), len(self.centres)), dtype=np.float32)
        for user, query in enumerate(queries):
            near[user] = self.centres @ query
        nearest = np.argpartition(near, -num_near, axis=1)[:, -num_near:]
        fitting, all_items = (
            np.diff(starts)[nearest].sum(axis=1) for _, starts in (self._arranged(allowed), self._order)
        )
        share: np.ndarray = fitting / np.maximum(1, all_items)
        return share

    @cached_property
    def _order(self) -> tuple[Int32[np.ndarray, " items"], Int64[np.ndarray, " regions_plus_1"]]:
        """The rows of the catalogue region by region, and where each region begins."""
        order = np.argsort(self.of_item, kind="stable").astype(np.int32)
        return order, offsets_of(np.bincount(self.of_item, minlength=len(self.centres)))

    @cached_property
    def _known(self) -> WeakKeyDictionary[AllowedItems, tuple[np.ndarray, np.ndarray]]:
        return WeakKeyDictionary()

    def _arranged(self, allowed: AllowedItems) -> tuple[np.ndarray, np.ndarray]:
        """Return the allowed rows region by region, and where each region begins; remembered with the filter."""
        found = self._known.get(allowed)
        if found is None:
            order, _ = self._order
            rows = order[allowed.mask[order]].astype(np.int64)
            counts = np.bincount(self.of_item[rows], minlength=len(self.centres))
            found = self._known[allowed] = rows, offsets_of(counts)
        return found


class _Best:
    """The best rows so far, and how much of the best is new."""

    def __init__(self, kept: int, judged: int) -> None:
        self._kept = max(kept, judged)
        self._judged = judged
        self.rows = np.zeros(0, dtype=np.int64)
        self.scores = np.zeros(0, dtype=np.float32)

    @property
    def is_full(self) -> bool:
        return len(self.rows) == self._kept

    def add(self, rows: np.ndarray, scores: np.ndarray) -> float:
        """Take in more rows and return the share of the best that they are."""
        num_old = len(self.rows)
        all_rows, all_scores = np.concatenate([self.rows, rows]), np.concatenate([self.scores, scores])
        if len(all_rows) > self._kept:
            best = np.argpartition(-all_scores, self._kept - 1)[: self._kept]
        else:
            best = np.arange(len(all_rows))
        self.rows, self.scores = all_rows[best], all_scores[best]
        judged = best[np.argsort(-self.scores)[: self._judged]]
        return float(np.mean(judged >= num_old)) if len(judged) else 0.0
