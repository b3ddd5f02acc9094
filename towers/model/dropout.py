"""Dropout that is fast on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_DRAWS = 4
"""Decisions made with one random number of 64 bits; each has 16."""


class Dropout(nn.Module):
    """Set a share of the numbers to zero in training and scale the others up, so that the mean stays.

    torch draws a random number for each decision, which on a CPU takes longer than a layer's matrix product; a quarter
    of the bits decide as well. The share is met to 1/65,536.

    Args:
        share: Of the numbers that are dropped, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return `x` with some numbers dropped; outside of training `x` itself."""
        if not self.training or not self.share:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.share)
        bits = torch.empty(-(-x.numel() // _DRAWS), dtype=torch.int64).random_(-(2**63), None)
        is_kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.share * 2**16) - 2**15
        return x * is_kept.to(x.dtype).div_(1 - self.share)
