"""Ranking metrics at k from the ranks of the targets, by name in `METRICS`; coverage; and confidence intervals.

Everything here starts from *ranks*, 1 being the top of the whole catalogue, so that no metric sees a score or a sample.
Ranks are jagged: question `q` has the answers `ranks[offsets[q]:offsets[q + 1]]`, at least one. An answer that is not
recommended at all has the rank `NEVER`. One number per query comes out; `bootstrap_interval` gives a confidence
interval of the mean over another sample of users. CONTRIBUTING.md says how to add a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int

NEVER = np.iinfo(np.int64).max
"""Rank of a target that is not recommended at all."""


def recall_at(
    ranks: Int[np.ndarray, "targets"], offsets: Int[np.ndarray, "questions_plus_1"], k: int
) -> Float[np.ndarray, "questions"]:
    """Return each query's recall@k: targets among the first k, divided by min(targets, k).

    `hits / min(k, answers)`, as in Mult-VAE: a perfect ranking has 1 even where there are more answers than k. For one
    answer it is the hit rate.

    Example:
        Ann's two answers come 1st and 4th, Bob's one answer 3rd.

        >>> ranks, offsets = np.array([1, 4, 3]), np.array([0, 2, 3])
        >>> recall_at(ranks, offsets, 3).tolist(), recall_at(ranks, offsets, 1).tolist()
        ([0.5, 1.0], [1.0, 0.0])
    """
    hits = np.add.reduceat((ranks <= k).astype(np.float64), offsets[:-1])
    return hits / np.minimum(np.diff(offsets), k)


def ndcg_at(
    ranks: Int[np.ndarray, "targets"], offsets: Int[np.ndarray, "questions_plus_1"], k: int
) -> Float[np.ndarray, "questions"]:
    """Return each query's NDCG@k.

    An answer at rank r gains `1 / log2(r + 1)`, none below k; the best possible has the answers at the ranks 1, 2, …,
    `min(k, answers)`. For one answer it is `1 / log2(r + 1)` itself.

    Example:
        Ann's two answers come 1st and 3rd: (1 + 1/2) / (1 + 1/log2(3)) = 0.9197. Bob's one comes 3rd: 1/2.

        >>> ndcg_at(np.array([1, 3, 3]), np.array([0, 2, 3]), 10).round(4).tolist()
        [0.9197, 0.5]
    """
    gains = np.where(ranks <= k, _discounts(k)[np.minimum(ranks, k) - 1], 0.0)
    return np.asarray(np.add.reduceat(gains, offsets[:-1]) / _ideal_dcg(np.diff(offsets), k))


def ndcg_of_lists(
    is_target: Bool[np.ndarray, "questions places"], num_targets: Int[np.ndarray, "questions"], k: int
) -> Float[np.ndarray, "questions"]:
    """Return each query's NDCG@k, as `ndcg_at`, from ranked lists that may lack some of the targets.

    Args:
        is_target: Which places of each list hold a target, the best first.
        num_targets: Number of targets of each query, those that are not in its list included; at least 1.
        k: Number of places that count.

    Example:
        The second query has a target that is not in its list.

        >>> ndcg_of_lists(np.array([[False, True], [True, False]]), np.array([1, 2]), 10).round(4).tolist()
        [0.6309, 0.6131]
    """
    counted = is_target[:, :k]
    gains = (counted * _discounts(counted.shape[1])).sum(axis=1)
    return np.asarray(gains / _ideal_dcg(num_targets, k))


def _discounts(k: int) -> Float[np.ndarray, " k"]:
    """Return the gain of a target at each of the ranks 1 to k."""
    return np.asarray(1 / np.log2(np.arange(1, k + 1) + 1.0))


def _ideal_dcg(num_targets: Int[np.ndarray, "questions"], k: int) -> Float[np.ndarray, "questions"]:
    """Return the gains of the best possible ranking of so many targets, each at least 1."""
    return np.asarray(np.cumsum(_discounts(k))[np.minimum(num_targets, k) - 1])


def mrr_at(
    ranks: Int[np.ndarray, "targets"], offsets: Int[np.ndarray, "questions_plus_1"], k: int
) -> Float[np.ndarray, "questions"]:
    """Return each query's reciprocal rank@k: one over the rank of the first target, 0 beyond k.

    Example:
        >>> mrr_at(np.array([4, 2, 3]), np.array([0, 2, 3]), 2).tolist()
        [0.5, 0.0]
    """
    first = np.minimum.reduceat(ranks, offsets[:-1])
    return np.where(first <= k, 1.0 / np.minimum(first, k), 0.0)


@dataclass(frozen=True)
class Metric:
    """A metric of one query at a cutoff k.

    Attributes:
        name: Its name in reports and MLflow, before `_at_k`: `recall`.
        function: Returns one number per query, higher is better, from ranks, offsets and k; see `recall_at`.
        label: Short name in tables, before `@k`: `R`.
        meaning: What the label stands for, for the line below a table.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    label: str
    meaning: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("recall", recall_at, "R", "recall (hit rate for one target)"),
        Metric("ndcg", ndcg_at, "N", "NDCG"),
        Metric("mrr", mrr_at, "MRR", "reciprocal rank of the first target"),
    )
}
"""By name."""


def metrics_per_question(
    ranks: Int[np.ndarray, "targets"], offsets: Int[np.ndarray, "questions_plus_1"], cutoffs: tuple[int, ...]
) -> dict[str, Float[np.ndarray, "questions"]]:
    """Return each of `METRICS` of every query for every cutoff k, by name: `recall_at_10` and so on."""
    return {f"{one.name}_at_{k}": one.function(ranks, offsets, k) for k in cutoffs for one in METRICS.values()}


def coverage(recommended: Bool[np.ndarray, "items"], candidates: Bool[np.ndarray, "items"]) -> float:
    """Return the share of the candidates that were recommended to anybody.

    It tells a model apart that gives everyone the same list, whatever its recall.

    Example:
        >>> coverage(np.array([True, False, True, False]), np.array([True, True, True, False])).__round__(4)
        0.6667
    """
    return float((recommended & candidates).sum() / candidates.sum())


def bootstrap_interval(
    values: Float[np.ndarray, "questions metrics"], *, level: float = 0.95, resamples: int = 1_000, seed: int = 0
) -> tuple[Float[np.ndarray, "metrics"], Float[np.ndarray, "metrics"]]:
    """Return the confidence interval of the mean over queries, by the percentile bootstrap.

    The questions are drawn again with replacement, as many as there are, `resamples` times; the bounds are percentiles
    of the means. All metrics share the draws. For the difference of two recommenders on the same questions give the
    differences per question: that interval is much narrower than two intervals side by side suggest, because hard
    questions are hard for both. A second or so for 100,000 questions.

    Args:
        values: One row per question, one column per metric.
        level: Share of the resampled means between the bounds.
        resamples: Number of draws.
        seed: For the draws.

    Returns:
        The lower and the upper bounds, one per metric.

    Example:
        >>> values = np.tile([[0.0], [1.0]], (50, 1))
        >>> low, high = bootstrap_interval(values)   # 0.5 ± 1.96 * 0.5 / sqrt(100) by the normal approximation
        >>> low.round(2).tolist(), high.round(2).tolist()
        ([0.4], [0.6])
    """
    weights = resampling_weights(len(values), resamples, seed)
    means = np.concatenate([block @ values / len(values) for block in weights])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def resampling_weights(count: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "block count"]]:
    """Yield how often each of `count` units is drawn in each resample, a block of resamples at a time."""
    rng = np.random.default_rng(seed)
    block = max(1, 4_000_000 // count)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        draws = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)
        yield weights.astype(np.float64)


def wilson_interval(
    shares: Float[np.ndarray, "slices"], counts: Float[np.ndarray, "slices"], *, level: float = 0.95
) -> tuple[Float[np.ndarray, "slices"], Float[np.ndarray, "slices"]]:
    """Return the Wilson confidence interval of a proportion among so many independent queries.

    For parts of an evaluation, however small: unlike the bootstrap's it does not shrink to nothing where all of a few
    questions were answered, or none. With one answer per question (a hit or a miss) it is the textbook interval. Recall
    over several answers lies between 0 and 1 and varies no more than a hit or miss of the same mean does, so there the
    interval is too wide rather than too narrow.

    Formula, with z = 1.96 and n questions: centre `(share + z²/2n) / (1 + z²/n)`, on either side
    `z sqrt(share (1 - share) / n + z²/4n²) / (1 + z²/n)`.

    Args:
        shares: The means, 0 to 1.
        counts: How many independent questions each is the mean of, at least 1.
        level: How often the bounds should hold.

    Returns:
        The lower and the upper bounds.

    Example:
        No hit among 10 questions, 5 of 10, and 500 of 1,000.

        >>> low, high = wilson_interval(np.array([0.0, 0.5, 0.5]), np.array([10.0, 10.0, 1000.0]))
        >>> low.round(3).tolist(), high.round(3).tolist()
        ([0.0, 0.237, 0.469], [0.278, 0.763, 0.531])
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (shares + z**2 / (2 * counts)) / (1 + z**2 / counts)
    side = z * np.sqrt(shares * (1 - shares) / counts + z**2 / (4 * counts**2)) / (1 + z**2 / counts)
    return np.maximum(centre - side, 0), np.minimum(centre + side, 1)
