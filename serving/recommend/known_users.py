"""The users of the tables: histories, vectors, attributes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.sequences.sequences import Sequences
from serving.snapshot.encoding import encode_users
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle


class KnownUsers:
    """The users of a snapshot by row; see `UserStore`.

    Attributes:
        snapshot: The snapshot.
        row_generation: Always the same: rows of an index are never renumbered.
        has_attributes: Which users have an attribute that the model reads, `[users]`.
    """

    row_generation = b""

    def __init__(self, bundle: ModelBundle, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._bundle = bundle
        self.has_attributes = np.zeros(len(snapshot.histories), dtype=bool)
        if snapshot.attributes is not None:
            self.has_attributes = bundle.knows(snapshot.attributes)

    def is_unchanged(self, row: int) -> bool:
        """Return True: the users of an index do not change."""
        return True

    def histories(self, rows: Int64[np.ndarray, " users"]) -> Sequences:
        """Return users' histories."""
        return self.snapshot.histories.take(rows)

    def vectors(
        self, rows: Int64[np.ndarray, " users"], histories: Sequences, now: int | None
    ) -> Float32[np.ndarray, "users width"]:
        """Return users' unit vectors: those of the snapshot, or new ones for models that read the time of a request."""
        if self.snapshot.user_vectors is not None:
            return np.asarray(self.snapshot.user_vectors[rows])
        return encode_users(self._bundle, self.snapshot.index.vectors, histories, self.attributes(rows), now=now)

    def attributes(self, rows: Int64[np.ndarray, " users"]) -> pd.DataFrame | None:
        """Return the columns of users that the model reads, one row each; None if it reads none."""
        attributes = self.snapshot.attributes
        return None if attributes is None else attributes.iloc[rows].reset_index(drop=True)

    def is_known(self, rows: Int64[np.ndarray, " users"], histories: Sequences) -> Bool[np.ndarray, " users"]:
        """Return for which users there is a history or an attribute that the model reads."""
        return np.asarray((histories.lengths > 0) | self.has_attributes[rows])
