"""Recent popularity of items as it stood at a moment: decayed counts of the events before it, and of none later.

Numbers are made for moments on a grid of time, and a request gets those of the last moment at or before it, as a
service does whose index is rebuilt now and then. Training, evaluation and the service share this code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from features.sequences.ragged import ragged_arange
from features.sequences.timeline import Timeline

STEPS = 255
"""A number from 0 to 1 is kept as one of so many steps, which is a byte."""
_DAY = 86_400
_MOMENTS_PER_HALF_LIFE = 8
_MOST_CELLS = 1 << 22
_EARLIEST = -(1 << 62)


class ItemTrend:
    """Recent popularity of each item at any moment, one number for each half-life.

    An event counts 1 when it happens, and half as much after each half-life. With `c` the sum over the events of an
    item strictly before a moment, `C` the sum over all items, and `level` the usual size of `C`, a number is
    `log(1 + c level / C) / log(1 + level)`: 0 without events, 1 for the only item with any, and the same whether a
    service has much traffic or little.

    Args:
        timeline: The events that count.
        num_items: Size of the catalogue.
        half_lives: Half-lives in days.
        levels: Usual size of the sum over all items, by half-life. None: its mean over the events, as in training.

    Attributes:
        levels: See above, `[half_lives]`.
        step: Seconds between two moments of the grid: an eighth of the shortest half-life. It may be set.
    """

    def __init__(
        self,
        timeline: Timeline,
        num_items: int,
        half_lives: Sequence[float],
        levels: Float[np.ndarray, "half_lives"] | None = None,
    ) -> None:
        rows, times = timeline.item_rows.astype(np.int64), timeline.times
        self._half_lives = np.array(half_lives, dtype=np.float64) * _DAY
        order = np.argsort(rows, kind="stable")
        self._times = times[order]
        self._offsets = np.searchsorted(rows[order], np.arange(num_items + 1))
        self._sums = [
            _decayed_sums(self._times, rows[order], half_life).astype(np.float32) for half_life in self._half_lives
        ]
        self._all_times = times
        self._totals = np.stack(
            [_decayed_sums(self._all_times, np.zeros_like(rows), half_life) for half_life in self._half_lives], axis=1
        )
        self.step = max(1, int(self._half_lives.min() / _MOMENTS_PER_HALF_LIFE))
        usual = self._totals.mean(axis=0) if len(times) else np.ones(len(self._half_lives))
        self.levels = usual if levels is None else levels

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self._offsets) - 1

    @property
    def end(self) -> int:
        """The first second after all events, in Unix seconds; 0 without events."""
        return int(self._all_times[-1]) + 1 if len(self._all_times) else 0

    def moments(self, times: Int[np.ndarray, "requests"]) -> Int[np.ndarray, "requests"]:
        """Return the last moment of the grid at or before each time, in Unix seconds."""
        found: np.ndarray = np.maximum(times, _EARLIEST) // self.step * self.step
        return found

    def numbers(
        self, moments: Int[np.ndarray, "moments"], rows: Int[np.ndarray, "items"] | None = None
    ) -> UInt8[np.ndarray, "half_lives moments items"]:
        """Return the numbers of items at some moments, in steps of 1 / 255.

        Args:
            moments: Unix seconds, ascending; each is taken as it is (see `moments`).
            rows: Which items. None: all.
        """
        rows = np.arange(self.num_items) if rows is None else rows
        found = np.zeros((len(self._half_lives), len(moments), len(rows)), dtype=np.uint8)
        # What all sums have decayed by since the newest event cancels out, so that they are taken at that event.
        newest = np.searchsorted(self._all_times, moments, side="left") - 1
        is_after_any = newest >= 0
        if not is_after_any.any():
            return found
        now = self._all_times[newest]
        factors = np.where(is_after_any[:, None], self.levels / self._totals[newest], 0.0).astype(np.float32)
        size = max(1, _MOST_CELLS // len(moments))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            last = self._last_events(moments, rows[part])
            age = np.where(last >= 0, now[:, None] - self._times[last], 0).astype(np.float32)
            for place, half_life in enumerate(self._half_lives):
                count = self._sums[place][last] * np.exp2(age * np.float32(-1 / half_life))
                count *= factors[:, place, None]
                count[last < 0] = 0
                scale = np.float32(STEPS / np.log1p(self.levels[place]))
                found[place, :, part] = np.minimum(np.rint(np.log1p(count) * scale), STEPS)
        return found

    def _last_events(
        self, moments: Int[np.ndarray, "moments"], rows: Int[np.ndarray, "items"]
    ) -> Int[np.ndarray, "moments items"]:
        """Return the last event of each item strictly before each moment, -1 where there is none."""
        lengths = self._offsets[rows + 1] - self._offsets[rows]
        events = ragged_arange(self._offsets[rows], lengths)
        column = np.repeat(np.arange(len(rows)), lengths)
        first = np.searchsorted(moments, self._times[events], side="right")
        cell = first * len(rows) + column
        is_last = np.append(cell[1:] != cell[:-1], True) if len(cell) else np.zeros(0, dtype=bool)
        last = np.full((len(moments) + 1) * len(rows), -1, dtype=np.int64)
        last[cell[is_last]] = events[is_last]
        return np.maximum.accumulate(last.reshape(len(moments) + 1, len(rows))[:-1], axis=0)


def _decayed_sums(
    times: Int[np.ndarray, "events"], groups: Int[np.ndarray, "events"], half_life: float
) -> Float[np.ndarray, "events"]:
    """Return the decayed sum of the events of a group up to and with each event; sorted by group, then by time.

    In as many passes as the number of events has binary digits: each doubles how many events a sum holds.
    """
    sums = np.ones(len(times))
    reach = 1
    while reach < len(times):
        is_same = groups[reach:] == groups[:-reach]
        if not is_same.any():
            break
        later = np.flatnonzero(is_same) + reach
        sums[later] += sums[later - reach] * np.exp2(-(times[later] - times[later - reach]) / half_life)
        reach *= 2
    return sums
