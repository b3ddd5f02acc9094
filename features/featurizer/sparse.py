"""Encoders of columns whose values are rows of an embedding table: ids, categories, the n-grams of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mmh3
import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from features.columns import texts_of, values_of
from features.featurizer.vocabulary import UNKNOWN, Vocabulary
from features.parquet import read_parquet
from features.schema import Feature
from features.values.readings import is_list
from features.values.text import HashedText, words

Bags = tuple[Int[np.ndarray, "entities"], Int[np.ndarray, "values"]]


HASHES = 2
"""Hash functions of values without a row of their own, unless the settings say otherwise."""


@dataclass(frozen=True)
class CutOff:
    """Values that are too rare for a row of their own.

    Attributes:
        min_count: Training interactions from which on a value has one.
        values: How many values have fewer.
        of_values: How many there are in all.
        share: Their share of the interactions, 0 to 1.
    """

    min_count: int
    values: int
    of_values: int
    share: float


class SparseEncoder(Protocol):
    """A column to one bag of rows per entity: the sizes of the bags, and all rows one after another."""

    @property
    def num_rows(self) -> int:
        """How many rows the embedding table needs."""

    def bags(self, column: pd.Series) -> Bags:
        """Return the bags of a column."""

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells say something that was there in training."""

    def save(self, path: Path) -> None:
        """Write the fitted state as one Parquet file."""


@dataclass(frozen=True)
class ValueEncoder:
    """Ids and categories: every frequent value a row, rare and new ones some that they share, if there are such rows.

    A value that is not in the vocabulary is the sum of `hashes` of the `hashed_rows` (frequency-based double hashing,
    Zhang et al. 2020, arXiv 2007.14523): with two hash functions far fewer values have the same vector than with one. A
    cell of several values is a bag of the rows of all. The hashed rows come before those of the vocabulary, so that a
    vocabulary can grow without moving any.

    Attributes:
        vocabulary: The values with a row of their own.
        feature: The column and its settings.
        cut: What the vocabulary leaves out, as training found it. None: nothing, or training is over.
    """

    vocabulary: Vocabulary
    feature: Feature
    cut: CutOff | None = None

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series, events: Int[np.ndarray, "entities"]) -> ValueEncoder:
        """Return the encoder of the values in `column`, of entities with so many training interactions each."""
        return cls(Vocabulary.fit([]), feature).grown(column, events)

    def grown(self, column: pd.Series, events: Int[np.ndarray, "entities"]) -> ValueEncoder:
        """Return the encoder that knows the frequent values in `column` as well; known values keep their rows."""
        lengths, values = values_of(self.feature, column)
        found, least = Vocabulary.fit(values), self.feature.min_count or 1
        if least == 1:
            return ValueEncoder(self.vocabulary.grown(found), self.feature)
        rows = found.rows(values)
        counts = np.bincount(rows, weights=np.repeat(events, lengths), minlength=len(found))[1:]
        kept = (counts >= least) | (self.vocabulary.rows(found.values) != UNKNOWN)
        cut = CutOff(least, int((~kept).sum()), len(kept), float(counts[~kept].sum() / max(counts.sum(), 1)))
        return ValueEncoder(self.vocabulary.grown(Vocabulary(found.values[kept])), self.feature, cut)

    @property
    def num_rows(self) -> int:
        """How many rows the embedding table needs, the unknown one and hashed ones included."""
        return len(self.vocabulary) + (self.feature.hashed_rows or 0)

    def bags(self, column: pd.Series) -> Bags:
        """Return the rows of the values of each cell."""
        lengths, values = values_of(self.feature, column)
        sizes, rows = self.rows_of(values)
        cells = np.repeat(np.arange(len(column)), lengths)
        return np.bincount(cells, weights=sizes, minlength=len(column)).astype(np.int64), rows

    def rows_of(self, values: Sequence[str]) -> Bags:
        """Return the rows of single values: its own, or the hashed ones that it shares, or none."""
        rows = self.vocabulary.rows(values)
        if self.feature.hashed_rows is None:
            return (rows != UNKNOWN).astype(np.int64), rows[rows != UNKNOWN]
        sizes = np.where(rows == UNKNOWN, self.feature.hashes or HASHES, 1)
        is_unknown = np.repeat(rows == UNKNOWN, sizes)
        spread = np.repeat(rows + self.feature.hashed_rows, sizes)
        spread[is_unknown] = self._hashed(
            [value for value, row in zip(values, rows.tolist(), strict=True) if row == UNKNOWN]
        )
        return sizes, spread

    def _hashed(self, values: Sequence[str]) -> Int[np.ndarray, "hashes_times_values"]:
        """Return the shared rows of each value; they follow the unknown one."""
        assert self.feature.hashed_rows is not None, "there are hashed rows"
        found = [
            UNKNOWN + 1 + mmh3.hash(value, seed, signed=False) % self.feature.hashed_rows
            for value in values
            for seed in range(self.feature.hashes or HASHES)
        ]
        return np.array(found, dtype=np.int64)

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells hold a value of the vocabulary; of many equal cells one is looked at."""
        if column.dtype == object or (isinstance(column.dtype, pd.ArrowDtype) and is_list(column.dtype.pyarrow_dtype)):
            return self._has_known(column)
        codes, distinct = pd.factorize(column)
        known: np.ndarray = np.append(self._has_known(pd.Series(distinct)), False)[codes]
        return known

    def _has_known(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        lengths, values = values_of(self.feature, column)
        cells = np.repeat(np.arange(len(column)), lengths)
        return np.bincount(cells[self.vocabulary.rows(values) != UNKNOWN], minlength=len(column)) > 0

    def unknown(self, column: pd.Series) -> list[tuple[str, ...]]:
        """Return the values of each cell that are not known, each once."""
        lengths, values = values_of(self.feature, column)
        is_unknown = self.vocabulary.rows(values) == UNKNOWN
        ends = np.cumsum(lengths)
        return [
            tuple(
                value
                for value, unknown in zip(values[end - length : end], is_unknown[end - length : end], strict=True)
                if unknown
            )
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def save(self, path: Path) -> None:
        """Write the vocabulary."""
        self.vocabulary.save(path)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> ValueEncoder:
        """Read what `save` wrote."""
        return cls(Vocabulary.load(path), feature)


@dataclass(frozen=True)
class HashedTextEncoder:
    """Text: bags of hashed n-grams."""

    hashed: HashedText
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series, events: Int[np.ndarray, "entities"]) -> HashedTextEncoder:
        """Return the encoder whose n-gram weights come from the texts of `column`, each counted once."""
        return cls(HashedText.fit(texts_of(feature, column)), feature)

    @property
    def num_rows(self) -> int:
        """How many buckets there are."""
        return len(self.hashed.inverse_document_frequency)

    def bags(self, column: pd.Series) -> Bags:
        """Return the most telling n-grams of each text."""
        return self.hashed.bags(texts_of(self.feature, column))

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells have words; parts of words that training did not have count, too."""
        return have_words(self.feature, column)

    def save(self, path: Path) -> None:
        """Write the weight of each bucket."""
        frame = pd.DataFrame({"weight": self.hashed.inverse_document_frequency})
        frame.assign(max_ngrams=self.hashed.max_ngrams).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> HashedTextEncoder:
        """Read what `save` wrote."""
        frame = read_parquet(path).to_pandas()
        weights = frame["weight"].to_numpy(np.float32)
        return cls(HashedText(weights, int(frame["max_ngrams"].iloc[0])), feature)


SPARSE_ENCODERS: dict[str, Any] = {"vocabulary": ValueEncoder, "ngrams": HashedTextEncoder}
"""By the name that `FeatureKind.encoder` gives."""


def have_words(feature: Feature, column: pd.Series) -> Bool[np.ndarray, "entities"]:
    """Return which cells of a text column have at least one word."""
    return np.array([bool(words(text)) for text in texts_of(feature, column)], dtype=bool)
