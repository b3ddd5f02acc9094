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
from features.sequences.seen_items import SeenItems
from serving.search.results import Hits
from serving.snapshot.manifest import PrecomputedInfo

FILE = "precomputed.safetensors"
BYTES_A_PLACE = 8
"""Memory of one item: a row and a score."""


@dataclass(frozen=True)
class PrecomputedTopK:
    """The best items of each user, best first.

    Attributes:
        rows: Catalogue rows by row of users, `[users, depth]`; -1 after a user's last item, and for users
            without any known feature.
        scores: Their scores, `[users, depth]`.
        seen_items: Label of the policy for seen items that they were computed with.
    """

    rows: Int32[np.ndarray, "users depth"]
    scores: Float32[np.ndarray, "users depth"]
    seen_items: str

    @classmethod
    def empty(cls, num_users: int, depth: int, seen_items: SeenItems) -> PrecomputedTopK:
        """Return empty lists, to be filled by `put`."""
        shape = num_users, depth
        return cls(np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32), seen_items.label)

    def put(self, user_rows: np.ndarray, hits: Hits) -> None:
        """Store the results of some users, at most `depth` items each."""
        lengths = np.diff(hits.offsets)
        where = np.repeat(user_rows, lengths), ragged_arange(np.zeros_like(lengths), lengths)
        self.rows[where], self.scores[where] = hits.rows, hits.scores

    @property
    def listed(self) -> PrecomputedInfo:
        """The parameters for the manifest."""
        return PrecomputedInfo(depth=self.rows.shape[1], seen_items=self.seen_items)

    def serves(self, seen_items: SeenItems) -> bool:
        """Return whether a search with this policy for seen items would find the same."""
        return self.seen_items == seen_items.label and not seen_items.depends_on_time

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
