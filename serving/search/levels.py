"""One order of the items for each user of an approximate index, of which every result is a prefix.

A deep search of such an index finds items that a shallow one missed, so two searches of different depths disagree about
the order, and pages made of them would repeat or skip items. Here the order depends only on the user and the filter:
its first level is the result of a search of a fixed depth, best first, without items that tie with the worst of it;
each further level is what a search of twice the depth finds beyond the levels before it; the last level is all other
items, found by brute force. The number of levels that are computed depends on how many items are requested and
excluded; their content does not. (For a user with more exclusions than the deepest level holds, all items are compared
at once: every level would be computed in vain.) An item that only a deeper level finds gets at most the lowest score
of the levels before it, so that scores fall and orders can be merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int64

from features.sequences.ragged import Ragged
from serving.search.brute_force import BruteForce
from serving.search.results import ROUNDING, SLACK, AllowedItems, ExcludedPairs, Hits, ScoredRows, rank, take

Probed = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Search results in batches: positions of users, `[users]`; scores in single precision and rows, `[users, found]`.

Results are in any order; a row is -1 where fewer were found.
"""

Probe = Callable[[np.ndarray, int], Probed]
"""Searches for the given users with the given depth."""

NO_LEVEL = np.iinfo(np.int64).max
"""The depth of a user's first level if brute force is used from the start."""


class SearchTask:
    """The input of one search for several users.

    Attributes:
        queries: Unit vectors of users, `[users, dim]`.
        needed: Number of items for each user, `[users]`.
        excluded: The exclusions of each user.
        allowed: The items that a filter lets through. None: every item.
    """

    def __init__(
        self,
        queries: Float32[np.ndarray, "users width"],
        needed: Int64[np.ndarray, " users"],
        excluded: ExcludedPairs,
        allowed: AllowedItems | None,
    ) -> None:
        self.queries = queries
        self.needed = needed
        self.excluded = excluded
        self.allowed = allowed

    @classmethod
    def of(
        cls, queries: np.ndarray, k: int, excluded: Ragged | None, allowed: AllowedItems | None, num_items: int
    ) -> SearchTask:
        """Return a search for the min(k, number of allowed items) best items of each user."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if allowed is not None and len(allowed) == num_items:
            allowed = None
        pairs = ExcludedPairs.of(excluded, len(queries), num_items, allowed)
        available = num_items if allowed is None else len(allowed)
        return cls(queries, np.minimum(k, available - pairs.counts), pairs, allowed)

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.queries)

    def best(self, exact: BruteForce, users: np.ndarray) -> Iterator[ScoredRows]:
        """Yield the exact results of some of the users."""
        return exact.best(self.queries, users, self.needed, self.excluded, self.allowed)

    def compared(self, exact: BruteForce) -> Hits:
        """Return the exact results of all users."""
        return Hits.join(list(self.best(exact, np.arange(len(self)))))

    def barred(self, users: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """Return which rows, `[users, found]`, are excluded, not allowed or -1; None if none are."""
        if self.allowed is None and not len(self.excluded.pairs):
            return rows < 0 if rows.min() < 0 else None
        barred = rows < 0
        if len(self.excluded.pairs):
            barred |= self.excluded.contains(users[:, None], rows)
        if self.allowed is not None:
            barred |= ~self.allowed.mask[rows]
        return barred

    def without(self, pairs: Int64[np.ndarray, " pairs"]) -> SearchTask:
        """Return the task with further exclusions, as in `ExcludedPairs.pairs`, in any order."""
        if self.allowed is not None:
            pairs = pairs[self.allowed.mask[pairs % self.excluded.num_items]]
        return SearchTask(self.queries, self.needed, self.excluded.and_pairs(pairs), self.allowed)


class LevelSearch:
    """Computes the levels of several users, one after the other, until each has enough items.

    Args:
        task: The search.
        vectors: The items' unit vectors.
    """

    def __init__(self, task: SearchTask, vectors: Float32[np.ndarray, "items width"]) -> None:
        self._task = task
        self._vectors = vectors
        self._left = task.needed.copy()
        self._found: list[list[ScoredRows]] = [[] for _ in range(len(task))]
        # The lowest score in the levels of each user so far.
        self._lowest = np.full(len(task), np.inf, dtype=np.float32)

    def go(self, users: np.ndarray, depths: Int64[np.ndarray, " users"], deepest: int, probe: Probe) -> np.ndarray:
        """Compute the levels of some users, and return the positions of those who still need more items.

        Args:
            users: Positions of the users.
            depths: Depth of the first level of each.
            deepest: Maximum depth of a level.
            probe: Searches the index.
        """
        beyond: list[np.ndarray] = []
        while len(users):
            beyond.append(users[depths > deepest])
            users, depths = users[depths <= deepest], depths[depths <= deepest]
            pairs: list[np.ndarray] = []
            for depth in np.unique(depths).tolist():
                for some, scores, rows in probe(users[depths == depth], depth):
                    pairs.append(self._add_level(some, scores, rows))
            is_short = self._left[users] > 0
            users, depths = users[is_short], 2 * depths[is_short]
            if len(users):
                self._task = self._task.without(np.concatenate(pairs))
        return np.concatenate([users, *beyond])

    def end(self, users: np.ndarray, exact: BruteForce) -> None:
        """Add the last level of some users by brute force: the best items that are in none of their levels."""
        rest = SearchTask(self._task.queries, self._left, self._task.excluded, self._task.allowed)
        for user, found in zip(users.tolist(), list(rest.best(exact, users)), strict=True):
            self._give(user, *found)

    def answers(self) -> list[ScoredRows]:
        """Return the results of all users."""
        return [parts[0] if len(parts) == 1 else _joined(parts) for parts in self._found]

    def _add_level(self, users: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> Int64[np.ndarray, " pairs"]:
        """Add a level to users' results; return the pairs of user and row of levels that were not sufficient."""
        rows = np.where(_is_settled(scores, rows), rows, -1)
        barred = self._task.barred(users, rows)
        if barred is None:
            is_short = rows.shape[1] < self._left[users]
        else:
            is_short = np.count_nonzero(~barred, axis=1) < self._left[users]
            scores = np.where(barred, -np.inf, scores)
        enough, short = np.flatnonzero(~is_short), np.flatnonzero(is_short)
        if len(enough):
            free = rows if barred is None else np.where(barred, -1, rows)
            self._give_first(users[enough], scores[enough], free[enough])
        if not len(short):
            return np.zeros(0, np.int64)
        return self._give_all(users[short], rows[short])

    def _give_first(self, users: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
        """Add the best items of a sufficient level."""
        kept_scores, kept_rows = highest(scores, rows, int(self._left[users].max()) + SLACK)
        passed_over = None if kept_rows is rows else kept_scores.min(axis=1)
        ranked_rows, ranked_scores = rank(self._vectors, self._task.queries[users], kept_rows)
        for place, user in enumerate(users.tolist()):
            most = int(self._left[user])
            found = ranked_rows[place], ranked_scores[place]
            # Other items score no more than the worst that was kept; if that is too close to the cut-off, rank all.
            if passed_over is not None and most and found[1][most - 1] <= passed_over[place] + ROUNDING:
                one = rank(self._vectors, self._task.queries[user : user + 1], rows[place : place + 1])
                found = one[0][0], one[1][0]
            self._give(user, found[0][:most], found[1][:most])

    def _give_all(self, users: np.ndarray, rows: np.ndarray) -> Int64[np.ndarray, " pairs"]:
        """Add all permitted items of a level; return the pairs of user and row of the level."""
        rows, scores = rank(self._vectors, self._task.queries[users], rows)
        barred = self._task.barred(users, rows)
        lowest = np.where(rows < 0, np.inf, scores).min(axis=1, initial=np.inf)
        for place, user in enumerate(users.tolist()):
            free = slice(None) if barred is None else ~barred[place]
            self._give(user, rows[place][free], scores[place][free])
        self._lowest[users] = np.minimum(self._lowest[users], lowest)
        return np.asarray((users[:, None] * self._task.excluded.num_items + rows)[rows >= 0])

    def _give(self, user: int, rows: np.ndarray, scores: np.ndarray) -> None:
        self._left[user] -= len(rows)
        self._found[user].append((rows, np.minimum(scores, self._lowest[user]) if self._found[user] else scores))


def _is_settled(scores: np.ndarray, rows: np.ndarray) -> Bool[np.ndarray, "users found"]:
    """Return which items belong to a level: not those that tie with the worst, as the search may have missed others.

    If a search found fewer items than requested, it missed none, and all belong to the level.
    """
    is_full = rows.min(axis=1, initial=0) >= 0
    edge = np.where(is_full, scores.min(axis=1, initial=np.inf) + ROUNDING, -np.inf)
    return np.asarray(scores > edge[:, None])


def _joined(parts: list[ScoredRows]) -> ScoredRows:
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([scores for _, scores in parts])


def highest(scores: np.ndarray, rows: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of each user's `kept` highest scores, with those scores, in any order."""
    if kept >= rows.shape[1]:
        return scores, rows
    best = np.argpartition(scores, -kept, axis=1)[:, -kept:]
    return take(scores, best), take(rows, best)
