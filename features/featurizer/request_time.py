"""The time of a request as numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SECONDS_A_DAY = 86_400
CONTEXT_WIDTH = 6
"""Numbers that `request_features` returns for each time."""


def request_features(times: Int[Tensor, "requests"]) -> Float[Tensor, "requests 6"]:
    """Return the hour, the weekday and the season of Unix times (UTC), each as a point on a circle."""
    days = times.double() / SECONDS_A_DAY
    turns = torch.stack([days % 1, (days / 7) % 1, (days / 365.2425) % 1], dim=-1) * 2 * torch.pi
    return torch.cat([turns.sin(), turns.cos()], dim=-1).float()
