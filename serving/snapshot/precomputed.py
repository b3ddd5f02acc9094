"""The best items of every known user, found before anybody asks.

Between two runs of `towers index` most users ask with the vector that they had then, and the catalogue is the same. So
what the service would answer them is written beside the index once, and looked up, which is much faster than a search.
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

FILE = "shortlists.safetensors"
BYTES_A_PLACE = 8
"""What an item of a list takes: a row and a score."""


@dataclass(frozen=True)
class PrecomputedTopK:
    """The first items of each user, best first.

    Attributes:
        rows: Catalogue rows by row of users, `[users, depth]`; -1 from where on a user gets no more, and for users of
            whom nothing is known.
        scores: Their scores, `[users, depth]`.
        seen_items: Label of the policy for seen items that they were made with.
    """

    rows: Int32[np.ndarray, "users depth"]
    scores: Float32[np.ndarray, "users depth"]
    seen_items: str

    @classmethod
    def empty(cls, num_users: int, depth: int, seen_items: SeenItems) -> PrecomputedTopK:
        """Return lists with nothing in them, to be filled by `put`."""
        shape = num_users, depth
        return cls(np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32), seen_items.label)

    def put(self, user_rows: np.ndarray, hits: Hits) -> None:
        """Take down what some users get, no more than `depth` items each."""
        lengths = np.diff(hits.offsets)
        where = np.repeat(user_rows, lengths), ragged_arange(np.zeros_like(lengths), lengths)
        self.rows[where], self.scores[where] = hits.rows, hits.scores

    @property
    def listed(self) -> PrecomputedInfo:
        """What their seal says of them."""
        return PrecomputedInfo(depth=self.rows.shape[1], seen_items=self.seen_items)

    def serves(self, seen_items: SeenItems) -> bool:
        """Return whether a search with this policy for seen items would find the same."""
        return self.seen_items == seen_items.label and not seen_items.depends_on_time

    def best(
        self, user_row: int, depth: int
    ) -> tuple[Int32[np.ndarray, " depth"], Float32[np.ndarray, " depth"]] | None:
        """Return the first `depth` items of a user, with their scores; None where not so many are listed."""
        if not 0 < depth <= self.rows.shape[1] or self.rows[user_row, depth - 1] < 0:
            return None
        return self.rows[user_row, :depth], self.scores[user_row, :depth]

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.rows)

    def save(self, folder: Path) -> None:
        """Write them into the folder of an index."""
        save_file({"rows": self.rows, "scores": self.scores}, folder / FILE)
