"""Confidence intervals that hold both kinds of chance: which questions were asked, and which seeds were trained with.

All recommenders are measured on the same questions, so their questions are resampled together: the interval of a
difference is paired. Resampled are users, each with all of their questions, under all seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from scipy.special import stdtrit

from training.evaluation.metrics import resampling_weights

MOST_CLUSTERS = 20_000
"""Most units that are resampled. More users are put into so many random groups, whose means vary as much; the width of
an interval is then known to half a percent, and a million users take as long as 20,000."""
RESAMPLES = 1_000


@dataclass(frozen=True)
class Answered:
    """What was measured of one training.

    Attributes:
        columns: What was measured of each question, such as a metric of a recommender, `[questions]` each.
        users: The user of each question, for questions of one user to be resampled together, `[questions]`.
    """

    columns: Sequence[Float[np.ndarray, " questions"]]
    users: Shaped[np.ndarray, " questions"]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """Means of every number, as measured and over resampled users, for each training.

    Attributes:
        means: `[trainings, columns]`.
        draws: `[resamples, trainings, columns]`.
    """

    means: Float[np.ndarray, "trainings columns"]
    draws: Float[np.ndarray, "resamples trainings columns"]

    @classmethod
    def of(cls, trainings: Sequence[Answered], *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
        """Resample the users, `resamples` times; all trainings and all columns share the draws.

        Args:
            trainings: At least one. They may share their questions (other seeds, the same split), have different ones
                (each seed its own split), or any mixture, which the users tell.
            resamples: Number of draws.
            seed: For the draws.
        """
        clusters, count = _clusters([training.users for training in trainings], seed)
        draws = np.empty((resamples, len(trainings), len(trainings[0].columns)))
        totals = [_totals(one.columns, own, count) for one, own in zip(trainings, clusters, strict=True)]
        means = np.array([[column.mean() for column in training.columns] for training in trainings])
        start = 0
        for weights in resampling_weights(count, resamples, seed):
            for place, (sums, counts) in enumerate(totals):
                number = (weights @ counts)[:, None]
                found = weights @ sums / np.maximum(number, 1)
                draws[start : start + len(weights), place] = np.where(number > 0, found, means[place])
            start += len(weights)
        return cls(means, draws)

    def interval(self, column: int, against: int | None = None, *, level: float = 0.95) -> Interval:
        """Return the mean over the trainings of a column, or of its difference to another one, with its interval.

        Two independent parts are added. The questions: how the mean over the trainings varies over the resampled users.
        The trainings, where there are several: their spread beyond what other questions explain, which is what the
        bootstrap adds to it, as Student's t with one degree of freedom less than there are trainings. Resampling three
        seeds would not do: their range holds the truth three times in four.

        With one training the interval is about the questions alone.
        """
        means, draws = self.means[:, column], self.draws[..., column]
        if against is not None:
            means, draws = means - self.means[:, against], draws - self.draws[..., against]
        drawn = draws.mean(axis=1)
        if len(means) > 1:
            between = float(means.var(ddof=1))
            by_questions = max(0.0, float(draws.var(axis=1, ddof=1).mean()) - between)
            drawn = drawn + _student(len(draws), len(means)) * np.sqrt(max(0.0, between - by_questions) / len(means))
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(means.mean()), float(low), float(high))


def _clusters(users: Sequence[np.ndarray], seed: int) -> tuple[list[np.ndarray], int]:
    """Return the unit of resampling of each question, by training, and the number of units."""
    codes, known = pd.factorize(np.concatenate([np.asarray(own, dtype=object) for own in users]))
    count = min(len(known), MOST_CLUSTERS)
    group = np.random.default_rng(seed).permutation(len(known)) % count if len(known) > count else np.arange(count)
    return np.split(group[codes], np.cumsum([len(own) for own in users])[:-1]), count


def _totals(columns: Sequence[np.ndarray], clusters: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the columns and the number of questions of each unit."""
    sums = np.stack([np.bincount(clusters, weights=column, minlength=count) for column in columns], axis=1)
    return sums, np.bincount(clusters, minlength=count).astype(np.float64)


def _student(resamples: int, trainings: int) -> Float[np.ndarray, " resamples"]:
    """Return quantiles of Student's t in a random order: a sample without the chance of one."""
    shares = (np.random.default_rng(1).permutation(resamples) + 0.5) / resamples
    quantiles: np.ndarray = stdtrit(trainings - 1, shares)
    return quantiles
