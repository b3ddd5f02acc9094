"""iALS: implicit matrix factorisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32, Int
from threadpoolctl import threadpool_limits
from tqdm import TqdmWarning

from features.sequences.matrix import interaction_matrix
from features.sequences.sequences import Queries, Sequences
from training.evaluation.baselines.baseline import BaselineData, LeftOutError

ROUNDS = 15
"""How often users and items are solved for."""
_STEP = 0.05
"""Penalties that differ by less than this share are one: the library solves for rows with one penalty at a time."""


@dataclass(frozen=True)
class IalsSettings:
    """Hyperparameters of iALS.

    Attributes:
        factors: Dimensions of user and item vectors.
        regularisation: L2 penalty of an average vector.
        confidence: Weight of an interaction, against 1 for a missing one.
        frequency_power: How much more the vectors of users and items with many interactions are penalised; 0: not.
    """

    factors: int = 128
    regularisation: float = 10.0
    confidence: float = 3.0
    frequency_power: float = 1.0

    def weights(self, counts: Int[np.ndarray, "rows"], num_others: int) -> Float[np.ndarray, "rows"]:
        """Return the summed weight of all pairs of a user (or item), from its number of interactions."""
        return num_others + (self.confidence - 1.0) * counts

    def penalties(self, weights: Float[np.ndarray, "rows"], mean: float) -> Float[np.ndarray, "rows"]:
        """Return the penalty of each vector."""
        return np.asarray(self.regularisation * (weights / mean) ** self.frequency_power)


class Ials:
    """Matrix factorisation of implicit feedback: dot products approximate 1 for an interaction and 0 elsewhere.

    Minimises `sum of c(u, i) * (x(u, i) - p_u · q_i)² + sum of penalty(u) * |p_u|² + sum of penalty(i) * |q_i|²` over
    users u and items i, where x is 1 for an interaction and 0 elsewhere, and c is `confidence` for the former and 1 for
    the latter, in turns for users and items, with the solvers of the library `implicit` (Hu, Koren and Volinsky,
    "Collaborative Filtering for Implicit Feedback Datasets", 2008). The penalty is scaled by frequency (Rendle et al.,
    "Revisiting the Performance of iALS on Item Recommendation Benchmarks", 2021): `penalty(u) = regularisation *
    (weight(u) / mean weight) ** frequency_power`, where `weight(u)` is the sum of c(u, i) over all items; likewise of
    items. At evaluation a user's vector is the exact minimum for the given history, so that known and new users are
    treated alike.
    """

    name = "iALS"

    def __init__(self, model: Any, num_items: int, settings: IalsSettings, mean_weight: float) -> None:
        """Take implicit's model with the item vectors, and the mean weight of a user."""
        self.settings = settings
        self._model = model
        self._num_items = num_items
        self._mean_weight = mean_weight

    @classmethod
    def fit(cls, train: Sequences, num_items: int, settings: IalsSettings | None = None, *, seed: int = 0) -> Ials:
        """Factorise; the seed decides the vectors begun with.

        Raises:
            ImportError: The library `implicit` is not installed.
        """
        settings = settings or IalsSettings()
        had = sp.csr_matrix(interaction_matrix(train, num_items))
        by_item = had.T.tocsr()
        factorisation = implicit_als()  # before the threads are limited: its import loads another BLAS
        rng = np.random.default_rng(seed)
        users, items = (rng.random((size, settings.factors), dtype=np.float32) * 0.01 for size in had.shape)
        weights = [settings.weights(np.diff(rows.indptr), rows.shape[1]) for rows in (had, by_item)]
        penalties = [settings.penalties(weight, weight.mean()) for weight in weights]
        with _one_blas_thread():
            model = factorisation(
                factors=settings.factors, regularization=settings.regularisation, alpha=settings.confidence
            )
            for _ in range(ROUNDS):
                for rows, own, others, penalty in (
                    (had, users, items, penalties[0]),
                    (by_item, items, users, penalties[1]),
                ):
                    _solve(model, rows, own, others, penalty)
        model.item_factors = items
        return cls(model, num_items, settings, float(weights[0].mean()))

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the product of each item's vector with the vector that the history makes."""
        had = sp.csr_matrix(interaction_matrix(queries.history, self._num_items))
        weights = self.settings.weights(np.diff(had.indptr), self._num_items)
        users = np.zeros((len(queries), self.settings.factors), dtype=np.float32)
        with _one_blas_thread():
            for rows, penalty in _alike(self.settings.penalties(weights, self._mean_weight)):
                self._model.regularization = penalty
                users[rows] = self._model.recalculate_user(rows, had[rows])
        scores: np.ndarray = users @ self._model.item_factors.T
        return scores


def _solve(
    model: Any,
    interactions: sp.csr_matrix,
    own: Float32[np.ndarray, "rows factors"],
    others: Float32[np.ndarray, "columns factors"],
    penalties: Float[np.ndarray, "rows"],
) -> None:
    """Move the vectors of one side towards their minimum, given those of the other."""
    for rows, penalty in _alike(penalties):
        part = own[rows]
        model.solver(interactions[rows] * np.float32(model.alpha), part, others, penalty, num_threads=model.num_threads)
        own[rows] = part


def _alike(penalties: Float[np.ndarray, "rows"]) -> Iterator[tuple[Int[np.ndarray, "alike"], float]]:
    """Yield the rows with nearly the same penalty, and their mean penalty."""
    steps = np.round(np.log(penalties) / _STEP)
    for step in np.unique(steps):
        rows = np.flatnonzero(steps == step)
        yield rows, float(penalties[rows].mean())


def prepare(data: BaselineData) -> Callable[..., Ials]:
    """Return how to fit iALS."""
    try:
        implicit_als()
    except ImportError as error:
        raise LeftOutError(f"it needs the library implicit ({error}); pip install implicit adds it") from None

    def fit(confidence: float, regularisation: float, frequency_power: float, factors: float) -> Ials:
        settings = IalsSettings(int(factors), regularisation, confidence, frequency_power)
        return Ials.fit(data.split.train, data.num_items, settings)

    return fit


def implicit_als() -> Any:
    """Return implicit's class, without the advice on widgets for progress bars that its import gives in a notebook."""
    with warnings.catch_warnings(action="ignore", category=TqdmWarning):
        from implicit.cpu.als import AlternatingLeastSquares
    return AlternatingLeastSquares


def _one_blas_thread() -> threadpool_limits:
    """Return a context in which implicit's own threads are the only ones; with both, it is many times slower."""
    return threadpool_limits(1, user_api="blas")
