"""Encoders of columns whose values are rows of an embedding table: ids, categories, the n-grams of texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
    """Ids and categories: every value a row; a cell of several values a bag of them."""

    vocabulary: Vocabulary
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series) -> ValueEncoder:
        """Return the encoder of the values in `column`."""
        return cls(Vocabulary.fit(values_of(feature, column)[1]), feature)

    def grown(self, column: pd.Series) -> ValueEncoder:
        """Return the encoder that knows the values in `column` as well; known values keep their rows."""
        return ValueEncoder(self.vocabulary.grown(values_of(self.feature, column)[1]), self.feature)

    @property
    def num_rows(self) -> int:
        """How many rows the embedding table needs, the unknown one included."""
        return len(self.vocabulary)

    def bags(self, column: pd.Series) -> Bags:
        """Return the known values of each cell."""
        lengths, values = values_of(self.feature, column)
        rows = self.vocabulary.rows(values)
        known = rows != UNKNOWN
        lengths = np.bincount(np.repeat(np.arange(len(column)), lengths)[known], minlength=len(column))
        return lengths, rows[known]

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells hold a known value; of many equal cells one is looked at."""
        if column.dtype == object or (isinstance(column.dtype, pd.ArrowDtype) and is_list(column.dtype.pyarrow_dtype)):
            return np.asarray(self.bags(column)[0] > 0)
        codes, distinct = pd.factorize(column)
        is_known = self.bags(pd.Series(distinct))[0] > 0
        known: np.ndarray = np.append(is_known, False)[codes]
        return known

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
    def fit(cls, feature: Feature, column: pd.Series) -> HashedTextEncoder:
        """Return the encoder whose n-gram weights come from the texts of `column`."""
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
