"""Items with similar texts (TF-IDF)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import compress

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float32
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from features.sequences.sequences import Queries
from features.values.text import words, words_and_pairs
from training.evaluation.baselines.baseline import BaselineData, LeftOutError
from training.evaluation.baselines.recency import OLDEST

MOST_TERMS = 500_000
"""Most words and pairs of words that texts are compared by; the most frequent ones where there are more."""


class TextNeighbours:
    """Content-based recommendations: items whose TF-IDF vectors are similar to those of the newest history items.

    An item's vector holds the TF-IDF of the words and the pairs of neighbouring words in its texts, at unit length. A
    user's is the mean of the history's, where an event counts half as much as one that came `half_life` events later;
    items without a known word are ignored. The score is the cosine of the two. It can recommend items
    without interactions.
    """

    name = "TF-IDF"

    def __init__(self, vectors: sp.csr_array[np.float32], half_life: float) -> None:
        """Take the items' unit vectors, `[items, terms]`, and the half-life in events."""
        self.half_life = half_life
        self._vectors = vectors
        self._transposed = sp.csr_array(vectors.T)
        self._is_written = np.diff(vectors.indptr) > 0

    @classmethod
    def fit(cls, texts: Sequence[str], warm_items: Bool[np.ndarray, "items"], *, half_life: float) -> TextNeighbours:
        """Compare all items by the words in the texts of the warm ones: what is not known yet has no part in it."""
        return cls(text_vectors(texts, warm_items), half_life)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the cosine of each item with the history, 0 where nothing is written of either."""
        past = queries.history.keep(self._is_written[queries.history.item_rows])
        if math.isfinite(self.half_life):
            past = past.last(math.ceil(OLDEST * self.half_life))  # each older one counts less than a thousandth
        age = np.repeat(past.offsets[1:], past.lengths) - 1 - np.arange(past.num_events)
        weights = np.exp2(-age / self.half_life).astype(np.float32)
        histories = sp.csr_array((weights, past.item_rows, past.offsets), shape=(len(past), self._vectors.shape[0]))
        scores: np.ndarray = (normalize(histories @ self._vectors) @ self._transposed).toarray()
        return scores


def prepare(data: BaselineData) -> Callable[..., TextNeighbours]:
    """Return how to fit the neighbours by text."""
    vectors = text_vectors(texts_of_items(data), data.split.warm_items)
    return lambda half_life: TextNeighbours(vectors, half_life)


def texts_of_items(data: BaselineData) -> Sequence[str]:
    """Return the texts, or raise `LeftOutError` where no warm item has a word."""
    if data.texts is None or not any(map(words, compress(data.texts, data.split.warm_items))):
        raise LeftOutError("")
    return data.texts


def text_vectors(texts: Sequence[str], warm_items: Bool[np.ndarray, "items"]) -> sp.csr_array[np.float32]:
    """Return the TF-IDF of each item's words and pairs of words, at unit length."""
    vectorizer = TfidfVectorizer(analyzer=words_and_pairs, sublinear_tf=True, max_features=MOST_TERMS, dtype=np.float32)
    vectorizer.fit(compress(texts, warm_items))
    return sp.csr_array(vectorizer.transform(texts))
