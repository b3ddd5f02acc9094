"""What every result has beside it: popularity, item-item cosine and EASE.

Each learns from the same `Sequences` as the model, only from who had what, and takes seconds. A model that does not
beat them is not worth serving. All three read a person's history as a set, so they answer people whom they have never
seen as well; items that training has not seen get the score 0.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int
from scipy.linalg import lapack

from features.sequences import Queries, Sequences, offsets_of
from features.split import Split
from training.evaluation import Recommender, evaluate

MAX_EASE_ITEMS = 20_000
"""Most items that EASE takes: its matrix is square and dense, 1.6 GB at this size."""
MAX_EASE_TRIALS_ITEMS = 15_000
"""Most items for which several regularisations are tried: each costs the cube of the number of items."""
REGULARISATION = 300.0
"""For EASE where none is chosen: the best of `REGULARISATIONS` on MovieLens 1M."""
REGULARISATIONS = (10.0, 100.0, 300.0, 1_000.0)
"""What is tried for EASE where there are questions to choose by."""


def fit_baselines(split: Split, *, recommend_seen: bool) -> tuple[list[Recommender], list[str]]:
    """Fit every baseline on the training data, with the settings that do best on the validation questions.

    Returns:
        The recommenders, and what a reader of the report should know about them, one line each.
    """
    num_items = len(split.candidates)
    simple: list[Recommender] = [Popularity.fit(split.train, num_items), ItemCosine.fit(split.train, num_items)]
    num_known = int(split.warm_items.sum())
    if num_known > MAX_EASE_ITEMS:
        return simple, [f"EASE is left out: {num_known:,} items are more than the {MAX_EASE_ITEMS:,} that it can take."]
    if num_known > MAX_EASE_TRIALS_ITEMS:
        ease = Ease.fit(split.train, num_items)
        return [*simple, ease], [f"EASE: regularisation {ease.regularisation:g}, not tuned at {num_known:,} items."]
    ease = choose_ease(split, recommend_seen=recommend_seen)
    tried = ", ".join(f"{value:g}" for value in REGULARISATIONS)
    return [*simple, ease], [f"EASE: regularisation {ease.regularisation:g}, the best of {tried} on validation data."]


def choose_ease(split: Split, *, recommend_seen: bool, regularisations: tuple[float, ...] = REGULARISATIONS) -> Ease:
    """Return EASE with the regularisation that has the best NDCG@10 on the validation questions."""
    item_rows, gram = _gram(split.train, len(split.candidates))
    best, best_ndcg = None, -1.0
    for value in regularisations:
        ease = Ease(_ease_weights(gram, value), item_rows, len(split.candidates), value)
        result = evaluate(
            ease, split.validation, split.candidates, recommend_seen=recommend_seen, cutoffs=(10,), with_coverage=False
        )
        if result.means["ndcg_at_10"] > best_ndcg:
            best, best_ndcg = ease, result.means["ndcg_at_10"]
    assert best is not None, "no regularisation to try"
    return best


class Popularity:
    """Everybody gets what most people had."""

    name = "popularity"

    def __init__(self, num_users: Float32[np.ndarray, "items"]) -> None:
        """Take the number of different users of each item, `[items]`."""
        self._num_users = num_users

    @classmethod
    def fit(cls, train: Sequences, num_items: int) -> Popularity:
        """Count the different users of each item: somebody who comes back for one item every week is one vote."""
        first = train.item_rows[train.first_visits()]
        return cls(np.bincount(first, minlength=num_items).astype(np.float32))

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the same row for every question."""
        return np.broadcast_to(self._num_users, (len(queries), len(self._num_users)))


class ItemCosine:
    """Items are alike if the same people had them; a person gets what is most like the history, summed over it.

    `similarity(i, j) = users of both / sqrt(users of i * users of j)`, 0 of an item with itself, and for each
    recommended item only the `neighbours` most alike count.
    """

    name = "item-item cosine"

    def __init__(self, similarity: sp.csr_array[np.float32]) -> None:
        """Take the similarity of every history item (row) with every recommended one (column)."""
        self._similarity = similarity

    @classmethod
    def fit(cls, train: Sequences, num_items: int, *, neighbours: int | None = 100) -> ItemCosine:
        """Compute the similarities.

        Args:
            train: Who had what.
            num_items: Size of the catalogue.
            neighbours: How many similar items of each recommended item count. None: all of them, which takes memory of
                the order of the square of the catalogue.
        """
        had = _binary(train, num_items)
        norms = np.sqrt(np.bincount(had.indices, minlength=num_items))
        had.data /= norms[had.indices].astype(np.float32)
        by_item = sp.csr_array(had.T)
        block = max(1, 8_000_000 // max(1, num_items))
        parts = [
            _nearest(sp.csr_array(by_item[start : start + block] @ had), start, neighbours)
            for start in range(0, num_items, block)
        ]
        return cls(sp.csr_array(sp.vstack(parts).T))

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed similarity of each item with the items of the history."""
        return (_binary(queries.history, self._similarity.shape[0]) @ self._similarity).toarray()


class Ease:
    """The linear model that best rebuilds everyone's items from their other items; strong, and in closed form.

    Minimises `|X - X B|² + regularisation * |B|²` with a zero diagonal of B, where X is who had what: with
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
        item_rows, gram = _gram(train, num_items)
        return cls(_ease_weights(gram, regularisation), item_rows, num_items, regularisation)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed weights of the history's items for each item."""
        had = _binary(queries.history, self._num_items)[:, self._item_rows]
        scores = np.zeros((len(queries), self._num_items), dtype=np.float32)
        scores[:, self._item_rows] = had @ self._weights
        return scores


def _binary(sequences: Sequences, num_items: int) -> sp.csr_array[np.float32]:
    """Return who had what, `[users, items]`, as ones."""
    first = sequences.first_visits()
    offsets = offsets_of(np.bincount(sequences.event_users[first], minlength=len(sequences)))
    ones = np.ones(int(offsets[-1]), dtype=np.float32)
    return sp.csr_array((ones, sequences.item_rows[first], offsets), shape=(len(sequences), num_items))


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


def _gram(train: Sequences, num_items: int) -> tuple[Int[np.ndarray, "known"], Float32[np.ndarray, "known known"]]:
    """Return the catalogue rows of the items that occur, and how many users had each two of them."""
    had = _binary(train, num_items)
    item_rows = np.unique(had.indices).astype(np.int64)
    if len(item_rows) > MAX_EASE_ITEMS:
        raise ValueError(f"EASE takes at most {MAX_EASE_ITEMS:,} items, found {len(item_rows):,}; leave it out")
    known = had[:, item_rows]
    return item_rows, (known.T @ known).toarray()


def _ease_weights(
    gram: Float32[np.ndarray, "known known"], regularisation: float
) -> Float32[np.ndarray, "known known"]:
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
