"""Recent popularity in training: the numbers of all items as they stood at the time of each prediction."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from features.sequences.batches import SequenceBatch
from features.sequences.sequences import UNKNOWN_TIME, Sequences
from features.sequences.timeline import Timeline
from features.sequences.trend import STEPS, ItemTrend
from training.loop.negatives import Negatives, Targets, TrendNumbers, to_device

MOST_TABLE_BYTES = 1 << 28
"""Most bytes for the numbers of all items at all moments; the grid of moments is made as coarse as that takes."""


class TrendOfTargets:
    """The numbers of the items that a batch compares, at the times of its predictions.

    Args:
        train: The interactions to train on.
        num_items: Number of items that take part.
        half_lives: Half-lives in days.
        device: Where the loss is computed.
        whole: Whether every prediction is compared with all items; their numbers are then made once.
        levels: The usual levels of an earlier training that goes on. None: those of these interactions.
    """

    def __init__(
        self,
        train: Sequences,
        num_items: int,
        half_lives: list[float],
        device: torch.device,
        *,
        whole: bool,
        levels: Float[np.ndarray, "half_lives"] | None = None,
    ) -> None:
        timeline = Timeline.of(train)
        assert timeline is not None, "checked before"
        self.trend = ItemTrend(timeline, num_items, half_lives, levels)
        self._device = device
        times = np.append(timeline.times, UNKNOWN_TIME)
        self._moments = np.unique(self.trend.moments(times))
        self._table: Tensor | None = None
        if whole:
            while len(self._moments) > 2 and len(half_lives) * len(self._moments) * num_items > MOST_TABLE_BYTES:
                self.trend.step *= 2
                self._moments = np.unique(self.trend.moments(times))
            self._table = torch.from_numpy(self.trend.numbers(self._moments)).to(device)

    def of(self, targets: Targets, negatives: Negatives) -> tuple[TrendNumbers, Float[Tensor, "positives half_lives"]]:
        """Return the numbers of the negatives and, as fractions, of each positive, at the time of its request."""
        asked = self.trend.moments(_request_times(targets.batch)[targets.places].numpy())
        if self._table is not None:
            moments = torch.from_numpy(np.searchsorted(self._moments, asked))
            own = self._table[:, to_device(moments, self._device), to_device(targets.rows, self._device)]
            return TrendNumbers(self._table, moments), _fractions(own)
        distinct, moment = np.unique(asked, return_inverse=True)
        rows, column = torch.cat([negatives.rows, targets.rows]).unique(return_inverse=True)
        numbers = torch.from_numpy(self.trend.numbers(distinct, rows.numpy()))
        num_negatives, moments = len(negatives.rows), torch.from_numpy(moment)
        own = to_device(numbers[:, moments, column[num_negatives:]], self._device)
        return TrendNumbers(numbers[:, :, column[:num_negatives]], moments), _fractions(own)


def _request_times(batch: SequenceBatch) -> Int[Tensor, "events"]:
    times = batch.times if batch.request_times is None else batch.request_times
    assert times is not None, "checked before"
    return times


def _fractions(numbers: Tensor) -> Float[Tensor, "positives half_lives"]:
    return numbers.T.float() / STEPS
