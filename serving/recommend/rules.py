"""Diversity and business rules: fills the slots of a response (the slate) from candidates.

The order is defined on all allowed items, so that pages fit together:

1. An item's relevance is its score plus the amount of the first boost that it matches. (For popular items, the score is
   the share of interactions divided by the greatest such share.) Items are ranked by falling relevance, ties in the
   order of the catalogue; demoted items come after all others.
2. Pinned items that are allowed take the first slots, in the order given.
3. The candidates for each further slot are the first `WINDOW` remaining items of the same section (demoted or not)
   whose values in the columns of `at_most` have not reached their limits, pinned items included, and whose cosine to
   each item placed before is below `distinct`. The slot goes to the candidate with the greatest
   (1 - diversity) x relevance - diversity x (cosine to the nearest item placed before), the first one if tied. This is
   maximal marginal relevance (Carbonell and Goldstein 1998).

No rule adds items that filters, exclusions or seen-item filtering leave out; and only `at_most` and `distinct` can make
a response shorter. Searches are only as deep as necessary (`build_slate`).
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
from serving.search.vectors import ItemVectors

WINDOW = 100
"""Number of most relevant remaining items that are considered for each slot."""

# Maximum depth of a search; beyond it, searches are repeated without the items that were decided on.
_DEEPEST = 8192
# Number of candidates that are compared with placed items at a time, and of all items, to limit memory.
_STAGED = 256
_COMPARED = 4096
# Rounding error of the length of a unit vector in single precision, and so of its cosine to a copy.
_ROUNDED = 1e-6
# If less than this share of the candidates could be placed, all items are compared before the next search.
_FEW_PLACED = 0.25


@dataclass(frozen=True, slots=True)
class Boost:
    """An amount that is added to the relevance of some items.

    Attributes:
        where: Conditions that select the items.
        by: The amount, -2 to 2; scores are cosines, so 2 ranks the items before all others.
    """

    where: Filter
    by: float


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a request.

    Attributes:
        diversity: Weight of diversity against relevance, 0 to 1; 0: relevance only.
        pin: Ids of items that come first, in this order.
        boosts: Boosts; of several that an item matches, the first applies.
        demote: Items that match any of these filters come last.
        at_most: Maximum number of items with the same value of a column, by column. An empty cell has no value.
        distinct: Of items whose cosine is at least this (tolerance 1e-6), only the first is returned; 1: exact copies.
            None: near-duplicates are kept.
    """

    diversity: float = 0.0
    pin: Sequence[ExternalId] = ()
    boosts: Sequence[Boost] = ()
    demote: Sequence[Filter] = ()
    at_most: Sequence[tuple[str, int]] = ()
    distinct: float | None = None


@dataclass(frozen=True, slots=True)
class BoostTier:
    """Items with the same boost.

    Attributes:
        allowed: The items; None: every item.
        by: The amount that is added to their scores.
    """

    allowed: AllowedItems | None
    by: float

    def allows(self, row: int) -> bool:
        """Return whether an item is in this tier."""
        return self.allowed is None or bool(self.allowed.mask[row])


def boost_tiers(rules: Rules, where: Filter, filters: ItemFilters) -> tuple[list[BoostTier], list[BoostTier]]:
    """Return the allowed items in tiers by boost: those that are not demoted, and those that are."""
    allowed = filters.allowed(where)
    if not rules.demote and not rules.boosts:
        return [BoostTier(allowed, 0.0)], []
    left = np.ones(filters.num_items, dtype=bool) if allowed is None else allowed.mask
    demoted = np.zeros(filters.num_items, dtype=bool)
    for one in deadline.watched(rules.demote):
        demoted |= left & filters.mask(one)
    return _boosted(left & ~demoted, rules, filters), _boosted(demoted, rules, filters)


def _boosted(left: np.ndarray, rules: Rules, filters: ItemFilters) -> list[BoostTier]:
    """Return items in tiers by boost."""
    parts = []
    for boost in deadline.watched(rules.boosts):
        fits = left & filters.mask(boost.where)
        parts.append((AllowedItems(fits), boost.by))
        left = left & ~fits
    parts = [(AllowedItems(left), 0.0), *parts]
    return [BoostTier(allowed, by) for allowed, by in parts if len(allowed)]


class MaxPerValue:
    """Limits the number of items with the same value of a column."""

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
        """Count a placed item; return whether one of its values has reached the limit."""
        values = self._groups.of_item(row)
        self._placed.update(values)
        filled = [value for value in values if self._placed[value] >= self._most]
        self._is_full[filled] = True
        self._filled += filled
        return bool(filled)

    def full(self) -> Bool[np.ndarray, " items"]:
        """Return which items have a value that has reached the limit."""
        for value in self._filled:
            self._closed[self._groups.with_value(value)] = True
        self._filled.clear()
        return self._closed


@dataclass(frozen=True)
class CandidatePool:
    """Candidates for the next slots: the most relevant remaining items.

    Attributes:
        rows: Rows of the items, the most relevant first.
        relevance: Their relevance, in falling order.
        is_complete: Whether there are no other candidates.
    """

    rows: Int64[np.ndarray, " candidates"]
    relevance: Float64[np.ndarray, " candidates"]
    is_complete: bool


class Slate:
    """The slots of a response, while they are filled.

    Each candidate is compared once with each placed item, and its greatest cosine is stored. So the cost grows with
    slots times candidates, nearly all of it in matrix products.

    Args:
        num_places: Number of slots.
        rules: The rules.
        filters: The columns that rules refer to.
        vectors: Unit vectors of all items.

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
        """Number of empty slots."""
        return self._num_places - len(self.rows)

    def pin(self, row: int) -> None:
        """Put an item into the next slot, if there is one, regardless of limits."""
        if self.num_left:
            self._place(row)

    def fill(self, pool: CandidatePool) -> bool:
        """Fill slots from a pool as far as it determines them; return whether the pool is complete and used up."""
        waiting = np.flatnonzero(np.isin(pool.rows, self.rows, invert=True))
        if not (self._compares or self._limits):
            self.rows.extend(pool.rows[waiting[: self.num_left]].tolist())
            return pool.is_complete
        # Without diversity a slot goes to the first candidate; else to one of a window of candidates.
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
        """Record the candidates that can never be placed: a limit that was reached stays reached."""
        is_open = np.isin(pool.rows, [*self.rows, *near.rows[near.is_left].tolist()])
        self._passed_over.extend(pool.rows[~is_open].tolist())
        self._is_mask_worth_it = int(np.count_nonzero(is_open)) < _FEW_PLACED * len(is_open)

    @property
    def decided(self) -> Int64[np.ndarray, " decided"]:
        """The items that need not be searched for again: placed ones, and those that can no longer be placed."""
        return np.array([*self.rows, *self._passed_over], dtype=np.int64)

    def _candidates(self, pool: CandidatePool, places: Int64[np.ndarray, " some"]) -> _Candidates:
        """Return candidates of a pool, compared with the placed items."""
        places = places[self._allows(pool.rows[places])]
        rows, relevance = pool.rows[places], pool.relevance[places]
        if not self._compares:
            nothing = np.zeros((len(rows), 0)), np.full(len(rows), -np.inf)
            return _Candidates(rows, relevance, *nothing, np.ones(len(rows), dtype=bool))
        vectors = self._vectors[rows]
        nearest = greatest_cosines(vectors, self._placed[: len(self.rows)])
        return _Candidates(rows, relevance, vectors.astype(np.float64), nearest, nearest < self._distinct)

    def _place(self, row: int) -> bool:
        """Put an item into the next slot; return whether a value of a column reached its limit."""
        if self._compares:
            self._placed[len(self.rows)] = self._vectors[np.array([row])][0]
        self.rows.append(row)
        filled = [limit.place(row) for limit in self._limits]
        return any(filled)

    def _allows(self, rows: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """Return which items have no value that has reached its limit."""
        allowed = np.ones(len(rows), dtype=bool)
        for limit in self._limits:
            allowed &= limit.allows(rows)
        return allowed

    def closed(self) -> Bool[np.ndarray, " items"] | None:
        """Return the items to leave out of the next search because of a limit; None: none.

        Near-duplicates of placed items are included only if few candidates could be placed; else comparing all items
        does not pay.
        """
        full = [limit.full() for limit in self._limits]
        if self._distinct < np.inf and self._is_mask_worth_it:
            full.append(self._alike_placed())
        return np.logical_or.reduce(full) if full else None

    def _alike_placed(self) -> Bool[np.ndarray, " items"]:
        """Return which items are near-duplicates of placed ones; compares only items placed since the last call."""
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
        vectors: Their vectors in double precision; of dimension 0 if nothing is compared.
        nearest: Each one's greatest cosine to a placed item, -inf if there is none.
        is_left: Which may still be placed.
    """

    rows: Int64[np.ndarray, " candidates"]
    relevance: Float64[np.ndarray, " candidates"]
    vectors: Float64[np.ndarray, "candidates width"]
    nearest: Float64[np.ndarray, " candidates"]
    is_left: Bool[np.ndarray, " candidates"]

    def __len__(self) -> int:
        """Return the number of candidates that may still be placed."""
        return int(np.count_nonzero(self.is_left))

    def and_more(self, others: _Candidates) -> _Candidates:
        """Return the candidates that may still be placed, followed by others."""
        pairs = ((getattr(self, each.name)[self.is_left], getattr(others, each.name)) for each in fields(self))
        return _Candidates(*map(np.concatenate, pairs))

    def best(self, diversity: float | None) -> int:
        """Return which of the first `WINDOW` candidates is placed next.

        Args:
            diversity: Weight of diversity. None: nothing was placed yet.
        """
        window = np.flatnonzero(self.is_left)[:WINDOW]
        if not diversity:
            return int(window[0])
        worth = (1 - diversity) * self.relevance[window] - diversity * self.nearest[window]
        return int(window[np.argmax(worth)])

    def compare(self, placed: int) -> None:
        """Compare the candidates with one that was placed."""
        np.maximum(self.nearest, cosines(self.vectors, self.vectors[placed]), out=self.nearest)


Search = Callable[[BoostTier, Bool[np.ndarray, " items"] | None, int, Int64[np.ndarray, " decided"]], ScoredRows]
"""Returns the best items of a tier: takes the tier, items to leave out, the depth, and rows already decided on."""


def depth_of(rules: Rules, num_places: int) -> int:
    """Return the depth of the first search."""
    return num_places + (WINDOW if rules.diversity or rules.at_most or rules.distinct else 0)


def build_slate(
    slate: Slate,
    sections: Sequence[Sequence[BoostTier]],
    first: Sequence[ScoredRows],
    depth: int,
    search: Search,
    scale: float = 1.0,
) -> None:
    """Fill the slots of one user's response.

    Args:
        slate: The slots; pinned items are placed already.
        sections: The allowed items: sections in order, each with its tiers.
        first: The best items of each tier of the first section.
        depth: The depth of the search that found them.
        search: Searches for more.
        scale: Factor from scores to relevance.
    """
    found: Sequence[ScoredRows] | None = first
    for section in sections:
        is_exhausted = False
        while slate.num_left and not is_exhausted:
            deadline.check()
            found = _searched(slate, section, depth, search) if found is None else found
            with timed("rerank"):
                is_exhausted = slate.fill(_pool(section, found, depth, scale))
            found, depth = None, max(depth, min(2 * depth, _DEEPEST))


def _searched(slate: Slate, section: Sequence[BoostTier], depth: int, search: Search) -> list[ScoredRows]:
    closed, decided = slate.closed(), slate.decided
    return [search(tier, closed, depth, decided) for tier in deadline.watched(section)]


def _pool(section: Sequence[BoostTier], found: Sequence[ScoredRows], depth: int, scale: float) -> CandidatePool:
    """Return the best items of all tiers; up to the depth of the searches, none is missing."""
    rows, relevance = merged(
        [(np.zeros(0, np.int64), np.zeros(0))]
        + [
            (rows, scores.astype(np.float64) * scale + tier.by)
            for tier, (rows, scores) in zip(section, found, strict=True)
        ]
    )
    is_complete = all(len(some) < depth for some, _ in found)
    return (
        CandidatePool(rows, relevance, True) if is_complete else CandidatePool(rows[:depth], relevance[:depth], False)
    )
