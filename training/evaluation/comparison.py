"""Recommenders measured on the same questions, under one or several seeds: their metrics, and which one is ahead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.evaluate import Evaluation
from training.evaluation.intervals import Answered, Interval, Resampled


@dataclass(frozen=True)
class Comparison:
    """Intervals of the metrics of several recommenders, and of the differences between two of them.

    Attributes:
        metrics: Names of the metrics that every question has.
        resampled: Their means, a block of columns for each recommender.
    """

    metrics: tuple[str, ...]
    resampled: Resampled

    @classmethod
    def of(cls, runs: Sequence[Sequence[Evaluation]]) -> Comparison:
        """Compare the evaluations of each seed; all have the same recommenders in the same order."""
        metrics = tuple(runs[0][0].per_question)
        for first, *others in runs:
            assert all(np.array_equal(first.target_offsets, other.target_offsets) for other in others), (
                "not the same questions"
            )
        trainings = [
            Answered([one.per_question[metric] for one in run for metric in metrics], run[0].users) for run in runs
        ]
        return cls(metrics, Resampled.of(trainings))

    def metric(self, recommender: int, metric: str) -> Interval:
        """Return the mean of a metric over the seeds, with its interval."""
        return self.resampled.interval(self._column(recommender, metric))

    def lead(self, ours: int, other: int, metric: str) -> Interval:
        """Return by how much one recommender's mean is above another's, with the paired interval."""
        return self.resampled.interval(self._column(ours, metric), self._column(other, metric))

    def are_ahead(self, recommenders: Iterable[int]) -> dict[int, tuple[str, ...]]:
        """Return in which metrics each of some recommenders is ahead of all the others, clear of zero."""
        rows = list(recommenders)
        ahead: dict[int, tuple[str, ...]] = dict.fromkeys(rows, ())
        for metric in self.metrics if len(rows) > 1 else ():
            best = max(rows, key=lambda row: float(self.resampled.means[:, self._column(row, metric)].mean()))
            if all(self.lead(best, row, metric).low > 0 for row in rows if row != best):
                ahead[best] += (metric,)
        return ahead

    def _column(self, recommender: int, metric: str) -> int:
        return recommender * len(self.metrics) + self.metrics.index(metric)
