"""Items by the cosine of the users that they share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int

from features.sequences.cooccurrence import BLOCK_PAIRS, blocks_of, rows_of, strongest
from features.sequences.matrix import interaction_matrix
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Queries, Sequences
from training.evaluation.baselines.baseline import BaselineData
from training.evaluation.baselines.recency import decayed_history

NEIGHBOURS = 100
MOST_PAIRS = 2 * 10**9
"""Pairs of two interactions of a user that are counted at most, some twenty seconds; where there are more, of the users
with the longest histories only the newest interactions count. MovieLens 1M has 0.4 of these thousand millions."""
_BYTES_PER_NEIGHBOUR = 24


class ItemCosine:
    """Item-based collaborative filtering: an item's score is its summed cosine similarity to the history's items.

    `similarity(i, j) = users of both / sqrt(users of i * users of j)`, 0 of an item with itself, and for each
    recommended item only the `neighbours` most alike count. An item of the history counts `2 ** (-age / half_life)`.
    """

    name = "item-item cosine"

    def __init__(self, similarity: sp.csr_array[np.float32], half_life: float) -> None:
        """Take the similarity of every history item (row) with every recommended one (column), and the half-life."""
        self._similarity = similarity
        self._half_life = half_life

    @classmethod
    def fit(
        cls, train: Sequences, num_items: int, *, neighbours: int | None = NEIGHBOURS, half_life: float = math.inf
    ) -> ItemCosine:
        """Compute the similarities.

        Args:
            train: Interactions of the training data.
            num_items: Size of the catalogue.
            neighbours: How many similar items of each recommended item count. None: all of them, which takes memory of
                the order of the square of the catalogue.
            half_life: In events; inf: all items of a history count alike.
        """
        return cls(similarities(train, num_items, neighbours), half_life)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed similarity of each item with the items of the history."""
        return (
            decayed_history(queries.history, self._similarity.shape[0], self._half_life) @ self._similarity
        ).toarray()


def prepare(data: BaselineData) -> Callable[..., ItemCosine]:
    """Return how to fit item-item cosine."""
    train = data.split.train
    most = longest_counted(train.lengths)
    pairs = float((np.minimum(train.lengths, most).astype(np.float64) ** 2).sum())
    needed = _BYTES_PER_NEIGHBOUR * min(pairs, NEIGHBOURS * data.num_items)
    data.check_memory(needed, f"neighbours of {data.num_items:,} items")
    num_longer = int(np.count_nonzero(train.lengths > most))
    if num_longer:
        data.notes.append(
            f"item-item cosine counts the newest {most:,} interactions of a user, to save time; {num_longer:,} of "
            f"{len(train):,} users have more."
        )
    similarity = similarities(train, data.num_items)

    def fit(half_life: float) -> ItemCosine:
        return ItemCosine(similarity, half_life)

    return fit


def longest_counted(lengths: Int[np.ndarray, "users"], most_pairs: int = MOST_PAIRS) -> int:
    """Return how many interactions of a user can count for no more than so many pairs; at least one.

    Example:
        >>> longest_counted(np.array([2, 10]), 29), longest_counted(np.array([2, 10]), 10_000)
        (5, 10)
    """
    low, high = 1, max(1, int(lengths.max(initial=1)))
    while low < high:
        middle = (low + high + 1) // 2
        if (np.minimum(lengths, middle).astype(np.float64) ** 2).sum() <= most_pairs:
            low = middle
        else:
            high = middle - 1
    return low


def similarities(train: Sequences, num_items: int, neighbours: int | None = NEIGHBOURS) -> sp.csr_array[np.float32]:
    """Return the cosine of each history item (row) with the recommended items that it is a neighbour of.

    Of very long histories only the newest interactions count, see `MOST_PAIRS`.
    """
    had = interaction_matrix(train.last(longest_counted(train.lengths)), num_items)
    norms = np.sqrt(np.bincount(had.indices, minlength=num_items))
    lengths = np.diff(had.indptr)
    by_item = sp.csr_array(had.T)
    pairs = offsets_of((by_item @ lengths).astype(np.int64))
    had.data /= norms[had.indices].astype(np.float32)
    by_item.data /= np.repeat(norms, np.diff(by_item.indptr)).astype(np.float32)
    parts = [
        _nearest(sp.csr_array(by_item[first:end] @ had), first, neighbours)
        for first, end in blocks_of(pairs, BLOCK_PAIRS)
    ]
    return sp.csr_array(sp.vstack(parts).T)


def _nearest(similarity: sp.csr_array[np.float32], first_row: int, count: int | None) -> sp.csr_array[np.float32]:
    """Return only the largest `count` entries of each row, without the item itself; row 0 is the item `first_row`."""
    similarity.data[similarity.indices == first_row + rows_of(similarity)] = 0
    similarity.eliminate_zeros()
    return similarity if count is None else strongest(similarity, count)
