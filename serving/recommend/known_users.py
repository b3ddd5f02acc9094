"""The users whom the tables know: what each had, their vectors, and of whom nothing is known that the model reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.sequences.sequences import Sequences
from serving.search.faiss_index import ItemIndex
from serving.snapshot.encoding import encode_users
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle


class KnownUsers:
    """The users of a snapshot, by their rows.

    Attributes:
        snapshot: Where they are.
        has_attributes: Of whom an attribute is known that the model reads, `[users]`.
    """

    numbering = b""
    """Which numbering of items' rows the histories have; the same rows of the same numbering are the same items."""

    def __init__(self, bundle: ModelBundle, snapshot: Snapshot, index: ItemIndex) -> None:
        self.snapshot = snapshot
        self._bundle = bundle
        self._index = index
        histories = snapshot.histories
        self._read = histories if bundle.config.reads_time else replace(histories, times=None)
        self.has_attributes = np.zeros(len(snapshot.histories), dtype=bool)
        if snapshot.attributes is not None:
            self.has_attributes = bundle.knows(snapshot.attributes)

    def is_as_indexed(self, row: int) -> bool:
        """Return whether a user's history and vector are what they were when the index was made."""
        return True

    def histories(self, rows: Int64[np.ndarray, " users"]) -> Sequences:
        """Return what users had, with its times for models that look at the clock."""
        return self._read.take(rows)

    def vectors(
        self, rows: Int64[np.ndarray, " users"], histories: Sequences, now: int | None
    ) -> Float32[np.ndarray, "users width"]:
        """Return users' unit vectors.

        Args:
            rows: They.
            histories: What they had.
            now: The time of asking in Unix seconds, for models that look at the clock.
        """
        if self.snapshot.user_vectors is not None:
            return np.asarray(self.snapshot.user_vectors[rows])
        return encode_users(self._bundle, self._index, histories, self.attributes(rows), now=now)

    def attributes(self, rows: Int64[np.ndarray, " users"]) -> pd.DataFrame | None:
        """Return what the model reads of users beside their history, a row each; None where it reads nothing."""
        attributes = self.snapshot.attributes
        return None if attributes is None else attributes.iloc[rows].reset_index(drop=True)

    def is_known(self, rows: Int64[np.ndarray, " users"], histories: Sequences) -> Bool[np.ndarray, " users"]:
        """Return of which users anything is known that the model reads."""
        return np.asarray((histories.lengths > 0) | self.has_attributes[rows])
