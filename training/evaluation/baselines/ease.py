"""EASE: a linear autoencoder in closed form."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int
from scipy.linalg import lapack

from features.sequences.matrix import interaction_matrix
from features.sequences.sequences import Queries, Sequences

MAX_EASE_ITEMS = 20_000
"""Most items that EASE takes: its matrix is square and dense, 1.6 GB at this size."""


REGULARISATION = 300.0
"""For EASE where none is chosen: the best of `REGULARISATIONS` on MovieLens 1M."""


class Ease:
    """The linear model that best reconstructs each user's items from their other items, in closed form.

    Minimises `|X - X B|² + regularisation * |B|²` with a zero diagonal of B, where X is the interaction matrix: with
    `P = inverse(XᵀX + regularisation * 1)`, `B[i, j] = -P[i, j] / P[j, j]` (Steck, "Embarrassingly Shallow
    Autoencoders for Sparse Data", 2019). The score of an item is the sum of its column over the history.

    In single precision, which is twice as fast and half as large as double: on MovieLens 1M the weights differ by
    0.00001 at most, even with a regularisation of 10.
    """

    name = "EASE"

    def __init__(
        self,
        weights: Float32[np.ndarray, "known known"],
        item_rows: Int[np.ndarray, "known"],
        num_items: int,
        regularisation: float,
    ) -> None:
        """Take the weights between the items that training knows, whose catalogue rows are `item_rows`."""
        self.regularisation = regularisation
        self._weights = weights
        self._item_rows = item_rows
        self._num_items = num_items

    @classmethod
    def fit(cls, train: Sequences, num_items: int, *, regularisation: float = REGULARISATION) -> Ease:
        """Solve for the weights between the items that occur.

        Raises:
            ValueError: More than `MAX_EASE_ITEMS` items occur.
        """
        item_rows, gram = gram_matrix(train, num_items)
        return cls(ease_weights(gram, regularisation), item_rows, num_items, regularisation)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed weights of the history's items for each item."""
        had = interaction_matrix(queries.history, self._num_items)[:, self._item_rows]
        scores = np.zeros((len(queries), self._num_items), dtype=np.float32)
        scores[:, self._item_rows] = had @ self._weights
        return scores


def gram_matrix(
    train: Sequences, num_items: int
) -> tuple[Int[np.ndarray, "known"], Float32[np.ndarray, "known known"]]:
    """Return the catalogue rows of the items that occur, and the number of users in common of each two of them."""
    had = interaction_matrix(train, num_items)
    item_rows = np.unique(had.indices).astype(np.int64)
    if len(item_rows) > MAX_EASE_ITEMS:
        raise ValueError(f"EASE takes at most {MAX_EASE_ITEMS:,} items, found {len(item_rows):,}; leave it out")
    known = had[:, item_rows]
    return item_rows, (known.T @ known).toarray()


def ease_weights(gram: Float32[np.ndarray, "known known"], regularisation: float) -> Float32[np.ndarray, "known known"]:
    """Return EASE's weights; takes one more matrix of the size of `gram`."""
    if not len(gram):
        return gram
    regularised = gram.copy(order="F")
    regularised[np.diag_indices_from(regularised)] += regularisation
    factor, failed = lapack.spotrf(regularised, lower=1, overwrite_a=1)
    assert failed == 0, "XᵀX plus a positive diagonal is positive definite"
    inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    assert failed == 0, "the factor of a positive definite matrix can be inverted"
    _mirror_lower(inverse)
    weights: np.ndarray = inverse.T  # the same, being symmetric, but with rows one after another
    weights /= -weights.diagonal().copy()
    np.fill_diagonal(weights, 0)
    return weights


def _mirror_lower(matrix: Float32[np.ndarray, "known known"], block: int = 1_024) -> None:
    """Copy what is below the diagonal to above it, in blocks, so that no second matrix is needed."""
    for start in range(0, len(matrix), block):
        end = start + block
        matrix[start:end, end:] = matrix[end:, start:end].T
        square = matrix[start:end, start:end]
        square[...] = np.tril(square) + np.tril(square, -1).T
