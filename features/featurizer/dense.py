"""Encoders of columns that become a few numbers: quantiles of numbers and times, ready-made vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from features.columns import numbers_of
from features.errors import DataError
from features.parquet import read_parquet
from features.schema import Feature
from features.values.cells import is_missing

NUM_QUANTILES = 16


class DenseEncoder(Protocol):
    """A column to `width` numbers per entity."""

    @property
    def width(self) -> int:
        """How many numbers one value becomes."""

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the numbers of a column."""

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells say something that the model can read."""

    def save(self, path: Path) -> None:
        """Write the fitted state as one Parquet file."""


@dataclass(frozen=True)
class NumberEncoder:
    """Numbers and times: how far the value has come through each of its quantiles, 0 to 1 in each.

    The piecewise linear encoding of Gorishniy et al. 2022 (arXiv 2203.05556): no scale or outlier can hurt, and a
    linear layer after it can follow any shape. A missing value is all zeros, a known one begins with a 1.
    """

    edges: Float[np.ndarray, "edges"]
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series) -> NumberEncoder:
        """Return the encoder whose edges are the quantiles of `column`."""
        values = numbers_of(feature, column)
        known = values[np.isfinite(values)]
        quantiles = np.quantile(known, np.linspace(0, 1, NUM_QUANTILES + 1)) if len(known) else np.array([0.0, 1.0])
        edges = np.unique(quantiles)
        return cls(edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1]), feature)

    @property
    def width(self) -> int:
        """One number for each span between edges, and one that says the value is known."""
        return len(self.edges)

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the encoded values."""
        values = numbers_of(self.feature, column)[:, None]
        spans = np.clip((values - self.edges[:-1]) / np.diff(self.edges), 0, 1)
        known = np.isfinite(values)
        return np.where(known, np.hstack([known, spans]), 0).astype(np.float32)

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells hold a number."""
        known: np.ndarray = np.isfinite(numbers_of(self.feature, column))
        return known

    def save(self, path: Path) -> None:
        """Write the edges."""
        pd.DataFrame({"edge": self.edges}).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> NumberEncoder:
        """Read what `save` wrote."""
        return cls(read_parquet(path).to_pandas()["edge"].to_numpy(), feature)


@dataclass(frozen=True)
class VectorEncoder:
    """Ready-made vectors, brought to unit length; a missing one is all zeros."""

    width: int
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series) -> VectorEncoder:
        """Return the encoder for vectors as long as those of `column`."""
        widths = column.dropna().map(len).unique()
        if len(widths) != 1:
            raise DataError(
                f"column {feature.name!r}: expected vectors of one length, found "
                f"{', '.join(map(str, sorted(widths))) or 'none'}; make them equally long or remove the feature"
            )
        return cls(int(widths[0]), feature)

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the vectors."""
        vectors = np.zeros((len(column), self.width), dtype=np.float32)
        for row, value in enumerate(column):
            if not is_missing(value):
                if len(value) != self.width:
                    raise DataError(
                        f"column {self.feature.name!r}, row {row + 1}: expected a vector of {self.width} numbers, "
                        f"found {len(value)}; make it as long as in training"
                    )
                vectors[row] = value
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        wrong = np.flatnonzero(~np.isfinite(norms))
        if len(wrong):
            raise DataError(
                f"column {self.feature.name!r}, row {wrong[0] + 1:,}: expected a vector of numbers, found one with a "
                "number that is missing or too large; correct it or leave the cell empty"
            )
        unit: np.ndarray = vectors / np.maximum(norms, 1e-12)
        return unit

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells hold a vector other than zero."""
        return np.asarray(self.numbers(column).any(axis=1))

    def save(self, path: Path) -> None:
        """Write the width."""
        pd.DataFrame({"width": [self.width]}).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> VectorEncoder:
        """Read what `save` wrote."""
        return cls(int(read_parquet(path).to_pandas()["width"].iloc[0]), feature)


DENSE_ENCODERS: dict[str, Any] = {"quantiles": NumberEncoder, "unit_vector": VectorEncoder}
"""By the name that `FeatureKind.encoder` gives."""
