"""From ids and category values to rows of an embedding table and back. Row 0 is for unknown values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int

from features.parquet import read_parquet

UNKNOWN = 0


@dataclass(frozen=True)
class Vocabulary:
    """The values known from training, in the order of their rows: `values[i]` has row `i + 1`.

    They are Python's objects: to look up a few of a request, Arrow's would first be made objects of, all of them.

    Example:
        >>> colours = Vocabulary.fit(["red", "blue", "red", None])
        >>> colours.rows(["red", "green", None]).tolist()
        [1, 0, 0]
        >>> len(colours)
        3
    """

    values: pd.Index

    @classmethod
    def fit(cls, values: Iterable[object]) -> Vocabulary:
        """Return the vocabulary of the values that occur, most frequent first.

        Values of equal frequency keep the order in which they first occur; nulls are unknown.
        """
        counts = pd.Series(values, dtype="object").value_counts(dropna=True, sort=False)
        counts = counts.sort_values(ascending=False, kind="stable")
        return cls(pd.Index(counts.index.tolist(), dtype=object))

    def grown(self, other: Vocabulary) -> Vocabulary:
        """Return the vocabulary with those values of another that it lacks behind its own, which keep their rows.

        Example:
            >>> Vocabulary.fit(["red", "blue"]).grown(Vocabulary.fit(["green", "red"])).values.tolist()
            ['red', 'blue', 'green']
        """
        return Vocabulary(self.values.append(other.values[self.values.get_indexer(other.values) < 0]))

    def __len__(self) -> int:
        """Return the number of rows, the unknown one included."""
        return len(self.values) + 1

    def rows(self, values: Iterable[object]) -> Int[np.ndarray, "values"]:
        """Return the row of each value, 0 where it is not known."""
        return np.asarray(self.values.get_indexer(pd.Index(list(values), dtype=object)) + 1, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write the values as a Parquet file of one column, `value`."""
        pd.DataFrame({"value": self.values}).to_parquet(path, index=False)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote."""
        return cls(pd.Index(read_parquet(path).to_pandas()["value"].to_numpy(), dtype=object))
