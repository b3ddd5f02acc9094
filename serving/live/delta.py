"""Items and events that arrived after an index was built, in memory, as of one position of the event log.

Nothing is changed in place: an item that is written gets a new row after all others, its old row is superseded, and a
`ServingState` has the number of rows at its position. So a request is answered from one state whatever arrives
meanwhile, without locks. Responses are the same as from an index rebuilt with all the records in its tables, but for
recent popularity, which stays that of the index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.ids import ITEM_ID, USER_ID
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog
from serving import deadline
from serving.catalog.filters import ColumnSchema, Filters, ItemsByValue
from serving.catalog.ids import ExternalId, IdMap
from serving.catalog.popularity import ItemPopularity
from serving.live.delta_index import DeltaIndex
from serving.live.log import Record
from serving.recommend.state import IndexedState
from serving.search.conditions import Filter
from serving.search.results import AllowedItems, ScoredRows
from serving.search.vectors import StackedVectors
from serving.snapshot.encoding import encode_users
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle

# Up to so many superseded rows of the index are excluded one by one, more by a mask as for a filter.
_EXCLUDED_ROWS = 64
_CACHED_USERS = 1 << 16
_CACHED_FILTERS = 256


class LiveFilters:
    """The filters of a catalogue whose items change; see `ItemFilters`."""

    def __init__(self, base: Filters, items: ItemsAt) -> None:
        self._base = base
        self._items = items
        self._cache: dict[Filter, AllowedItems] = {}

    @property
    def num_items(self) -> int:
        """Number of rows, those that are not live included."""
        return len(self._items.index)

    def columns(self) -> dict[str, ColumnSchema]:
        """Return what a request may say of each column."""
        return self._base.columns()

    def cells(self, rows: Int64[np.ndarray, " rows"]) -> pd.DataFrame:
        """Return items' cells in the columns that can be filtered by, one row each."""
        parts = (self._base, *self._items.parts)
        ends = np.cumsum([part.num_items for part in parts])
        place = np.searchsorted(ends, rows, side="right")
        found = [part.cells(rows[place == at] - ends[at] + part.num_items) for at, part in enumerate(parts)]
        order = np.argsort(place, kind="stable")
        return pd.concat(found, ignore_index=True).iloc[np.argsort(order)]

    def parse(self, given: Mapping[str, Any], place: str = "filter") -> Filter:
        """Return the filter that a JSON object describes."""
        return self._base.parse(given, place)

    def from_query(self, given: Mapping[str, Sequence[str]]) -> Filter:
        """Return the filter that parameters of a URL describe."""
        return self._base.from_query(given)

    def mask(self, conditions: Filter) -> Bool[np.ndarray, " items"]:
        """Return which items meet all conditions; without conditions all live items do."""
        allowed = self.allowed(conditions)
        return self._items.is_live if allowed is None else allowed.mask

    def by_value(self, column: str, place: str) -> ItemsByValue:
        """Return the items by the values of a column; cached until an item arrives."""
        found = self._base.by_value(column, place)
        if not self._items.parts:
            return found
        known = self._items.by_value.get(column)
        if known is None or known[0] != self.num_items:
            frames = [
                part.catalog.frame[[*dict.fromkeys((ITEM_ID, column))]] for part in (self._base, *self._items.parts)
            ]
            whole = self._base.of_part(Catalog(pd.concat(frames, ignore_index=True)), [column])
            known = self._items.by_value[column] = self.num_items, whole.by_value(column, place)
        return known[1]

    def allowed(self, conditions: Filter) -> AllowedItems | None:
        """Return the items that meet all conditions, cached for the next request; None without conditions."""
        if not conditions:
            return None
        found = self._cache.get(conditions)
        if found is None:
            indexed = self._base.allowed(conditions)
            assert indexed is not None, "there are conditions"
            new = [part.allowed(conditions) for part in self._items.parts]
            masks = [indexed.mask, *(part.mask for part in new if part is not None)]
            found = AllowedItems(np.concatenate(masks) & self._items.is_live, conditions)
            if self._items.index.tombstones is not None:
                indexed = AllowedItems(found.mask[: len(indexed.mask)], conditions)
            self._items.index.indexed_parts[found] = indexed
            if len(self._cache) < _CACHED_FILTERS:
                self._cache[conditions] = found
        return found


class LivePopularity:
    """The live items by their number of interactions; see `PopularItems`."""

    def __init__(self, base: ItemPopularity, items: ItemsAt) -> None:
        self._base = base
        self._items = items

    def best(self, depth: int, excluded: np.ndarray, may: Bool[np.ndarray, " items"] | None = None) -> ScoredRows:
        """Return the most popular live rows; see `ItemPopularity.best`."""
        is_live = self._items.is_live
        return self._base.best(depth, excluded, is_live if may is None else may & is_live)

    def shares(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
        """Return each row's share of the recent interactions."""
        return self._base.shares(rows)

    @property
    def greatest_share(self) -> float:
        """The greatest of these shares."""
        return float(self.best(1, np.zeros(0, np.int64))[1].max(initial=0))


class LiveUsers:
    """The known users with the events that arrived since; see `UserStore`."""

    def __init__(self, bundle: ModelBundle, events: DeltaEvents, items: ItemsAt, users: IdMap, position: int) -> None:
        self._bundle = bundle
        self._base = events.base
        self._events = events
        self._items = items
        self._users = users
        self._position = position
        self.row_generation = items.row_generation

    def is_unchanged(self, row: int) -> bool:
        """Return whether a user's history and vector are those of the index."""
        return not self._is_changed(row)

    def histories(self, rows: Int64[np.ndarray, " users"]) -> Sequences:
        """Return users' histories, without items that are no longer in the catalogue."""
        if not len(self._items.superseded) and not any(map(self._is_touched, rows.tolist())):
            return self._base.histories(rows)
        has_times = self._base.snapshot.histories.times is not None
        found = [self._history(row) for row in deadline.watched(rows.tolist())]
        return Sequences(
            self._users.to_array(self._users.ids[row] for row in rows.tolist()),
            offsets_of(np.array([len(item_rows) for item_rows, _ in found], dtype=np.int64)),
            np.concatenate([np.zeros(0, np.int64), *(item_rows for item_rows, _ in found)]),
            np.concatenate([np.zeros(0, np.int64), *(times for _, times in found)]) if has_times else None,
            is_ordered=True,
        )

    def vectors(
        self, rows: Int64[np.ndarray, " users"], histories: Sequences, now: int | None
    ) -> Float32[np.ndarray, "users width"]:
        """Return users' unit vectors; those of users with new events are encoded now, or come from a cache."""
        snapshot = self._base.snapshot
        if snapshot.user_vectors is None:
            return self._encoded(rows, histories, now)
        is_new = np.array([self._is_changed(row) for row in rows.tolist()], dtype=bool)
        vectors = np.empty((len(rows), self._items.vectors.shape[1]), dtype=np.float32)
        vectors[~is_new] = snapshot.user_vectors[rows[~is_new]]
        if is_new.any():
            vectors[is_new] = self._encoded_once(rows[is_new], histories.take(np.flatnonzero(is_new)))
        return vectors

    def attributes(self, rows: Int64[np.ndarray, " users"]) -> pd.DataFrame | None:
        """Return the columns of users that the model reads; empty for users who are not in the tables."""
        attributes = self._base.snapshot.attributes
        return None if attributes is None else attributes.reindex(rows).reset_index(drop=True)

    def is_known(self, rows: Int64[np.ndarray, " users"], histories: Sequences) -> Bool[np.ndarray, " users"]:
        """Return for which users there is a history or an attribute that the model reads."""
        has_attributes = np.zeros(len(rows), dtype=bool)
        is_old = rows < len(self._base.has_attributes)
        has_attributes[is_old] = self._base.has_attributes[rows[is_old]]
        return np.asarray((histories.lengths > 0) | has_attributes)

    def _is_touched(self, row: int) -> bool:
        return row >= len(self._base.has_attributes) or bool(self._events.of(row, self._position))

    def _is_changed(self, row: int) -> bool:
        """Return whether a user's vector may differ from that of the snapshot."""
        if self._is_touched(row):
            return True
        history = self._base.snapshot.histories.items_of(row)
        return bool(len(self._items.superseded)) and bool(self._items.is_superseded(history).any())

    def _history(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a user's history, oldest first, and their times (0 if unknown); see `apply_updates`."""
        base = self._base.snapshot.histories
        rows, times = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if row < len(base):
            rows = self._items.current(base.items_of(row))
            mine = slice(base.offsets[row], base.offsets[row + 1])
            times = np.zeros(len(rows), np.int64) if base.times is None else base.times[mine]
        events = [(self._items.ids.row(item_id), time) for item_id, time in self._events.of(row, self._position)]
        events.sort(key=lambda event: event[1])
        new_times = np.array([time for _, time in events], dtype=np.int64)
        rows = np.append(rows, np.array([-1 if at is None else at for at, _ in events], dtype=np.int64))
        if base.times is not None:
            order = np.argsort(np.append(np.maximum.accumulate(times), new_times), kind="stable")
            rows, times = rows[order], np.append(times, new_times)[order]
        else:
            times = np.append(times, new_times)
        return rows[rows >= 0], times[rows >= 0]

    def _encoded_once(self, rows: np.ndarray, histories: Sequences) -> np.ndarray:
        """Return the vectors of users; cached, and encoded again after a user's history changed."""
        # A row always stands for the same content of an item, so equal rows are equal histories.
        recent = histories.last(self._bundle.config.features.max_history)
        keys = [recent.items_of(user).tobytes() for user in range(len(rows))]
        cache = self._items.user_vectors
        known = [cache.get(row) for row in rows.tolist()]
        is_missing = np.array([one is None or one[0] != key for one, key in zip(known, keys, strict=True)], dtype=bool)
        missing = np.flatnonzero(is_missing)
        vectors = np.empty((len(rows), self._items.vectors.shape[1]), dtype=np.float32)
        for user in np.flatnonzero(~is_missing).tolist():
            vectors[user] = known[user][1]  # type: ignore[index]
        if len(missing):
            vectors[missing] = self._encoded(rows[missing], histories.take(missing), None)
            if len(cache) > _CACHED_USERS:
                cache.clear()
            cache.update({int(rows[user]): (keys[user], vectors[user].copy()) for user in missing.tolist()})
        return vectors

    def _encoded(self, rows: np.ndarray, histories: Sequences, now: int | None) -> np.ndarray:
        return encode_users(self._bundle, self._items.vectors, histories, self.attributes(rows), now=now)


@dataclass(frozen=True)
class ItemsAt:
    """The items at one position of the log.

    Attributes:
        ids: Ids by row.
        index: Searches them.
        parts: Filters over the rows after those of the index, divided into consecutive parts.
        superseded: Rows that are not live, of the index and after it, in the order in which they were superseded.
        user_vectors: Cache, by row of users: the history that was encoded, as bytes, and its vector.
        by_value: Cache, by column: the number of rows, and the items by the column's values.
        row_generation: Empty as long as rows are only added; changes when rows are renumbered.
    """

    ids: IdMap
    index: DeltaIndex
    parts: tuple[Filters, ...]
    superseded: Int64[np.ndarray, " superseded"]
    user_vectors: dict[int, tuple[bytes, np.ndarray]]
    by_value: dict[str, tuple[int, ItemsByValue]]
    row_generation: bytes

    @property
    def vectors(self) -> StackedVectors:
        """Unit vectors by row."""
        return self.index.vectors

    @cached_property
    def is_live(self) -> Bool[np.ndarray, " items"]:
        """Which rows are live."""
        is_live = np.ones(len(self.index), dtype=bool)
        is_live[self.superseded] = False
        return is_live

    @cached_property
    def _ascending(self) -> np.ndarray:
        return np.sort(self.superseded)

    def is_superseded(self, rows: np.ndarray) -> np.ndarray:
        """Return which of the rows are not live."""
        places = np.minimum(np.searchsorted(self._ascending, rows), len(self._ascending) - 1)
        return np.asarray(self._ascending[places] == rows)

    def current(self, rows: np.ndarray) -> np.ndarray:
        """Return, for each row, the live row of the same item; -1 for deleted items."""
        if not len(self.superseded):
            return rows
        is_superseded = self.is_superseded(rows)
        if not is_superseded.any():
            return rows
        rows = rows.copy()
        now = [self.ids.row(self.ids.ids[row]) for row in rows[is_superseded].tolist()]
        rows[is_superseded] = [-1 if row is None else row for row in now]
        return rows


@dataclass(frozen=True, slots=True)
class _Change:
    """The row of an id since a position of the log, and the previous change."""

    position: int
    row: int | None
    before: _Change | None


class RowLookupAt:
    """The rows of ids at one position of the log, for `IdMap`."""

    def __init__(self, base: IdMap, changes: Mapping[ExternalId, _Change], position: int) -> None:
        self._base = base
        self._changes = changes
        self._position = position

    def get(self, external_id: ExternalId) -> int | None:
        """Return the row of an id; None if there was no such id at the position."""
        change = self._changes.get(external_id)
        while change is not None and change.position > self._position:
            change = change.before
        return self._base.row(external_id) if change is None else change.row


class DeltaItems:
    """The items that arrived, in the order of arrival."""

    def __init__(self, base: IndexedState, snapshot: Snapshot, title_column: str | None) -> None:
        self.titles = None if base.titles is None else list(base.titles)
        self.popularity = base.popularity.growing()
        self._base = base
        self._snapshot = snapshot
        self._title_column = title_column
        self._ids = list(base.items.ids)
        self._changes: dict[ExternalId, _Change] = {}
        self._counts: dict[ExternalId, int] = {}
        self._vectors = AppendOnlyArray(np.zeros((0, base.vectors.shape[1]), np.float32))
        self._superseded = AppendOnlyArray(np.zeros(0, np.int64))
        self._parts: tuple[Filters, ...] = ()
        self._tombstones: AllowedItems | None = None
        self._num_tombstones = 0
        self._user_vectors: dict[int, tuple[bytes, np.ndarray]] = {}
        self._by_value: dict[str, tuple[int, ItemsByValue]] = {}
        self._row_generation = b""

    @property
    def num_new(self) -> int:
        """Number of rows after those of the index."""
        return len(self._vectors)

    @property
    def num_superseded(self) -> int:
        """Number of rows after those of the index that are not live."""
        return int((self._superseded.cells >= len(self._base.items)).sum())

    def put(self, positions: Sequence[int], frame: pd.DataFrame, vectors: np.ndarray) -> None:
        """Add items, or replace those with the same ids."""
        catalog = Catalog(frame)
        self._vectors.append(vectors)
        if self.titles is not None:
            self.titles.extend(catalog.titles(self._title_column))
        first = len(self._ids)
        item_ids: list[ExternalId] = catalog.item_ids.tolist()
        self._ids.extend(item_ids)
        for row, (position, item_id) in enumerate(zip(positions, item_ids, strict=True), start=first):
            self._supersede(item_id)
            self._changes[item_id] = _Change(position, row, self._changes.get(item_id))
            self.popularity.append(self._num_interactions(item_id))
        self._parts = _merged_parts((*self._parts, self._base.filters.of_part(catalog)))

    def remove(self, position: int, item_id: ExternalId) -> None:
        """Delete an item."""
        if self._supersede(item_id):
            self._changes[item_id] = _Change(position, None, self._changes.get(item_id))

    def count(self, item_id: ExternalId) -> None:
        """Count one more interaction with an item."""
        item_id = self._base.items.parse(item_id)
        self._counts[item_id] = self._counts.get(item_id, 0) + 1
        row = self._row(item_id)
        if row is not None:
            self.popularity.count(row)

    def at(self, position: int) -> ItemsAt:
        """Return the items as of the position of the last record that was applied."""
        base, superseded = self._base, self._superseded.cells
        num_indexed = len(base.items)
        indexed = superseded[superseded < num_indexed]
        if len(indexed) - self._num_tombstones > _EXCLUDED_ROWS:
            mask = np.ones(num_indexed, dtype=bool)
            mask[indexed] = False
            self._tombstones, self._num_tombstones = AllowedItems(mask), len(indexed)
        is_live = np.ones(len(self._vectors), dtype=bool)
        is_live[superseded[superseded >= num_indexed] - num_indexed] = False
        vectors = StackedVectors(base.vectors, self._vectors.cells)
        index = DeltaIndex(base.search, vectors, is_live, self._tombstones, indexed[self._num_tombstones :])
        ids = base.items.with_lookup(self._ids, RowLookupAt(base.items, self._changes, position))
        return ItemsAt(ids, index, self._parts, superseded, self._user_vectors, self._by_value, self._row_generation)

    def compacted(self, position: int) -> DeltaItems:
        """Return the same items without superseded new rows."""
        fresh, now = DeltaItems(self._base, self._snapshot, self._title_column), self.at(position)
        fresh._counts, fresh._row_generation = self._counts, str(position).encode()
        num_indexed = len(self._base.items)
        for item_id, change in self._changes.items():
            if change.row is None:
                fresh.remove(position, item_id)
        rows = np.flatnonzero(now.is_live[num_indexed:])
        if len(rows):
            frame = pd.concat([part.catalog.frame for part in self._parts], ignore_index=True).iloc[rows]
            fresh.put([position] * len(rows), frame.reset_index(drop=True), self._vectors.cells[rows])
        for item_id, times in self._counts.items():
            row = fresh._row(item_id)
            if row is not None and row < num_indexed:
                fresh.popularity.count(row, times)
        return fresh

    def _supersede(self, item_id: ExternalId) -> bool:
        """Mark the row of an item as superseded; return whether there was one."""
        row = self._row(item_id)
        if row is None:
            return False
        self._superseded.append(np.array([row]))
        self.popularity.remove(row)
        return True

    def _row(self, item_id: ExternalId) -> int | None:
        change = self._changes.get(item_id)
        return self._base.items.row(item_id) if change is None else change.row

    def _num_interactions(self, item_id: ExternalId) -> float:
        row = self._base.items.row(item_id)
        before = 0.0 if row is None else self._base.popularity.of(row)
        return before + self._counts.get(item_id, 0)


class DeltaEvents:
    """The events that arrived, by user."""

    def __init__(self, base: IndexedState) -> None:
        self.base = base.user_store
        self._users = base.users
        self._items = base.items
        self._user_ids = list(base.users.ids)
        self._new: dict[ExternalId, _Change] = {}
        self._by_user: dict[int, list[tuple[int, ExternalId, int]]] = {}
        self._known: set[tuple[ExternalId, ExternalId, int]] = set()

    def add(self, record: Record) -> bool:
        """Add an event, and its user if they are new; return whether it was added.

        An event is ignored if its ids do not have the types of the tables' ids, or if the log or the tables already
        have an event with the same user, item and second.
        """
        user_id, item_id = self._users.parse(record.body[USER_ID]), self._items.parse(record.body[ITEM_ID])
        what = user_id, item_id, record.body["time"]
        if not self._users.fits(user_id) or not self._items.fits(item_id) or what in self._known:
            return False
        self._known.add(what)
        row = self._users.row(user_id)
        if row is not None and self._is_in_tables(row, item_id, record.body["time"]):
            return False
        if row is None and user_id not in self._new:
            self._new[user_id] = _Change(record.position, len(self._user_ids), None)
            self._user_ids.append(user_id)
        row = self._new[user_id].row if row is None else row
        assert row is not None, "a user is never removed"
        self._by_user.setdefault(row, []).append((record.position, item_id, record.body["time"]))
        return True

    def _is_in_tables(self, row: int, item_id: ExternalId, time: int) -> bool:
        """Return whether the tables already have an event of a user."""
        histories, item = self.base.snapshot.histories, self._items.row(item_id)
        if histories.times is None or item is None:
            return False
        mine = slice(histories.offsets[row], histories.offsets[row + 1])
        return bool(((histories.times[mine] == time) & (histories.item_rows[mine] == item)).any())

    def of(self, row: int, position: int) -> list[tuple[ExternalId, int]]:
        """Return the items and times of a user's events up to a position, in the order of arrival."""
        return [(item_id, time) for place, item_id, time in self._by_user.get(row, ()) if place <= position]

    def users_at(self, position: int) -> IdMap:
        """Return the users' ids as of a position."""
        return self._users.with_lookup(self._user_ids, RowLookupAt(self._users, self._new, position))


class AppendOnlyArray:
    """An array that is only appended to; slices read earlier stay valid."""

    def __init__(self, empty: np.ndarray) -> None:
        self._cells = empty
        self._length = 0

    @property
    def cells(self) -> np.ndarray:
        """The cells so far; a later append does not change them."""
        return self._cells[: self._length]

    def append(self, more: np.ndarray) -> None:
        """Add cells at the end."""
        length = self._length + len(more)
        if length > len(self._cells):
            larger = np.empty((max(64, 2 * length), *self._cells.shape[1:]), self._cells.dtype)
            larger[: self._length] = self.cells
            self._cells = larger
        self._cells[self._length : length] = more
        self._length = length

    def __len__(self) -> int:
        return self._length


def _merged_parts(parts: tuple[Filters, ...]) -> tuple[Filters, ...]:
    """Return parts of a catalogue, with the last ones joined so that each is longer than the next."""
    while len(parts) > 1 and len(parts[-2].catalog) <= len(parts[-1].catalog):
        frame = pd.concat([part.catalog.frame for part in parts[-2:]], ignore_index=True)
        parts = (*parts[:-2], parts[-1].of_part(Catalog(frame)))
    return parts
