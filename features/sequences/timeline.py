"""The events of all users in order of time: what was known of each item at a moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from features.sequences.sequences import UNKNOWN_TIME, Sequences


@dataclass(frozen=True)
class Timeline:
    """Events by time, of all users together.

    Attributes:
        times: Unix seconds, ascending, `[events]`.
        item_rows: Catalogue row of each event, `[events]`.
    """

    times: Int[np.ndarray, "events"]
    item_rows: Int[np.ndarray, "events"]

    @classmethod
    def of(cls, sequences: Sequences) -> Timeline | None:
        """Return the events whose times are known; None where the data has no times, or is too large for memory."""
        if sequences.times is None or sequences.folder is not None:
            return None
        order = np.argsort(sequences.times, kind="stable")
        order = order[np.searchsorted(sequences.times[order], UNKNOWN_TIME, side="right") :]
        return cls(sequences.times[order], sequences.item_rows[order])

    def counts(
        self, moments: Int[np.ndarray, "questions"], seconds: float, num_items: int
    ) -> Float32[np.ndarray, "questions items"]:
        """Return the number of events of each item in the window that ends at each moment.

        Args:
            moments: Unix seconds. An event at the very moment does not count: it may be the one that is asked for.
                Nothing counts for `UNKNOWN_TIME`.
            seconds: Length of the window; inf: everything before.
            num_items: Size of the catalogue.

        Example:
            >>> timeline = Timeline(np.array([10, 20, 30]), np.array([0, 1, 1]))
            >>> timeline.counts(np.array([31, 30, 20]), 15, num_items=2).tolist()
            [[0.0, 2.0], [0.0, 1.0], [1.0, 0.0]]
        """
        ends = np.searchsorted(self.times, moments, side="left")
        starts = np.searchsorted(self.times, moments - np.float64(seconds), side="left")
        counts = np.empty((len(moments), num_items), dtype=np.float32)
        current = np.zeros(num_items, dtype=np.float32)
        start = end = 0
        # The window only moves forward, so that each event is added and removed once.
        for question in np.argsort(moments):
            np.add.at(current, self.item_rows[end : ends[question]], 1)
            np.subtract.at(current, self.item_rows[start : starts[question]], 1)
            start, end = starts[question], ends[question]
            counts[question] = current
        return counts
