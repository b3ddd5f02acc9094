"""Sequential neighbours: what came soon after an item in the histories of others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32

from features.sequences.cooccurrence import neighbour_counts, strongest
from features.sequences.sequences import Queries, Sequences
from training.evaluation.baselines.baseline import BaselineData, LeftOutError
from training.evaluation.baselines.recency import decayed_history

WINDOW = 5
"""Most places between an item and what came after it."""
LEAST_KEPT = 100
"""Transitions from an item that are kept at least, where memory does not allow all; as many as item cosine keeps."""
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
        return cls(Transitions.of(train, num_items).weighed(row_power, column_power), half_life)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed weights of the history's items for each item."""
        return (decayed_history(queries.history, self._weights.shape[0], self.half_life) @ self._weights).toarray()


@dataclass(frozen=True)
class Transitions:
    """How often, and how soon, items came after others.

    Attributes:
        counts: Of the item of a column after that of a row, `[items, items]`.
        out: The sum of each row, `[items]`, what was not kept included.
        into: The sum of each column, `[items]`, likewise.
        num_cut: From how many items not all transitions are kept.
    """

    counts: sp.csr_array[np.float32]
    out: Float32[np.ndarray, "items"]
    into: Float32[np.ndarray, "items"]
    num_cut: int

    @classmethod
    def of(cls, train: Sequences, num_items: int, most: int | None = None) -> Transitions:
        """Count the transitions.

        Args:
            train: The interactions.
            num_items: Size of the catalogue.
            most: How many from each item are kept, the most frequent ones. None: all.
        """
        whole = math.lcm(*range(1, WINDOW + 1))
        after = {distance: whole // distance for distance in range(1, WINDOW + 1)}
        out, into, num_cut = np.zeros(num_items), np.zeros(num_items), 0
        parts: list[sp.csr_array[np.float32]] = []
        for first, counts in neighbour_counts(train, num_items, after):
            counts.data = counts.data / whole
            out[first : first + counts.shape[0]] = counts.sum(axis=1)
            into += counts.sum(axis=0)
            if most is not None:
                num_cut += int(np.count_nonzero(np.diff(counts.indptr) > most))
                counts = strongest(counts, most)
            parts.append(counts.astype(np.float32))
        return cls(sp.csr_array(sp.vstack(parts)), out.astype(np.float32), into.astype(np.float32), num_cut)

    def weighed(self, row_power: float, column_power: float) -> sp.csr_array[np.float32]:
        """Return the counts over powers of the sums of their row and column."""
        out, into = (np.maximum(sums, np.float32(1e-6)) for sums in (self.out, self.into))
        return sp.csr_array(sp.diags_array(out**-row_power) @ self.counts @ sp.diags_array(into**-column_power))


def prepare(data: BaselineData) -> Callable[..., SequentialNeighbours]:
    """Return how to fit sequential neighbours."""
    train = data.split.train
    if not train.is_ordered:
        raise LeftOutError("it needs the order of the interactions")
    pairs = WINDOW * train.num_events
    most = None
    if pairs * _BYTES_PER_TRANSITION > data.memory_bytes:
        most = max(LEAST_KEPT, int(data.memory_bytes / (_BYTES_PER_TRANSITION * data.num_items)))
        pairs = min(pairs, most * data.num_items)
    data.check_memory(pairs * _BYTES_PER_TRANSITION, f"transitions between {data.num_items:,} items")
    counted = Transitions.of(train, data.num_items, most)
    if counted.num_cut:
        data.notes.append(
            f"sequential neighbours keeps the {most:,} most frequent transitions from an item, to save memory; "
            f"{counted.num_cut:,} items have more."
        )

    @lru_cache(maxsize=1)
    def weights(row_power: float, column_power: float) -> sp.csr_array[np.float32]:
        return counted.weighed(row_power, column_power)

    def fit(half_life: float, row_power: float, column_power: float) -> SequentialNeighbours:
        return SequentialNeighbours(weights(row_power, column_power), half_life)

    return fit
