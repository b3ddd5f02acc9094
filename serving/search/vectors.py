"""Tables of vectors by row that are made of others: of an index and of later items, and of leading dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from serving.search.searcher import ItemVectors


@dataclass(frozen=True)
class StackedVectors:
    """The vectors of an index, then those of new items, by row; see `ItemVectors`."""

    head: ItemVectors
    tail: Float32[np.ndarray, "more width"]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of vectors, and their dimension."""
        return self.head.shape[0] + len(self.tail), self.head.shape[1]

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> Float32[np.ndarray, "rows width"]:
        """Return the vectors of rows."""
        rows = np.asarray(rows, dtype=np.int64)
        is_new = rows >= self.head.shape[0]
        if not is_new.any():
            return np.asarray(self.head[rows])
        found = np.empty((len(rows), self.tail.shape[1]), dtype=np.float32)
        found[~is_new] = self.head[rows[~is_new]]
        found[is_new] = self.tail[rows[is_new] - self.head.shape[0]]
        return found


@dataclass(frozen=True)
class LeadingDims:
    """The first dimensions of vectors, by row; see `ItemVectors`."""

    whole: ItemVectors
    dim: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of vectors, and how many dimensions are kept."""
        return self.whole.shape[0], self.dim

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> Float32[np.ndarray, "rows dim"]:
        """Return the vectors of rows."""
        return np.ascontiguousarray(self.whole[rows][:, : self.dim])


def leading_dims(vectors: ItemVectors, dim: int) -> ItemVectors:
    """Return the first `dim` dimensions of vectors; the vectors themselves if they have no more."""
    return vectors if vectors.shape[1] == dim else LeadingDims(vectors, dim)
