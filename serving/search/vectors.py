"""Tables of vectors by row: in half precision; of an index and of later items; of leading dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float16, Float32

BLOCK = 1 << 16
"""Number of vectors that are read at a time where all of them are."""


class ItemVectors(Protocol):
    """Unit vectors by row of the catalogue, `[items, dim]`: a numpy array, or something that is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of items and dimension."""

    def __len__(self) -> int:
        """Return the number of items."""

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray, /) -> Float32[np.ndarray, "*rows dim"]:
        """Return the vectors of some rows."""


@dataclass(frozen=True)
class HalfVectors:
    """Vectors in half precision (float16), which become float32 when they are read; see `ItemVectors`.

    Attributes:
        stored: The vectors, perhaps mapped from a file.
    """

    stored: Float16[np.ndarray, "items width"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of vectors, and their dimension."""
        return self.stored.shape

    def __len__(self) -> int:
        """Return the number of vectors."""
        return self.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> Float32[np.ndarray, "*rows width"]:
        """Return the vectors of rows."""
        import torch  # here, as `--help` needs this module; it converts twenty times faster than numpy

        return np.asarray(torch.from_numpy(self.stored[rows]).float().numpy())


@dataclass(frozen=True)
class StackedVectors:
    """The vectors of an index, then those of new items, by row; see `ItemVectors`."""

    head: ItemVectors
    tail: Float32[np.ndarray, "more width"]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of vectors, and their dimension."""
        return self.head.shape[0] + len(self.tail), self.head.shape[1]

    def __len__(self) -> int:
        """Return the number of vectors."""
        return self.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> Float32[np.ndarray, "rows width"]:
        """Return the vectors of rows."""
        rows = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
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

    def __len__(self) -> int:
        """Return the number of vectors."""
        return self.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> Float32[np.ndarray, "rows dim"]:
        """Return the vectors of rows."""
        return np.ascontiguousarray(self.whole[rows][:, : self.dim])


def leading_dims(vectors: ItemVectors, dim: int) -> ItemVectors:
    """Return the first `dim` dimensions of vectors; the vectors themselves if they have no more."""
    return vectors if vectors.shape[1] == dim else LeadingDims(vectors, dim)


def stored_array(vectors: ItemVectors) -> np.ndarray:
    """Return the array that the vectors of an index are stored in, float32 or float16, `[items, width]`."""
    stored: np.ndarray = vectors.stored if isinstance(vectors, HalfVectors) else np.asarray(vectors)
    return stored


def stored_as(array: np.ndarray) -> ItemVectors:
    """Return the vectors that are stored in an array, float32 or float16."""
    return HalfVectors(array) if array.dtype == np.float16 else array


def blocks_of(num_rows: int, size: int | None = None) -> Iterator[slice]:
    """Yield slices of at most `size` rows, or `BLOCK`."""
    step = size or BLOCK
    for start in range(0, num_rows, step):
        yield slice(start, min(num_rows, start + step))
