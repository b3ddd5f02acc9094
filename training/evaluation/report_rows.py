"""The rows of an evaluation report: the metrics of one recommender, each with its interval, and its lead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from training.evaluation.intervals import Interval
from training.evaluation.metrics import METRICS

Standing = Literal["ahead", "level", "behind"]
"""Of the evaluated recommender against another: clear of zero, or not distinguishable."""
PRIMARY_METRIC = "ndcg_at_10"
SHARE_METRIC = "recall_at_10"
"""Metric by which a model is compared with an upper bound."""
COVERAGE_LABEL, COVERAGE_MEANING = "cov", "share of the items recommended to any user"


@dataclass(frozen=True)
class Estimate:
    """A metric with its uncertainty.

    Attributes:
        mean: The number.
        low: Lower bound of its 95 % interval over the questions and the seeds; None where there is none.
        high: Upper bound.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, interval: Interval) -> Estimate:
        """Return an interval as an estimate."""
        return cls(interval.mean, interval.low, interval.high)

    @property
    def margin(self) -> float | None:
        """The number after ±: half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.high is not None and self.high < 0


@dataclass(frozen=True)
class SliceRow:
    """Metrics of a recommender on a part of the targets.

    Attributes:
        num_questions: Questions with such an answer, on average over the seeds.
        metrics: By metric.
    """

    num_questions: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class ReportRow:
    """Metrics of one recommender.

    Attributes:
        name: The recommender's.
        metrics: By metric, `recall_at_10` and so on.
        slices: By slice, `cold users` and so on; empty where none were asked for.
        lead: How far the first row's NDCG@10 is above this one's, on the same questions; None for the first row.
        is_bound: Whether the row is an upper bound, which is left out of the comparison.
        ahead_in: Metrics in which it is ahead of all other rows, the whole interval of each lead above zero.
    """

    name: str
    metrics: dict[str, Estimate]
    slices: dict[str, SliceRow]
    lead: Estimate | None = None
    is_bound: bool = False
    ahead_in: tuple[str, ...] = ()

    @property
    def standing(self) -> Standing | None:
        """How the first row stands against this one in N@10; None for the first row and for upper bounds."""
        if self.lead is None or self.is_bound:
            return None
        if self.lead.is_above_zero:
            return "ahead"
        return "behind" if self.lead.is_below_zero else "level"


def label_of(metric: str) -> str:
    """Return the short name of a metric at a cutoff: `R@10` of `recall_at_10`."""
    name, _, cutoff = metric.rpartition("_at_")
    return f"{COVERAGE_LABEL if name == 'coverage' else METRICS[name].label}@{cutoff}"


def read_row(values: Mapping[str, Any]) -> ReportRow:
    """Return the row that was written as a dictionary.

    Raises:
        KeyError, TypeError, AttributeError: The dictionary is not one of a row.
    """
    return ReportRow(
        name=str(values["name"]),
        metrics=_read_estimates(values["metrics"]),
        slices={
            name: SliceRow(int(part["num_questions"]), _read_estimates(part["metrics"]))
            for name, part in values["slices"].items()
        },
        lead=None if values["lead"] is None else Estimate(**values["lead"]),
        is_bound=bool(values["is_bound"]),
        ahead_in=tuple(values["ahead_in"]),
    )


def _read_estimates(values: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**estimate) for name, estimate in values.items()}
