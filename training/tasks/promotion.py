"""The comparison of `towers promote`: a challenger and the champion on the questions that the challenger held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from features.errors import DataError
from towers.bundle.bundle import ModelBundle
from towers.rerankers.manifest import has_ranker
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
from training.tasks.reranked import served_orders

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


def judge_quality(
    challenger: ModelBundle,
    champion: ModelBundle,
    limits: PromotionConfig,
    *,
    rerank: bool = True,
    num_candidates: int | None = None,
) -> Quality:
    """Compare a challenger with the champion on the questions that its training held out, on today's tables.

    Every item is ranked for every question, without an index. If one of them has a re-ranker, the orders that they
    serve are compared as well.

    Args:
        challenger: The bundle that may be promoted.
        champion: The bundle in service.
        limits: The conditions.
        rerank: Whether the service re-ranks.
        num_candidates: Number of candidates to re-rank. None: as many as each re-ranker was trained for.

    Raises:
        BundleError: A re-ranker cannot be used.
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
    checks = [_gain(paired.difference(limits.metric), limits), *_guarded(paired, facets, limits)]
    if rerank:
        checks += _reranked(held_out, challenger, champion, num_candidates)
    return Quality(tuple(checks), comparison)


def _gain(whole: Difference, limits: PromotionConfig) -> Check:
    label = label_of(limits.metric)
    text = (
        f"{label} {whole.first:.4f} -> {whole.second:.4f}, gain {whole.gain:+.4f} {whole.interval} on "
        f"{whole.num_questions:,} questions; the interval must be above {limits.min_gain:g}"
    )
    measured = {"champion": whole.first, "challenger": whole.second, "gain": whole.gain}
    return Check(label, whole.low > limits.min_gain, text, measured | {"gain_low": whole.low, "gain_high": whole.high})


def _reranked(
    held_out: HeldOut, challenger: ModelBundle, champion: ModelBundle, num_candidates: int | None
) -> Sequence[Check]:
    """Return a check of the orders that the two serve; none if neither has a re-ranker."""
    if not has_ranker(challenger.path):
        lost = f"the champion has a re-ranker and the challenger has none; towers train-ranker {challenger.path}"
        return (Check("re-ranking", False, lost, {}),) if has_ranker(champion.path) else ()
    try:
        orders = served_orders(held_out, [challenger, champion], num_candidates)
    except DataError as error:
        return (Check("re-ranking", False, f"re-ranked N@10 cannot be compared: {error}", {}),)
    gain, (ours, theirs) = orders.gain(), (float(orders.first.mean()), float(orders.second.mean()))
    text = (
        f"re-ranked N@10 {theirs:.4f} -> {ours:.4f}, gain {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] on "
        f"{len(orders.first):,} questions; the interval must not be below 0"
    )
    measured = {"reranked_champion": theirs, "reranked_challenger": ours, "reranked_gain": gain.mean}
    measured |= {"reranked_gain_low": gain.low, "reranked_gain_high": gain.high}
    return (Check("re-ranking", gain.high >= 0, text, measured),)


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
