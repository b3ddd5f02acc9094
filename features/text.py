"""Text as hashed word and character n-grams: nothing to download, any language, and words never seen still count.

A text becomes a small bag of buckets: its words, pairs of words and the character n-grams of its words, hashed to a
fixed number of buckets. Only the most telling of them, by TF-IDF, are kept, so that a long description costs no more
than a bounded number of look-ups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from sklearn.utils import murmurhash3_32

WORD = re.compile(r"\w+", re.UNICODE)
CHARACTER_NGRAMS = range(3, 6)
ENTRIES = 16
"""Entries other than zero in each row of the random projection."""


def ngrams(text: str) -> list[str]:
    """Return the words, the pairs of neighbouring words, and the character n-grams of each word between bars.

    Example:
        >>> ngrams("A fox")
        ['a', 'fox', 'a fox', '|a|', '|fo', 'fox', 'ox|', '|fox', 'fox|', '|fox|']
    """
    pieces = [piece for word in WORD.findall(text.lower()) for piece in _pieces(f"|{word}|")]
    return words_and_pairs(text) + pieces


def words_and_pairs(text: str) -> list[str]:
    """Return the words and the pairs of neighbouring words.

    Example:
        >>> words_and_pairs("A red fox")
        ['a', 'red', 'fox', 'a red', 'red fox']
    """
    words = WORD.findall(text.lower())
    return words + [f"{first} {second}" for first, second in pairwise(words)]


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
        weights, _ = _rarity(_counts(texts, num_buckets))
        return cls(weights, max_ngrams)

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


class ProjectedText:
    """Texts to a few numbers each, of which nothing is trained: what is written alike is near, whatever training saw.

    The TF-IDF of a text's words and pairs of words, at unit length, times a fixed random matrix with few entries other
    than zero (Li et al. 2006, "Very sparse random projections"): inner products stay as they were but for noise of
    about 1 / sqrt(width). Words that were not there in `fit` say nothing, unless that was asked for.

    Args:
        inverse_document_frequency: The weight of each bucket, `[buckets]`, from `fit`.
        width: How many numbers a text becomes.
    """

    def __init__(self, inverse_document_frequency: Float[np.ndarray, buckets], width: int) -> None:
        self.inverse_document_frequency = inverse_document_frequency
        self.width = width
        self._directions = _directions(len(inverse_document_frequency), width)

    @classmethod
    def fit(
        cls, texts: Sequence[str], width: int, num_buckets: int = 131_072, *, unseen_words: bool = False
    ) -> ProjectedText:
        """Return an encoder whose weights come from `texts`, as those of `HashedText`.

        Args:
            texts: Those that are known.
            width: How many numbers a text becomes.
            num_buckets: Into how many words and pairs are hashed.
            unseen_words: Whether words that none of the texts has weigh as the rarest do, so that texts that come later
                are found by them; else they weigh nothing.
        """
        weights, documents = _rarity(_counts(texts, num_buckets, words_and_pairs))
        return cls(weights if unseen_words else weights * (documents > 0), width)

    def numbers(self, texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
        """Return the place of each text, about of length 1; zeros where none of its words is known."""
        counts = _counts(texts, len(self.inverse_document_frequency), words_and_pairs)
        counts.data = (1 + np.log(counts.data)) * self.inverse_document_frequency[counts.indices]
        placed: np.ndarray = (normalize(counts) @ self._directions).toarray().astype(np.float32)
        return placed


def _directions(num_buckets: int, width: int) -> sp.csr_array:
    """Return `[buckets, width]` with entries +-1 / sqrt(16) in 16 places of each row; the same on every machine."""
    buckets = np.arange(num_buckets, dtype=np.int32)
    hashes = np.stack([murmurhash3_32(buckets, seed=seed, positive=True) for seed in range(ENTRIES)], axis=1)
    signs = np.where(hashes >> 31, 1, -1) / ENTRIES**0.5
    offsets = np.arange(num_buckets + 1) * ENTRIES
    return sp.csr_array((signs.ravel(), (hashes % width).ravel(), offsets), shape=(num_buckets, width))


def _rarity(counts: sp.csr_matrix) -> tuple[Float[np.ndarray, buckets], Int[np.ndarray, buckets]]:
    """Return the inverse document frequency of each bucket, and how many texts have it."""
    num_texts, num_buckets = counts.shape
    documents = np.bincount(counts.indices, minlength=num_buckets)
    return (np.log((1 + num_texts) / (1 + documents)) + 1).astype(np.float32), documents


def _counts(texts: Sequence[str], num_buckets: int, analyzer: Callable[[str], list[str]] = ngrams) -> sp.csr_matrix:
    vectorizer = HashingVectorizer(n_features=num_buckets, analyzer=analyzer, alternate_sign=False, norm=None)
    counts = vectorizer.transform(texts) if len(texts) else sp.csr_matrix((0, num_buckets))
    counts.sum_duplicates()
    return counts
