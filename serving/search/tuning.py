"""Chooses an index for a catalogue: each kind is built, tuned and measured, and the fastest with enough recall is kept.

Recall@100, the share of the true best 100 items that a search returns, is measured with users' vectors as queries:
their distribution differs from that of the items, and they are harder. One third of a sample of users is used to tune
the search parameters of each kind; the second to check the recall, raise the effort if necessary, and choose the kind;
the last, which is not used for any choice, to measure the recall that the manifest records.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Float32

from serving.search.faiss_index import ItemIndex, kmeans, num_threads_set
from serving.search.index_config import (
    DESCRIPTIONS,
    FIRST_LEVEL,
    TUNED_CUTOFF,
    IndexConfig,
    IndexKind,
    candidates,
    default_nlist,
    efforts,
    standard,
)
from serving.search.results import AllowedItems, Hits

# Number of users to measure recall with: a third each for tuning, checking and the final measurement.
SAMPLE = 1500
# Each of some users is searched for several times, not in a row, and the fastest counts, as other processes can only
# slow a search.
_TIMED_USERS = 64
_ROUNDS = 5
# An approximate index must be faster than brute force by this factor.
_MIN_SPEEDUP = 1.1
# Steps of effort skipped at first, and the number of steps above the least for which fewer re-scored candidates are
# tried.
_STRIDE = 8
_RUNGS_ABOVE = 16
# Partitions are kept for filtered searches if they save comparing at least this share of the allowed items.
_SPARED = 0.5
_FILTERED_SHARE = 0.1
_FILTERED_USERS = 50
_SEED = 97

COLUMNS = ["kind", "index", "recall_at_100", "searches_per_second", "megabytes", "build_seconds"]
"""What `Tuning.to_frame` shows of each index."""

Trying = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Measured:
    """The measurements of one index on a catalogue.

    Attributes:
        plan: Its build and search parameters.
        recall: Recall@100, 0 to 1, for the checking users.
        searches_per_second: Throughput of single searches in one thread.
        num_bytes: Memory of the index, without the items' vectors.
        build_seconds: Build time in seconds.
    """

    plan: IndexConfig
    recall: float
    searches_per_second: float
    num_bytes: int
    build_seconds: float


@dataclass(frozen=True)
class Tuning:
    """The measurements of all indexes that were tried, and the one that was chosen.

    Attributes:
        wanted: The target recall@100.
        tried: The measurements, in the order of trial.
        chosen: The measurements of the chosen index.
        index: The chosen index.
        recall: Its recall@100 for users who were not used in the choice.
        num_users: Number of these users.
    """

    wanted: float
    tried: tuple[Measured, ...]
    chosen: Measured
    index: ItemIndex
    recall: float
    num_users: int

    def to_frame(self) -> pd.DataFrame:
        """Return what was measured, a row for each index, the chosen one first, by `COLUMNS`."""
        return pd.DataFrame(
            [
                (
                    one.plan.kind,
                    str(one.plan),
                    one.recall,
                    one.searches_per_second,
                    one.num_bytes / 1e6,
                    one.build_seconds,
                )
                for one in sorted(self.tried, key=self._place)
            ],
            columns=COLUMNS,
        )

    def table(self) -> str:
        """Return a table for the operator: recall, throughput and memory of each index, the chosen one marked."""
        lines = [f"{'':2}{'index':60}{'recall@100':>10}{'searches/s':>12}{'memory MB':>11}{'build s':>9}"]
        for one in sorted(self.tried, key=self._place):
            mark = "*" if one is self.chosen else "-" if one.recall < self.wanted else ""
            numbers = f"{one.recall:10.4f}{one.searches_per_second:12,.0f}{one.num_bytes / 1e6:11,.1f}"
            lines.append(f"{mark:2}{one.plan!s:60}{numbers}{one.build_seconds:9.1f}")
        lines.append(
            f"* chosen: {DESCRIPTIONS[self.chosen.plan.kind]}; recall@100 is {self.recall:.4f} for "
            f"{self.num_users:,} users who were not used in the choice."
        )
        lines.append(f"- recall below {self.wanted:g}. Searches are one at a time in one thread.")
        lines.append(f"Each index also needs the vectors themselves, {self.index.vectors.nbytes / 1e6:,.1f} MB.")
        return "\n".join(lines)

    def _place(self, one: Measured) -> tuple[bool, bool, float]:
        return one is not self.chosen, one.recall < self.wanted, -one.searches_per_second


@dataclass(frozen=True)
class Chosen:
    """The index chosen for a catalogue.

    Attributes:
        index: The index.
        recall: Its recall@100, 0 to 1.
        wanted: The recall that it was tuned for; None if it was not tuned.
        num_users: Number of users that the recall was measured with; 0 if no users are known and items were used.
    """

    index: ItemIndex
    recall: float
    wanted: float | None
    num_users: int


Chooser = Callable[[np.ndarray, np.ndarray], Chosen]


def choose(
    vectors: Float32[np.ndarray, "items width"],
    queries: Float32[np.ndarray, "users width"],
    *,
    kind: IndexKind | None = None,
    recall: float | None = None,
    prefixes: Sequence[int] = (),
    tail: int = 0,
    trying: Trying = lambda done, total, what: None,
    tuned: Callable[[Tuning], None] = lambda tuning: None,
) -> Chosen:
    """Return an index of a kind, or the fastest with a target recall, and its measured recall.

    Args:
        vectors: The items' unit vectors.
        queries: Unit vectors of users. If there are none, items' vectors are used instead.
        kind: The index kind. None: `exact`, or with `recall` the fastest kind.
        recall: Target recall@100, 0 to 1. None: the index is not tuned.
        prefixes: Dimensions of the model's Matryoshka prefixes, in ascending order.
        tail: Numbers behind each unit vector (see `IndexConfig`).
        trying: Called before each index that is tried; see `tune`.
        tuned: Called with the result of the tuning.

    Raises:
        DataError: The kind needs more items, or prefixes.
    """
    queries_or_items = queries if len(queries) else sample_of(vectors)
    if recall is None:
        plan = standard(kind or "exact", len(vectors), vectors.shape[1], prefixes)
        index = ItemIndex.build(vectors, plan.model_copy(update={"tail": tail}))
        return Chosen(index, recall_of(index, queries_or_items), None, len(queries))
    tuning = tune(vectors, queries_or_items, recall, kind, prefixes=prefixes, tail=tail, trying=trying)
    tuned(tuning)
    return Chosen(tuning.index, tuning.recall, recall, tuning.num_users if len(queries) else 0)


def tune(
    vectors: Float32[np.ndarray, "items width"],
    queries: Float32[np.ndarray, "users width"],
    wanted: float,
    kind: IndexKind | None = None,
    *,
    prefixes: Sequence[int] = (),
    tail: int = 0,
    trying: Trying = lambda done, total, what: None,
) -> Tuning:
    """Return the fastest index over `vectors` whose recall@100 is at least `wanted`.

    Args:
        vectors: The items' unit vectors.
        queries: Unit vectors of users, at least one; at most 1,500 of them are used.
        wanted: The target recall, above 0, at most 1.
        kind: Only this kind. None: every kind that the catalogue is large enough for.
        prefixes: As for `choose`.
        tail: As for `choose`.
        trying: Called before each index with the number tried so far, the number of all, and the next kind.

    Raises:
        DataError: The kind needs more items, or prefixes.
    """
    plans = (
        [IndexConfig()] if kind is None and wanted >= 1 else candidates(len(vectors), vectors.shape[1], kind, prefixes)
    )
    plans = [plan.model_copy(update={"tail": tail}) for plan in plans]
    is_divided = any(not plan.is_exact for plan in plans)
    partitions = kmeans(vectors, default_nlist(len(vectors))) if is_divided else None
    trial = _Trial.of(vectors, queries, wanted, tail)
    tried: list[Measured] = []
    best: tuple[Measured, ItemIndex] | None = None
    for place, plan in enumerate(plans):
        trying(place, len(plans), plan.kind)
        began = time.perf_counter()
        index = ItemIndex.build(vectors, plan, partitions)
        measured, index = trial.judge(index, time.perf_counter() - began)
        tried.append(measured)
        if best is None or trial.is_better(measured, best[0]):
            best = measured, index
    assert best is not None, "there is always a structure to try"
    chosen, index = best
    index = index if partitions_pay(index, trial.tuning) else index.without_partitions()
    return Tuning(wanted, tuple(tried), chosen, index, recall_of(index, trial.judging), len(trial.judging))


def recall_of(index: ItemIndex, queries: Float32[np.ndarray, "users width"]) -> float:
    """Return the recall@100 of an index, 0 to 1."""
    k = min(TUNED_CUTOFF, len(index))
    return index.search(queries, k).share_of(index.scan(queries, k))


def sample_of(vectors: Float32[np.ndarray, "users width"]) -> Float32[np.ndarray, "sample width"]:
    """Return a sample of the users' vectors, without zero vectors, which belong to users with no known features."""
    known = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0)
    sample: np.ndarray = vectors[np.random.default_rng(_SEED).permutation(known)[:SAMPLE]]
    return sample


def thirds(sample: Float32[np.ndarray, "users width"]) -> list[Float32[np.ndarray, "third width"]]:
    """Return users for tuning, checking and the final measurement; disjoint unless there are fewer than three."""
    return [sample[first::3] if len(sample) >= 3 else sample for first in range(3)]


def partitions_pay(index: ItemIndex, queries: Float32[np.ndarray, "users width"]) -> bool:
    """Return whether searching partition by partition saves most comparisons of a filtered search."""
    if index.partitions is None:
        return False
    eligible = AllowedItems(np.random.default_rng(_SEED).random(len(index)) < _FILTERED_SHARE)
    if not len(eligible):
        return False
    needed = min(FIRST_LEVEL, len(eligible))
    compared = [
        index.partitions.candidates(index.vectors, query, needed, eligible)[2] for query in queries[:_FILTERED_USERS]
    ]
    return float(np.mean(compared)) <= (1 - _SPARED) * len(eligible)


def searches_per_second(index: ItemIndex, queries: Float32[np.ndarray, "users width"], k: int = TUNED_CUTOFF) -> float:
    """Return the throughput of single searches in one thread, as in a server."""
    fastest = np.full(len(queries[:_TIMED_USERS]), np.inf)
    with num_threads_set(1):
        for _ in range(_ROUNDS):
            for user in range(len(fastest)):
                began = time.perf_counter()
                index.search(queries[user : user + 1], k)
                fastest[user] = min(fastest[user], time.perf_counter() - began)
    return float(1 / fastest.mean())


@dataclass(frozen=True)
class _Trial:
    """Users for tuning and checking, with their true results, and users for the final measurement."""

    wanted: float
    k: int
    tuning: np.ndarray
    tuning_truth: Hits
    checking: np.ndarray
    checking_truth: Hits
    judging: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, queries: np.ndarray, wanted: float, tail: int) -> _Trial:
        sample = sample_of(queries)
        assert len(sample), "an index is tuned by the vectors of users"
        exact, k = ItemIndex.build(vectors, IndexConfig(tail=tail)), min(TUNED_CUTOFF, len(vectors))
        tuning, checking, judging = thirds(sample)
        return cls(wanted, k, tuning, exact.scan(tuning, k), checking, exact.scan(checking, k), judging)

    def judge(self, index: ItemIndex, build_seconds: float) -> tuple[Measured, ItemIndex]:
        """Return the index with the least effort that reaches the recall, else the greatest, and its measurements."""
        fastest: tuple[Measured, ItemIndex] | None = None
        num_bytes = index.num_bytes
        for ladder in self._promising(index):
            tuned, recall = self._climb(index, ladder)
            measured = Measured(
                tuned.plan, recall, searches_per_second(tuned, self.checking, self.k), num_bytes, build_seconds
            )
            if fastest is None or self.is_better(measured, fastest[0]):
                fastest = measured, tuned
        assert fastest is not None, "every structure has a ladder of efforts"
        return fastest

    def is_better(self, one: Measured, other: Measured) -> bool:
        """Return whether `one` is better than `other`, which was tried before."""
        if (one.recall >= self.wanted) != (other.recall >= self.wanted):
            return one.recall >= self.wanted
        if one.recall < self.wanted:
            return one.recall > other.recall
        handicap = _MIN_SPEEDUP if other.plan.is_exact else 1.0
        return one.searches_per_second > handicap * other.searches_per_second

    def _promising(self, index: ItemIndex) -> list[list[IndexConfig]]:
        """Return the part of each ladder (list of increasing effort) that starts at its lowest sufficient rung.

        The last ladder re-scores the most candidates, so no other is sufficient on a lower rung; if a ladder is
        sufficient on that rung already, those that re-score more can only be slower.
        """
        ladders = list(efforts(index.plan, len(index)))
        *others, last = ladders
        least = self._least(index, last)
        if least is None:
            return [last[-1:]]
        found = []
        for ladder in others:
            part = ladder[least : least + _RUNGS_ABOVE + 1]
            if self._recall(index, part[-1]) < self.wanted:
                continue
            rung = self._least(index, part)
            assert rung is not None, "its highest rung was enough"
            found.append(ladder[least + rung :])
            if rung == 0:
                return found
        return [*found, last[least:]]

    def _least(self, index: ItemIndex, ladder: list[IndexConfig]) -> int | None:
        """Return the lowest rung of a ladder that reaches the recall for the tuning users; None if none does."""

        def is_enough(rung: int) -> bool:
            return self._recall(index, ladder[rung]) >= self.wanted

        # Upwards in strides, as the highest rungs take longer than all others together; then by bisection.
        tops = [*range(0, len(ladder) - 1, _STRIDE), len(ladder) - 1]
        for passed, top in pairwise([-1, *tops]):
            if is_enough(top):
                return bisect_left(range(top), True, lo=passed + 1, key=is_enough)
        return None

    def _recall(self, index: ItemIndex, plan: IndexConfig) -> float:
        return index.with_effort(plan).search(self.tuning, self.k).share_of(self.tuning_truth)

    def _climb(self, index: ItemIndex, ladder: list[IndexConfig]) -> tuple[ItemIndex, float]:
        """Return the index at the lowest rung that reaches the recall for the checking users, else at the highest."""
        for plan in ladder:
            tuned = index.with_effort(plan)
            recall = tuned.search(self.checking, self.k).share_of(self.checking_truth)
            if recall >= self.wanted:
                break
        return tuned, recall
