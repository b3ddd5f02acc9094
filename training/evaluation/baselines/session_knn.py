"""Session kNN in the form of V-SKNN: the items of users who share the newest items of a history."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int

from features.sequences.matrix import interaction_matrix
from features.sequences.ragged import Ragged, ragged_arange
from features.sequences.sequences import Queries, Sequences
from training.evaluation.baselines.baseline import BaselineData, LeftOutError
from training.evaluation.baselines.recency import decayed_history

MOST_USERS = 5_000
"""Users of an item who may be neighbours, those with the latest last event: V-SKNN's sample of recent sessions."""


class SessionNeighbours:
    """Neighbours by the newest items of a history, each user's events being one session.

    An item of the history weighs `w(i) = 2 ** (-age(i) / half_life)`. The similarity of another user v is the sum of
    `w(i)` over the items i that both have; the `neighbours` most similar users count. The score of an item is the sum,
    over those of them who have it, of `similarity(v) * newest(v)`, where `newest(v)` is the largest `w(i)` of a shared
    item.

    Source: V-SKNN in Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms", 2018, with an
    exponential decay in the place of a linear one, and the recent users drawn for each item rather than for all
    together.
    """

    name = "session kNN"

    def __init__(self, had: sp.csr_array[np.float32], users_of: Ragged, *, neighbours: int, half_life: float) -> None:
        """Take the interactions, `[users, items]`, and the users of each item who may be neighbours."""
        self._had, self._users_of = had, users_of
        self._neighbours, self._half_life = neighbours, half_life

    @classmethod
    def fit(cls, train: Sequences, num_items: int, *, neighbours: int, half_life: float) -> SessionNeighbours:
        """Find the users of each item."""
        had = interaction_matrix(train, num_items)
        return cls(had, recent_users(train, had), neighbours=neighbours, half_life=half_life)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed weights of the neighbours who have each item."""
        weights = decayed_history(queries.history, self._had.shape[1], self._half_life)
        users, values = [], []
        for question in range(len(queries)):
            place = slice(weights.indptr[question], weights.indptr[question + 1])
            nearest, value = self._nearest(weights.indices[place], weights.data[place])
            users.append(nearest)
            values.append(value)
        rows = Ragged.of(users)
        counted = sp.csr_array(
            (np.concatenate(values, dtype=np.float32), rows.values, rows.offsets), (len(queries), self._had.shape[0])
        )
        return (counted @ self._had).toarray()

    def _nearest(
        self, item_rows: Int[np.ndarray, "items_of_history"], weights: Float32[np.ndarray, "items_of_history"]
    ) -> tuple[Int[np.ndarray, "nearest"], Float32[np.ndarray, "nearest"]]:
        """Return the neighbours of a history, and the weight of each."""
        order = np.argsort(weights, kind="stable")
        having = self._users_of.take(item_rows[order])
        spread = np.repeat(weights[order], having.lengths)
        users, places = np.unique(having.values, return_inverse=True)
        similarity = np.bincount(places, spread, minlength=len(users)).astype(np.float32)
        newest = np.zeros(len(users), dtype=np.float32)
        newest[places] = spread  # in ascending order, so that the largest stays
        if len(users) > self._neighbours:
            best = np.argsort(-similarity, kind="stable")[: self._neighbours]
            users, similarity, newest = users[best], similarity[best], newest[best]
        return users, similarity * newest


def prepare(data: BaselineData) -> Callable[..., SessionNeighbours]:
    """Return how to fit session kNN."""
    if not data.split.train.is_ordered:
        raise LeftOutError("it needs the order of the interactions")
    had = interaction_matrix(data.split.train, data.num_items)
    users_of = recent_users(data.split.train, had)

    def fit(neighbours: float, half_life: float) -> SessionNeighbours:
        return SessionNeighbours(had, users_of, neighbours=int(neighbours), half_life=half_life)

    return fit


def recent_users(train: Sequences, had: sp.csr_array[np.float32], most: int = MOST_USERS) -> Ragged:
    """Return the users of each item, those with the latest last event first, and no more than `most` of them."""
    order = np.arange(len(train))
    if train.times is not None and train.num_events:
        order = np.argsort(-np.maximum.reduceat(train.times, train.offsets[:-1]), kind="stable")
    by_item = sp.csr_array(had[order].T)  # users ascend in each row, by their place in the order
    by_item.sort_indices()
    lengths = np.minimum(np.diff(by_item.indptr), most)
    users = order[by_item.indices[ragged_arange(by_item.indptr[:-1], lengths)]]
    return Ragged(np.append(0, np.cumsum(lengths)).astype(np.int64), users)
