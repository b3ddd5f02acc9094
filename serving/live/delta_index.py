"""Searches an index together with the items that arrived after it was built.

The index is not changed. New vectors are few and are searched by brute force; rows of the index that are not live are
left out. Both results are scored in the same way (`serving.search.results.rank`), so merging them is exact.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float32, Int64

from features.sequences.ragged import Ragged
from serving import deadline
from serving.search.brute_force import BruteForce
from serving.search.levels import SearchTask
from serving.search.results import ROUNDING, AllowedItems, Hits, merged
from serving.search.searcher import ItemSearch
from serving.search.vectors import StackedVectors

IndexedParts = MutableMapping[AllowedItems, AllowedItems]


@dataclass(frozen=True)
class DeltaIndex:
    """An index, further rows after its own, and which rows are live.

    Attributes:
        base: Searches the index.
        vectors: The unit vectors of all rows: the index's, then the new ones.
        is_live: Which of the new rows are live, `[new]`.
        tombstones: The live rows of the index, if many are not live. None: all rows except `deleted` are live.
        deleted: Further rows of the index that are not live, besides those that `tombstones` leaves out.
        indexed_parts: Cache, by filter: its rows within the index.
    """

    base: ItemSearch
    vectors: StackedVectors
    is_live: Bool[np.ndarray, " new"]
    tombstones: AllowedItems | None
    deleted: Int64[np.ndarray, " deleted"]
    indexed_parts: IndexedParts = field(default_factory=WeakKeyDictionary)

    def __len__(self) -> int:
        """Return the number of rows, those that are not live included."""
        return len(self.base) + len(self.vectors.tail)

    @property
    def is_exact(self) -> bool:
        """Whether results are exact, as with brute force."""
        return self.base.is_exact

    def search(
        self,
        queries: Float32[np.ndarray, "users dim"],
        k: int,
        excluded: Ragged | None = None,
        allowed: AllowedItems | None = None,
        closed: Bool[np.ndarray, " items"] | None = None,
    ) -> Hits:
        """Return what an index of only the live rows would find; see `Searcher.search`."""
        num_indexed = len(self.base)
        closed_in_index = None if closed is None else closed[:num_indexed]
        if not len(self.vectors.tail) and not len(self.deleted) and self.tombstones is None:
            found = None if allowed is None else self.indexed_parts.get(allowed, allowed)
            return self.base.search(queries, k, excluded, found, closed_in_index)
        excluded = Ragged.empty(len(queries)) if excluded is None else excluded
        is_new = excluded.values >= num_indexed
        in_index = excluded.keep(~is_new).and_each(self.deleted)
        indexed = self.base.search(queries, k, in_index, self._in_index(allowed), closed_in_index)
        may = self.is_live if allowed is None else self.is_live & allowed.mask[num_indexed:]
        may = may if closed is None else may & ~closed[num_indexed:]
        if not may.any():
            return indexed
        among_new = excluded.keep(is_new)
        new = self._new_best(queries, k, Ragged(among_new.offsets, among_new.values - num_indexed), AllowedItems(may))
        return self._merged(indexed, new, k)

    def confirms(self, query: Float32[np.ndarray, " dim"], rows: np.ndarray, least: np.float32) -> bool:
        """Return whether rows are still a user's best: all are live, and no new row may score `least` or more."""
        if (self.tombstones is not None and not self.tombstones.mask[rows].all()) or np.isin(rows, self.deleted).any():
            return False
        return not np.any(self.is_live & (self.vectors.tail @ query >= least - ROUNDING))

    def _in_index(self, allowed: AllowedItems | None) -> AllowedItems | None:
        if allowed is None:
            return self.tombstones
        found = self.indexed_parts.get(allowed)
        if found is None:
            mask = allowed.mask[: len(self.base)]
            found = AllowedItems(mask if self.tombstones is None else mask & self.tombstones.mask, allowed.conditions)
        return found

    def _new_best(self, queries: np.ndarray, k: int, excluded: Ragged, may: AllowedItems) -> Hits:
        """Return the best of the new rows."""
        tail = self.vectors.tail
        return SearchTask.of(queries, k, excluded, may, len(tail)).compared(BruteForce(tail))

    def _merged(self, indexed: Hits, new: Hits, k: int) -> Hits:
        found = []
        for user in deadline.watched(range(len(indexed))):
            new_rows, new_scores = new.of(user)
            rows, scores = merged([indexed.of(user), (new_rows + len(self.base), new_scores)])
            found.append((rows[:k], scores[:k]))
        return Hits.join(found)
