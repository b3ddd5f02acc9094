"""iALS: implicit matrix factorisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32
from threadpoolctl import threadpool_limits
from tqdm import TqdmWarning

from features.sequences.matrix import interaction_matrix
from features.sequences.sequences import Queries, Sequences
from training.evaluation.baselines.baseline import BaselineData, LeftOutError


@dataclass(frozen=True)
class IalsSettings:
    """Hyperparameters of iALS.

    Attributes:
        factors: Dimensions of user and item vectors.
        regularisation: L2 penalty of the vectors.
        confidence: Weight of an interaction, against 1 for a missing one.
    """

    factors: int = 128
    regularisation: float = 10.0
    confidence: float = 3.0

    def __str__(self) -> str:
        return f"{self.factors} factors, regularisation {self.regularisation:g}, confidence {self.confidence:g}"


class Ials:
    """Matrix factorisation of implicit feedback: dot products approximate 1 for an interaction and 0 elsewhere.

    Minimises, over users u and items i, `sum of c(u, i) * (x(u, i) - p_u · q_i)² + regularisation * (|p|² + |q|²)`,
    where x is 1 for an interaction and 0 elsewhere, and c is `confidence` for the former and 1 for the latter, in turns
    for users and items (Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", 2008; 15
    rounds by the library `implicit`). At evaluation a user's vector is the exact minimum for the given history, so that
    known and new users are treated alike.
    """

    name = "iALS"

    def __init__(self, model: Any, num_items: int, settings: IalsSettings) -> None:
        """Take implicit's fitted model."""
        self.settings = settings
        self._model = model
        self._num_items = num_items

    @classmethod
    def fit(cls, train: Sequences, num_items: int, settings: IalsSettings | None = None, *, seed: int = 0) -> Ials:
        """Factorise; the seed decides the vectors begun with.

        Raises:
            ImportError: The library `implicit` is not installed.
        """
        settings = settings or IalsSettings()
        with _one_blas_thread():
            model = implicit_als()(
                factors=settings.factors,
                regularization=settings.regularisation,
                alpha=settings.confidence,
                random_state=seed,
            )
            model.fit(sp.csr_matrix(interaction_matrix(train, num_items)), show_progress=False)
        return cls(model, num_items, settings)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the product of each item's vector with the vector that the history makes."""
        had = sp.csr_matrix(interaction_matrix(queries.history, self._num_items))
        with _one_blas_thread():
            users = self._model.recalculate_user(np.arange(len(queries)), had)
        scores: np.ndarray = users @ self._model.item_factors.T
        return scores


def prepare(data: BaselineData) -> Callable[..., Ials]:
    """Return how to fit iALS."""
    try:
        implicit_als()
    except ImportError as error:
        raise LeftOutError(f"it needs the library implicit ({error}); pip install implicit adds it") from None

    def fit(confidence: float, regularisation: float, factors: float) -> Ials:
        return Ials.fit(data.split.train, data.num_items, IalsSettings(int(factors), regularisation, confidence))

    return fit


def implicit_als() -> Any:
    """Return implicit's class, without the advice on widgets for progress bars that its import gives in a notebook."""
    with warnings.catch_warnings(action="ignore", category=TqdmWarning):
        from implicit.cpu.als import AlternatingLeastSquares
    return AlternatingLeastSquares


def _one_blas_thread() -> threadpool_limits:
    """Return a context in which implicit's own threads are the only ones; with both, it is many times slower."""
    return threadpool_limits(1, user_api="blas")
