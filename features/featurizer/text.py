"""Encoders of texts that become vectors: TF-IDF that is not trained, and pretrained models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from features.columns import texts_of
from features.encoders.encoder import PretrainedText
from features.encoders.model import Role
from features.errors import DataError
from features.featurizer.dense import DenseEncoder
from features.featurizer.sparse import Bags, have_words
from features.parquet import read_parquet
from features.schema import Feature
from features.values.text import ProjectedText


@dataclass(frozen=True)
class FixedTextEncoder:
    """Text: a place that is not trained."""

    projected: ProjectedText
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series, *, unseen_words: bool = False) -> FixedTextEncoder:
        """Return the encoder whose word weights come from the texts of `column`, and perhaps those of other words."""
        assert feature.frozen_dim is not None, "the schema says which texts are fixed"
        return cls(ProjectedText.fit(texts_of(feature, column), feature.frozen_dim, unseen_words=unseen_words), feature)

    @property
    def width(self) -> int:
        """How many numbers a text becomes."""
        return self.projected.width

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the place of each text."""
        return self.projected.numbers(texts_of(self.feature, column))

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells have a place: a known word."""
        return np.asarray(self.numbers(column).any(axis=1))

    def save(self, path: Path) -> None:
        """Write the weight of each bucket."""
        pd.DataFrame({"weight": self.projected.inverse_document_frequency}).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> FixedTextEncoder:
        """Read what `save` wrote."""
        assert feature.frozen_dim is not None, "the schema says which texts are fixed"
        weights = read_parquet(path).to_pandas()["weight"].to_numpy(np.float32)
        return cls(ProjectedText(weights, feature.frozen_dim), feature)


@dataclass(frozen=True)
class PretrainedColumn:
    """Text: the vectors of a pretrained model, which may read other columns, too."""

    pretrained: PretrainedText
    role: Role
    feature: Feature

    @property
    def width(self) -> int:
        """How many of its numbers are read."""
        return self.pretrained.width if self.feature.frozen_dim is None else self.feature.frozen_dim

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return `width` numbers of each text's vector; zeros for empty texts; no columns if it is fine-tuned."""
        if self.is_trained:
            return np.zeros((len(column), 0), dtype=np.float32)
        return self.pretrained.numbers(texts_of(self.feature, column), self.role, self.width)

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells have words; the model is not called."""
        return have_words(self.feature, column)

    @property
    def is_trained(self) -> bool:
        """Whether the towers make the vectors, of tokens."""
        return self.pretrained.settings.is_trained

    def tokens(self, column: pd.Series) -> Bags:
        """Return how many tokens each text has, and all of them one after another."""
        tokens = self.pretrained.tokens(texts_of(self.feature, column), self.role)
        lengths = np.array([len(one) for one in tokens], dtype=np.int64)
        return lengths, np.array([token for one in tokens for token in one], dtype=np.int64)


@dataclass(frozen=True)
class TrainedText:
    """A text whose encoder is trained, and where its numbers belong among the dense ones.

    Attributes:
        name: The column.
        encoder: The name of its encoder.
        begin: The place of its first number.
        width: How many numbers it has.
    """

    name: str
    encoder: str
    begin: int
    width: int


def pretrained_column(feature: Feature, pretrained: Mapping[str, PretrainedText], role: Role) -> PretrainedColumn:
    """Return the encoder of a text column that a pretrained model reads.

    Raises:
        DataError: `frozen_dim` is more than the numbers of the model's vectors.
    """
    assert feature.encoder is not None, "the schema says which texts are read by a pretrained model"
    encoder = pretrained[feature.encoder]
    if feature.frozen_dim is not None and feature.frozen_dim > encoder.width:
        raise DataError(
            f"frozen_dim = {feature.frozen_dim} of {feature.name!r} is more than the {encoder.width} numbers of "
            f"encoder {feature.encoder!r}; make it {encoder.width} or less"
        )
    return PretrainedColumn(encoder, role, feature)


def is_fixed(encoder: DenseEncoder) -> bool:
    """Return whether a text's numbers are part of the entity's vector as they are, without a projection."""
    if isinstance(encoder, PretrainedColumn):
        return encoder.feature.frozen_dim is not None
    return isinstance(encoder, FixedTextEncoder)
