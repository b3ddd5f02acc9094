"""Searches the catalogue for the items nearest to a user, with FAISS, which only this file and `inverted_lists` import.

Vectors have length 1, so the inner product is the cosine and the score. An `ItemIndex` works with catalogue rows; ids
belong to `serving.recommend`. It always returns min(k, number of allowed items) results and never FAISS's -1: if FAISS
returns too few, the rest is found by brute force.

Candidates of FAISS are re-scored with the full vectors. Each user has one order of the items that a filter lets
through, of which every result is a prefix: it depends neither on the number of requested items nor on other queries in
the same batch (`serving.search.levels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import faiss as published
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int

from features.errors import DataError
from features.sequences.ragged import Ragged
from serving import deadline
from serving.observability.timings import timed
from serving.search.brute_force import BruteForce
from serving.search.index_config import FIRST_LEVEL, IndexConfig, IndexKind, default_nlist, standard
from serving.search.inverted_lists import FILE as LISTS
from serving.search.inverted_lists import (
    add_to_lists,
    fast_scan_of,
    num_list_bytes,
    save_lists,
    with_lists,
    without_lists,
)
from serving.search.levels import NO_LEVEL, LevelSearch, Probed, SearchTask, highest
from serving.search.partitions import Partitions
from serving.search.results import ROUNDING, SLACK, AllowedItems, Hits, ScoredRows, rank, rank_one
from serving.search.vectors import HalfVectors, ItemVectors, blocks_of, leading_dims

faiss: Any = published  # its type hints are incomplete

Device = Literal["auto", "cpu", "cuda", "cuda-shards"]
"""Where an index searches: with `cuda` a copy of it on each GPU, with `cuda-shards` a part of it on each."""

# From so many users on, the matrix products of brute force are faster than FAISS is.
_MANY_USERS = 16
# Maximum deviation of a vector's length from 1.
_UNIT_TOLERANCE = 1e-3
# FAISS's GPU indexes return at most 2,048 results and probe as many lists, and on a CPU a full scan is then faster than
# its heap.
_MOST_FETCHED = 2048
# Filtered searches use brute force if the vectors of all allowed items have at most this many numbers.
_SCANNED_NUMBERS = 1 << 20
# Filtered searches use FAISS if at least this share of the items near a user is allowed, and search twice as deep below
# the second share.
_MOSTLY_ELIGIBLE = 0.3
_NEARLY_ALL_ELIGIBLE = 0.8
# Approximate number of items that an approximate index compares for each result.
_COMPARED_FOR_EACH = 64
# The result for a query must not depend on the size of the batch. FAISS uses matrix products, whose rounding does, for
# comparisons with centres or items from 20 queries on, and for rotations always.
_TOGETHER = 16
_MANY_TOGETHER: tuple[IndexKind, ...] = ("hnsw", "pq", "sq8", "sq4")
_ALONE: tuple[IndexKind, ...] = ("rabitq",)
_SEED = 1
_KMEANS_ROUNDS = 10
_ITEMS_PER_CENTRE = 64
_WALK_WHILE_BUILDING = 100
# Codes are trained on a sample if there are more items; FAISS uses fewer than these of most kinds.
_TRAINING_ITEMS = 1 << 18
_SMALL = 1 << 20
_LEAST_LIMIT = 1 << 26
_LARGEST_TABLE = 32
_GPUS: tuple[Device, ...] = ("cuda", "cuda-shards")
_ON_GPU: tuple[IndexKind, ...] = ("exact", "matryoshka", "ivf", "ivf-sq8")


def check_device(device: Device) -> None:
    """Check that an index can search on a device.

    Raises:
        DataError: The device is `cuda` or `cuda-shards`, and FAISS finds no GPU.
    """
    if device in _GPUS and faiss.get_num_gpus() == 0:
        raise DataError(f'device = "{device}": FAISS finds no GPU; use "cpu" or "auto", or run `towers doctor`')


class ItemIndex:
    """A searchable index of the items' vectors; safe to use from several threads.

    Attributes:
        vectors: Unit vectors by catalogue row, `[items, dim]`, perhaps mapped from a file and in half precision; of a
            model that reads recent popularity with its numbers behind them, as many as the `tail` of the plan.
        plan: Build and search parameters.
        partitions: IVF lists for filtered searches. None: filtered searches use brute force.
    """

    def __init__(
        self,
        vectors: ItemVectors,
        index: Any,
        plan: IndexConfig,
        partitions: Partitions | None = None,
        *,
        on_gpu: bool = False,
        exact: BruteForce | None = None,
    ) -> None:
        self.vectors = vectors
        self.plan = plan
        self.partitions = partitions
        self._index = index
        self._exact = exact or BruteForce(vectors)
        self._on_gpu = on_gpu
        self._efforts: dict[int, Any] = {}

    @classmethod
    def build(
        cls,
        vectors: ItemVectors,
        plan: IndexConfig | IndexKind = "exact",
        partitions: Partitions | None = None,
    ) -> ItemIndex:
        """Return an index over `vectors`, one unit vector per catalogue row; the same vectors give the same index.

        The vectors are read some at a time, so that mapped ones need not fit into memory.

        Args:
            vectors: The items' vectors: unit vectors, and behind them the `tail` of the plan.
            plan: Build and search parameters, or a kind with its default parameters.
            partitions: IVF lists of the same vectors, as many as the plan has. None: computed if needed.

        Raises:
            ValueError: A vector does not have length 1, so the inner product would rank by length. (Zero vectors, of
                items that the model knows nothing about, are allowed.)
            DataError: The kind needs more items.
        """
        vectors = _ready(vectors)
        plan = plan if isinstance(plan, IndexConfig) else standard(plan, len(vectors), vectors.shape[1])
        check_unit_length(leading_dims(vectors, vectors.shape[1] - plan.tail), or_zero=True)
        if partitions is None and not plan.is_exact:
            partitions = kmeans(vectors, plan.nlist or default_nlist(len(vectors)))
        return cls(vectors, _built(vectors, plan, partitions), plan, partitions)

    @classmethod
    def load(
        cls,
        path: Path,
        vectors: ItemVectors,
        plan: IndexConfig | IndexKind = "exact",
        partitions: Partitions | None = None,
        lists: Path | None = None,
    ) -> ItemIndex:
        """Return the index that `save` wrote to `path`, over the same `vectors`; processes share its memory.

        Args:
            path: The file.
            vectors: The items' vectors.
            plan: The parameters that it was built with.
            partitions: The partitions that it was built with, which are in a separate file.
            lists: The file of its inverted lists, if `save` wrote one.

        Raises:
            ValueError: The file is not an index of FAISS, or has other vectors or another similarity.
        """
        index = _read(path)
        plan = plan if isinstance(plan, IndexConfig) else standard(plan, len(vectors), vectors.shape[1])
        expected = len(vectors), plan.prefix + plan.tail if plan.prefix else vectors.shape[1]
        if (index.ntotal, index.d) != expected:
            raise ValueError(f"it has {index.ntotal} vectors of dimension {index.d}, the catalogue {expected}")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("it does not rank by inner product")
        if lists is not None:
            inverted = fast_scan_of(index)
            if inverted is None:
                raise ValueError(f"an index of kind {plan.kind} has no file of lists")
            with_lists(inverted, lists)
        _check_ids(index, len(vectors))
        if partitions is not None and len(partitions.of_item) != len(vectors):
            raise ValueError(f"its partitions have {len(partitions.of_item)} items, the catalogue {len(vectors)}")
        return cls(_ready(vectors), index, plan, partitions)

    def save(self, path: Path) -> None:
        """Write the index to `path` in FAISS's own format, without its partitions.

        Inverted lists that FAISS itself would not map are written next to it, see `inverted_lists`.

        Raises:
            OSError: A file cannot be written, such as on a full disk.
        """
        inverted = fast_scan_of(self._index)
        if inverted is not None:
            save_lists(inverted, path.with_name(LISTS))
        # By Python's own writer, whose error names the reason, such as a full disk.
        with path.open("wb") as file, nullcontext() if inverted is None else without_lists(inverted):
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))

    def to(self, device: Device) -> ItemIndex:
        """Return this index on a device; `auto`: a copy on each GPU if FAISS finds any and supports this kind there.

        Of an index that is divided among GPUs, the vectors for filtered searches stay in the memory of the CPU.

        Raises:
            DataError: The device names GPUs, and FAISS finds none or does not support this kind there.
        """
        check_device(device)
        # Without a GPU, FAISS's own function for this silently returns an empty index.
        num_gpus = 0 if device == "cpu" else faiss.get_num_gpus()
        if device in _GPUS and self.kind not in _ON_GPU:
            raise DataError(
                f"device {device}: an index of kind {self.kind} can only search on a CPU; use the device cpu, or "
                f"rebuild the index with --kind {', '.join(_ON_GPU[:-1])} or {_ON_GPU[-1]}"
            )
        if num_gpus == 0 or self.kind not in _ON_GPU:
            return self
        if device == "cuda-shards":
            options = faiss.GpuMultipleClonerOptions()
            options.shard = True
            moved, exact = [faiss.index_cpu_to_all_gpus(self._index, options)], self._exact
        else:
            # Not FAISS's own replicas: they take no parameters of a search, such as nprobe.
            resources = [faiss.StandardGpuResources() for _ in range(num_gpus)]
            moved = [faiss.index_cpu_to_gpu(one, gpu, self._index) for gpu, one in enumerate(resources)]
            exact = BruteForce(self.vectors, "cuda" if torch.cuda.is_available() else "cpu")
        return ItemIndex(self.vectors, _GpuPool(moved), self.plan, self.partitions, on_gpu=True, exact=exact)

    def with_effort(self, plan: IndexConfig) -> ItemIndex:
        """Return this index with the search parameters of another plan with the same build parameters."""
        assert plan.structure == self.plan.structure, f"{plan} differs in build parameters from {self.plan}"
        return ItemIndex(self.vectors, self._index, plan, self.partitions, on_gpu=self._on_gpu, exact=self._exact)

    def without_partitions(self) -> ItemIndex:
        """Return this index with brute force for filtered searches."""
        return ItemIndex(self.vectors, self._index, self.plan, on_gpu=self._on_gpu, exact=self._exact)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.vectors)

    @property
    def embeddings(self) -> Float32[np.ndarray, "items dim"]:
        """The unit vectors alone, by catalogue row."""
        return np.ascontiguousarray(self.vectors[:][:, : self.width - self.plan.tail])

    @property
    def width(self) -> int:
        """Dimension of the vectors."""
        return int(self.vectors.shape[1])

    @property
    def kind(self) -> IndexKind:
        """The index kind."""
        return self.plan.kind

    @property
    def is_exact(self) -> bool:
        """Whether results are exact by construction."""
        return self.plan.is_exact

    @property
    def num_bytes(self) -> int:
        """Memory of the index in bytes, without `vectors`; not to be read while it is searched."""
        counted = 0

        def count(data: bytes) -> None:
            nonlocal counted
            counted += len(data)

        inverted = fast_scan_of(self._index)
        with nullcontext() if inverted is None else without_lists(inverted):
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(count))
        counted += 0 if inverted is None else num_list_bytes(inverted)
        return counted + (0 if self.partitions is None else self.partitions.num_bytes)

    def search(
        self,
        queries: Float32[np.ndarray, "users width"],
        k: int,
        excluded: Ragged | None = None,
        allowed: AllowedItems | None = None,
        closed: Bool[np.ndarray, " items"] | None = None,
    ) -> Hits:
        """Return the best items of each user, approximately if the kind is not exact; see `Searcher.search`."""
        deadline.check()
        with timed("search"):
            if len(queries) == 1 and allowed is None and closed is None:
                best = self._of_one(queries, k, excluded)
                if best is not None:
                    return Hits.join([best])
            open_items = allowed
            if closed is not None:
                open_items = AllowedItems(~closed if allowed is None else allowed.mask & ~closed)
            return self._of_many(SearchTask.of(queries, k, excluded, open_items, len(self)), allowed)

    def confirms(self, query: np.ndarray, rows: np.ndarray, least: np.float32) -> bool:
        """Return True: the index does not change."""
        return True

    def _of_many(self, task: SearchTask, within: AllowedItems | None) -> Hits:
        """Return the results of several users.

        Args:
            task: The search.
            within: The items of which each user has one order, a superset of the allowed ones. None: all.
        """
        if self._compares_all(len(task), task.allowed if self.is_exact else within):
            return task.compared(self._exact)
        if not self.is_exact:
            return Hits.join(self._by_levels(task, within))
        found: list[ScoredRows | None] = [None] * len(task)
        for user, answer in self._settled(task):
            found[user] = answer
        missing = np.array([user for user, answer in enumerate(found) if answer is None], dtype=np.int64)
        compared = task.best(self._exact, missing) if len(missing) else iter(())
        return Hits.join([next(compared) if answer is None else answer for answer in found])

    def scan(
        self,
        queries: Float32[np.ndarray, "users width"],
        k: int,
        excluded: Ragged | None = None,
        allowed: AllowedItems | None = None,
    ) -> Hits:
        """Return exact results by brute force, as the ground truth for recall."""
        return SearchTask.of(queries, k, excluded, allowed, len(self)).compared(self._exact)

    def _of_one(self, queries: np.ndarray, k: int, exclusions: Ragged | None) -> ScoredRows | None:
        """Return the results of one user if FAISS's first candidates are sufficient; a faster path, same results.

        For so few candidates lists are faster than arrays.
        """
        excluded = set() if exclusions is None else set(exclusions.values.tolist())
        needed = min(k, len(self) - len(excluded))
        fetch = needed + len(excluded) + SLACK
        if not self.is_exact:
            if len(excluded) >= self._deepest:
                return None
            # If FAISS's scores are exact, a search with fewer results and the effort of a level returns its best items.
            fetch = FIRST_LEVEL if self.plan.is_rescored else min(fetch, FIRST_LEVEL)
        if not 0 < needed <= fetch <= min(_MOST_FETCHED, len(self) // 2):
            return None
        scores, rows = self._fetch(np.ascontiguousarray(queries, dtype=np.float32), fetch)
        order = scores[0].argsort()[::-1]
        eligible = (row for row in rows[0][order].tolist() if row not in excluded and row >= 0)
        best = list(islice(eligible, needed + SLACK))
        if len(best) < needed:
            return None
        ranked_rows, ranked_scores = rank_one(self.vectors, queries[0], np.array(best))
        # Other items score no more than the worst of these, or, if these are all, of what FAISS found.
        worst = min(ranked_scores) if len(best) == needed + SLACK else scores[0, order[-1]]
        if ranked_scores[needed - 1] <= worst + ROUNDING:
            return None
        return ranked_rows[:needed], ranked_scores[:needed]

    def _compares_all(self, num_users: int, allowed: AllowedItems | None) -> bool:
        """Return whether brute force over the allowed items is fastest."""
        if self.is_exact:
            return num_users >= _MANY_USERS or allowed is not None
        return allowed is not None and len(allowed) * self.vectors.shape[1] <= _SCANNED_NUMBERS

    def _settled(self, task: SearchTask) -> Iterator[tuple[int, ScoredRows]]:
        """Yield the positions and results of users if FAISS's first candidates are sufficient for them."""
        fetch = task.needed + task.excluded.counts + SLACK
        for fetched, users in _groups(fetch, min(_MOST_FETCHED, len(self) // 2)):
            for part in self._parts(users, fetched):
                yield from self._settled_by(task, part, fetched)

    def _settled_by(self, task: SearchTask, users: np.ndarray, fetch: int) -> Iterator[tuple[int, ScoredRows]]:
        """Yield the positions and results of users if FAISS's first `fetch` candidates are sufficient for them."""
        queries = task.queries[users]
        scores, rows = self._fetch(queries, fetch)
        worst = scores.min(axis=1)
        short = np.zeros(len(users), dtype=bool)
        barred = task.barred(users, rows)
        if barred is not None:
            scores[barred] = -np.inf
            rows = np.where(barred, -1, rows)
            short = rows.shape[1] - np.count_nonzero(barred, axis=1) < task.needed[users]
        kept_scores, kept_rows = highest(scores, rows, int(task.needed[users].max()) + SLACK)
        if kept_rows is not rows:
            worst = np.maximum(worst, kept_scores.min(axis=1))
        ranked_rows, ranked_scores = rank(self.vectors, queries, kept_rows)
        for place, user in enumerate(users.tolist()):
            most = int(task.needed[user])
            # Other items score no more than the worst of these; if that is too close to the cut-off, there may be ties.
            contested = most and ranked_scores[place, most - 1] <= worst[place] + ROUNDING
            if not short[place] and not contested:
                yield user, (ranked_rows[place, :most], ranked_scores[place, :most])

    def _by_levels(self, task: SearchTask, within: AllowedItems | None) -> list[ScoredRows]:
        """Return the results of all users from the levels of their orders; see `serving.search.levels`."""
        queries, walk = task.queries, LevelSearch(task, self.vectors)
        users = np.flatnonzero(task.needed)
        # The levels of a user who has seen more than the deepest of them would be computed in vain.
        deepest = self._deepest
        exhausted = task.excluded.counts[users] >= deepest
        compared, users = users[exhausted], users[~exhausted]
        depths = self._depths(queries[users], within)

        def search(some: np.ndarray, depth: int) -> Probed:
            for part in self._parts(some, depth):
                yield part, *self._fetch(queries[part], depth)

        missing = walk.go(users, depths, deepest, search)
        if within is not None and self.partitions is not None:
            in_partitions = np.isin(missing, users[depths == NO_LEVEL])
            probe = partial(self._from_partitions, self.partitions, queries, within)
            first = np.full(in_partitions.sum(), FIRST_LEVEL)
            found = walk.go(missing[in_partitions], first, min(_MOST_FETCHED, len(within) // 2), probe)
            missing = np.append(missing[~in_partitions], found)
        walk.end(np.append(missing, compared), self._exact)
        return walk.answers()

    @property
    def _deepest(self) -> int:
        """The depth up to which levels are searched: one that compares half of the items is slower than all of them."""
        sensible = max(FIRST_LEVEL, len(self) // (2 * _COMPARED_FOR_EACH))
        return min(_MOST_FETCHED, len(self) // 2, sensible)

    def _depths(self, queries: np.ndarray, within: AllowedItems | None) -> np.ndarray:
        """Return the depth of the first level for each user; `NO_LEVEL` if FAISS is not used."""
        if within is None:
            return np.full(len(queries), FIRST_LEVEL)
        if within.share < _MOSTLY_ELIGIBLE:
            return np.full(len(queries), NO_LEVEL)
        # The share near the user counts: of a category, all or none of the user's nearest items may be allowed.
        near = np.full(len(queries), within.share)
        if self.partitions is not None:
            near = self.partitions.shares_near(queries, within)
        steps = [near >= _NEARLY_ALL_ELIGIBLE, near >= _NEARLY_ALL_ELIGIBLE / 2, near >= _MOSTLY_ELIGIBLE]
        return np.select(steps, [FIRST_LEVEL, 2 * FIRST_LEVEL, 4 * FIRST_LEVEL], NO_LEVEL)

    def _parts(self, users: np.ndarray, depth: int) -> Iterator[np.ndarray]:
        """Yield users in parts, whose size depends on the depth of the search."""
        compared = len(self) * self.width if self.is_exact else depth * _COMPARED_FOR_EACH * self.width
        for part in deadline.parts(len(users), deadline.PRODUCTS // compared):
            yield users[part]

    def _fetch(self, queries: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `wanted` highest scores that FAISS finds and their rows, in any order; -1 where it finds fewer."""
        return highest(*self._candidates(queries, wanted), wanted)

    def _candidates(self, queries: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the candidates of `_fetch`: `oversampling` times as many rows as wanted, with their scores."""
        fetch = min(wanted * self.plan.oversampling, len(self), _MOST_FETCHED if self._on_gpu else len(self))
        effort = self._efforts.get(wanted)
        if effort is None:
            effort = self._efforts[wanted] = _effort(self.plan, wanted, on_gpu=self._on_gpu)
        prefixes = _prefixes(queries, self.plan)
        size = self._num_together
        if len(queries) <= size:
            scores, rows = self._index.search(prefixes, fetch, **effort)
        else:
            found = [
                self._index.search(prefixes[start : start + size], fetch, **effort)
                for start in range(0, len(queries), size)
            ]
            scores, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if self.plan.is_rescored:
            scores = inner_products(queries, self.vectors, rows)
            scores[rows < 0] = -np.inf
        return scores, rows

    @property
    def _num_together(self) -> int:
        """Number of users in one call of FAISS."""
        if self.is_exact or self._on_gpu or self.kind in _MANY_TOGETHER:
            return len(self.vectors) + _MOST_FETCHED
        return 1 if self.kind in _ALONE else _TOGETHER

    def _from_partitions(
        self, partitions: Partitions, queries: np.ndarray, within: AllowedItems, users: np.ndarray, depth: int
    ) -> Probed:
        """Yield the results of each user from a search partition by partition."""
        for user in deadline.watched(users):
            rows, scores, _ = partitions.candidates(self.vectors, queries[user], depth, within)
            yield np.array([user]), scores[None], rows[None]


class _GpuPool:
    """Indexes on GPUs, each searched by one thread at a time: they are not thread-safe, not even for reading."""

    def __init__(self, indexes: Sequence[Any]) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        for index in indexes:
            self._free.put(index)

    def search(self, queries: np.ndarray, fetch: int, **effort: Any) -> tuple[np.ndarray, np.ndarray]:
        """Search one that is free; waits until one is."""
        index = self._free.get()
        try:
            scores, rows = index.search(queries, fetch, **effort)
        finally:
            self._free.put(index)
        return scores, rows


def _ready(vectors: ItemVectors) -> ItemVectors:
    """Return vectors as FAISS and PyTorch read them."""
    return vectors if isinstance(vectors, HalfVectors) else np.require(vectors, np.float32, ["C", "W"])


def check_unit_length(vectors: ItemVectors, *, or_zero: bool = False) -> None:
    """Check that every vector has length 1, or with `or_zero` length 0.

    Raises:
        ValueError: A vector has another length; names its row.
    """
    for block in blocks_of(len(vectors)):
        some = vectors[block]
        lengths = np.sqrt(np.einsum("ij,ij->i", some, some))
        wrong = np.flatnonzero(~((np.abs(lengths - 1) <= _UNIT_TOLERANCE) | (or_zero & (lengths == 0))))
        if len(wrong):
            row = block.start + wrong[0]
            raise ValueError(f"expected vectors of length 1, found length {lengths[wrong[0]]:.4g} at row {row}")


def set_num_threads(num_threads: int) -> None:
    """Set the number of threads of a search. Servers use 1, as their workers share the cores."""
    faiss.omp_set_num_threads(num_threads)


@contextmanager
def num_threads_set(num_threads: int) -> Iterator[None]:
    """Set the number of threads of searches inside the block."""
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    try:
        faiss.omp_set_num_threads(num_threads)
        torch.set_num_threads(num_threads)
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])


def kmeans(
    vectors: ItemVectors,
    num_partitions: int,
    *,
    rounds: int = _KMEANS_ROUNDS,
    items_per_centre: int = _ITEMS_PER_CENTRE,
) -> Partitions:
    """Return a division of the items into partitions by spherical k-means; deterministic.

    Args:
        vectors: Unit vectors.
        num_partitions: Number of partitions.
        rounds: Number of iterations.
        items_per_centre: Maximum number of training items per partition; a sample if there are more.
    """
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        num_partitions,
        niter=rounds,
        spherical=True,
        seed=_SEED,
        max_points_per_centroid=items_per_centre,
        min_points_per_centroid=1,
    )
    kmeans.train(_sample(vectors, num_partitions * items_per_centre))
    nearest = [kmeans.index.search(vectors[block], 1)[1][:, 0].astype(np.int32) for block in blocks_of(len(vectors))]
    return Partitions(np.ascontiguousarray(kmeans.centroids), np.concatenate([np.zeros(0, np.int32), *nearest]))


def _sample(vectors: ItemVectors, most: int) -> Float32[np.ndarray, "sample width"]:
    """Return the vectors, or the sample of so many of them that FAISS's clustering would take."""
    if len(vectors) <= most:
        return vectors[:]
    rows = np.empty(len(vectors), dtype=np.int32)
    faiss.rand_perm(faiss.swig_ptr(rows), len(rows), _SEED)
    rows = rows[:most]
    sample = np.empty((most, vectors.shape[1]), dtype=np.float32)
    # Read in order, as they may be on disk.
    order = np.argsort(rows)
    sample[order] = vectors[rows[order]]
    return sample


def inner_products(
    queries: Float32[np.ndarray, "users width"],
    vectors: ItemVectors,
    rows: Int[np.ndarray, "users candidates"],
) -> Float32[np.ndarray, "users candidates"]:
    """Return the score of each candidate for its user, in single precision; undefined where the row is -1."""
    scores = np.zeros(rows.shape, dtype=np.float32)
    if isinstance(vectors, HalfVectors):
        for user, query in enumerate(queries):
            scores[user] = np.vecdot(vectors[rows[user]], query)
        return scores
    faiss.fvec_inner_products_by_idx(
        faiss.swig_ptr(scores),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        vectors.shape[1],
        *rows.shape,
    )
    return scores


def _read(path: Path) -> Any:
    """Return the FAISS index in a file, mapped into memory.

    Raises:
        ValueError: The file is not an index, or claims sizes that exceed the file.
    """
    # FAISS allocates the sizes that a file claims before it reads them. They are limited to a multiple of the file's
    # size: only the tables that FAISS computes from centres and codes are larger than the file.
    before = faiss.get_deserialization_vector_byte_limit()
    try:
        faiss.set_deserialization_vector_byte_limit(_LEAST_LIMIT + _LARGEST_TABLE * path.stat().st_size)
        # FAISS's mapping crashes the process if a file ends within a number, so small files are read instead.
        is_small = path.stat().st_size < _SMALL
        return faiss.read_index(str(path), 0 if is_small else faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"FAISS cannot read it ({' '.join(str(error).split())[:200]})") from None
    finally:
        faiss.set_deserialization_vector_byte_limit(before)


def _check_ids(index: Any, num_items: int) -> None:
    """Check that the lists of an IVF index contain every row of the catalogue, and no others.

    Raises:
        ValueError: A row is missing or outside the catalogue.
    """
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is None:
        return
    lists, found = inverted.invlists, np.zeros(num_items, dtype=bool)
    for place in range(lists.nlist):
        size = lists.list_size(place)
        if not size:
            continue
        rows = faiss.rev_swig_ptr(lists.get_ids(place), size)
        if rows.min() < 0 or rows.max() >= num_items:
            wrong = rows.max() if rows.min() >= 0 else rows.min()
            raise ValueError(f"it has row {wrong}, expected rows from 0 to {num_items - 1}")
        found[rows] = True
    if not found.all():
        raise ValueError(f"it lacks row {found.argmin()}")


def _prefixes(vectors: Float32[np.ndarray, "rows width"], plan: IndexConfig) -> Float32[np.ndarray, "rows prefix"]:
    """Return the prefix of each vector, normalised, and its tail as it is; the vectors unchanged without a prefix."""
    if not plan.prefix:
        return vectors
    short = vectors[:, : plan.prefix]
    lengths = np.sqrt(np.einsum("ij,ij->i", short, short))
    short = short / np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    if plan.tail:
        short = np.concatenate([short, vectors[:, -plan.tail :]], axis=1)
    return np.ascontiguousarray(short, dtype=np.float32)


@dataclass(frozen=True)
class _ShortVectors:
    """The prefixes of vectors, by row; see `_prefixes`."""

    whole: ItemVectors
    plan: IndexConfig

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.whole), self.plan.prefix + self.plan.tail

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> Float32[np.ndarray, "rows prefix"]:
        return _prefixes(self.whole[rows], self.plan)


def _built(vectors: ItemVectors, plan: IndexConfig, partitions: Partitions | None) -> Any:
    """Return a trained FAISS index of the vectors, or of their prefixes, which get partitions of their own."""
    if plan.prefix:
        vectors = _ShortVectors(vectors, plan)
        partitions = kmeans(vectors, plan.nlist) if plan.nlist else None
    index = _empty(vectors.shape[1], plan, partitions)
    num_threads = faiss.omp_get_max_threads()
    try:
        if plan.kind == "hnsw":
            # With several threads the graph would not be deterministic.
            faiss.omp_set_num_threads(1)
        index.train(_sample(vectors, _TRAINING_ITEMS))
        if plan.nlist and partitions is not None:
            add_to_lists(index, vectors, partitions.of_item)
        else:
            for block in blocks_of(len(vectors)):
                index.add(vectors[block])
    finally:
        faiss.omp_set_num_threads(num_threads)
    return index


def _empty(width: int, plan: IndexConfig, partitions: Partitions | None) -> Any:
    """Return an untrained FAISS index."""
    metric = faiss.METRIC_INNER_PRODUCT
    num_codes = width * plan.bits // 4
    match plan.kind:
        case "exact" | "matryoshka":
            return faiss.IndexFlat(width, metric)
        case "hnsw":
            index = faiss.IndexHNSWFlat(width, plan.m, metric)
            index.hnsw.efConstruction = _WALK_WHILE_BUILDING
            return index
        case "sq8":
            return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, metric)
        case "sq4":
            return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_4bit, metric)
        case "pq":
            return _quiet(faiss.IndexPQFastScan(width, num_codes, 4, metric))
        case "rabitq":
            turned = faiss.IndexRaBitQFastScan(width, metric, 32, plan.bits)
            turned.qb = 8
            return faiss.IndexPreTransform(faiss.RandomRotationMatrix(width, width), turned)
    assert partitions is not None, f"{plan.kind} needs partitions"
    centres = faiss.IndexFlatIP(width)
    centres.add(partitions.centres)
    shape = centres, width, len(partitions.centres)
    match plan.kind:
        case "ivf":
            return faiss.IndexIVFFlat(*shape, metric)
        case "ivf-sq8":
            return faiss.IndexIVFScalarQuantizer(*shape, faiss.ScalarQuantizer.QT_8bit, metric, True)
        case "ivf-pq":
            index = _quiet(faiss.IndexIVFPQFastScan(*shape, num_codes, 4, metric))
            index.by_residual = True
            return index


def _quiet(index: Any) -> Any:
    """Return the index, without FAISS's warning about few training items."""
    index.pq.cp.min_points_per_centroid = 1
    return index


def _effort(plan: IndexConfig, wanted: int, *, on_gpu: bool = False) -> dict[str, Any]:
    """Return FAISS's search parameters; the effort grows with `wanted` beyond the number that it was tuned for."""
    wanted = max(wanted, FIRST_LEVEL)
    more = wanted / FIRST_LEVEL
    if plan.kind == "hnsw":
        ef_search = max(wanted * plan.oversampling, round(plan.ef_search * more))
        return {"params": faiss.SearchParametersHNSW(efSearch=ef_search)}
    if plan.nlist:
        nprobe = min(plan.nlist, int(np.ceil(plan.nprobe * more)), _MOST_FETCHED if on_gpu else plan.nlist)
        return {"params": faiss.SearchParametersIVF(nprobe=nprobe)}
    return {}


def _groups(fetch: np.ndarray, most: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield groups of users who need similar numbers of results, without those who need more than `most`."""
    if len(fetch) == 1:
        if fetch[0] <= most:
            yield int(fetch[0]), np.zeros(1, np.int64)
        return
    rounded = np.where(fetch > most, 0, np.minimum(most, 2 ** np.ceil(np.log2(np.maximum(1, fetch))))).astype(np.int64)
    for size in np.unique(rounded[rounded > 0]).tolist():
        users = np.flatnonzero(rounded == size)
        yield int(fetch[users].max()), users
