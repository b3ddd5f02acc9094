"""Searching the catalogue: the items nearest to a user, exactly. The only file that knows FAISS.

Towers end in unit vectors, so the inner product is the cosine and the score. An `ItemIndex` speaks of catalogue rows
only; ids belong to `serving.retriever`. It always returns min(k, eligible items) results and never FAISS's -1.

Every result is scored again in double precision and equal scores are in the order of rows, so that an answer does not
depend on how many users were searched at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from jaxtyping import Float32, Int, Int64

from features.sequences import offsets_of

Kind = Literal["exact"]
Device = Literal["auto", "cpu", "cuda"]
Found = tuple[Int64[np.ndarray, " _"], Float32[np.ndarray, " _"]]

# How far from 1 a vector's length may be.
_UNIT_TOLERANCE = 1e-3
# More than the rounding errors of a single-precision inner product: what is closer than this may change places.
_ROUNDING = 1e-5
# Results fetched beyond those needed, to see whether the last place is contested.
_SLACK = 8
# FAISS's GPU indexes return at most 2,048 results, and on a CPU a full scan is then faster than its heap.
_MOST_FETCHED = 2048
# Scores held at a time by a full scan: 64 MB.
_SCAN_CELLS = 1 << 24


@dataclass(frozen=True)
class Hits:
    """What was found for each user, best first.

    User `u` got `rows[offsets[u]:offsets[u + 1]]`.

    Attributes:
        offsets: Where each user's results begin, `[users + 1]`.
        rows: Catalogue rows, `[results]`, never -1.
        scores: Cosines, `[results]`, falling within a user.
    """

    offsets: Int64[np.ndarray, " users_plus_1"]
    rows: Int64[np.ndarray, " results"]
    scores: Float32[np.ndarray, " results"]

    @classmethod
    def join(cls, found: list[Found]) -> Hits:
        """Return one user's results after the other's."""
        return cls(
            offsets_of(np.array([len(rows) for rows, _ in found], dtype=np.int64)),
            np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in found)]),
            np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in found)]),
        )

    def of(self, user: int) -> Found:
        """Return the rows and the scores of the user at position `user`."""
        mine = slice(self.offsets[user], self.offsets[user + 1])
        return self.rows[mine], self.scores[mine]


class ItemIndex:
    """The items' vectors, ready to be searched, from several threads too.

    Attributes:
        vectors: Unit vectors by catalogue row, `[items, width]`.
        kind: How it searches. `exact`: every item is compared.
        is_exact: Whether the result is the true one by construction.
    """

    def __init__(self, vectors: Float32[np.ndarray, "items width"], index: Any, kind: Kind, on_gpu: bool) -> None:
        self.vectors = vectors
        self.kind: Kind = kind
        self.is_exact = kind == "exact"
        self._index = index
        # FAISS's GPU indexes are not thread-safe, not even for reading: searches take turns.
        self._turn: AbstractContextManager[Any] = threading.Lock() if on_gpu else nullcontext()

    @classmethod
    def build(cls, vectors: Float32[np.ndarray, "items width"], kind: Kind = "exact") -> ItemIndex:
        """Return an index over `vectors`, one unit vector per catalogue row.

        Raises:
            ValueError: A vector is not of length 1; the inner product would then rank by length.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        check_unit_length(vectors)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(vectors, index, kind, on_gpu=False)

    @classmethod
    def load(cls, path: Path, vectors: Float32[np.ndarray, "items width"], kind: Kind = "exact") -> ItemIndex:
        """Return the index that `save` wrote to `path`, over the same `vectors`.

        Raises:
            ValueError: The file is not FAISS's, or holds other vectors or another similarity.
        """
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot read it ({' '.join(str(error).split())[:200]})") from None
        if (index.ntotal, index.d) != vectors.shape:
            raise ValueError(f"it holds {index.ntotal} vectors of width {index.d}, the catalogue {vectors.shape}")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("it does not rank by inner product")
        return cls(vectors, index, kind, on_gpu=False)

    def save(self, path: Path) -> None:
        """Write the index to `path` in FAISS's own format."""
        faiss.write_index(self._index, str(path))

    def to(self, device: Device) -> ItemIndex:
        """Return this index on a device; `auto` is a GPU where FAISS finds one.

        Raises:
            ValueError: `cuda` was asked for and FAISS finds no GPU.
        """
        # Without a GPU, FAISS's own function for this returns an empty index without a word.
        num_gpus = 0 if device == "cpu" else faiss.get_num_gpus()
        if device == "cuda" and num_gpus == 0:
            raise ValueError("device cuda: FAISS finds no GPU; choose the device cpu, or see `towers doctor`")
        if num_gpus == 0:
            return self
        moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self._index)
        return ItemIndex(self.vectors, moved, self.kind, on_gpu=True)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return int(self.vectors.shape[1])

    def search(
        self,
        queries: Float32[np.ndarray, "users width"],
        k: int,
        excluded_rows: Int[np.ndarray, " exclusions"] | None = None,
        excluded_offsets: Int[np.ndarray, " users_plus_1"] | None = None,
    ) -> Hits:
        """Return the min(k, eligible) items with the highest score of each user.

        Args:
            queries: Unit vectors of users, `[users, width]`.
            k: How many items, at least 0.
            excluded_rows: Catalogue rows that must not be found, one user after the other, in any order, repeats
                allowed, `[exclusions]`. None: every item is eligible.
            excluded_offsets: Where each user's exclusions begin, `[users + 1]`.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        excluded = _Excluded.of(excluded_rows, excluded_offsets, len(queries), len(self))
        needed = np.minimum(k, len(self) - excluded.counts)
        found: list[Found | None] = [None] * len(queries)
        for fetch, users in _groups(needed + excluded.counts + _SLACK, min(_MOST_FETCHED, len(self) // 2)):
            for user, answer in self._fetch(queries, users, fetch, needed, excluded):
                found[user] = answer
        missing = np.array([user for user, answer in enumerate(found) if answer is None], dtype=np.int64)
        scanned = iter(self._scan(queries, missing, needed, excluded))
        return Hits.join([next(scanned) if answer is None else answer for answer in found])

    def scan(
        self,
        queries: Float32[np.ndarray, "users width"],
        k: int,
        excluded_rows: Int[np.ndarray, " exclusions"] | None = None,
        excluded_offsets: Int[np.ndarray, " users_plus_1"] | None = None,
    ) -> Hits:
        """Return what `search` ought to, by comparing every item without FAISS: the measure for every kind of index."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        excluded = _Excluded.of(excluded_rows, excluded_offsets, len(queries), len(self))
        needed = np.minimum(k, len(self) - excluded.counts)
        return Hits.join(list(self._scan(queries, np.arange(len(queries)), needed, excluded)))

    def _fetch(
        self, queries: np.ndarray, users: np.ndarray, fetch: int, needed: np.ndarray, excluded: _Excluded
    ) -> Iterator[tuple[int, Found]]:
        """Yield the users, by position, whose answer FAISS's first `fetch` results settle, with that answer."""
        with self._turn:
            raw_scores, rows = self._index.search(queries[users], fetch)
        eligible = (rows >= 0) & ~excluded.contains(users[:, None], rows)
        for place, user in enumerate(users.tolist()):
            most = int(needed[user])
            mine = np.flatnonzero(eligible[place])[: most + _SLACK]
            if len(mine) < most:
                continue
            answer = self._rank(queries[user], rows[place, mine], most)
            # What was not fetched scores no more than the last that was; if that is too close, places are contested.
            if most == 0 or answer[1][-1] > raw_scores[place, mine[-1]] + _ROUNDING:
                yield user, answer

    def _scan(self, queries: np.ndarray, users: np.ndarray, needed: np.ndarray, excluded: _Excluded) -> Iterator[Found]:
        """Yield the answer of each of the `users`, by position, from all items' scores."""
        block = max(1, _SCAN_CELLS // max(1, len(self)))
        for start in range(0, len(users), block):
            chosen = users[start : start + block]
            scores = queries[chosen] @ self.vectors.T
            for user, mine in zip(chosen.tolist(), scores, strict=True):
                most = int(needed[user])
                mine[excluded.rows_of(user)] = -np.inf
                if most == 0:
                    yield np.zeros(0, np.int64), np.zeros(0, np.float32)
                    continue
                threshold = np.partition(mine, -most)[-most] - _ROUNDING
                yield self._rank(queries[user], np.flatnonzero(mine >= threshold), most)

    def _rank(self, query: np.ndarray, rows: np.ndarray, needed: int) -> Found:
        """Return the best of `rows` by their scores in double precision, rounded once; equal ones by row."""
        # Not a matrix product: there, how a row is summed depends on its place, and copies of an item would differ.
        scores = (self.vectors[rows] * query.astype(np.float64)).sum(axis=1).astype(np.float32)
        best = np.lexsort((rows, -scores))[:needed]
        return rows[best].astype(np.int64), scores[best]


def check_unit_length(vectors: Float32[np.ndarray, "rows width"]) -> None:
    """Make sure that every vector has length 1.

    Raises:
        ValueError: Says which vector has not.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT_TOLERANCE))
    if len(wrong):
        raise ValueError(f"expected vectors of length 1, found length {lengths[wrong[0]]:.4g} at row {wrong[0]}")


def set_num_threads(num_threads: int) -> None:
    """Let each search use this many threads. Servers use 1: their workers share the cores already."""
    faiss.omp_set_num_threads(num_threads)


@dataclass(frozen=True)
class _Excluded:
    """Pairs of user and row that must not be found, each once, in order, as `user * num_items + row`."""

    pairs: Int64[np.ndarray, " pairs"]
    counts: Int64[np.ndarray, " users"]
    offsets: Int64[np.ndarray, " users_plus_1"]
    num_items: int

    @classmethod
    def of(cls, rows: np.ndarray | None, offsets: np.ndarray | None, num_users: int, num_items: int) -> _Excluded:
        if rows is None or offsets is None:
            assert rows is None, "exclusions need the offsets of their users"
            rows, offsets = np.zeros(0, np.int64), np.zeros(num_users + 1, np.int64)
        assert len(offsets) == num_users + 1, f"{num_users} users, {len(offsets) - 1} lists of exclusions"
        users = np.repeat(np.arange(num_users), np.diff(offsets))
        pairs = np.unique(users * num_items + rows.astype(np.int64))
        counts = np.bincount(pairs // max(1, num_items), minlength=num_users)
        return cls(pairs, counts, offsets_of(counts), num_items)

    def contains(self, users: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if not len(self.pairs):
            return np.zeros(rows.shape, dtype=bool)
        wanted = users * self.num_items + rows
        places = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.asarray(self.pairs[places] == wanted)

    def rows_of(self, user: int) -> Int64[np.ndarray, " rows"]:
        return self.pairs[self.offsets[user] : self.offsets[user + 1]] - user * self.num_items


def _groups(fetch: np.ndarray, most: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield users by position, those together who need about as many results; not those who need more than `most`."""
    rounded = np.where(fetch > most, 0, np.minimum(most, 2 ** np.ceil(np.log2(np.maximum(1, fetch))))).astype(np.int64)
    for size in np.unique(rounded[rounded > 0]).tolist():
        yield size, np.flatnonzero(rounded == size)
