"""Items by the cosine of the users that they share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32

from features.sequences.matrix import interaction_matrix
from features.sequences.sequences import Queries, Sequences
from training.evaluation.baselines.baseline import BaselineData
from training.evaluation.baselines.recency import decayed_history


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
        cls, train: Sequences, num_items: int, *, neighbours: int | None = 100, half_life: float = math.inf
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
    similarity = similarities(data.split.train, data.num_items)

    def fit(half_life: float) -> ItemCosine:
        return ItemCosine(similarity, half_life)

    return fit


def similarities(train: Sequences, num_items: int, neighbours: int | None = 100) -> sp.csr_array[np.float32]:
    """Return the cosine of each history item (row) with the recommended items that it is a neighbour of."""
    had = interaction_matrix(train, num_items)
    norms = np.sqrt(np.bincount(had.indices, minlength=num_items))
    had.data /= norms[had.indices].astype(np.float32)
    by_item = sp.csr_array(had.T)
    block = max(1, 8_000_000 // max(1, num_items))
    parts = [
        _nearest(sp.csr_array(by_item[start : start + block] @ had), start, neighbours)
        for start in range(0, num_items, block)
    ]
    return sp.csr_array(sp.vstack(parts).T)


def _nearest(similarity: sp.csr_array[np.float32], first_row: int, count: int | None) -> sp.csr_array[np.float32]:
    """Return only the largest `count` entries of each row, without the item itself; row 0 is the item `first_row`."""
    rows = np.repeat(np.arange(similarity.shape[0]), np.diff(similarity.indptr))
    similarity.data[similarity.indices == rows + first_row] = 0
    if count is not None:
        for row in np.flatnonzero(np.diff(similarity.indptr) > count):
            values = similarity.data[similarity.indptr[row] : similarity.indptr[row + 1]]
            values[np.argpartition(values, -count)[:-count]] = 0
    similarity.eliminate_zeros()
    return similarity
