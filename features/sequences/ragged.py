"""Offsets of rows of different lengths that are stored end to end, without padding."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def offsets_of(lengths: Int[np.ndarray, rows]) -> Int[np.ndarray, rows_plus_1]:
    """Return the running sum of `lengths` with a 0 before it: where each jagged row begins."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def check_offsets(offsets: np.ndarray, num_rows: int, num_values: int) -> None:
    """Make sure that offsets, which somebody else wrote, divide values among rows.

    Raises:
        ValueError: They do not.
    """
    is_whole = offsets.shape == (num_rows + 1,) and offsets.dtype == np.int64
    if not is_whole or offsets[0] != 0 or offsets[-1] != num_values or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets {offsets.shape} do not divide {num_values:,} values among {num_rows:,} rows")


def ragged_arange(starts: Int[np.ndarray, rows], lengths: Int[np.ndarray, rows]) -> Int[np.ndarray, total]:
    """Return `starts[0], starts[0] + 1, …` for each row in turn, `lengths[row]` numbers for a row.

    Example:
        >>> ragged_arange(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    offsets = offsets_of(lengths)
    places: np.ndarray = np.arange(offsets[-1]) + np.repeat(np.asarray(starts) - offsets[:-1], lengths)
    return places
