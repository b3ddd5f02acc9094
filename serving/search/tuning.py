"""Which index suits a catalogue: each kind is built, tuned and measured, and the fastest that finds enough is kept.

What counts is what users find, so recall, the share of the true best 100 that a search returns, is measured with users'
vectors, which lie elsewhere than items' and are harder. A third of a sample of users decides how hard each kind must
search; another checks that, adds a step where it is not enough, and decides which kind is kept; the last, which decided
nothing, says what the kept one finds, and that is what the seal records.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32

from serving.search.faiss_index import ItemIndex, kmeans, num_threads_set
from serving.search.index_config import (
    DESCRIPTIONS,
    FIRST_LEVEL,
    TUNED_CUTOFF,
    IndexConfig,
    IndexKind,
    candidates,
    efforts,
    num_regions,
    standard,
)
from serving.search.results import AllowedItems, Hits

# Users whose searches are compared with the truth: a third to tune by, a third to check by, a third to judge by.
SAMPLE = 1500
# Each of some users is searched for several times, not in a row, and the fastest counts: what else the machine does
# only slows.
_TIMED_USERS = 64
_ROUNDS = 5
# An index that may miss something must be this much faster than one that cannot.
_WORTH_MISSING = 1.1
# Rungs of effort passed over at first, and those above the least at which re-scoring fewer candidates is still tried.
_STRIDE = 8
_RUNGS_ABOVE = 16
# Regions are kept for filtered searches if they spare comparing this share of the eligible items.
_SPARED = 0.5
_FILTERED_SHARE = 0.1
_FILTERED_USERS = 50
_SEED = 97

Trying = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Measured:
    """One kind of index as it was measured on a catalogue.

    Attributes:
        plan: Its parameters, the effort of a search among them.
        recall: The share of the true best 100 of each user that it finds; of users who check the effort.
        searches_per_second: How many users it searches for in a second, one at a time, in one thread.
        num_bytes: The memory that it takes beside the items' vectors.
        build_seconds: How long it took to build.
    """

    plan: IndexConfig
    recall: float
    searches_per_second: float
    num_bytes: int
    build_seconds: float


@dataclass(frozen=True)
class Tuning:
    """What was tried on a catalogue, and what was kept.

    Attributes:
        wanted: The recall that was asked for.
        tried: One line for each structure, in the order of trial.
        chosen: The line that was kept.
        index: Its index.
        recall: The share of the true best 100 that it finds of users who had no part in choosing it.
        num_users: How many these are.
    """

    wanted: float
    tried: tuple[Measured, ...]
    chosen: Measured
    index: ItemIndex
    recall: float
    num_users: int

    def table(self) -> str:
        """Return the trade-off for people: recall, speed and memory of each kind, the chosen one marked."""
        lines = [f"{'':2}{'index':60}{'recall@100':>10}{'searches/s':>12}{'memory MB':>11}{'build s':>9}"]
        for one in sorted(self.tried, key=self._place):
            mark = "*" if one is self.chosen else "-" if one.recall < self.wanted else ""
            numbers = f"{one.recall:10.4f}{one.searches_per_second:12,.0f}{one.num_bytes / 1e6:11,.1f}"
            lines.append(f"{mark:2}{one.plan!s:60}{numbers}{one.build_seconds:9.1f}")
        lines.append(
            f"* is kept: {DESCRIPTIONS[self.chosen.plan.kind]}; it finds {self.recall:.4f} for "
            f"{self.num_users:,} users who had no part in the choice."
        )
        lines.append(f"- finds less than {self.wanted:g}. Searches are one at a time in one thread.")
        lines.append(f"Beside each lie the vectors themselves, {self.index.vectors.nbytes / 1e6:,.1f} MB.")
        return "\n".join(lines)

    def _place(self, one: Measured) -> tuple[bool, bool, float]:
        return one is not self.chosen, one.recall < self.wanted, -one.searches_per_second


@dataclass(frozen=True)
class Chosen:
    """The index that a catalogue is to be searched with.

    Attributes:
        index: The index.
        recall: The share of the true best 100 of each user that it finds.
        wanted: The recall that it was tuned for; None where it was not tuned.
        num_users: How many users the recall was measured with; 0 where nobody is known, and items stood in for them.
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
    trying: Trying = lambda done, total, what: None,
    tuned: Callable[[Tuning], None] = lambda tuning: None,
) -> Chosen:
    """Return the index that is asked for, and what it finds.

    Args:
        vectors: The items' unit vectors.
        queries: Unit vectors of users. Where nobody is known, items stand in for them.
        kind: How it searches. None: it compares every item, or is of the kind that is the fastest with this recall.
        recall: The share of the true best 100 of each user that it is to find. None: it is not tuned.
        prefixes: How many of its first numbers are a vector by themselves, for kinds that compare those first; rising.
        trying: Called before each structure that is tried; see `tune`.
        tuned: Called with what was tried.

    Raises:
        DataError: The kind needs more items, or prefixes.
    """
    asking = queries if len(queries) else sample_of(vectors)
    if recall is None:
        index = ItemIndex.build(vectors, standard(kind or "exact", len(vectors), vectors.shape[1], prefixes))
        return Chosen(index, recall_of(index, asking), None, len(queries))
    tuning = tune(vectors, asking, recall, kind, prefixes=prefixes, trying=trying)
    tuned(tuning)
    return Chosen(tuning.index, tuning.recall, recall, tuning.num_users if len(queries) else 0)


def tune(
    vectors: Float32[np.ndarray, "items width"],
    queries: Float32[np.ndarray, "users width"],
    wanted: float,
    kind: IndexKind | None = None,
    *,
    prefixes: Sequence[int] = (),
    trying: Trying = lambda done, total, what: None,
) -> Tuning:
    """Return the fastest index over `vectors` that finds the share `wanted` of what each user ought to get.

    Args:
        vectors: The items' unit vectors.
        queries: Unit vectors of users, at least one; at most 1,500 of them are used.
        wanted: The recall, above 0, at most 1.
        kind: Only this one. None: each kind that the catalogue is large enough for.
        prefixes: As for `choose`.
        trying: Called before each structure with how many were tried, how many there are, and which is next.

    Raises:
        DataError: The kind needs more items, or prefixes.
    """
    plans = (
        [IndexConfig()] if kind is None and wanted >= 1 else candidates(len(vectors), vectors.shape[1], kind, prefixes)
    )
    is_divided = any(not plan.is_exact for plan in plans)
    regions = kmeans(vectors, num_regions(len(vectors))) if is_divided else None
    trial = _Trial.of(vectors, queries, wanted)
    tried: list[Measured] = []
    best: tuple[Measured, ItemIndex] | None = None
    for place, plan in enumerate(plans):
        trying(place, len(plans), plan.kind)
        began = time.perf_counter()
        index = ItemIndex.build(vectors, plan, regions)
        measured, index = trial.judge(index, time.perf_counter() - began)
        tried.append(measured)
        if best is None or trial.is_better(measured, best[0]):
            best = measured, index
    assert best is not None, "there is always a structure to try"
    chosen, index = best
    index = index if regions_pay(index, trial.tuning) else index.without_regions()
    return Tuning(wanted, tuple(tried), chosen, index, recall_of(index, trial.judging), len(trial.judging))


def recall_of(index: ItemIndex, queries: Float32[np.ndarray, "users width"]) -> float:
    """Return the share of the true best 100 of each user that an index finds."""
    k = min(TUNED_CUTOFF, len(index))
    return index.search(queries, k).share_of(index.scan(queries, k))


def sample_of(vectors: Float32[np.ndarray, "users width"]) -> Float32[np.ndarray, "sample width"]:
    """Return some of the users' vectors; users of whom nothing is known, whose vector is 0, are left out."""
    known = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0)
    sample: np.ndarray = vectors[np.random.default_rng(_SEED).permutation(known)[:SAMPLE]]
    return sample


def thirds(sample: Float32[np.ndarray, "users width"]) -> list[Float32[np.ndarray, "third width"]]:
    """Return users to tune by, to check by and to judge by: nobody twice, unless they are fewer than three."""
    return [sample[first::3] if len(sample) >= 3 else sample for first in range(3)]


def regions_pay(index: ItemIndex, queries: Float32[np.ndarray, "users width"]) -> bool:
    """Return whether looking region by region spares a filtered search most comparisons, as where items cluster."""
    if index.regions is None:
        return False
    eligible = AllowedItems(np.random.default_rng(_SEED).random(len(index)) < _FILTERED_SHARE)
    if not len(eligible):
        return False
    needed = min(FIRST_LEVEL, len(eligible))
    compared = [
        index.regions.candidates(index.vectors, query, needed, eligible)[2] for query in queries[:_FILTERED_USERS]
    ]
    return float(np.mean(compared)) <= (1 - _SPARED) * len(eligible)


def searches_per_second(index: ItemIndex, queries: Float32[np.ndarray, "users width"], k: int = TUNED_CUTOFF) -> float:
    """Return how many users an index searches for in a second, one at a time in one thread, as in a server."""
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
    """Users to tune each kind by and to check it by, with what they ought to find, and users to judge the chosen by."""

    wanted: float
    k: int
    tuning: np.ndarray
    tuning_truth: Hits
    checking: np.ndarray
    checking_truth: Hits
    judging: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, queries: np.ndarray, wanted: float) -> _Trial:
        sample = sample_of(queries)
        assert len(sample), "an index is tuned by the vectors of users"
        exact, k = ItemIndex.build(vectors), min(TUNED_CUTOFF, len(vectors))
        tuning, checking, judging = thirds(sample)
        return cls(wanted, k, tuning, exact.scan(tuning, k), checking, exact.scan(checking, k), judging)

    def judge(self, index: ItemIndex, build_seconds: float) -> tuple[Measured, ItemIndex]:
        """Return the index at the least effort that finds enough, or at its greatest, as it was measured."""
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
        """Return whether `one` is to be kept in the place of `other`, which was tried before."""
        if (one.recall >= self.wanted) != (other.recall >= self.wanted):
            return one.recall >= self.wanted
        if one.recall < self.wanted:
            return one.recall > other.recall
        handicap = _WORTH_MISSING if other.plan.is_exact else 1.0
        return one.searches_per_second > handicap * other.searches_per_second

    def _promising(self, index: ItemIndex) -> list[list[IndexConfig]]:
        """Return the part of each ladder of efforts in which its least sufficient rung lies.

        The last ladder re-scores the most, so no other finds enough on a lower rung; where that one gains
        nothing any more by a higher rung, ladders that re-score still more are slower.
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
        """Return the lowest rung of a ladder that finds enough with the tuning users; None if none does."""

        def is_enough(rung: int) -> bool:
            return self._recall(index, ladder[rung]) >= self.wanted

        # In strides upwards, since the highest rungs take longer than all the others together; then by halves.
        tops = [*range(0, len(ladder) - 1, _STRIDE), len(ladder) - 1]
        for passed, top in pairwise([-1, *tops]):
            if is_enough(top):
                return bisect_left(range(top), True, lo=passed + 1, key=is_enough)
        return None

    def _recall(self, index: ItemIndex, plan: IndexConfig) -> float:
        return index.with_effort(plan).search(self.tuning, self.k).share_of(self.tuning_truth)

    def _climb(self, index: ItemIndex, ladder: list[IndexConfig]) -> tuple[ItemIndex, float]:
        """Return the lowest rung of a ladder that finds enough with the checking users, else the highest."""
        for plan in ladder:
            tuned = index.with_effort(plan)
            recall = tuned.search(self.checking, self.k).share_of(self.checking_truth)
            if recall >= self.wanted:
                break
        return tuned, recall
