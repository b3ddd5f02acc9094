"""An index with the items that arrived since it was made: searched beside it, and taken together.

The index itself stays as it is. New vectors are few and are all compared; rows of the index that no longer hold are
passed over. What both find was scored alike (`serving.search.results.rank`), so that it merges exactly.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from features.sequences.ragged import offsets_of
from serving import deadline
from serving.search.brute_force import BruteForce
from serving.search.faiss_index import ItemIndex
from serving.search.results import ROUNDING, AllowedItems, ExcludedPairs, Hits, merged
from serving.search.vectors import StackedVectors

IndexedParts = MutableMapping[AllowedItems, AllowedItems]


@dataclass(frozen=True)
class DeltaIndex:
    """An index, more rows after its own, and which rows hold.

    Attributes:
        base: The index.
        tail: The unit vectors of the rows after its own, `[more, width]`.
        holds: Which of those hold, `[more]`.
        buried: The rows of the index that hold, where many do not. None: all but `gone` do.
        gone: Those of them that do not hold any longer.
        heads: What is known of the part of a filter within the index; one that is not there is worked out.
    """

    base: ItemIndex
    tail: Float32[np.ndarray, "more width"]
    holds: Bool[np.ndarray, " more"]
    buried: AllowedItems | None
    gone: Int64[np.ndarray, " gone"]
    heads: IndexedParts = field(default_factory=WeakKeyDictionary)

    def __len__(self) -> int:
        """Return the number of rows, those that do not hold included."""
        return len(self.base) + len(self.tail)

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return self.base.width

    @property
    def is_exact(self) -> bool:
        """Whether the result is the true one by construction."""
        return self.base.is_exact

    @cached_property
    def vectors(self) -> StackedVectors:
        """The vectors by row."""
        return StackedVectors(self.base.vectors, self.tail)

    def search(
        self,
        queries: Float32[np.ndarray, "users width"],
        k: int,
        excluded_rows: np.ndarray | None = None,
        excluded_offsets: np.ndarray | None = None,
        eligible: AllowedItems | None = None,
        closed: Bool[np.ndarray, " items"] | None = None,
    ) -> Hits:
        """Return what `ItemIndex.search` would, if it held the rows that hold and no others; same arguments."""
        closed_head = None if closed is None else closed[: len(self.base)]
        if not len(self.tail) and not len(self.gone) and self.buried is None:
            found = None if eligible is None else self.heads.get(eligible, eligible)
            return self.base.search(queries, k, excluded_rows, excluded_offsets, found, closed_head)
        if excluded_rows is None or excluded_offsets is None:
            excluded_rows, excluded_offsets = np.zeros(0, np.int64), np.zeros(len(queries) + 1, np.int64)
        is_new = excluded_rows >= len(self.base)
        head_rows, head_offsets = _of_each(excluded_rows, excluded_offsets, ~is_new, self.gone)
        head = self.base.search(queries, k, head_rows, head_offsets, self._head(eligible), closed_head)
        may = self.holds if eligible is None else self.holds & eligible.mask[len(self.base) :]
        may = may if closed is None else may & ~closed[len(self.base) :]
        if not may.any():
            return head
        tail_rows, tail_offsets = _of_each(excluded_rows - len(self.base), excluded_offsets, is_new)
        return self._merged(head, self._compared(queries, k, tail_rows, tail_offsets, AllowedItems(may)), k)

    def confirms(
        self, query: Float32[np.ndarray, " width"], rows: Int32[np.ndarray, " best"], least: np.float32
    ) -> bool:
        """Return whether rows of the index are still a user's best: all hold, and nothing new comes near the last.

        Args:
            query: The user's unit vector.
            rows: What the index found for it, best first.
            least: The score of the last.
        """
        if (self.buried is not None and not self.buried.mask[rows].all()) or np.isin(rows, self.gone).any():
            return False
        return not np.any(self.holds & (self.tail @ query >= least - ROUNDING))

    def _head(self, eligible: AllowedItems | None) -> AllowedItems | None:
        if eligible is None:
            return self.buried
        found = self.heads.get(eligible)
        if found is None:
            mask = eligible.mask[: len(self.base)]
            found = AllowedItems(mask if self.buried is None else mask & self.buried.mask)
        return found

    def _compared(self, queries: np.ndarray, k: int, rows: np.ndarray, offsets: np.ndarray, may: AllowedItems) -> Hits:
        """Return the best of the rows after the index's own."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        excluded = ExcludedPairs.of(rows, offsets, len(queries), len(self.tail), may)
        needed = np.minimum(k, len(may) - excluded.counts)
        best = BruteForce(self.tail).best(queries, np.arange(len(queries)), needed, excluded, may)
        return Hits.join(list(best))

    def _merged(self, head: Hits, tail: Hits, k: int) -> Hits:
        found = []
        for user in deadline.watched(range(len(head.offsets) - 1)):
            new_rows, new_scores = tail.of(user)
            rows, scores = merged([head.of(user), (new_rows + len(self.base), new_scores)])
            found.append((rows[:k], scores[:k]))
        return Hits.join(found)


def _of_each(
    rows: np.ndarray, offsets: np.ndarray, kept: np.ndarray, more: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return each user's rows as far as they are kept, and `more` for everyone; with where each user's begin."""
    num_users = len(offsets) - 1
    users = np.repeat(np.arange(num_users), np.diff(offsets))[kept]
    rows = rows[kept]
    if more is None or not len(more):
        return rows, offsets_of(np.bincount(users, minlength=num_users))
    order = np.argsort(np.concatenate([users, np.repeat(np.arange(num_users), len(more))]), kind="stable")
    counts = np.bincount(users, minlength=num_users) + len(more)
    return np.concatenate([rows, np.tile(more, num_users)])[order], offsets_of(counts)
