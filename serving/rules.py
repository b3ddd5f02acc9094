"""What a shop wants of an answer beyond the nearest items: variety, and its own rules.

The order of an answer is defined on the whole of what may be recommended, so that pages fit together:

1. An item's relevance is its score plus what the first of the boosts that it fits adds. (Of what is popular, the score
   is the share of interactions over the greatest such share.) Items are ranked by falling relevance, equal ones in the
   order of the catalogue, and those that are buried come after all others.
2. Pinned items that may be recommended take the first places, in the order given.
3. Each further place goes to one of the first `WINDOW` of those left that stand in the same part (buried or not), of
   whose values, in the columns of `at_most`, fewer than so many were placed, pinned items counted, and whose cosine to
   each item placed before is below `distinct`: to the one with the greatest (1 - diversity) x relevance - diversity x
   its cosine to the nearest item placed before, the first of equal ones. This is maximal marginal relevance (Carbonell
   and Goldstein 1998).

No rule brings back what a filter, an exclusion or having had it leaves out; and except for `at_most` and `distinct`,
none makes an answer shorter. The searches go as deep as this needs and no deeper (`arrange`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float32, Float64, Int64

from serving.filters import Filter, Filters, Groups
from serving.hits import Eligible, Found, cosines
from serving.ids import ExternalId
from serving.live_index import Vectors
from serving.overlay import LiveFilters
from serving.stages import timed

WINDOW = 100
"""How many of the most relevant items left are weighed for each place."""

# How deep a search goes at most; what needs more is searched again without what was found to be of no use.
_DEEPEST = 8192
# How many items are compared with those placed at a time, so that memory stays small.
_COMPARED = 4096


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
        bury: Items that fit any of these come last.
        at_most: How many items of each value of a column there may be, by column. An empty cell has no value.
        distinct: Of items with a cosine of at least so much only the first is given. None: however alike they are.
    """

    diversity: float = 0.0
    pin: Sequence[ExternalId] = ()
    boosts: Sequence[Boost] = ()
    bury: Sequence[Filter] = ()
    at_most: Sequence[tuple[str, int]] = ()
    distinct: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Items whose relevance is the score and one and the same sum.

    Attributes:
        eligible: They; None: every item.
        by: The sum.
    """

    eligible: Eligible | None
    by: float

    def allows(self, row: int) -> bool:
        """Return whether an item is one of them."""
        return self.eligible is None or bool(self.eligible.mask[row])


def parts_of(rules: Rules, where: Filter, filters: Filters | LiveFilters) -> tuple[list[Part], list[Part]]:
    """Return what may be recommended, in parts: first what is not buried, then what is."""
    allowed = filters.eligible(where)
    if not rules.bury and not rules.boosts:
        return [Part(allowed, 0.0)], []
    left = np.ones(filters.num_items, dtype=bool) if allowed is None else allowed.mask
    buried = np.zeros(filters.num_items, dtype=bool)
    for one in rules.bury:
        buried |= left & filters.mask(one)
    return _boosted(left & ~buried, rules, filters), _boosted(buried, rules, filters)


def _boosted(left: np.ndarray, rules: Rules, filters: Filters | LiveFilters) -> list[Part]:
    """Return items in parts by what boosts add to them."""
    parts = []
    for boost in rules.boosts:
        fits = left & filters.mask(boost.where)
        parts.append((Eligible(fits), boost.by))
        left = left & ~fits
    parts = [(Eligible(left), 0.0), *parts]
    return [Part(eligible, by) for eligible, by in parts if len(eligible)]


class Limit:
    """How many items of each value of a column may still be placed."""

    def __init__(self, groups: Groups, most: int) -> None:
        self._groups = groups
        self._most = most
        self._placed: Counter[int] = Counter()

    def allows(self, row: int) -> bool:
        """Return whether one more item may be placed."""
        return all(self._placed[value] < self._most for value in self._groups.of_item(row))

    def place(self, row: int) -> None:
        """Note that an item was placed."""
        self._placed.update(self._groups.of_item(row))

    def full(self) -> np.ndarray:
        """Return which items have a value of which no more may be placed, `[items]`."""
        return self._groups.having([value for value, count in self._placed.items() if count >= self._most])


class Distinct:
    """Items that are nearly one that was placed may not be placed.

    Args:
        vectors: Of all items.
        num_items: How many these are.
        threshold: The cosine from which on two items are alike.
    """

    def __init__(self, vectors: Float32[np.ndarray, "items width"] | Vectors, num_items: int, threshold: float) -> None:
        self._vectors = vectors
        self._threshold = threshold
        self._placed: list[int] = []
        self._full: np.ndarray = np.zeros(num_items, dtype=bool)
        self._num_full = 0

    def allows(self, row: int) -> bool:
        """Return whether an item is unlike all that were placed."""
        return not self._placed or not bool(self._alike(np.array([row]), self._placed)[0])

    def place(self, row: int) -> None:
        """Note that an item was placed."""
        self._placed.append(row)

    def full(self) -> np.ndarray:
        """Return which items are alike one that was placed, `[items]`."""
        new, self._num_full = self._placed[self._num_full :], len(self._placed)
        for start in range(0, len(self._full) if new else 0, _COMPARED):
            rows = np.flatnonzero(~self._full[start : start + _COMPARED]) + start
            self._full[rows] = self._alike(rows, new)
        return self._full

    def _alike(self, rows: np.ndarray, placed: Sequence[int]) -> np.ndarray:
        each = cosines(self._vectors[rows][:, None], self._vectors[list(placed)][None])
        return np.asarray(each.max(axis=1) >= self._threshold)


@dataclass(frozen=True)
class Pool:
    """Candidates for the next places: the most relevant of those left that may be placed.

    Attributes:
        rows: Most relevant first.
        relevance: Falling.
        is_complete: Whether there are no others.
    """

    rows: Int64[np.ndarray, " candidates"]
    relevance: Float64[np.ndarray, " candidates"]
    is_complete: bool


class Places:
    """The places of an answer, as they are filled.

    Attributes:
        rows: The items placed, in order.
    """

    def __init__(
        self,
        num_places: int,
        diversity: float,
        limits: Sequence[Limit | Distinct],
        vectors: Float32[np.ndarray, "items width"] | Vectors,
    ) -> None:
        self.rows: list[int] = []
        self._num_places = num_places
        self._diversity = diversity
        self._limits = limits
        self._vectors = vectors

    @property
    def num_left(self) -> int:
        """How many places are empty."""
        return self._num_places - len(self.rows)

    def pin(self, row: int) -> None:
        """Put an item into the next place, if there is one, whatever the limits are."""
        if self.num_left:
            self._place(row)

    def fill(self, pool: Pool) -> bool:
        """Place what the pool decides, and return whether it has nothing more to give."""
        placed = set(self.rows)
        waiting = (place for place, row in enumerate(pool.rows.tolist()) if row not in placed)
        return self._fill_diverse(pool, waiting) if self._diversity else self._fill_in_order(pool, waiting)

    def _place(self, row: int) -> None:
        self.rows.append(row)
        for limit in self._limits:
            limit.place(row)

    def _fill_in_order(self, pool: Pool, waiting: Iterator[int]) -> bool:
        for place in waiting:
            if not self.num_left:
                return False
            row = int(pool.rows[place])
            if self._allows(row):
                self._place(row)
        return pool.is_complete

    def _fill_diverse(self, pool: Pool, waiting: Iterator[int]) -> bool:
        window = np.zeros(0, dtype=np.int64)
        likeness = np.zeros(0)
        while self.num_left:
            new = self._next(pool, waiting, WINDOW - len(window))
            window = np.concatenate([window, new])
            likeness = np.concatenate([likeness, self._likeness(pool.rows[new], self.rows)])
            if not len(window):
                return pool.is_complete
            if len(window) < WINDOW and not pool.is_complete:
                return False
            best = self._best(pool.relevance[window], likeness)
            self._place(int(pool.rows[window[best]]))
            kept = self._left(pool, window, best)
            window = window[kept]
            likeness = np.maximum(likeness[kept], self._likeness(pool.rows[window], self.rows[-1:]))
        return False

    def _next(self, pool: Pool, waiting: Iterator[int], most: int) -> Int64[np.ndarray, " new"]:
        """Return the first of those waiting that may be placed."""
        allowed = (place for place in waiting if self._allows(int(pool.rows[place])))
        return np.array(list(islice(allowed, most)), dtype=np.int64)

    def _best(self, relevance: np.ndarray, likeness: np.ndarray) -> int:
        penalty = self._diversity * likeness if self.rows else 0.0
        return int(np.argmax((1 - self._diversity) * relevance - penalty))

    def _left(self, pool: Pool, window: np.ndarray, best: int) -> np.ndarray:
        """Return who may still be placed after the best of the window was."""
        left = np.arange(len(window)) != best
        if self._limits:
            left &= np.array([self._allows(row) for row in pool.rows[window].tolist()], dtype=bool)
        return np.asarray(left)

    def _likeness(self, rows: np.ndarray, placed: Sequence[int]) -> Float64[np.ndarray, " rows"]:
        """Return the cosine of each item to the nearest of those placed, -inf where there are none."""
        each = cosines(self._vectors[rows][:, None], self._vectors[list(placed)][None])
        return np.asarray(each.max(axis=1, initial=-np.inf))

    def _allows(self, row: int) -> bool:
        return all(limit.allows(row) for limit in self._limits)

    def may_be_placed(self, eligible: Eligible | None) -> Eligible | None:
        """Return those of the eligible items of whose values more may be placed."""
        if not self._limits:
            return eligible
        full = np.logical_or.reduce([limit.full() for limit in self._limits])
        return Eligible(~full if eligible is None else eligible.mask & ~full)


Search = Callable[[Eligible | None, int, Int64[np.ndarray, " placed"]], Found]
"""Returns so many of the best items among the eligible ones, without those that were placed."""


def limits_of(
    rules: Rules, filters: Filters | LiveFilters, vectors: Float32[np.ndarray, "items width"] | Vectors
) -> list[Limit | Distinct]:
    """Return the limits of an answer of which no place is filled yet."""
    limits = [Limit(filters.groups(column, f"at_most.{column}"), most) for column, most in rules.at_most]
    alike = [] if rules.distinct is None else [Distinct(vectors, filters.num_items, rules.distinct)]
    return [*limits, *alike]


def depth_of(rules: Rules, num_places: int) -> int:
    """Return how many candidates are looked for at first."""
    return num_places + (WINDOW if rules.diversity or rules.at_most or rules.distinct else 0)


def arrange(
    places: Places,
    tiers: Sequence[Sequence[Part]],
    first: Sequence[Found],
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
    found: Sequence[Found] | None = first
    for tier in tiers:
        is_exhausted = False
        while places.num_left and not is_exhausted:
            found = _searched(places, tier, depth, search) if found is None else found
            with timed("rerank"):
                is_exhausted = places.fill(_pool(tier, found, depth, scale))
            found, depth = None, max(depth, min(2 * depth, _DEEPEST))


def _searched(places: Places, tier: Sequence[Part], depth: int, search: Search) -> list[Found]:
    placed = np.array(places.rows, dtype=np.int64)
    return [search(places.may_be_placed(part.eligible), depth, placed) for part in tier]


def _pool(tier: Sequence[Part], found: Sequence[Found], depth: int, scale: float) -> Pool:
    """Return the best of all parts: as deep as each was looked into, none of another can be missing among them."""
    sums = np.repeat([part.by for part in tier], [len(rows) for rows, _ in found])
    rows = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in found)])
    scores = np.concatenate([np.zeros(0), *(scores for _, scores in found)]).astype(np.float64)
    relevance = scores * scale + sums
    is_complete = all(len(some) < depth for some, _ in found)
    order = np.lexsort((rows, -relevance))
    order = order if is_complete else order[:depth]
    return Pool(rows[order], relevance[order], is_complete)
