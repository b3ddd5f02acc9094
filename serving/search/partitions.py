"""The catalogue divided into partitions of similar items (IVF lists), for filtered searches without brute force.

A filter leaves some items of each partition. They are compared partition by partition, the nearest first, in rounds
that each double the number of compared items; when a round hardly changes the result, the search ends. So a search
costs at most as much as brute force over the allowed items, whatever the filter is and however it correlates with the
user's taste.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64
from safetensors.numpy import save_file

from features.files import mapped
from features.sequences.ragged import offsets_of, ragged_arange
from serving import deadline
from serving.search.results import SLACK, AllowedItems
from serving.search.vectors import ItemVectors

FILE = "partitions.safetensors"
# Number of nearest partitions by which the share of allowed items near a user is estimated.
_NEAR = 16
# Number of allowed items compared in the first round.
_FIRST_ROUND = 1024
# A round that contributes at most this share of the results is the last; measured by at least so many results.
_NEGLIGIBLE = 0.02
_JUDGED = 100
# After this share of the items, if the last round still contributed this share, the rest is compared in one round.
_NOT_PAYING = 0.25


@dataclass(frozen=True)
class Partitions:
    """The partition of each item.

    Attributes:
        centres: The centroid of each partition, `[partitions, dim]`.
        of_item: The partition of each item, `[items]`.
    """

    centres: Float32[np.ndarray, "partitions width"]
    of_item: Int32[np.ndarray, " items"]

    def save(self, path: Path) -> None:
        """Write the partitions to `path`."""
        save_file({"centres": self.centres, "of_item": self.of_item}, path)

    @classmethod
    def load(cls, path: Path) -> Partitions:
        """Return the partitions that `save` wrote to `path`.

        Raises:
            ValueError: The arrays have wrong shapes or types, or a partition does not exist.
        """
        found, _ = mapped(path, "F32", "I32")
        centres, of_item = found["centres"], found["of_item"]
        types_fit = centres.dtype == np.float32 and of_item.dtype == np.int32
        if centres.ndim != 2 or of_item.ndim != 1 or not types_fit:
            raise ValueError(f"partitions of shapes {centres.shape} and {of_item.shape}")
        if len(of_item) and not 0 <= of_item.min() <= of_item.max() < len(centres):
            raise ValueError(f"an item in partition {of_item.max()} of {len(centres)}")
        return cls(centres, of_item)

    @property
    def num_bytes(self) -> int:
        """Memory in bytes."""
        return self.centres.nbytes + 2 * self.of_item.nbytes

    def candidates(
        self,
        vectors: ItemVectors,
        query: Float32[np.ndarray, " width"],
        needed: int,
        allowed: AllowedItems,
    ) -> tuple[Int64[np.ndarray, " candidates"], Float32[np.ndarray, " candidates"], int]:
        """Return slightly more than `needed` allowed rows, which very likely include the best.

        Also returns their scores, in single precision, and the number of items that were compared.

        Args:
            vectors: The items' unit vectors.
            query: The user's unit vector.
            needed: Number of items, at most as many as are allowed.
            allowed: The items that a filter lets through.
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
            news = best.add(some, vectors[some] @ query)
            so_far = int(seen[min(stop, len(seen)) - 1])
            if start and news <= _NEGLIGIBLE and best.is_full:
                break
            pays = so_far < _NOT_PAYING * len(rows) or news < _NOT_PAYING
            start, looked_at = stop, 2 * so_far if pays else len(rows)
        return best.rows, best.scores, so_far

    def shares_near(
        self, queries: Float32[np.ndarray, "users width"], allowed: AllowedItems
    ) -> Float64[np.ndarray, " users"]:
        """Return the share of allowed items in the partitions nearest to each user, 0 to 1."""
        num_near = min(_NEAR, len(self.centres))
        # One by one: the rounding of a matrix product depends on the number of its rows.
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
    def _order(self) -> tuple[Int32[np.ndarray, " items"], Int64[np.ndarray, " partitions_plus_1"]]:
        """The rows of the catalogue, sorted by partition, and the start of each partition."""
        order = np.argsort(self.of_item, kind="stable").astype(np.int32)
        return order, offsets_of(np.bincount(self.of_item, minlength=len(self.centres)))

    @cached_property
    def _known(self) -> WeakKeyDictionary[AllowedItems, tuple[np.ndarray, np.ndarray]]:
        return WeakKeyDictionary()

    def _arranged(self, allowed: AllowedItems) -> tuple[np.ndarray, np.ndarray]:
        """Return the allowed rows, sorted by partition, and the start of each partition; cached by filter."""
        found = self._known.get(allowed)
        if found is None:
            order, _ = self._order
            rows = order[allowed.mask[order]].astype(np.int64)
            counts = np.bincount(self.of_item[rows], minlength=len(self.centres))
            found = self._known[allowed] = rows, offsets_of(counts)
        return found


class _Best:
    """The best rows so far, of which `add` returns the share of new ones."""

    def __init__(self, kept: int, judged: int) -> None:
        self._kept = max(kept, judged)
        self._judged = judged
        self.rows = np.zeros(0, dtype=np.int64)
        self.scores = np.zeros(0, dtype=np.float32)

    @property
    def is_full(self) -> bool:
        return len(self.rows) == self._kept

    def add(self, rows: np.ndarray, scores: np.ndarray) -> float:
        """Add rows, and return their share of the best."""
        num_old = len(self.rows)
        all_rows, all_scores = np.concatenate([self.rows, rows]), np.concatenate([self.scores, scores])
        if len(all_rows) > self._kept:
            best = np.argpartition(-all_scores, self._kept - 1)[: self._kept]
        else:
            best = np.arange(len(all_rows))
        self.rows, self.scores = all_rows[best], all_scores[best]
        judged = best[np.argsort(-self.scores)[: self._judged]]
        return float(np.mean(judged >= num_old)) if len(judged) else 0.0
