"""CEASE: EASE that reads the attributes of the items, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32

from training.evaluation.baselines.baseline import BaselineData
from training.evaluation.baselines.ease import Ease, ease_weights, gram_matrix
from training.evaluation.baselines.text_neighbours import text_vectors, texts_of_items

_MATRICES = 5
"""Square matrices in memory while it is tuned: those of EASE and the similarity of the attributes."""


def prepare(data: BaselineData) -> Callable[..., Ease]:
    """Return how to fit EASE stacked with the attributes of the items.

    Each word (and pair of words) of the items' texts is one more user, who has `attribute_weight` times its TF-IDF of
    each item: with X the interactions and T the vectors of `text_vectors`, `[items, terms]`, EASE is solved for
    `XᵀX + attribute_weight² T Tᵀ` in the place of `XᵀX` (Jeunen, Van Balen and Goethals, "Closed-Form Models for
    Collaborative Filtering with Side-Information", 2020: CEASE). Items without interactions have weights, too.
    """
    vectors = text_vectors(texts_of_items(data), data.split.warm_items)
    item_rows = np.flatnonzero(data.split.warm_items | (np.diff(vectors.indptr) > 0))
    data.check_memory(_MATRICES * 4 * len(item_rows) ** 2, f"matrices of {len(item_rows):,} x {len(item_rows):,} items")
    gram = gram_matrix(data.split.train, data.num_items, item_rows)
    similarity = _similarity(vectors[item_rows])

    @lru_cache(maxsize=1)
    def weights(attribute_weight: float, regularisation: float) -> Float32[np.ndarray, "known known"]:
        return ease_weights(gram + np.float32(attribute_weight**2) * similarity, regularisation)

    def fit(attribute_weight: float, regularisation: float, half_life: float) -> Ease:
        return Ease(weights(attribute_weight, regularisation), item_rows, data.num_items, half_life, name="CEASE")

    return fit


def _similarity(vectors: sp.csr_array[np.float32], block: int = 512) -> Float32[np.ndarray, "known known"]:
    """Return the inner products of all rows, without a sparse matrix of that size in between."""
    transposed = sp.csr_array(vectors.T)
    products = np.empty((vectors.shape[0], vectors.shape[0]), dtype=np.float32)
    for start in range(0, len(products), block):
        products[start : start + block] = (vectors[start : start + block] @ transposed).toarray()
    return products
