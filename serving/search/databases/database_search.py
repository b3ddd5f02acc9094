"""The searcher over a vector database: its candidates, checked and scored by the vectors of the bundle.

A search goes by levels, as in an approximate index (`serving.search.levels`): each is what the database finds at one
depth among the items that meet the conditions, and the last is found by comparing all items. So k is always met. A
search that finds fewer items than there are was cut off (Qdrant's engine did so in trials, with 1 of 100), and then
all items are compared.

What the database returns is a proposal. Rows are checked against the mask of the request and scored again, so neither
rounding there nor a lagging live update can show in a response. An answer that cannot be right counts as none.
"""

from __future__ import annotations

import copy
import logging
import time

import numpy as np
from jaxtyping import Bool, Float32, Int64

from features.errors import DataError, UnavailableError
from features.sequences.ragged import Ragged
from serving import deadline
from serving.errors import NotReady
from serving.observability.timings import timed
from serving.search.brute_force import BruteForce
from serving.search.databases.columns import pushed_down
from serving.search.databases.database import Asked, LiveChange, Seal, VectorDatabase, checked_seal, collection_of
from serving.search.databases.settings import DatabaseSettings
from serving.search.faiss_index import ItemIndex, inner_products
from serving.search.index_config import FIRST_LEVEL
from serving.search.levels import NO_LEVEL, LevelSearch, Probed, SearchTask
from serving.search.results import AllowedItems, Hits, ScoredRows

# The deepest search in the database; beyond it, comparing all items is as fast.
_DEEPEST = 1024
# Up to so many items that meet the conditions are all compared, in the database: as fast as its graph, and exact.
_COMPARED_ITEMS = 20_000
# With a filter, a graph finds less at the same effort.
_FILTERED_EFFORT = 2
# Without conditions that the database can apply, it is asked if at least this share of the items is allowed.
_MOSTLY_ELIGIBLE = 0.3
# Exclusions up to this number are left out of the results, so that a user has one order whatever is excluded; more are
# left out by the database, which would otherwise have to search much deeper.
_LEFT_OUT_AFTERWARDS = 64
# How many users' searches are between two looks at the deadline.
_TOGETHER = 16
_SECONDS_BETWEEN_TRIES = 5.0
_log = logging.getLogger(__name__)


class DatabaseSearch:
    """Searches a collection of a vector database; see `ItemSearch`. Safe to use from several threads.

    Attributes:
        database: The database.
        collection: Name of the collection.
        local: The bundle's own index over the same items.
    """

    def __init__(self, database: VectorDatabase, wanted: Seal, local: ItemIndex, settings: DatabaseSettings) -> None:
        """Prepare the searcher; the database is asked for the first time by `check` or a search.

        Args:
            database: The database.
            wanted: What the seal of the collection must say.
            local: The bundle's own index over the same items.
            settings: What to do when the database is slow or away.
        """
        self.collection = collection_of(database, wanted)
        self.local = local
        self.database = database
        self._wanted = wanted
        self._settings = settings
        self._exact = BruteForce(local.vectors)
        self._seal: Seal | None = None
        self._is_away = False
        self._next_try = 0.0

    @property
    def is_exact(self) -> bool:
        """False: the database's graph may miss items."""
        return False

    @property
    def max_effort(self) -> int:
        """The greatest effort of a search in the database."""
        return self.database.max_effort

    def __len__(self) -> int:
        """Return the number of items in the index."""
        return len(self.local)

    def check(self) -> Seal:
        """Return the seal of the collection after comparing it with the bundle's index.

        Raises:
            DataError: There is no such collection, or it belongs to another bundle or index.
            UnavailableError: The database does not answer.
        """
        if self._seal is None:
            self._seal = checked_seal(self.database, self.collection, self._wanted)
        return self._seal

    def with_seal(self, seal: Seal) -> DatabaseSearch:
        """Return this searcher with another seal than the one that the database has."""
        other = copy.copy(self)
        other._seal = seal
        return other

    def search(
        self,
        queries: Float32[np.ndarray, "users width"],
        k: int,
        excluded: Ragged | None = None,
        allowed: AllowedItems | None = None,
        closed: Bool[np.ndarray, " items"] | None = None,
    ) -> Hits:
        """Return the best items of each user; see `Searcher.search`.

        Raises:
            NotReady: The database does not answer, and the operator wants no other answer.
        """
        deadline.check()
        open_items = allowed
        if closed is not None:
            open_items = AllowedItems(~closed if allowed is None else allowed.mask & ~closed)
        task = SearchTask.of(queries, k, excluded, open_items, len(self))
        try:
            with timed("search"):
                return Hits.join(self._by_levels(task, allowed))
        except UnavailableError as error:
            if self._settings.fallback == "none":
                raise NotReady("the vector database does not answer", error) from None
            return self.local.search(queries, k, excluded, allowed, closed)

    def confirms(self, query: Float32[np.ndarray, " dim"], rows: np.ndarray, least: np.float32) -> bool:
        """Return True: the rows of the index do not change."""
        return True

    def make_current(self) -> None:
        """Let the alias name this collection.

        Raises:
            UnavailableError: The database does not answer.
        """
        self.database.point_alias(self.collection)

    def apply(self, change: LiveChange) -> bool:
        """Write live updates to the collection; return False if it follows another log.

        Raises:
            UnavailableError: The database does not answer.
        """
        return self.database.apply(self.collection, change)

    def _by_levels(self, task: SearchTask, within: AllowedItems | None) -> list[ScoredRows]:
        """Return the results of all users, from the levels of their orders.

        Args:
            task: The search.
            within: The items of which each user has one order, a superset of the allowed ones. None: all.
        """
        walk, users = LevelSearch(task, self.local.vectors), np.flatnonzero(task.needed)
        levels = _Levels(self, self.checked(), task, within)
        depths = np.full(len(users), FIRST_LEVEL if levels.can_narrow else NO_LEVEL)
        missing = walk.go(users, depths, min(_DEEPEST, levels.num_within // 2), levels.search)
        walk.end(missing, self._exact)
        return walk.answers()

    def checked(self) -> Seal:
        """Return the seal of the collection, which is looked up as seldom as an absent database is asked.

        Raises:
            UnavailableError: The database does not answer, or has no collection that fits.
        """
        if self._seal is not None:
            return self._seal
        self._wait_for_turn()
        try:
            found = self.check()
        except (DataError, UnavailableError) as error:
            self._note_away(error)
            raise UnavailableError(str(error)) from None
        self._note_back()
        return found

    def ask(self, seal: Seal, asked: Asked) -> list[Int64[np.ndarray, " _"]]:
        """Return the keys that the database finds for each user; asks again if it failed at once.

        Raises:
            UnavailableError: It does not answer in time, or answers what cannot be right.
        """
        self._wait_for_turn()
        began, failed = time.monotonic(), 0
        while True:
            try:
                found = self.database.nearest(self.collection, seal.columns, asked)
                _check_possible(found, asked)
            except (DataError, UnavailableError) as error:
                failed += 1
                if failed <= self._settings.retries and time.monotonic() - began < self._settings.timeout_seconds:
                    continue
                self._note_away(error)
                raise UnavailableError(str(error)) from None
            self._note_back()
            return found

    def _wait_for_turn(self) -> None:
        """Let one thread at a time, now and then, try a database that was away; the others do not wait for that."""
        if self._is_away:
            now = time.monotonic()
            if now < self._next_try:
                raise UnavailableError("the vector database did not answer a moment ago")
            self._next_try = now + _SECONDS_BETWEEN_TRIES

    def _note_back(self) -> None:
        if self._is_away:
            self._is_away = False
            _log.warning("the vector database answers again")

    def _note_away(self, error: Exception) -> None:
        if not self._is_away:
            instead = "requests get 503" if self._settings.fallback == "none" else "the bundle's own index is searched"
            _log.error("%s, until the vector database can be used: %s", instead, error)
        self._is_away = True
        self._next_try = time.monotonic() + _SECONDS_BETWEEN_TRIES


class _Levels:
    """The levels of several users, as `LevelSearch` asks for them.

    Attributes:
        num_within: Number of items that are ordered.
    """

    def __init__(self, searcher: DatabaseSearch, seal: Seal, task: SearchTask, within: AllowedItems | None) -> None:
        self._searcher = searcher
        self._seal = seal
        self._task = task
        self._within = within
        self._where = () if within is None else pushed_down(within.conditions, seal.columns)
        self.num_within = len(searcher) if within is None else len(within)
        # Users whose search was cut off: their further levels stay empty, so that all items are compared.
        self._cut_off: set[int] = set()

    @property
    def can_narrow(self) -> bool:
        """Whether most of what the database finds is allowed."""
        if self._within is None or self._within.share >= _MOSTLY_ELIGIBLE:
            return True
        return 0 < len(self._within.conditions) == len(self._where)

    def search(self, users: np.ndarray, depth: int) -> Probed:
        """Yield positions of users, `[some]`, with scores and rows, `[some, depth]`, -1 where fewer were found."""
        for start in deadline.watched(range(0, len(users), _TOGETHER)):
            some = users[start : start + _TOGETHER]
            rows = np.full((len(some), depth), -1, dtype=np.int64)
            places = [place for place, user in enumerate(some.tolist()) if user not in self._cut_off]
            if places:
                self._fill(rows, some, places, depth)
            scores = inner_products(self._task.queries[some], self._searcher.local.vectors, np.maximum(rows, 0))
            scores[rows < 0] = -np.inf
            yield some, scores, rows

    def _fill(self, rows: np.ndarray, users: np.ndarray, places: list[int], depth: int) -> None:
        """Write what the database finds for the users at some places."""
        asked = users[places].tolist()
        found = self._searcher.ask(self._seal, self._asked(asked, depth))
        for place, user, keys in zip(places, asked, found, strict=True):
            if len(keys) < min(depth, self.num_within - int(self._task.excluded.counts[user])):
                self._cut_off.add(user)
                continue
            known = keys[keys < len(self._searcher)]  # others are live items, which are searched in memory
            rows[place, : len(known)] = known

    def _asked(self, users: list[int], depth: int) -> Asked:
        most = self._searcher.max_effort
        return Asked(
            self._task.queries[users],
            depth,
            min(most, self._seal.effort * depth // FIRST_LEVEL * (_FILTERED_EFFORT if self._where else 1)),
            is_exact=bool(self._where) and self.num_within <= _COMPARED_ITEMS,
            where=self._where,
            excluded=[self._excluded(user) for user in users],
        )

    def _excluded(self, user: int) -> np.ndarray:
        """Return the keys that the database leaves out."""
        if self._task.excluded.counts[user] <= _LEFT_OUT_AFTERWARDS:
            return np.zeros(0, np.int64)
        return self._task.excluded.rows_of(user)


def _check_possible(found: list[np.ndarray], asked: Asked) -> None:
    """Check that a database answered for each user, found each item once, and no more than were asked for."""
    if len(found) != len(asked.queries):
        raise UnavailableError(f"it returned {len(found):,} results where {len(asked.queries):,} were asked for")
    for keys in found:
        if len(keys) > asked.depth or len(np.unique(keys)) < len(keys) or (len(keys) and keys.min() < 0):
            raise UnavailableError(
                f"it returned {len(keys):,} items where {asked.depth:,} were asked for, or some twice"
            )
