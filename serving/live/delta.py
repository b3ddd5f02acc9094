"""What arrived since an index was made, as it was at one position of the log: what a `Recommender` is laid over with.

Nothing is changed in place: what is known of an item gets a row after all others, its old row no longer holds, and an
`Overlay` is how much there was at its position. So a request that has one is answered from that, whatever arrives
meanwhile, and nobody waits for anybody. The answers are those of an index made anew from tables that hold all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.schema import ITEM_ID, USER_ID
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog
from serving import deadline
from serving.catalog.filters import ColumnSchema, Filter, Filters, ItemsByValue
from serving.catalog.ids import ExternalId, IdMap
from serving.catalog.popularity import ItemPopularity
from serving.live.delta_index import DeltaIndex
from serving.live.log import Record
from serving.recommend.known_users import KnownUsers
from serving.search.faiss_index import ItemIndex
from serving.search.results import AllowedItems, ScoredRows
from serving.snapshot.encoding import encode_users
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle

# So many rows of the index that no longer hold are passed over one by one; more are left out as by a filter.
_PASSED_OVER = 64
_REMEMBERED_USERS = 1 << 16
_REMEMBERED_FILTERS = 256


@dataclass(frozen=True, slots=True)
class Ground:
    """What is laid over: a model and its snapshot, ready to answer.

    Attributes:
        bundle: The model.
        snapshot: The tables as the model saw them.
        items: The items' ids.
        users: The users' ids.
        titles: What to call each item; None where the catalogue has no titles.
        filters: Which items a request allows.
        index: The search.
        known: The users.
        popularity: The items by how often they were had.
    """

    bundle: ModelBundle
    snapshot: Snapshot
    items: IdMap
    users: IdMap
    titles: list[str] | None
    filters: Filters
    index: ItemIndex
    known: KnownUsers
    popularity: ItemPopularity


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a `Recommender` answers from in the place of its snapshot, as of one position of the log.

    Attributes:
        position: The last record of the log that is in it.
        items: The items' ids.
        users: The users' ids.
        titles: What to call each item; None where the catalogue has no titles.
        filters: Which items a request allows.
        index: The search.
        known: The users.
        popularity: The items by how often they were had.
    """

    position: int
    items: IdMap
    users: IdMap
    titles: list[str] | None
    filters: LiveFilters
    index: DeltaIndex
    known: LiveUsers
    popularity: LivePopularity


class LiveFilters:
    """The filters of a catalogue whose items change; safe to use from several threads."""

    def __init__(self, base: Filters, items: ItemsAt) -> None:
        self._base = base
        self._items = items
        self._known: dict[Filter, AllowedItems] = {}

    @property
    def num_items(self) -> int:
        """How many rows of items there are, those that do not hold included."""
        return len(self._items.index)

    def columns(self) -> dict[str, ColumnSchema]:
        """Return what may be asked of each column, as `Filters.columns` does."""
        return self._base.columns()

    def mask(self, wanted: Filter) -> Bool[np.ndarray, " items"]:
        """Return which items fit; all that hold where there are no conditions."""
        eligible = self.eligible(wanted)
        return self._items.holds if eligible is None else eligible.mask

    def groups(self, column: str, where: str) -> ItemsByValue:
        """Return the items by the values of a column, as `Filters.groups` does; remembered until an item arrives."""
        found = self._base.groups(column, where)
        if not self._items.parts:
            return found
        known = self._items.groups.get(column)
        if known is None or known[0] != self.num_items:
            frames = [
                part.catalog.frame[[*dict.fromkeys((ITEM_ID, column))]] for part in (self._base, *self._items.parts)
            ]
            whole = self._base.of_part(Catalog(pd.concat(frames, ignore_index=True)), [column])
            known = self._items.groups[column] = self.num_items, whole.groups(column, where)
        return known[1]

    def of(self, given: Mapping[str, Any], place: str = "filter") -> Filter:
        """Return the filter that a body or a program describes, as `Filters.of` does."""
        return self._base.of(given, place)

    def from_query(self, given: Mapping[str, Sequence[str]]) -> Filter:
        """Return the filter that the parameters of a query describe, as `Filters.from_query` does."""
        return self._base.from_query(given)

    def eligible(self, wanted: Filter) -> AllowedItems | None:
        """Return the items that fit, remembered for the next request; None for an empty filter."""
        if not wanted:
            return None
        found = self._known.get(wanted)
        if found is None:
            head = self._base.eligible(wanted)
            assert head is not None, "the filter is not empty"
            tail = [part.eligible(wanted) for part in self._items.parts]
            masks = [head.mask, *(part.mask for part in tail if part is not None)]
            found = AllowedItems(np.concatenate(masks) & self._items.holds)
            if self._items.index.buried is not None:
                head = AllowedItems(found.mask[: len(head.mask)])
            self._items.index.heads[found] = head
            if len(self._known) < _REMEMBERED_FILTERS:
                self._known[wanted] = found
        return found


class LivePopularity:
    """The items that hold by how often they were had; has the interface of `ItemPopularity`."""

    def __init__(self, base: ItemPopularity, items: ItemsAt) -> None:
        self._base = base
        self._items = items

    def best(self, depth: int, barred: np.ndarray, may: Bool[np.ndarray, " items"] | None = None) -> ScoredRows:
        """Return the rows that were had most often; see `Popularity.best`."""
        return self._base.best(depth, barred, self._items.holds if may is None else may & self._items.holds)

    def shares(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
        """Return the share of all interactions that each row has."""
        return self._base.shares(rows)

    @property
    def greatest_share(self) -> float:
        """The greatest of these shares."""
        return float(self.best(1, np.zeros(0, np.int64))[1].max(initial=0))


class LiveUsers:
    """The known users with what they did since; has the interface of `KnownUsers`."""

    def __init__(self, bundle: ModelBundle, events: DeltaEvents, items: ItemsAt, users: IdMap, position: int) -> None:
        self._bundle = bundle
        self._base = events.base
        self._events = events
        self._items = items
        self._users = users
        self._position = position
        self.numbering = items.numbering
        """Which numbering of items' rows the histories have; see `KnownUsers`."""

    def is_as_indexed(self, row: int) -> bool:
        """Return whether a user's history and vector are what they were when the index was made."""
        return not self._is_changed(row)

    def histories(self, rows: Int64[np.ndarray, " users"]) -> Sequences:
        """Return what users had, as far as it is in the catalogue."""
        if not len(self._items.useless) and not any(map(self._is_touched, rows.tolist())):
            return self._base.histories(rows)
        reads_time = self._bundle.config.reads_time and self._base.snapshot.histories.times is not None
        found = [self._history(row) for row in deadline.watched(rows.tolist())]
        return Sequences(
            self._users.to_array(self._users.ids[row] for row in rows.tolist()),
            offsets_of(np.array([len(item_rows) for item_rows, _ in found], dtype=np.int64)),
            np.concatenate([np.zeros(0, np.int64), *(item_rows for item_rows, _ in found)]),
            np.concatenate([np.zeros(0, np.int64), *(times for _, times in found)]) if reads_time else None,
            is_ordered=True,
        )

    def vectors(
        self, rows: Int64[np.ndarray, " users"], histories: Sequences, now: int | None
    ) -> Float32[np.ndarray, "users width"]:
        """Return users' unit vectors; see `KnownUsers.vectors`."""
        snapshot = self._base.snapshot
        if snapshot.user_vectors is None:
            return self._encoded(rows, histories, now)
        is_new = np.array([self._is_changed(row) for row in rows.tolist()], dtype=bool)
        vectors = np.empty((len(rows), self._items.index.width), dtype=np.float32)
        vectors[~is_new] = snapshot.user_vectors[rows[~is_new]]
        if is_new.any():
            vectors[is_new] = self._remembered(rows[is_new], histories.take(np.flatnonzero(is_new)))
        return vectors

    def attributes(self, rows: Int64[np.ndarray, " users"]) -> pd.DataFrame | None:
        """Return what the model reads of users beside their history; nothing of those who are new."""
        attributes = self._base.snapshot.attributes
        return None if attributes is None else attributes.reindex(rows).reset_index(drop=True)

    def is_known(self, rows: Int64[np.ndarray, " users"], histories: Sequences) -> Bool[np.ndarray, " users"]:
        """Return of which users anything is known that the model reads."""
        has_attributes = np.zeros(len(rows), dtype=bool)
        is_old = rows < len(self._base.has_attributes)
        has_attributes[is_old] = self._base.has_attributes[rows[is_old]]
        return np.asarray((histories.lengths > 0) | has_attributes)

    def _is_touched(self, row: int) -> bool:
        return row >= len(self._base.has_attributes) or bool(self._events.of(row, self._position))

    def _is_changed(self, row: int) -> bool:
        """Return whether a user's vector may be another than that of the snapshot."""
        if self._is_touched(row):
            return True
        had = self._base.snapshot.histories.items_of(row)
        return bool(len(self._items.useless)) and bool(self._items.is_useless(had).any())

    def _history(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of what a user had, oldest first, and when, as `apply_updates` has them; without times 0."""
        base = self._base.snapshot.histories
        rows, times = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if row < len(base):
            rows = self._items.today(base.items_of(row))
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

    def _remembered(self, rows: np.ndarray, histories: Sequences) -> np.ndarray:
        """Return the vectors of users, made anew for those who had something since."""
        # A row of items never changes, so that the same rows are the same history.
        recent = histories.last(self._bundle.config.features.history)
        keys = [recent.items_of(user).tobytes() for user in range(len(rows))]
        memory = self._items.vectors_made
        known = [memory.get(row) for row in rows.tolist()]
        is_missing = np.array([one is None or one[0] != key for one, key in zip(known, keys, strict=True)], dtype=bool)
        missing = np.flatnonzero(is_missing)
        vectors = np.empty((len(rows), self._items.index.width), dtype=np.float32)
        for user in np.flatnonzero(~is_missing).tolist():
            vectors[user] = known[user][1]  # type: ignore[index]
        if len(missing):
            vectors[missing] = self._encoded(rows[missing], histories.take(missing), None)
            if len(memory) > _REMEMBERED_USERS:
                memory.clear()
            memory.update({int(rows[user]): (keys[user], vectors[user].copy()) for user in missing.tolist()})
        return vectors

    def _encoded(self, rows: np.ndarray, histories: Sequences, now: int | None) -> np.ndarray:
        return encode_users(self._bundle, self._items.index, histories, self.attributes(rows), now=now)


@dataclass(frozen=True)
class ItemsAt:
    """The items at one position of the log."""

    ids: IdMap
    index: DeltaIndex
    parts: tuple[Filters, ...]
    useless: Int64[np.ndarray, " useless"]
    vectors_made: dict[int, tuple[bytes, np.ndarray]]
    """By row of users: what their vectors were made of, as rows of items, and the vectors."""
    groups: dict[str, tuple[int, ItemsByValue]]
    """By column: the items by its values, as of so many rows."""
    numbering: bytes
    """Empty as long as rows are only added; another value after some were removed."""

    @cached_property
    def holds(self) -> Bool[np.ndarray, " items"]:
        """Which rows hold."""
        holds = np.ones(len(self.index), dtype=bool)
        holds[self.useless] = False
        return holds

    @cached_property
    def _rising(self) -> np.ndarray:
        return np.sort(self.useless)

    def is_useless(self, rows: np.ndarray) -> np.ndarray:
        """Return which of the rows do not hold."""
        places = np.minimum(np.searchsorted(self._rising, rows), len(self._rising) - 1)
        return np.asarray(self._rising[places] == rows)

    def today(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows that hold now of the items that rows were about, -1 for items that are gone."""
        if not len(self.useless):
            return rows
        is_useless = self.is_useless(rows)
        if not is_useless.any():
            return rows
        rows = rows.copy()
        now = [self.ids.row(self.ids.ids[row]) for row in rows[is_useless].tolist()]
        rows[is_useless] = [-1 if row is None else row for row in now]
        return rows


@dataclass(frozen=True, slots=True)
class _Change:
    """Where an id was found from a position of the log on, and before that."""

    position: int
    row: int | None
    before: _Change | None


class RowLookupAt:
    """The rows of ids at one position of the log: a look-up for `IdMap`."""

    def __init__(self, base: IdMap, changes: Mapping[ExternalId, _Change], position: int) -> None:
        self._base = base
        self._changes = changes
        self._position = position

    def get(self, external_id: ExternalId) -> int | None:
        """Return the row of an id; None where there was no such id."""
        change = self._changes.get(external_id)
        while change is not None and change.position > self._position:
            change = change.before
        return self._base.row(external_id) if change is None else change.row


class DeltaItems:
    """Every item that arrived, in the order of arrival."""

    def __init__(self, base: Ground) -> None:
        self.titles = None if base.titles is None else list(base.titles)
        self.popularity = base.popularity.growing()
        self._base = base
        self._ids = list(base.items.ids)
        self._changes: dict[ExternalId, _Change] = {}
        self._counts: dict[ExternalId, int] = {}
        self._vectors = AppendOnlyArray(np.zeros((0, base.index.width), np.float32))
        self._useless = AppendOnlyArray(np.zeros(0, np.int64))
        self._parts: tuple[Filters, ...] = ()
        self._buried: AllowedItems | None = None
        self._num_buried = 0
        self._vectors_made: dict[int, tuple[bytes, np.ndarray]] = {}
        self._groups: dict[str, tuple[int, ItemsByValue]] = {}
        self._numbering = b""

    @property
    def num_new(self) -> int:
        """Rows after those of the index."""
        return len(self._vectors)

    @property
    def num_useless(self) -> int:
        """Rows after those of the index that no longer hold."""
        return int((self._useless.cells >= len(self._base.items)).sum())

    def put(self, positions: Sequence[int], frame: pd.DataFrame, vectors: np.ndarray) -> None:
        """Add items, new or in the place of older ones."""
        catalog, features = Catalog(frame), self._base.bundle.config.features
        self._vectors.append(vectors)
        if self.titles is not None:
            self.titles.extend(catalog.titles(features.title))
        first = len(self._ids)
        item_ids: list[ExternalId] = catalog.item_ids.tolist()
        self._ids.extend(item_ids)
        for row, (position, item_id) in enumerate(zip(positions, item_ids, strict=True), start=first):
            self._leave(item_id)
            self._changes[item_id] = _Change(position, row, self._changes.get(item_id))
            self.popularity.append(self._times_had(item_id))
        self._parts = _together((*self._parts, self._base.filters.of_part(catalog)))

    def remove(self, position: int, item_id: ExternalId) -> None:
        """Let an item no longer be there."""
        if self._leave(item_id):
            self._changes[item_id] = _Change(position, None, self._changes.get(item_id))

    def count(self, item_id: ExternalId) -> None:
        """Count an item as had once more."""
        item_id = self._base.items.parse(item_id)
        self._counts[item_id] = self._counts.get(item_id, 0) + 1
        row = self._row(item_id)
        if row is not None:
            self.popularity.count(row)

    def at(self, position: int) -> ItemsAt:
        """Return what there is, as of a position that nothing was added after."""
        useless, num_head = self._useless.cells, len(self._base.items)
        head = useless[useless < num_head]
        if len(head) - self._num_buried > _PASSED_OVER:
            mask = np.ones(num_head, dtype=bool)
            mask[head] = False
            self._buried, self._num_buried = AllowedItems(mask), len(head)
        holds = np.ones(len(self._vectors), dtype=bool)
        holds[useless[useless >= num_head] - num_head] = False
        index = DeltaIndex(self._base.index, self._vectors.cells, holds, self._buried, head[self._num_buried :])
        ids = self._base.items.laid_over(self._ids, RowLookupAt(self._base.items, self._changes, position))
        return ItemsAt(ids, index, self._parts, useless, self._vectors_made, self._groups, self._numbering)

    def without_useless(self, position: int) -> DeltaItems:
        """Return the same without the rows after those of the index that no longer hold."""
        fresh, then = DeltaItems(self._base), self.at(position)
        fresh._counts, fresh._numbering = self._counts, str(position).encode()
        num_head = len(self._base.items)
        for item_id, change in self._changes.items():
            if change.row is None:
                fresh.remove(position, item_id)
        rows = np.flatnonzero(then.holds[num_head:])
        if len(rows):
            frame = pd.concat([part.catalog.frame for part in self._parts], ignore_index=True).iloc[rows]
            fresh.put([position] * len(rows), frame.reset_index(drop=True), self._vectors.cells[rows])
        for item_id, times in self._counts.items():
            row = fresh._row(item_id)
            if row is not None and row < num_head:
                fresh.popularity.count(row, times)
        return fresh

    def _leave(self, item_id: ExternalId) -> bool:
        """Let the row of an item no longer hold; return whether there was one."""
        row = self._row(item_id)
        if row is None:
            return False
        self._useless.append(np.array([row]))
        self.popularity.remove(row)
        return True

    def _row(self, item_id: ExternalId) -> int | None:
        change = self._changes.get(item_id)
        return self._base.items.row(item_id) if change is None else change.row

    def _times_had(self, item_id: ExternalId) -> int:
        row = self._base.items.row(item_id)
        before = 0 if row is None else int(self._base.snapshot.interactions[row])
        return before + self._counts.get(item_id, 0)


class DeltaEvents:
    """Every event that arrived, by user."""

    def __init__(self, base: Ground) -> None:
        self.base = base.known
        self._users = base.users
        self._items = base.items
        self._user_ids = list(base.users.ids)
        self._new: dict[ExternalId, _Change] = {}
        self._by_user: dict[int, list[tuple[int, ExternalId, int]]] = {}
        self._known: set[tuple[ExternalId, ExternalId, int]] = set()

    def add(self, record: Record) -> bool:
        """Add an event, and its user if he is new; return whether it counts.

        One whose ids cannot be ids here does not, nor one of the same user, item and second as another, be it in the
        log or in the tables.
        """
        user_id, item_id = self._users.parse(record.body[USER_ID]), self._items.parse(record.body[ITEM_ID])
        what = user_id, item_id, record.body["time"]
        if not self._users.fits(user_id) or not self._items.fits(item_id) or what in self._known:
            return False
        self._known.add(what)
        row = self._users.row(user_id)
        if row is not None and self._is_held(row, item_id, record.body["time"]):
            return False
        if row is None and user_id not in self._new:
            self._new[user_id] = _Change(record.position, len(self._user_ids), None)
            self._user_ids.append(user_id)
        row = self._new[user_id].row if row is None else row
        assert row is not None, "a user is never removed"
        self._by_user.setdefault(row, []).append((record.position, item_id, record.body["time"]))
        return True

    def _is_held(self, row: int, item_id: ExternalId, time: int) -> bool:
        """Return whether the tables hold an event of one of their users."""
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
        return self._users.laid_over(self._user_ids, RowLookupAt(self._users, self._new, position))


class AppendOnlyArray:
    """An array that is only appended to; what was read of it never changes."""

    def __init__(self, empty: np.ndarray) -> None:
        self._cells = empty
        self._length = 0

    @property
    def cells(self) -> np.ndarray:
        """What there is, now and for ever."""
        return self._cells[: self._length]

    def append(self, more: np.ndarray) -> None:
        """Add cells at the end."""
        length = self._length + len(more)
        if length > len(self._cells):
            roomier = np.empty((max(64, 2 * length), *self._cells.shape[1:]), self._cells.dtype)
            roomier[: self._length] = self.cells
            self._cells = roomier
        self._cells[self._length : length] = more
        self._length = length

    def __len__(self) -> int:
        return self._length


def _together(parts: tuple[Filters, ...]) -> tuple[Filters, ...]:
    """Return parts of a catalogue, the last of them joined until each is longer than what comes after it."""
    while len(parts) > 1 and len(parts[-2].catalog) <= len(parts[-1].catalog):
        frame = pd.concat([part.catalog.frame for part in parts[-2:]], ignore_index=True)
        parts = (*parts[:-2], parts[-1].of_part(Catalog(frame)))
    return parts
