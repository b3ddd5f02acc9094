"""Precomputed recommendations: the best items of every known user.

Between two runs of `towers index`, the vectors of most users and the catalogue do not change. So their recommendations
are computed once and stored in the index folder; a lookup is much faster than a search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32
from safetensors.numpy import save_file

from features.sequences.ragged import ragged_arange
from serving.search.results import Hits
from serving.snapshot.manifest import PrecomputedInfo

FILE = "shortlists.safetensors"
BYTES_A_PLACE = 8
"""Memory of one item: a row and a score."""


@dataclass(frozen=True)
class PrecomputedTopK:
    """The best items of each user, best first.

    Attributes:
        rows: Catalogue rows by row of users, `[users, depth]`; -1 after a user's last item, and for users
            without any known feature.
        scores: Their scores, `[users, depth]`.
        with_seen: Whether they may include items of the user's history.
    """

    rows: Int32[np.ndarray, "users depth"]
    scores: Float32[np.ndarray, "users depth"]
    with_seen: bool

    @classmethod
    def empty(cls, num_users: int, depth: int, *, with_seen: bool) -> PrecomputedTopK:
        """Return empty lists, to be filled by `put`."""
        shape = num_users, depth
        return cls(np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32), with_seen)

    def put(self, user_rows: np.ndarray, hits: Hits) -> None:
        """Store the results of some users, at most `depth` items each."""
        lengths = np.diff(hits.offsets)
        where = np.repeat(user_rows, lengths), ragged_arange(np.zeros_like(lengths), lengths)
        self.rows[where], self.scores[where] = hits.rows, hits.scores

    @property
    def listed(self) -> PrecomputedInfo:
        """The parameters for the manifest."""
        return PrecomputedInfo(depth=self.rows.shape[1], with_seen=self.with_seen)

    def best(
        self, user_row: int, depth: int
    ) -> tuple[Int32[np.ndarray, " depth"], Float32[np.ndarray, " depth"]] | None:
        """Return the first `depth` items of a user, with their scores; None if fewer are stored."""
        if not 0 < depth <= self.rows.shape[1] or self.rows[user_row, depth - 1] < 0:
            return None
        return self.rows[user_row, :depth], self.scores[user_row, :depth]

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.rows)

    def save(self, folder: Path) -> None:
        """Write the lists to the folder of an index."""
        save_file({"rows": self.rows, "scores": self.scores}, folder / FILE)
