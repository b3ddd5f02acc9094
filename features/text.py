"""Text as hashed word and character n-grams: nothing to download, any language, and words never seen still count.

A text becomes a small bag of buckets: its words, pairs of words and the character n-grams of its words, hashed to a
fixed number of buckets. Only the most telling of them, by TF-IDF, are kept, so that a long description costs no more
than a bounded number of look-ups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from sklearn.feature_extraction.text import HashingVectorizer

WORD = re.compile(r"\w+", re.UNICODE)
CHARACTER_NGRAMS = range(3, 6)


def ngrams(text: str) -> list[str]:
    """Return the words, the pairs of neighbouring words, and the character n-grams of each word between bars.

    Example:
        >>> ngrams("A fox")
        ['a', 'fox', 'a fox', '|a|', '|fo', 'fox', 'ox|', '|fox', 'fox|', '|fox|']
    """
    words = WORD.findall(text.lower())
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    return words + pairs + [piece for word in words for piece in _pieces(f"|{word}|")]


def _pieces(word: str) -> list[str]:
    return [word[i : i + n] for n in CHARACTER_NGRAMS for i in range(len(word) - n + 1)]


class HashedText:
    """Texts to bags of hashed n-grams.

    Args:
        inverse_document_frequency: The weight of each bucket, `[buckets]`, from `fit`.
        max_ngrams: How many n-grams of a text are kept, those of the highest TF-IDF.
    """

    def __init__(self, inverse_document_frequency: Float[np.ndarray, buckets], max_ngrams: int) -> None:
        self.inverse_document_frequency = inverse_document_frequency
        self.max_ngrams = max_ngrams

    @classmethod
    def fit(cls, texts: Sequence[str], num_buckets: int = 32_768, max_ngrams: int = 64) -> HashedText:
        """Return an encoder whose weights come from `texts`: ln((1 + texts) / (1 + texts with it)) + 1."""
        documents = np.bincount(_counts(texts, num_buckets).indices, minlength=num_buckets)
        weights = np.log((1 + len(texts)) / (1 + documents)) + 1
        return cls(weights.astype(np.float32), max_ngrams)

    def bags(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "texts"], Int[np.ndarray, "ngrams"]]:
        """Return the size of each text's bag, and the buckets of all bags one after another."""
        counts = _counts(texts, len(self.inverse_document_frequency))
        sizes = np.diff(counts.indptr)
        rows = np.repeat(np.arange(len(texts)), sizes)
        telling = (1 + np.log(counts.data)) * self.inverse_document_frequency[counts.indices]
        order = np.lexsort((counts.indices, -telling, rows))
        rank = np.arange(len(order)) - np.repeat(counts.indptr[:-1], sizes)
        kept = order[rank < self.max_ngrams]
        return np.minimum(sizes, self.max_ngrams), counts.indices[kept].astype(np.int64)


def _counts(texts: Sequence[str], num_buckets: int) -> sp.csr_matrix:
    vectorizer = HashingVectorizer(n_features=num_buckets, analyzer=ngrams, alternate_sign=False, norm=None)
    counts = vectorizer.transform(texts) if len(texts) else sp.csr_matrix((0, num_buckets))
    counts.sum_duplicates()
    return counts
