"""Figures of a report: learning curves, slices, popularity, ranks, and whether higher scores are more often right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int

from features.sequences.sequences import Queries
from features.sequences.split import Split
from features.tables.tables import Catalog
from training.audit.facets import Facet, activity_facet, popularity_facet
from training.evaluation.details import (
    CurvePoint,
    LearningCurve,
    PopularityShare,
    RankRange,
    ScoreRange,
    ShownItem,
    SliceMetric,
)
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import NEVER, wilson_interval
from training.evaluation.report_rows import SHARE_METRIC, Estimate
from training.loop.trainer import Progress

K = 10
"""Length of the lists that popularity is looked at in."""
MOST_SHOWN = 10
SCORE_RANGES = 10
RANK_EDGES = (1, 10, 50, 100, 1_000)
"""Last rank of each range."""


@dataclass(frozen=True)
class Compared:
    """The evaluations of the recommender and of its strongest baseline on the same questions.

    Attributes:
        ours: Of the evaluated recommender.
        other: Of the strongest baseline; None if there is none.
        questions: The questions.
        split: What training knew.
    """

    ours: Evaluation
    other: Evaluation | None
    questions: Queries
    split: Split

    @property
    def interactions(self) -> Int[np.ndarray, "items"]:
        """How many interactions each item has in the training data."""
        return np.bincount(self.split.train.item_rows, minlength=len(self.split.candidates))


def learning_curve(seed: int, progress: Progress) -> LearningCurve:
    """Return the epochs of a finished training."""
    step_of = {int(one["epoch"]): int(one["step"]) for one in progress.epochs}
    points = [
        CurvePoint(int(one["epoch"]), one.get("loss"), one.get("validation_ndcg_at_10")) for one in progress.epochs
    ]
    best = next((epoch for epoch, step in step_of.items() if step == progress.best_step), None)
    decays = [epoch for epoch, step in step_of.items() if step in progress.decay_steps]
    return LearningCurve(seed, tuple(points), best, tuple(decays))


def slices_of(compared: Compared) -> tuple[SliceMetric, ...]:
    """Return recall@10 by length of the history and by popularity of the held-out item."""
    questions = compared.questions
    lengths = np.repeat(questions.history.lengths, np.diff(questions.target_offsets))
    facets = (activity_facet(lengths), popularity_facet(compared.interactions).take(questions.target_rows))
    return tuple(one for facet in facets for one in _by_facet(facet.without_empty(), compared))


def popularity_of(compared: Compared) -> tuple[PopularityShare, ...]:
    """Return how the catalogue, the choices and the recommendations divide among popular and rare items."""
    candidates = np.flatnonzero(compared.split.candidates)
    facet = popularity_facet(compared.interactions[candidates])
    shown = [None if one is None else one.exposure.get(K) for one in (compared.ours, compared.other)]
    if shown[0] is None:
        return ()
    chosen = np.bincount(compared.questions.target_rows, minlength=len(compared.split.candidates))
    catalog, chosen_share, ours, *others = (
        _shares(facet, counts[candidates])
        for counts in (np.ones(len(chosen)), chosen, *(counts for counts in shown if counts is not None))
    )
    other = others[0] if others else None
    return tuple(
        PopularityShare(label, catalog[at], chosen_share[at], ours[at], None if other is None else other[at])
        for at, label in enumerate(facet.labels)
    )


def most_shown(compared: Compared, catalog: Catalog, title: str | None) -> tuple[ShownItem, ...]:
    """Return the items that are among the first ten most often."""
    shown = compared.ours.exposure.get(K)
    if shown is None:
        return ()
    rows = np.argsort(-shown, kind="stable")[:MOST_SHOWN]
    rows = rows[shown[rows] > 0]
    titles = titles_of(catalog, title, rows)
    return tuple(
        ShownItem(titles[row], shown[row] / compared.ours.num_questions, int(compared.interactions[row]))
        for row in rows.tolist()
    )


def rank_ranges(compared: Compared) -> tuple[RankRange, ...]:
    """Return how many held-out items are ranked in each range."""
    edges = [edge for edge in RANK_EDGES if edge < compared.ours.num_candidates]
    begins = [1, *(edge + 1 for edge in edges)]
    labels = [f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in zip(begins, edges, strict=False)]
    labels += [f"{begins[-1]:,} or more", "never"]
    evaluations = [one for one in (compared.ours, compared.other) if one is not None]
    counts = [
        np.bincount(
            np.where(one.ranks == NEVER, len(edges) + 1, np.digitize(one.ranks, begins[1:])), minlength=len(labels)
        )
        for one in evaluations
    ]
    ours, other = counts[0], counts[1] if len(counts) > 1 else None
    ranges = [
        RankRange(label, int(ours[at]), None if other is None else int(other[at])) for at, label in enumerate(labels)
    ]
    return tuple(one for one in ranges if one.ours or one.other or one.label != "never")


def score_ranges(
    scores: Float32[np.ndarray, "questions places"], is_right: Bool[np.ndarray, "questions places"]
) -> tuple[ScoreRange, ...]:
    """Return which share of the recommendations is right, by ranges of scores that hold equally many of them.

    Args:
        scores: Of each recommendation; -inf where there is none.
        is_right: Whether it was held out.
    """
    there = np.isfinite(scores)
    order = np.argsort(scores[there], kind="stable")
    sorted_scores, right = scores[there][order], is_right[there][order]
    parts = [part for part in np.array_split(np.arange(len(order)), SCORE_RANGES) if len(part)]
    return tuple(
        ScoreRange(
            float(sorted_scores[part[0]]),
            float(sorted_scores[part[-1]]),
            len(part),
            _share_of(float(right[part].mean()), len(part)),
        )
        for part in parts
    )


def titles_of(catalog: Catalog, title: str | None, rows: Int[np.ndarray, "rows"]) -> dict[int, str]:
    """Return what some items of a catalogue are called, by row."""
    wanted = np.unique(rows)
    return dict(zip(wanted.tolist(), Catalog(catalog.frame.iloc[wanted]).titles(title), strict=True))


def _by_facet(facet: Facet, compared: Compared) -> Iterator[SliceMetric]:
    for code, value in enumerate(facet.labels):
        targets = np.zeros(len(compared.ours.ranks), dtype=bool)
        targets[facet.entities[facet.codes == code]] = True
        found = [_recall(one, targets) for one in (compared.ours, compared.other)]
        if found[0] is not None:
            num_questions, estimate = found[0]
            other = found[1][1] if found[1] is not None else None
            yield SliceMetric(facet.name, value, num_questions, estimate, other)


def _recall(evaluation: Evaluation | None, targets: Bool[np.ndarray, "targets"]) -> tuple[int, Estimate] | None:
    part = None if evaluation is None else evaluation.only(targets)
    return None if part is None else (part.num_questions, _share_of(part.means[SHARE_METRIC], part.num_questions))


def _share_of(share: float, count: int) -> Estimate:
    """Return a share with Wilson's interval."""
    low, high = wilson_interval(np.array([share]), np.array([float(count)]))
    return Estimate(share, float(low[0]), float(high[0]))


def _shares(facet: Facet, counts: np.ndarray) -> Sequence[float]:
    of_label = np.bincount(facet.codes, weights=counts[facet.entities], minlength=len(facet.labels))
    shares: list[float] = (of_label / max(1.0, float(of_label.sum()))).tolist()
    return shares
