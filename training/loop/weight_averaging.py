"""A running average of the weights, which is validated and kept: it is more stable than the weights of one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

RECENCY = 8
"""Weight of late steps: the mean age of the averaged weights is a tenth of the run."""
EVERY = 4
"""Steps from one addition to the next: neighbours differ little, and adding takes time."""


class WeightAverage:
    """The polynomial-decay average of a model's weights (Shamir and Zhang 2013, arXiv 1212.1824, section 4).

    After addition `t`: `average += (RECENCY + 1) / (t + RECENCY) * (weights - average)`. The window grows with the run,
    so that a short run is not held back by its beginning and a long one is well smoothed; there is no length to choose.

    Args:
        model: Whose weights are averaged.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.tensors = {name: value.clone() for name, value in model.state_dict().items()}

    def add(self, step: int) -> None:
        """Add the weights after `step`, from 1 on; most steps are left out, the first is not."""
        if (step - 1) % EVERY:
            return
        share = (RECENCY + 1) / ((step - 1) // EVERY + 1 + RECENCY)
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                self.tensors[name].lerp_(value, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average for a while."""
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to an average of before."""
        for name, value in tensors.items():
            self.tensors[name].copy_(value)
