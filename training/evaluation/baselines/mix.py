"""The best linear mix of two recommenders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float32

from features.sequences.sequences import Queries
from training.evaluation.baselines.tuning import Choice, Grid, search
from training.evaluation.evaluate import ScoringModel

SHARES = Grid((0.25, 0.5, 1, 2, 4), 1, lowest=1 / 64, highest=64)
"""Tried of what the second recommender counts against the first."""
_LEADERS = 2
"""Of the recommenders that are best alone so many are mixed with all others."""


class Mix:
    """The weighted sum of the scores of two recommenders: `z(first) + share * z(second)`.

    `z(score) = (score - mean) / standard deviation` over all items for the question at hand, which brings counts, sums
    of weights and cosines to one scale; 0 where all items have the same score.
    """

    name = "mix of two"

    def __init__(self, first: ScoringModel, second: ScoringModel, share: float) -> None:
        """Take the two, and what the second counts against the first."""
        self.share = share
        self._first, self._second = first, second

    @property
    def parts(self) -> str:
        """The names of the two."""
        return f"{self._first.name} + {self._second.name}"

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the weighted sum."""
        scores = standardised(self._first.scores(queries))
        scores += np.float32(self.share) * standardised(self._second.scores(queries))
        return scores


def choose_mix(
    recommenders: Sequence[ScoringModel],
    ndcg: Sequence[float],
    questions: Queries,
    ndcg_of: Callable[[ScoringModel], float],
    *,
    has_time: Callable[[], bool],
) -> tuple[Mix, Choice[Mix], int]:
    """Return the best mix of two recommenders on validation questions.

    All pairs with one of the two that are best alone are tried, the best pairs first, each with several shares.

    Args:
        recommenders: At least two.
        ndcg: What each reaches alone, in the same order.
        questions: Validation questions.
        ndcg_of: What is maximised, on these questions.
        has_time: Whether another trial may begin.

    Returns:
        The mix, the search that found its share, and the number of pairs tried.
    """
    known = [_KnownScores(recommender, questions) for recommender in recommenders]
    best = sorted(range(len(known)), key=lambda place: -ndcg[place])
    pairs = [(first, second) for second in range(1, len(best)) for first in range(min(second, _LEADERS))]
    choices: list[tuple[tuple[int, int], Choice[Mix]]] = []
    for first, second in ((best[first], best[second]) for first, second in pairs):
        if choices and not has_time():
            break

        def fit(share: float, first: int = first, second: int = second) -> Mix:
            return Mix(known[first], known[second], share)

        choices.append(((first, second), search(fit, {"share": SHARES}, ndcg_of, rounds=1, has_time=has_time)))
    (first, second), choice = max(choices, key=lambda pair_and_choice: pair_and_choice[1].ndcg)
    return Mix(recommenders[first], recommenders[second], choice.settings["share"]), choice, len(choices)


def standardised(scores: Float32[np.ndarray, "questions items"]) -> Float32[np.ndarray, "questions items"]:
    """Return the scores with mean 0 and standard deviation 1 in each row, or all 0."""
    centred = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    spread = np.sqrt(np.mean(centred**2, axis=1, keepdims=True))
    standard: np.ndarray = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return standard


class _KnownScores:
    """A recommender whose scores for some questions, each of another user, are computed once."""

    def __init__(self, recommender: ScoringModel, questions: Queries, block: int = 256) -> None:
        self.name = recommender.name
        self._users = pd.Index(questions.history.user_ids)
        places = np.arange(len(questions))
        parts = np.split(places, range(block, len(questions), block))
        self._scores = np.concatenate([np.asarray(recommender.scores(questions.take(part))) for part in parts])

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        scores: np.ndarray = self._scores[self._users.get_indexer(queries.history.user_ids)]
        return scores
