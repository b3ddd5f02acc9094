"""Text as hashed word and character n-grams: nothing to download, any language, and words never seen still count.

A text becomes a small bag of buckets: its words, pairs of words and the character n-grams of its words, hashed to a
fixed number of buckets. Only the most telling of them, by TF-IDF, are kept, so that a long description costs no more
than a bounded number of look-ups.

`words` is the only tokeniser: text features, search, BM25, TF-IDF and the names of clusters all read words in its way.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain, pairwise

import mmh3
import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Shaped

CHARACTER_NGRAMS = range(3, 6)
ENTRIES = 16
"""Entries other than zero in each row of the random projection."""

_PLAIN_WORD = re.compile(r"\w+")
_IDEOGRAPHS = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
"""Chinese characters, each of which may be a word."""
_LETTERS = "".join(
    letter
    for first, last in ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3041, 0x30FF), (0x31F0, 0x31FF))
    for letter in map(chr, range(first, last + 1))
    if letter.isalnum()
)
"""Thai and Lao, Burmese, Khmer, kana: letters of scripts that put no blanks between words."""
_UNSPACED = _IDEOGRAPHS + _LETTERS
# Marks belong to the letter before them: vowels of Thai and Hindi, and accents that no composed letter has.
_MARKS = "".join(mark for mark in map(chr, range(0x300, 0x10000)) if unicodedata.category(mark).startswith("M"))
_SPECIAL = re.compile(f"[{_UNSPACED}{_MARKS}]")
_SPACED_WORD = re.compile(rf"(?:[^\W{_UNSPACED}]+[{_MARKS}]*)+")
_CHARACTER = re.compile(rf"[{_UNSPACED}][{_MARKS}]*")
_RUN = re.compile(rf"{_SPACED_WORD.pattern}|(?P<unspaced>(?:{_CHARACTER.pattern})+)")
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_AS_COUNTED = re.compile(rf"(?:{_CHARACTER.pattern}){{1,2}}[^\w\s]*|[^\s{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Return the words of a text.

    Letters are compared without regard to case and to how Unicode spells them (NFKC): full-width and half-width forms,
    and composed and decomposed accents, are the same. Scripts without blanks between words (Chinese, Japanese, Thai,
    Lao, Burmese, Khmer) give the pairs of neighbouring characters, and each Chinese character by itself, too.

    Example:
        >>> words("A Café"), words("绿茶 tea")
        (['a', 'café'], ['绿', '茶', '绿茶', 'tea'])
    """
    return list(chain.from_iterable(_words_of(run) for run in _runs(text)))


def word_starts(text: str) -> list[int]:
    """Return where the words of a text begin, to count them and to cut between them.

    What stands between blanks is one word; of scripts without blanks, two characters are.

    Example:
        >>> word_starts("green tea"), word_starts("绿茶很好")
        ([0, 6], [0, 2])
    """
    return [match.start() for match in _AS_COUNTED.finditer(text)]


def ngrams(text: str) -> list[str]:
    """Return the words, the pairs of neighbouring words, and the character n-grams of each word between bars.

    Example:
        >>> ngrams("A fox")
        ['a', 'fox', 'a fox', '|a|', '|fo', 'fox', 'ox|', '|fox', 'fox|', '|fox|']
    """
    runs = _runs(text)
    pieces = [piece for run in runs if len(run) == 1 for piece in _pieces(f"|{run[0]}|")]
    return _words_and_pairs(runs) + pieces


def words_and_pairs(text: str) -> list[str]:
    """Return the words and the pairs of neighbouring words.

    Example:
        >>> words_and_pairs("A red fox")
        ['a', 'red', 'fox', 'a red', 'red fox']
    """
    return _words_and_pairs(_runs(text))


def _words_and_pairs(runs: Sequence[list[str]]) -> list[str]:
    found = list(chain.from_iterable(map(_words_of, runs)))
    return found + [f"{first[-1]} {second[0]}" for first, second in pairwise(runs)]


def _words_of(run: list[str]) -> list[str]:
    if len(run) == 1:
        return run
    return [one for one in run if _IDEOGRAPH.match(one)] + [first + second for first, second in pairwise(run)]


def _runs(text: str) -> list[list[str]]:
    """Return the words, each in a list of its own, and the characters that stand together without blanks in one."""
    text = text.lower() if text.isascii() else _normalised(text)
    if text.isascii() or not _SPECIAL.search(text):
        return [[word] for word in _PLAIN_WORD.findall(text)]
    return [[match[0]] if match["unspaced"] is None else _CHARACTER.findall(match[0]) for match in _RUN.finditer(text)]


def _normalised(text: str) -> str:
    # Twice, as Unicode asks for: folding the case may take letters apart (section 3.13.5, "Default Caseless Matching").
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _pieces(word: str) -> list[str]:
    return [word[i : i + n] for n in CHARACTER_NGRAMS for i in range(len(word) - n + 1)]


class HashedText:
    """Texts to bags of hashed n-grams.

    Args:
        inverse_document_frequency: The weight of each bucket, `[buckets]`, from `fit`.
        max_ngrams: How many n-grams of a text are kept, those of the highest TF-IDF.
    """

    def __init__(self, inverse_document_frequency: Float[np.ndarray, "buckets"], max_ngrams: int) -> None:
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
    """Frozen text vectors: TF-IDF with random projection. Similar texts are near, whether in training or not.

    The TF-IDF of a text's words and pairs of words, at unit length, times a fixed random matrix with few entries other
    than zero (Li et al. 2006, "Very sparse random projections"): inner products stay as they were but for noise of
    about 1 / sqrt(width). Words that were not there in `fit` say nothing, unless that was asked for.

    Args:
        inverse_document_frequency: The weight of each bucket, `[buckets]`, from `fit`.
        width: How many numbers a text becomes.
    """

    def __init__(self, inverse_document_frequency: Float[np.ndarray, "buckets"], width: int) -> None:
        self.inverse_document_frequency = inverse_document_frequency
        self.width = width

    @cached_property
    def _directions(self) -> sp.csr_array:
        return _directions(len(self.inverse_document_frequency), self.width)

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
        weights = (1 + np.log(counts.data)) * self.inverse_document_frequency[counts.indices]
        rows = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        lengths = np.sqrt(np.bincount(rows, weights=weights**2))
        counts.data = weights / np.where(lengths > 0, lengths, 1)[rows]
        placed: np.ndarray = (counts @ self._directions).toarray().astype(np.float32)
        return placed


def _directions(num_buckets: int, width: int) -> sp.csr_array:
    """Return `[buckets, width]` with entries +-1 / sqrt(16) in 16 places of each row; the same on every machine."""
    hashes = _hashes(np.arange(num_buckets, dtype=np.uint32)[:, None], np.arange(ENTRIES, dtype=np.uint32))
    signs = np.where(hashes >> 31, 1, -1) / ENTRIES**0.5
    offsets = np.arange(num_buckets + 1) * ENTRIES
    return sp.csr_array((signs.ravel(), (hashes % width).ravel(), offsets), shape=(num_buckets, width))


def _hashes(numbers: Shaped[np.ndarray, "*shape"], seeds: Shaped[np.ndarray, "*seeds"]) -> Shaped[np.ndarray, "..."]:
    """Return MurmurHash3 (x86, 32 bits) of each unsigned integer of 32 bits, as mmh3 does for one at a time."""
    mixed = _rotated(numbers * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    state = _rotated(seeds ^ mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    state = state ^ np.uint32(4)  # the number of bytes
    state = (state ^ state >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    state = (state ^ state >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return state ^ state >> np.uint32(16)


def _rotated(numbers: Shaped[np.ndarray, "*shape"], bits: int) -> Shaped[np.ndarray, "*shape"]:
    return numbers << np.uint32(bits) | numbers >> np.uint32(32 - bits)


def _rarity(counts: sp.csr_array) -> tuple[Float[np.ndarray, "buckets"], Int[np.ndarray, "buckets"]]:
    """Return the inverse document frequency of each bucket, and how many texts have it."""
    num_texts, num_buckets = counts.shape
    documents = np.bincount(counts.indices, minlength=num_buckets)
    return (np.log((1 + num_texts) / (1 + documents)) + 1).astype(np.float32), documents


def _counts(texts: Sequence[str], num_buckets: int, analyzer: Callable[[str], list[str]] = ngrams) -> sp.csr_array:
    """Return how often the pieces of each text fall into each bucket, `[texts, buckets]`.

    As scikit-learn's `HashingVectorizer` does, which takes a second to import: too long for a service that starts.
    """
    offsets, buckets = [0], array("q")
    for text in texts:
        buckets.extend(abs(mmh3.hash(piece)) % num_buckets for piece in analyzer(text))
        offsets.append(len(buckets))
    shape = (len(texts), num_buckets)
    counts = sp.csr_array((np.ones(len(buckets)), np.frombuffer(buckets, np.int64), offsets), shape=shape)
    counts.sum_duplicates()
    return counts
