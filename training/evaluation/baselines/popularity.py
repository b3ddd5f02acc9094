"""The most popular items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from features.sequences.sequences import Queries, Sequences
from training.evaluation.baselines.baseline import BaselineData


class PopularityBaseline:
    """Recommends the items with the most users, the same for each query."""

    name = "popularity"

    def __init__(self, num_users: Float32[np.ndarray, "items"]) -> None:
        """Take the number of different users of each item, `[items]`."""
        self._num_users = num_users

    @classmethod
    def fit(cls, train: Sequences, num_items: int) -> PopularityBaseline:
        """Count the distinct users of each item; repeated interactions of a user count once."""
        first = train.item_rows[train.first_visits()]
        return cls(np.bincount(first, minlength=num_items).astype(np.float32))

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the same row for every question."""
        return np.broadcast_to(self._num_users, (len(queries), len(self._num_users)))


def prepare(data: BaselineData) -> Callable[..., PopularityBaseline]:
    """Return how to fit popularity, which has no hyperparameters."""
    return lambda: PopularityBaseline.fit(data.split.train, data.num_items)
