"""Sequential neighbours: what came soon after an item in the histories of others."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32

from features.sequences.sequences import Queries, Sequences
from training.evaluation.baselines.baseline import BaselineData, LeftOutError
from training.evaluation.baselines.recency import decayed_history

WINDOW = 5
"""Most places between an item and what came after it."""
_BYTES_PER_TRANSITION = 24


class SequentialNeighbours:
    """Item-to-item transitions, applied to the newest items of a history.

    `transitions(i, j) = sum over all users and places p < q <= p + WINDOW with i at p and j at q of 1 / (q - p)`. The
    score of j is the sum over the history's items i of `2 ** (-age(i) / half_life) * transitions(i, j) / (out(i) **
    row_power * into(j) ** column_power)`, where `out(i)` is the sum of i's row and `into(j)` of j's column. With
    `row_power` 0 frequent items of a history say more than rare ones, with 1 all say equally much; `column_power` keeps
    items back that come after everything.

    Source: the rules "SR" in Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms", 2018, there
    with the newest item alone.
    """

    name = "sequential neighbours"

    def __init__(self, weights: sp.csr_array[np.float32], half_life: float) -> None:
        """Take the weights of a history's item (row) for each recommended one (column), and the half-life in events."""
        self.half_life = half_life
        self._weights = weights

    @classmethod
    def fit(
        cls, train: Sequences, num_items: int, *, half_life: float, row_power: float, column_power: float
    ) -> SequentialNeighbours:
        """Count the transitions and weigh them."""
        return cls(_weighed(transitions(train, num_items), row_power, column_power), half_life)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed weights of the history's items for each item."""
        return (decayed_history(queries.history, self._weights.shape[0], self.half_life) @ self._weights).toarray()


def prepare(data: BaselineData) -> Callable[..., SequentialNeighbours]:
    """Return how to fit sequential neighbours."""
    train = data.split.train
    if not train.is_ordered:
        raise LeftOutError("it needs the order of the interactions")
    data.check_memory(WINDOW * train.num_events * _BYTES_PER_TRANSITION, f"transitions of {train.num_events:,} events")
    counts = transitions(train, data.num_items)

    @lru_cache(maxsize=1)
    def weights(row_power: float, column_power: float) -> sp.csr_array[np.float32]:
        return _weighed(counts, row_power, column_power)

    def fit(half_life: float, row_power: float, column_power: float) -> SequentialNeighbours:
        return SequentialNeighbours(weights(row_power, column_power), half_life)

    return fit


def transitions(train: Sequences, num_items: int) -> sp.csr_array[np.float32]:
    """Return how often, and how soon, the item of a column came after that of a row, `[items, items]`."""
    users, counts = train.event_users, sp.csr_array((num_items, num_items), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        is_same_user = users[distance:] == users[:-distance]
        pairs = (train.item_rows[:-distance][is_same_user], train.item_rows[distance:][is_same_user])
        ones = np.full(len(pairs[0]), 1 / distance, dtype=np.float32)
        counts = counts + sp.csr_array((ones, pairs), shape=counts.shape)
    return sp.csr_array(counts)


def _weighed(counts: sp.csr_array[np.float32], row_power: float, column_power: float) -> sp.csr_array[np.float32]:
    out, into = (np.maximum(counts.sum(axis=axis), 1e-6).astype(np.float32) for axis in (1, 0))
    return sp.csr_array(sp.diags_array(out**-row_power) @ counts @ sp.diags_array(into**-column_power))
