"""Which items come near which others in histories, counted exactly, block by block of items.

What is in memory at a time is one block of pairs and 8 bytes for each event, however many pairs there are. A caller
that keeps only the strongest of each item never holds the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences

BLOCK_PAIRS = 1 << 22
"""Pairs counted at a time: with what sorting them takes, some 200 MB."""

Matrix = sp.csr_array[Any, tuple[int, int]]


def neighbour_counts(sequences: Sequences, num_items: int, weights: Mapping[int, int]) -> Iterator[tuple[int, Matrix]]:
    """Yield the first item of each block, and how often others came near its items, `[items of the block, items]`.

    An item is a neighbour of itself, too, where it is repeated. Blocks are in the order of the catalogue and cover it.

    Args:
        sequences: The interactions.
        num_items: Size of the catalogue.
        weights: What it counts for an item to be so many places later in the same history, or, where the number is
            negative, earlier; whole numbers, so that sums do not depend on their order.
    """
    by_item = np.argsort(sequences.item_rows, kind="stable")
    begins = offsets_of(sequences.item_counts(num_items))
    most_events = max(1, BLOCK_PAIRS // len(weights))
    for first, end in blocks_of(begins, most_events):
        counts: Matrix = sp.csr_array((end - first, num_items), dtype=np.int64)
        for start in range(begins[first], begins[end], most_events):  # more than once for a very frequent item alone
            events = by_item[start : min(start + most_events, begins[end])]
            counts = counts + _counted(sequences, events, first, counts.shape, weights)
        yield first, sp.csr_array(counts)


def rows_of(matrix: Matrix) -> Int[np.ndarray, "stored"]:
    """Return the row of each number that is stored."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def blocks_of(begins: Int[np.ndarray, "rows_plus_1"], most: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of blocks of rows with at most so many values together, or of one row.

    Args:
        begins: Where each row's values begin, as `offsets_of` gives it.
        most: Values of a block.

    Example:
        >>> list(blocks_of(np.array([0, 2, 3, 9, 10]), 3))
        [(0, 2), (2, 3), (3, 4)]
    """
    first = 0
    while first < len(begins) - 1:
        end = max(first + 1, int(np.searchsorted(begins, begins[first] + most, side="right")) - 1)
        yield first, end
        first = end


def strongest(matrix: Matrix, most: int) -> Matrix:
    """Return only the largest numbers of each row, at most so many; of equal ones the first.

    Example:
        >>> strongest(sp.csr_array([[1, 3, 2, 2], [0, 0, 0, 1]]), 2).toarray().tolist()
        [[0, 3, 2, 0], [0, 0, 0, 1]]
    """
    is_kept = np.ones(len(matrix.data), dtype=bool)
    for row in np.flatnonzero(np.diff(matrix.indptr) > most):
        place = slice(matrix.indptr[row], matrix.indptr[row + 1])
        own = matrix.data[place]
        least = np.partition(own, -most)[-most]
        is_above = own > least
        is_above[np.flatnonzero(own == least)[: most - np.count_nonzero(is_above)]] = True
        is_kept[place] = is_above
    offsets = offsets_of(np.bincount(rows_of(matrix)[is_kept], minlength=matrix.shape[0]))
    return sp.csr_array((matrix.data[is_kept], matrix.indices[is_kept], offsets), shape=matrix.shape)


def _counted(
    sequences: Sequences,
    events: Int[np.ndarray, "chosen"],
    first_item: int,
    shape: tuple[int, int],
    weights: Mapping[int, int],
) -> Matrix:
    """Return what is near some events, by their items, which are counted from the first."""
    users = np.searchsorted(sequences.offsets, events, side="right") - 1
    begins, ends = sequences.offsets[users], sequences.offsets[users + 1]
    rows = (sequences.item_rows[events] - first_item).astype(np.int32)
    own, near, counted = [], [], []
    for distance, weight in weights.items():
        others = events + distance
        is_there = (others >= begins) & (others < ends)
        own.append(rows[is_there])
        near.append(sequences.item_rows[others[is_there]].astype(np.int32))
        counted.append(np.full(len(own[-1]), weight, dtype=np.int64))
    places = (np.concatenate(own), np.concatenate(near))
    return sp.csr_array((np.concatenate(counted), places), shape=shape)
