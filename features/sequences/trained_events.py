"""Which interactions a model was trained on, so that a later training can tell the new ones.

They are not listed. Of each user, the file says how far the history was trained on: what came later is new. That is 24
bytes a user, without ids, and still holds if old interactions are later left out of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Int64

from features.ids import id_digests
from features.sequences.sequences import Sequences


@dataclass(frozen=True)
class TrainedEvents:
    """Up to where each user's history was trained on, sorted by user.

    Where there are no times, all times are 0, so that `counts` is the number of all events of a user.

    Attributes:
        users: A digest of each user's id, `[users]`, ascending.
        times: The latest time of an event that was trained on, Unix seconds, `[users]`.
        counts: How many events at that time were trained on, `[users]`.
        total: How many events were trained on in all, `[1]`.
    """

    users: Int64[np.ndarray, "users"]
    times: Int64[np.ndarray, "users"]
    counts: Int64[np.ndarray, "users"]
    total: Int64[np.ndarray, "1"]

    @classmethod
    def of(cls, train: Sequences) -> TrainedEvents:
        """Return up to where the histories of the training data go; users without events are left out."""
        users: list[np.ndarray] = []
        times: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        for block in train.blocks():
            active = np.flatnonzero(block.lengths)
            reached = _times_reached(block)
            latest = reached[block.offsets[active + 1] - 1]
            is_latest = reached == np.repeat(latest, block.lengths[active])
            users.append(id_digests(block.user_ids[active]))
            times.append(latest)
            counts.append(np.bincount(block.event_users[is_latest], minlength=len(block))[active])
        found = [np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (users, times, counts)]
        order = np.argsort(found[0])
        digests, latest_times, latest_counts = (part[order].astype(np.int64) for part in found)
        return cls(digests, latest_times, latest_counts, np.array([train.num_events]))

    def are_new(self, sequences: Sequences) -> Bool[np.ndarray, "events"]:
        """Return which events came after those that were trained on.

        An event that became known late and is older than what was trained on of its user counts as one of these.
        """
        found = [np.zeros(0, dtype=bool)]
        for block in sequences.blocks():
            digests = id_digests(block.user_ids)
            place = np.minimum(np.searchsorted(self.users, digests), max(len(self.users) - 1, 0))
            if not len(self.users):
                found.append(np.ones(block.num_events, dtype=bool))
                continue
            is_known = self.users[place] == digests
            is_earlier = _times_reached(block) < np.repeat(self.times[place], block.lengths)
            num_trained = np.bincount(block.event_users[is_earlier], minlength=len(block)) + self.counts[place]
            position = np.arange(block.num_events) - np.repeat(block.offsets[:-1], block.lengths)
            found.append(position >= np.repeat(np.where(is_known, num_trained, 0), block.lengths))
        return np.concatenate(found)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, for a file."""
        return vars(self).copy()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TrainedEvents:
        """Return what `to_arrays` gave."""
        return cls(**{name: arrays[name] for name in ("users", "times", "counts", "total")})


def _times_reached(sequences: Sequences) -> Int[np.ndarray, "events"]:
    """Return the latest time of each user's events up to each event: ascending even if a position orders them."""
    if sequences.times is None:
        return np.zeros(sequences.num_events, dtype=np.int64)
    reached: np.ndarray = pd.Series(np.asarray(sequences.times)).groupby(sequences.event_users).cummax().to_numpy()
    return reached
