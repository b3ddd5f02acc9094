"""Input and output of a search: `AllowedItems` and `ExcludedPairs`, and `Hits`.

Every candidate is scored again in double precision and rounded once, and equal scores are in the order of rows
(`rank`). So results depend neither on the search method nor on other queries in the same batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from features.sequences.ragged import Ragged, offsets_of
from serving import deadline
from serving.search.conditions import Filter
from serving.search.vectors import ItemVectors

ScoredRows = tuple[Int64[np.ndarray, " _"], Float32[np.ndarray, " _"]]

ROUNDING = 1e-5
"""Upper bound of the rounding error of a single-precision inner product; scores closer than this may be swapped."""
SLACK = 8
"""Number of extra candidates that are fetched to resolve ties at the cut-off."""

# Numbers in memory at a time while candidates are scored again: 32 MB of doubles.
_RANKED_NUMBERS = 1 << 22
# Pairs whose products are held at a time; pairs compared exactly at a time; and the share of pairs from which on it is
# faster to compare all of them.
_COMPARED_PAIRS = 1 << 20
_COMPARED_AT_ONCE = 1 << 13
_MANY_MATTER = 1 / 8


@dataclass(frozen=True)
class Hits:
    """The results of a search for several users, best first.

    The results of user `u` are `rows[offsets[u]:offsets[u + 1]]`.

    Attributes:
        offsets: Start of each user's results, `[users + 1]`.
        rows: Catalogue rows, `[results]`, never -1.
        scores: Cosines, `[results]`, falling within a user.
    """

    offsets: Int64[np.ndarray, " users_plus_1"]
    rows: Int64[np.ndarray, " results"]
    scores: Float32[np.ndarray, " results"]

    @classmethod
    def join(cls, found: Sequence[ScoredRows]) -> Hits:
        """Return the results of several users as one."""
        if len(found) == 1:
            return cls(np.array([0, len(found[0][0])]), *found[0])
        return cls(
            offsets_of(np.array([len(rows) for rows, _ in found], dtype=np.int64)),
            np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in found)]),
            np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in found)]),
        )

    def of(self, user: int) -> ScoredRows:
        """Return the rows and the scores of the user at position `user`."""
        mine = slice(self.offsets[user], self.offsets[user + 1])
        return self.rows[mine], self.scores[mine]

    def after(self, offset: int) -> Hits:
        """Return each user's results without the best `offset` of them."""
        if not offset:
            return self
        return Hits.join([(rows[offset:], scores[offset:]) for rows, scores in map(self.of, range(len(self)))])

    def first(self, most: int) -> Hits:
        """Return each user's best `most` results."""
        if np.diff(self.offsets).max(initial=0) <= most:
            return self
        return Hits.join([(rows[:most], scores[:most]) for rows, scores in map(self.of, range(len(self)))])

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.offsets) - 1

    def share_of(self, true: Hits) -> float:
        """Return the recall: the share of the results in `true`, for the same users, that are among these."""
        pairs = [
            np.repeat(np.arange(len(hits.offsets) - 1), np.diff(hits.offsets)) << 40 | hits.rows
            for hits in (self, true)
        ]
        return len(np.intersect1d(*pairs)) / len(true.rows) if len(true.rows) else 1.0


@dataclass(frozen=True, eq=False)
class AllowedItems:
    """The items that a filter lets through, the same for every user.

    Attributes:
        mask: Whether a row may be found, `[items]`.
        conditions: Conditions that all these items meet, for engines that filter by conditions themselves; the mask may
            leave out more, such as deleted items. Empty: there is only the mask.
    """

    mask: Bool[np.ndarray, " items"]
    conditions: Filter = ()

    @cached_property
    def rows(self) -> Int64[np.ndarray, " eligible"]:
        """The rows that may be found, in ascending order."""
        return np.flatnonzero(self.mask)

    @cached_property
    def share(self) -> float:
        """The share of the catalogue that is allowed, 0 to 1."""
        return len(self) / max(1, len(self.mask))

    @cached_property
    def _count(self) -> int:
        return int(np.count_nonzero(self.mask))

    def __len__(self) -> int:
        """Return the number of allowed items."""
        return self._count


@dataclass(frozen=True)
class ExcludedPairs:
    """Pairs of user and row that must not be found, each once, in order, as `user * num_items + row`.

    Attributes:
        pairs: The pairs.
        counts: Number of pairs of each user, `[users]`.
        offsets: Start of each user's pairs, `[users + 1]`.
        num_items: Number of rows of the catalogue.
    """

    pairs: Int64[np.ndarray, " pairs"]
    counts: Int64[np.ndarray, " users"]
    offsets: Int64[np.ndarray, " users_plus_1"]
    num_items: int

    @classmethod
    def of(
        cls, excluded: Ragged | None, num_users: int, num_items: int, allowed: AllowedItems | None = None
    ) -> ExcludedPairs:
        """Return each user's exclusions among the allowed items.

        Args:
            excluded: The rows that each user must not get, in any order, repeats allowed. None: nothing is excluded.
            num_users: Number of users.
            num_items: Number of items.
            allowed: The items that can be found at all. None: all.
        """
        if excluded is None:
            nothing = np.zeros(0, np.int64)
            return cls(nothing, np.zeros(num_users, np.int64), np.zeros(num_users + 1, np.int64), num_items)
        assert len(excluded) == num_users, f"{num_users} users, {len(excluded)} lists of exclusions"
        rows = excluded.values
        pairs = rows if num_users == 1 else excluded.row_of_value * num_items + rows
        pairs = np.sort(pairs.astype(np.int64, copy=False))
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])] if len(pairs) else pairs
        if allowed is not None:
            pairs = pairs[allowed.mask[pairs % num_items]]
        if num_users == 1:
            return cls(pairs, np.array([len(pairs)]), np.array([0, len(pairs)]), num_items)
        counts = np.bincount(pairs // num_items, minlength=num_users)
        return cls(pairs, counts, offsets_of(counts), num_items)

    def and_pairs(self, pairs: Int64[np.ndarray, " more"]) -> ExcludedPairs:
        """Return these pairs and more, given in any order and only for allowed items."""
        pairs = np.union1d(self.pairs, pairs)
        counts = np.bincount(pairs // self.num_items, minlength=len(self.counts))
        return ExcludedPairs(pairs, counts, offsets_of(counts), self.num_items)

    def contains(self, users: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return whether each of `rows` is excluded for its user."""
        if not len(self.pairs):
            return np.zeros(rows.shape, dtype=bool)
        pairs = users * self.num_items + rows
        places = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        return np.asarray(self.pairs[places] == pairs)

    def rows_of(self, user: int) -> Int64[np.ndarray, " rows"]:
        """Return the rows that are excluded for one user, in ascending order."""
        return self.pairs[self.offsets[user] : self.offsets[user + 1]] - user * self.num_items


def rank(
    vectors: ItemVectors,
    queries: Float32[np.ndarray, "users width"],
    rows: Int64[np.ndarray, "users candidates"],
) -> tuple[Int64[np.ndarray, "users candidates"], Float32[np.ndarray, "users candidates"]]:
    """Return each user's candidates best first, with their scores; those of row -1 come last, with a score of -inf."""
    block = max(1, _RANKED_NUMBERS // max(1, rows.shape[1] * vectors.shape[1]))
    if len(rows) > block:
        parts = [
            rank(vectors, queries[start : start + block], rows[start : start + block])
            for start in deadline.watched(range(0, len(rows), block))
        ]
        return np.concatenate([some for some, _ in parts]), np.concatenate([some for _, some in parts])
    scores = _scores(vectors, queries, rows)
    if rows.size and rows.min() < 0:
        scores[rows < 0] = -np.inf
    order = np.lexsort((rows, -scores), axis=-1)
    return take(rows, order), take(scores, order)


def _scores(vectors: ItemVectors, queries: np.ndarray, rows: np.ndarray) -> Float32[np.ndarray, "users candidates"]:
    """Return the score of each candidate, some candidates at a time where there are many."""
    step = max(1, _RANKED_NUMBERS // max(1, len(rows) * vectors.shape[1]))
    parts = [rows[:, start : start + step] for start in range(0, max(1, rows.shape[1]), step)]
    scores = [cosines(vectors[part], queries[:, None]).astype(np.float32) for part in deadline.watched(parts)]
    return scores[0] if len(scores) == 1 else np.concatenate(scores, axis=1)


def cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the inner products of unit vectors, in double precision; leading shapes are broadcast."""
    # Not a matrix product: its order of summation depends on a row's position, and copies of an item would differ.
    return np.asarray(np.vecdot(vectors.astype(np.float64, copy=False), others.astype(np.float64, copy=False)))


def greatest_cosines(
    vectors: Float32[np.ndarray, "rows width"], others: Float32[np.ndarray, "others width"]
) -> Float64[np.ndarray, " rows"]:
    """Return the greatest of the `cosines` of each vector with any of the others; -inf where there are no others.

    A matrix product in single precision says which pairs can be the greatest, and only those are computed as `cosines`
    does. So the result is the same to the last digit, and takes a fraction of the time.
    """
    greatest = np.full(len(vectors), -np.inf)
    for some, products in _products(vectors, others):
        matters = np.flatnonzero(products >= np.maximum(products.max(axis=0), greatest) - 2 * ROUNDING)
        if len(matters) > _MANY_MATTER * products.size:
            np.maximum(greatest, cosines(vectors[:, None], some[None]).max(axis=1), out=greatest)
            continue
        for start in range(0, len(matters), _COMPARED_AT_ONCE):
            places, rows = np.divmod(matters[start : start + _COMPARED_AT_ONCE], len(vectors))
            np.maximum.at(greatest, rows, cosines(vectors[rows], some[places]))
    return greatest


def are_alike(
    vectors: Float32[np.ndarray, "rows width"], others: Float32[np.ndarray, "others width"], threshold: float
) -> Bool[np.ndarray, " rows"]:
    """Return whether the greatest of the `cosines` of each vector with any of the others reaches a threshold."""
    alike = np.zeros(len(vectors), dtype=bool)
    for some, products in _products(vectors, others):
        nearest = products.max(axis=0)
        alike |= nearest > threshold + ROUNDING
        close = np.flatnonzero(~alike & (nearest >= threshold - ROUNDING))
        alike[close] = greatest_cosines(vectors[close], some) >= threshold
    return alike


def _products(vectors: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield some of the others at a time, with their inner products with all vectors in single precision."""
    step = max(1, _COMPARED_PAIRS // max(1, len(vectors)))
    for start in deadline.watched(range(0, len(others) if len(vectors) else 0, step)):
        some = others[start : start + step]
        yield some, some @ vectors.T


def rank_one(
    vectors: ItemVectors, query: Float32[np.ndarray, " width"], rows: Int64[np.ndarray, " rows"]
) -> ScoredRows:
    """Return one user's candidates as `rank` does, for a few of them sooner."""
    scores = cosines(vectors[rows], query).astype(np.float32)
    pairs = sorted(zip((-scores).tolist(), rows.tolist(), strict=True))
    return np.array([row for _, row in pairs]), np.array([-score for score, _ in pairs], dtype=np.float32)


def merged(lists: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return several lists of rows and falling scores as one, whose scores fall.

    Of equal scores the lower row comes first, except that the order within a list stays as it is: so what comes first
    does not depend on how far each list goes.
    """
    if len(lists) == 1:
        return lists[0]
    rows, scores = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    ties = np.concatenate([_rising(*one) for one in lists])
    order = np.lexsort((ties, -scores))
    return rows[order], scores[order]


def _rising(rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the rows of a list, where scores are equal none before a greater one: the greatest so far in its place."""
    same = scores[1:] == scores[:-1]
    if not (same & (rows[1:] < rows[:-1])).any():
        return rows
    runs = np.concatenate([[0], np.cumsum(~same)]) * (int(rows.max()) + 1)
    return np.asarray(np.maximum.accumulate(rows + runs) - runs)


def take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return `values[user, places[user]]` for every user; numpy's own way to say it takes ten times as long."""
    taken: np.ndarray = values[:, places[0]] if len(values) == 1 else values[np.arange(len(values))[:, None], places]
    return taken
