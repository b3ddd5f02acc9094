"""Rows of different lengths, stored end to end without padding: the one layout of histories, exclusions and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row `r` is `values[offsets[r]:offsets[r + 1]]`.

    Attributes:
        offsets: Where each row begins, `[rows + 1]`, from 0 to the number of values.
        values: One row's values after the other's, `[total]`.

    Example:
        >>> rows = Ragged.of([np.array([3, 1]), np.array([], dtype=np.int64), np.array([2])])
        >>> rows.offsets.tolist(), rows.values.tolist(), rows.take(np.array([2, 0])).values.tolist()
        ([0, 2, 2, 3], [3, 1, 2], [2, 3, 1])
    """

    offsets: Int[np.ndarray, "rows_plus_1"]
    values: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Ragged:
        """Return rows as they are given, one array each."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return cls(offsets_of(lengths), np.concatenate([np.zeros(0, np.int64), *rows]))

    @classmethod
    def empty(cls, num_rows: int) -> Ragged:
        """Return rows without values."""
        return cls(np.zeros(num_rows + 1, np.int64), np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[np.ndarray, "rows"]:
        """The number of values of each row."""
        return np.diff(self.offsets)

    @property
    def row_of_value(self) -> Int[np.ndarray, "total"]:
        """The row of each value."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def row(self, row: int) -> np.ndarray:
        """Return the values of one row."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: Int[np.ndarray, "chosen"]) -> Ragged:
        """Return the rows at the given positions, in that order; repeats are allowed."""
        if len(rows) == 1:  # without a copy
            values = self.row(int(rows[0]))
            return Ragged(np.array([0, len(values)]), values)
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts  # not `self.lengths`: that would be work for all rows
        return Ragged(offsets_of(lengths), self.values[ragged_arange(starts, lengths)])

    def keep(self, is_kept: np.ndarray) -> Ragged:
        """Return the rows with only those of their values for which `is_kept`, `[total]`, is true."""
        lengths = np.bincount(self.row_of_value[is_kept], minlength=len(self))
        return Ragged(offsets_of(lengths), self.values[is_kept])

    def join(self, other: Ragged) -> Ragged:
        """Return these rows, then those of another."""
        offsets = np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]])
        return Ragged(offsets, np.concatenate([self.values, other.values]))

    def and_each(self, values: np.ndarray) -> Ragged:
        """Return the rows with the same further values at the end of each."""
        if not len(values):
            return self
        if len(self) == 1:
            return Ragged(self.offsets + np.array([0, len(values)]), np.append(self.values, values))
        return Ragged.of([np.append(self.row(row), values) for row in range(len(self))])


def offsets_of(lengths: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "rows_plus_1"]:
    """Return the running sum of `lengths` with a 0 before it: where each jagged row begins."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def check_offsets(offsets: np.ndarray, num_rows: int, num_values: int) -> None:
    """Check that offsets read from a file are valid.

    Raises:
        ValueError: They do not.
    """
    is_whole = offsets.shape == (num_rows + 1,) and offsets.dtype == np.int64
    if not is_whole or offsets[0] != 0 or offsets[-1] != num_values or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets {offsets.shape} do not divide {num_values:,} values among {num_rows:,} rows")


def ragged_arange(starts: Int[np.ndarray, "rows"], lengths: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "total"]:
    """Return `starts[0], starts[0] + 1, …` for each row in turn, `lengths[row]` numbers for a row.

    Example:
        >>> ragged_arange(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    offsets = offsets_of(lengths)
    places: np.ndarray = np.arange(offsets[-1]) + np.repeat(np.asarray(starts) - offsets[:-1], lengths)
    return places
