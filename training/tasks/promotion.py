"""The comparison of `towers promote`: a challenger and the champion on the questions that the challenger held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from features.errors import DataError
from towers.bundle.bundle import ModelBundle
from training.audit.comparison_report import ComparisonReport
from training.audit.facets import Facet
from training.audit.paired import LEVEL, Difference, Paired
from training.audit.slices import answer_facets
from training.config import PromotionConfig
from training.evaluation.evaluate import cutoffs_of
from training.evaluation.metrics import METRICS
from training.evaluation.report import label_of
from training.tasks.held_out import HeldOut
from training.tasks.rank_bundles import rank_bundles

SELECTED = (
    "The challenger's training was stopped early by these questions, which favours it a little; the champion may have "
    "learned from some of their answers, which favours the champion."
)

_SHOWN = 5


@dataclass(frozen=True)
class Check:
    """One condition of a promotion.

    Attributes:
        name: What is looked at.
        holds: Whether the condition holds.
        text: What was measured, and what was demanded.
        measured: The numbers, by name, for a tracking server.
    """

    name: str
    holds: bool
    text: str
    measured: dict[str, float]


@dataclass(frozen=True)
class Quality:
    """How a challenger does against the champion.

    Attributes:
        checks: The conditions on the metric and on the guarded slices.
        comparison: The two in every slice and side by side, the champion first.
    """

    checks: tuple[Check, ...]
    comparison: ComparisonReport


def judge_quality(challenger: ModelBundle, champion: ModelBundle, limits: PromotionConfig) -> Quality:
    """Compare a challenger with the champion on the questions that its training held out, on today's tables.

    Every item is ranked for every question, without an index and without a re-ranker.

    Args:
        challenger: The bundle that may be promoted.
        champion: The bundle in service.
        limits: The conditions.

    Raises:
        DataError: Nothing was held out, the champion cannot read today's tables, or a setting does not fit them.
    """
    held_out = HeldOut.of(challenger)
    split = held_out.questions("compare it with the champion on")
    known = [f"{name}_at_{cutoff}" for name in METRICS for cutoff in cutoffs_of(split.name)]
    if limits.metric not in known:
        raise DataError(f"promotion.metric = {limits.metric!r}: expected one of {', '.join(known)}")
    ours, theirs = rank_bundles(held_out, [challenger, champion])
    paired = Paired.of(theirs, ours, [str(champion.path), str(challenger.path)])
    features = held_out.config.features
    facets = answer_facets(ours, held_out.tables, features, limits.min_support)
    comparison = ComparisonReport.of(
        [f"{champion.path.name} (champion)", challenger.path.name],
        [paired],
        held_out.tables,
        facets,
        title=features.title,
        min_support=limits.min_support,
        notes=[SELECTED],
    )
    return Quality((_gain(paired.difference(limits.metric), limits), *_guarded(paired, facets, limits)), comparison)


def _gain(whole: Difference, limits: PromotionConfig) -> Check:
    label = label_of(limits.metric)
    text = (
        f"{label} {whole.first:.4f} -> {whole.second:.4f}, gain {whole.gain:+.4f} {whole.interval} on "
        f"{whole.num_questions:,} questions; the interval must be above {limits.min_gain:g}"
    )
    measured = {"champion": whole.first, "challenger": whole.second, "gain": whole.gain}
    return Check(label, whole.low > limits.min_gain, text, measured | {"gain_low": whole.low, "gain_high": whole.high})


def _guarded(paired: Paired, facets: Sequence[Facet], limits: PromotionConfig) -> Sequence[Check]:
    """Return a check of all guarded slices together; none if there are none."""
    if not limits.guarded_facets:
        return ()
    names = [facet.name for facet in facets]
    unknown = next((name for name in limits.guarded_facets if name not in names), None)
    if unknown is not None:
        raise DataError(f"promotion.guarded_facets: there is no {unknown!r}; there are {', '.join(names)}")
    chosen = [facet for facet in facets if facet.name in limits.guarded_facets]
    num_slices = max(1, sum(len(facet.labels) for facet in chosen))
    # One of many intervals lies below zero by chance, so that each has the level that holds for all together.
    slices = paired.slices(chosen, limits.metric, limits.min_support, 1 - (1 - LEVEL) / num_slices)
    worse = [one for one in slices if one.verdict == "behind"]
    said = ", ".join(f"{one.facet}={one.value} {one.gain:+.4f} {one.interval}" for one in worse[:_SHOWN])
    said += f" and {len(worse) - _SHOWN} more" if len(worse) > _SHOWN else ""
    text = f"{len(slices)} guarded slices: {f'worse in {said}' if worse else 'none is worse'}"
    lowest = min((one.gain for one in slices), default=0.0)
    return (Check("slices", not worse, text, {"worse_slices": float(len(worse)), "lowest_slice_gain": lowest}),)
