"""Recent popularity in the score: numbers behind each item's unit vector, and each user's weights of them.

A score is `<user, item> + <weights(user), numbers(item, time)>`, still one dot product. The vectors that are searched
are therefore longer than the embedding by `TREND_DIMS`; everything else, such as histories and similar items, uses the
embedding alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from features.sequences.trend import STEPS
from towers.config import MOST_HALF_LIVES, TowersConfig

TREND_DIMS = MOST_HALF_LIVES
"""Numbers behind an embedding, those that are not used 0: a round number, which every kind of index can divide."""


class TrendHead(nn.Module):
    """Weights of the numbers of recent popularity, from the user's unit vector; no weight before training.

    Args:
        width: Numbers in a user's vector.
        half_lives: Half-lives in days.

    Attributes:
        levels: Usual decayed number of events of all items in training, by half-life (see `ItemTrend`).
    """

    def __init__(self, width: int, half_lives: Sequence[float]) -> None:
        super().__init__()
        self.half_lives = tuple(half_lives)
        self.weights = nn.Linear(width, len(half_lives))
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        self.levels: Tensor
        self.register_buffer("levels", torch.ones(len(half_lives), dtype=torch.double))

    def forward(self, users: Float[Tensor, "users width"]) -> Float[Tensor, "users half_lives"]:
        """Return each user's weights."""
        weights: Tensor = self.weights(users)
        return weights


def searched_dim(config: TowersConfig) -> int:
    """Return how many numbers the vectors that are searched have."""
    return config.embedding_dim + (TREND_DIMS if config.trend else 0)


def with_numbers(
    vectors: Float32[np.ndarray, "rows width"], numbers: Float32[np.ndarray, "rows used"]
) -> Float32[np.ndarray, "rows searched"]:
    """Return vectors with numbers, or weights of such, behind them, and zeros up to `TREND_DIMS`."""
    empty = np.zeros((len(vectors), TREND_DIMS - numbers.shape[1]), dtype=np.float32)
    return np.concatenate([vectors, numbers, empty], axis=1, dtype=np.float32)


def as_fractions(numbers: UInt8[np.ndarray, "half_lives items"]) -> Float32[np.ndarray, "items half_lives"]:
    """Return the numbers of `ItemTrend` at one moment as a score reads them, 0 to 1."""
    return (numbers.T / np.float32(STEPS)).astype(np.float32)
