"""A running average of the weights, which is validated and kept: it is more stable than the weights of one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

RECENCY = 8
"""Weight of late steps: the mean age of the averaged weights is a tenth of the run."""
EVERY = 4
"""Steps from one addition to the next: neighbours differ little, and adding takes time."""
BLOCK = 1 << 20
"""Weights of 16 bits that are made 32 bits at a time, to be added."""
NUMBERS_A_STEP = 1 << 22
"""Averaged numbers for each step, about 10 ms of them: an addition goes through all weights, and those of very large
tables, of which a step changes few rows, are added less often."""


def steps_between(num_numbers: int) -> int:
    """Return the number of steps from one addition of so many numbers to the next.

    Example:
        >>> steps_between(1_000_000), steps_between(64 * 1_000_000)
        (4, 16)
    """
    return max(EVERY, math.ceil(num_numbers / NUMBERS_A_STEP))


class WeightAverage:
    """The polynomial-decay average of a model's weights (Shamir and Zhang 2013, arXiv 1212.1824, section 4).

    After addition `t`: `average += (RECENCY + 1) / (t + RECENCY) * (weights - average)`. The window grows with the run,
    so that a short run is not held back by its beginning and a long one is well smoothed; there is no length to choose.
    The average of 16-bit weights has 32 bits, because what late steps add is below what 16 bits can tell apart.

    Args:
        weights: Returns the weights that are averaged, by name; they may be overwritten.
        every: Steps from one addition to the next.
    """

    def __init__(self, weights: Callable[[], Mapping[str, Tensor]], every: int = EVERY) -> None:
        self._weights, self._every = weights, every
        self.tensors = {
            name: value.to(average_dtype(value.dtype), copy=True).contiguous() for name, value in weights().items()
        }

    def add(self, step: int) -> None:
        """Add the weights after `step`, from 1 on; most steps are left out, the first is not."""
        if (step - 1) % self._every:
            return
        share = (RECENCY + 1) / ((step - 1) // self._every + 1 + RECENCY)
        with torch.no_grad():
            for name, value in self._weights().items():
                _add(self.tensors[name], value, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average for a while."""
        own = {name: value.clone() for name, value in self._weights().items()}
        overwrite(self._weights(), self.tensors)
        try:
            yield
        finally:
            overwrite(self._weights(), own)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to an average of before."""
        overwrite(self.tensors, tensors)


def average_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which weights of a type are averaged."""
    return torch.float32 if dtype == torch.float16 else dtype


def _add(average: Tensor, weights: Tensor, share: float) -> None:
    if average.dtype == weights.dtype:
        average.lerp_(weights, share)
        return
    for own, added in zip(average.view(-1).split(BLOCK), weights.reshape(-1).split(BLOCK), strict=True):
        own.lerp_(added.to(own.dtype), share)


@torch.no_grad()
def overwrite(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Give tensors the values of others of the same names."""
    for name, tensor in old.items():
        tensor.copy_(new[name])
