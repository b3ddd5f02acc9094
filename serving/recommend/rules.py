"""What a shop wants of an answer beyond the nearest items: variety, and its own rules.

The order of an answer is defined on the whole of what may be recommended, so that pages fit together:

1. An item's relevance is its score plus what the first of the boosts that it fits adds. (Of what is popular, the score
   is the share of interactions over the greatest such share.) Items are ranked by falling relevance, equal ones in the
   order of the catalogue, and those that are demoted come after all others.
2. Pinned items that may be recommended take the first places, in the order given.
3. Each further place goes to one of the first `WINDOW` of those left that stand in the same part (demoted or not), of
   whose values, in the columns of `at_most`, fewer than so many were placed, pinned items counted, and whose cosine to
   each item placed before is below `distinct`: to the one with the greatest (1 - diversity) x relevance - diversity x
   its cosine to the nearest item placed before, the first of equal ones. This is maximal marginal relevance (Carbonell
   and Goldstein 1998).

No rule brings back what a filter, an exclusion or having had it leaves out; and except for `at_most` and `distinct`,
none makes an answer shorter. The searches go as deep as this needs and no deeper (`build_slate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float64, Int64

from serving import deadline
from serving.catalog.filters import ItemsByValue
from serving.catalog.ids import ExternalId
from serving.observability.timings import timed
from serving.recommend.interfaces import ItemFilters
from serving.search.conditions import Filter
from serving.search.results import AllowedItems, ScoredRows, are_alike, cosines, greatest_cosines, merged
from serving.search.searcher import ItemVectors

WINDOW = 100
"""How many of the most relevant items left are weighed for each place."""

# How deep a search goes at most; what needs more is searched again without what was found to be of no use.
_DEEPEST = 8192
# How many candidates are compared with those placed at a time, and how many of all items, so that memory stays small.
_STAGED = 256
_COMPARED = 4096
# A vector of length 1 in single precision is that much longer or shorter, and so is its cosine to a copy of it.
_ROUNDED = 1e-6
# Where less than this share of the candidates could be placed, all items are compared before the next search.
_FEW_PLACED = 0.25


@dataclass(frozen=True, slots=True)
class Boost:
    """A sum that is added to the relevance of some items.

    Attributes:
        where: What must hold of them.
        by: How much, -2 to 2; scores are cosines, so that 2 puts them before all others.
    """

    where: Filter
    by: float


@dataclass(frozen=True, slots=True)
class Rules:
    """How an answer is arranged.

    Attributes:
        diversity: 0 to 1: how much it counts for an item to be unlike those before it; 0: not at all.
        pin: Items that come first, in this order.
        boosts: Of which the first that an item fits counts.
        demote: Items that fit any of these come last.
        at_most: How many items of each value of a column there may be, by column. An empty cell has no value.
        distinct: Of items with a cosine of at least so much, up to a millionth, only the first is given; 1: of exact
            copies. None: however alike they are.
    """

    diversity: float = 0.0
    pin: Sequence[ExternalId] = ()
    boosts: Sequence[Boost] = ()
    demote: Sequence[Filter] = ()
    at_most: Sequence[tuple[str, int]] = ()
    distinct: float | None = None


@dataclass(frozen=True, slots=True)
class BoostTier:
    """Items whose relevance is the score and one and the same sum.

    Attributes:
        allowed: They; None: every item.
        by: The sum.
    """

    allowed: AllowedItems | None
    by: float

    def allows(self, row: int) -> bool:
        """Return whether an item is one of them."""
        return self.allowed is None or bool(self.allowed.mask[row])


def boost_tiers(rules: Rules, where: Filter, filters: ItemFilters) -> tuple[list[BoostTier], list[BoostTier]]:
    """Return what may be recommended, in parts: first what is not demoted, then what is."""
    allowed = filters.allowed(where)
    if not rules.demote and not rules.boosts:
        return [BoostTier(allowed, 0.0)], []
    left = np.ones(filters.num_items, dtype=bool) if allowed is None else allowed.mask
    demoted = np.zeros(filters.num_items, dtype=bool)
    for one in deadline.watched(rules.demote):
        demoted |= left & filters.mask(one)
    return _boosted(left & ~demoted, rules, filters), _boosted(demoted, rules, filters)


def _boosted(left: np.ndarray, rules: Rules, filters: ItemFilters) -> list[BoostTier]:
    """Return items in parts by what boosts add to them."""
    parts = []
    for boost in deadline.watched(rules.boosts):
        fits = left & filters.mask(boost.where)
        parts.append((AllowedItems(fits), boost.by))
        left = left & ~fits
    parts = [(AllowedItems(left), 0.0), *parts]
    return [BoostTier(allowed, by) for allowed, by in parts if len(allowed)]


class MaxPerValue:
    """How many items of each value of a column may still be placed."""

    def __init__(self, groups: ItemsByValue, most: int) -> None:
        self._groups = groups
        self._most = most
        self._placed: Counter[int] = Counter()
        self._is_full = np.zeros(groups.num_values, dtype=bool)
        self._filled: list[int] = []
        self._closed: Bool[np.ndarray, " items"] = np.zeros(len(groups.offsets) - 1, dtype=bool)

    def allows(self, rows: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """Return which of the items may be placed next."""
        return ~self._groups.have(rows, self._is_full)

    def allows_one(self, row: int) -> bool:
        """Return whether an item may be placed next."""
        return not any(self._placed[value] >= self._most for value in self._groups.of_item(row))

    def place(self, row: int) -> bool:
        """Note that an item was placed; return whether that leaves no room for another of one of its values."""
        values = self._groups.of_item(row)
        self._placed.update(values)
        filled = [value for value in values if self._placed[value] >= self._most]
        self._is_full[filled] = True
        self._filled += filled
        return bool(filled)

    def full(self) -> Bool[np.ndarray, " items"]:
        """Return which items have a value of which no more may be placed."""
        for value in self._filled:
            self._closed[self._groups.with_value(value)] = True
        self._filled.clear()
        return self._closed


@dataclass(frozen=True)
class CandidatePool:
    """Candidates for the next places: the most relevant of those left that may be placed.

    Attributes:
        rows: Most relevant first.
        relevance: Falling.
        is_complete: Whether there are no others.
    """

    rows: Int64[np.ndarray, " candidates"]
    relevance: Float64[np.ndarray, " candidates"]
    is_complete: bool


class Slate:
    """The places of an answer, as they are filled.

    Each candidate that is looked at is compared once with each item that is placed, and its greatest cosine is kept.
    So the work grows with places times candidates, and nearly all of it is done in matrix products.

    Args:
        num_places: How many.
        rules: How they are to be filled.
        filters: The columns that rules speak of.
        vectors: Of all items.

    Attributes:
        rows: The items placed, in order.
    """

    def __init__(
        self,
        num_places: int,
        rules: Rules,
        filters: ItemFilters,
        vectors: ItemVectors,
    ) -> None:
        self.rows: list[int] = []
        self._num_places = num_places
        self._diversity = rules.diversity
        self._distinct = np.inf if rules.distinct is None else rules.distinct - _ROUNDED
        self._compares = bool(rules.diversity) or rules.distinct is not None
        self._limits = [
            MaxPerValue(filters.by_value(column, f"at_most.{column}"), most) for column, most in rules.at_most
        ]
        self._vectors = vectors
        self._placed = np.empty((num_places if self._compares else 0, vectors.shape[1]), dtype=np.float32)
        self._num_items = filters.num_items
        self._passed_over: list[int] = []
        self._is_mask_worth_it = False
        self._alike: Bool[np.ndarray, " items"] | None = None
        self._num_alike = 0

    @property
    def num_left(self) -> int:
        """How many places are empty."""
        return self._num_places - len(self.rows)

    def pin(self, row: int) -> None:
        """Put an item into the next place, if there is one, whatever the limits are."""
        if self.num_left:
            self._place(row)

    def fill(self, pool: CandidatePool) -> bool:
        """Place what the pool decides, and return whether it has nothing more to give."""
        waiting = np.flatnonzero(np.isin(pool.rows, self.rows, invert=True))
        if not (self._compares or self._limits):
            self.rows.extend(pool.rows[waiting[: self.num_left]].tolist())
            return pool.is_complete
        # Without diversity a place goes to the first that may be placed; else to one of a window of them.
        least = WINDOW if self._diversity else 1
        near = self._candidates(pool, waiting[:0])
        while self.num_left:
            deadline.check()
            while len(near) < least and len(waiting):
                near = near.and_more(self._candidates(pool, waiting[:_STAGED]))
                waiting = waiting[_STAGED:]
            if len(near) < least and not (len(near) and pool.is_complete):
                self._pass_over(pool, near)
                return pool.is_complete
            best = near.best(self._diversity if self.rows else None)
            row = int(near.rows[best])
            near.is_left[best] = False
            if not all(limit.allows_one(row) for limit in self._limits):
                continue
            is_another_value_full = self._place(row)
            if self._compares:
                near.compare(best)
                near.is_left &= near.nearest < self._distinct
            if is_another_value_full and self._diversity:
                near.is_left[near.is_left] = self._allows(near.rows[near.is_left])
        return False

    def _pass_over(self, pool: CandidatePool, near: _Candidates) -> None:
        """Note which of the candidates can never be placed: what a limit leaves out, it leaves out from then on."""
        is_open = np.isin(pool.rows, [*self.rows, *near.rows[near.is_left].tolist()])
        self._passed_over.extend(pool.rows[~is_open].tolist())
        self._is_mask_worth_it = int(np.count_nonzero(is_open)) < _FEW_PLACED * len(is_open)

    @property
    def decided(self) -> Int64[np.ndarray, " decided"]:
        """The items that need not be found again: those that were placed, and those that cannot be any more."""
        return np.array([*self.rows, *self._passed_over], dtype=np.int64)

    def _candidates(self, pool: CandidatePool, places: Int64[np.ndarray, " some"]) -> _Candidates:
        """Return candidates of a pool as they stand to what is placed."""
        places = places[self._allows(pool.rows[places])]
        rows, relevance = pool.rows[places], pool.relevance[places]
        if not self._compares:
            nothing = np.zeros((len(rows), 0)), np.full(len(rows), -np.inf)
            return _Candidates(rows, relevance, *nothing, np.ones(len(rows), dtype=bool))
        vectors = self._vectors[rows]
        nearest = greatest_cosines(vectors, self._placed[: len(self.rows)])
        return _Candidates(rows, relevance, vectors.astype(np.float64), nearest, nearest < self._distinct)

    def _place(self, row: int) -> bool:
        """Put an item into the next place; return whether a value of a column has no more room from now on."""
        if self._compares:
            self._placed[len(self.rows)] = self._vectors[np.array([row])][0]
        self.rows.append(row)
        filled = [limit.place(row) for limit in self._limits]
        return any(filled)

    def _allows(self, rows: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """Return which items have no value of which no more may be placed."""
        allowed = np.ones(len(rows), dtype=bool)
        for limit in self._limits:
            allowed &= limit.allows(rows)
        return allowed

    def closed(self) -> Bool[np.ndarray, " items"] | None:
        """Return which items a limit leaves out, as far as that is worth knowing beforehand; None: none.

        To compare all items with those placed pays only where few of the candidates could be placed.
        """
        full = [limit.full() for limit in self._limits]
        if self._distinct < np.inf and self._is_mask_worth_it:
            full.append(self._alike_placed())
        return np.logical_or.reduce(full) if full else None

    def _alike_placed(self) -> Bool[np.ndarray, " items"]:
        """Return which items are alike one that was placed; only what was placed since the last time is compared."""
        if self._alike is None:
            self._alike = np.zeros(self._num_items, dtype=bool)
        new, self._num_alike = self._placed[self._num_alike : len(self.rows)], len(self.rows)
        open_rows = np.flatnonzero(~self._alike)
        for start in range(0, len(open_rows), _COMPARED):
            rows = open_rows[start : start + _COMPARED]
            self._alike[rows] = are_alike(self._vectors[rows], new, self._distinct)
        return self._alike


@dataclass
class _Candidates:
    """The next candidates of a pool.

    Attributes:
        rows: The items, most relevant first.
        relevance: Their relevance.
        vectors: Their vectors in double precision; of width 0 where nothing is compared.
        nearest: Each one's greatest cosine to an item that is placed, -inf where there is none.
        is_left: Which may still be placed.
    """

    rows: Int64[np.ndarray, " candidates"]
    relevance: Float64[np.ndarray, " candidates"]
    vectors: Float64[np.ndarray, "candidates width"]
    nearest: Float64[np.ndarray, " candidates"]
    is_left: Bool[np.ndarray, " candidates"]

    def __len__(self) -> int:
        """Return how many may still be placed."""
        return int(np.count_nonzero(self.is_left))

    def and_more(self, others: _Candidates) -> _Candidates:
        """Return those of these that may still be placed, and others after them."""
        pairs = ((getattr(self, each.name)[self.is_left], getattr(others, each.name)) for each in fields(self))
        return _Candidates(*map(np.concatenate, pairs))

    def best(self, diversity: float | None) -> int:
        """Return which of the first `WINDOW` left is to be placed.

        Args:
            diversity: How much it counts to be unlike what was placed. None: nothing was.
        """
        window = np.flatnonzero(self.is_left)[:WINDOW]
        if not diversity:
            return int(window[0])
        worth = (1 - diversity) * self.relevance[window] - diversity * self.nearest[window]
        return int(window[np.argmax(worth)])

    def compare(self, placed: int) -> None:
        """Take in that a candidate was placed."""
        np.maximum(self.nearest, cosines(self.vectors, self.vectors[placed]), out=self.nearest)


Search = Callable[[BoostTier, Bool[np.ndarray, " items"] | None, int, Int64[np.ndarray, " decided"]], ScoredRows]
"""Returns so many of the best items of a part, without those that are closed and those that were decided on."""


def depth_of(rules: Rules, num_places: int) -> int:
    """Return how many candidates are looked for at first."""
    return num_places + (WINDOW if rules.diversity or rules.at_most or rules.distinct else 0)


def build_slate(
    places: Slate,
    tiers: Sequence[Sequence[BoostTier]],
    first: Sequence[ScoredRows],
    depth: int,
    search: Search,
    scale: float = 1.0,
) -> None:
    """Fill the places of someone's answer.

    Args:
        places: They; pinned items have theirs already.
        tiers: What may be recommended; the parts of a tier come before those of the next.
        first: The best items of each part of the first tier.
        depth: How many of them were looked for.
        search: Finds more.
        scale: What a score is multiplied with to be a relevance.
    """
    found: Sequence[ScoredRows] | None = first
    for tier in tiers:
        is_exhausted = False
        while places.num_left and not is_exhausted:
            deadline.check()
            found = _searched(places, tier, depth, search) if found is None else found
            with timed("rerank"):
                is_exhausted = places.fill(_pool(tier, found, depth, scale))
            found, depth = None, max(depth, min(2 * depth, _DEEPEST))


def _searched(places: Slate, tier: Sequence[BoostTier], depth: int, search: Search) -> list[ScoredRows]:
    closed, decided = places.closed(), places.decided
    return [search(part, closed, depth, decided) for part in deadline.watched(tier)]


def _pool(tier: Sequence[BoostTier], found: Sequence[ScoredRows], depth: int, scale: float) -> CandidatePool:
    """Return the best of all parts: as deep as each was looked into, none of another can be missing among them."""
    rows, relevance = merged(
        [(np.zeros(0, np.int64), np.zeros(0))]
        + [
            (rows, scores.astype(np.float64) * scale + part.by)
            for part, (rows, scores) in zip(tier, found, strict=True)
        ]
    )
    is_complete = all(len(some) < depth for some, _ in found)
    return (
        CandidatePool(rows, relevance, True) if is_complete else CandidatePool(rows[:depth], relevance[:depth], False)
    )
