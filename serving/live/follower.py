"""A recommender that follows the event log: before each request it reads the records that arrived since the last one.

Checking whether there are any takes microseconds. Every worker does this, so an acknowledged write is reflected in the
next response of each of them.
"""

from __future__ import annotations

import binascii
import logging
import threading
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from features.errors import DataError, UnavailableError
from features.ids import ITEM_ID
from features.tables.rows import fitting_rows
from features.tables.tables import Catalog
from serving.catalog.ids import ExternalId
from serving.errors import NotReady
from serving.live.database_mirror import DatabaseMirror
from serving.live.delta import DeltaEvents, DeltaItems, LiveFilters, LivePopularity, LiveUsers
from serving.live.log import EventLog, LogState, Record, readable
from serving.recommend.recommender import Recommender
from serving.recommend.state import ServingState
from serving.search.faiss_index import check_unit_length
from serving.search.vectors import leading_dims
from towers.bundle.bundle import ModelBundle

# Superseded new rows are compacted once they outnumber the live ones, and exceed this minimum.
_MIN_TO_COMPACT = 1024
_log = logging.getLogger(__name__)


class LiveRecommender:
    """A recommender that follows a log; `current` is safe to call from several threads.

    Attributes:
        is_unavailable: Whether the last attempt to read the log failed.
    """

    def __init__(self, base: Recommender, store: EventLog) -> None:
        self._base = base
        self._store = store
        self._token: object = None
        self._lock = threading.Lock()
        self._num_failed = 0
        self.is_unavailable = False
        # Even if the clock was set back: writes that arrive while an index is served are not in its tables.
        store.clock.pass_over(base.snapshot.manifest.events_until)
        self._reset()
        self._latest = base.with_state(self._state_at())

    def _reset(self) -> None:
        """Start with the index alone, before any record of a log."""
        base = self._base
        self._log_state: LogState | None = None
        self._position, self._covered_until = 0, base.snapshot.manifest.events_until
        self._items = DeltaItems(base.indexed, base.snapshot, base.bundle.config.features.title)
        self._events = DeltaEvents(base.indexed)
        self._mirror = DatabaseMirror.of(base.indexed)

    @property
    def latest(self) -> Recommender:
        """The recommender as of the last time that the log was read."""
        return self._latest

    def current(self) -> Recommender:
        """Return the recommender with all records that were in the log when this was called.

        Raises:
            NotReady: The log cannot be read.
        """
        num_failed = self._num_failed
        with self._lock:
            if num_failed != self._num_failed:
                # The thread that held the lock failed to read the log; do not wait again.
                raise NotReady("the log of live writes cannot be read")
            try:
                token = self._store.change_token()
                if token != self._token:
                    self._catch_up()
                    self._token = token
            except NotReady:
                self._num_failed += 1
                self.is_unavailable = True
                raise
            self.is_unavailable = False
            return self._latest

    def _catch_up(self) -> None:
        state = self._store.state()
        if self._is_replaced(state):
            self._start_from(state)
        while records := self._store.read_after(self._position):
            self._apply(records)
            self._position = records[-1].position
            if self._items.num_superseded > max(_MIN_TO_COMPACT, self._items.num_new // 2):
                self._items = self._items.compacted(self._position)
        if self._mirror is not None:
            self._mirror.write(state.log_id, self._position)
        self._latest = self._base.with_state(self._state_at())

    def _is_replaced(self, state: LogState) -> bool:
        """Return whether the log is not a continuation of the one that was read until now."""
        before = self._log_state
        if before is None:
            return True
        return (before.log_id, before.opening) != (state.log_id, state.opening) or state.end < self._position

    def _start_from(self, state: LogState) -> None:
        """Start with the index and a log of which no record was read yet."""
        before, compacted = self._log_state, self._base.snapshot.manifest.live
        if compacted is not None and compacted.log_id == state.log_id and state.end < compacted.position:
            # The log was restored from a backup: its next records get positions that the index believes to contain.
            _log.error(
                "the log of live writes ends before the position that the index contains, perhaps because it was "
                "restored from a backup; it is treated as a new log from now on"
            )
            self._store.rename(state.log_id)
            state, compacted = self._store.state(), None
        if before is not None:
            _log.warning("the log of live writes was replaced or restored; all of it is read again")
            self._reset()
        if compacted is not None and compacted.log_id == state.log_id:
            self._position, self._covered_until = compacted.position, 0.0
        self._log_state = state

    def _apply(self, records: Sequence[Record]) -> None:
        records = readable(records)
        newest = {
            self._base.indexed.items.parse(record.body[ITEM_ID]): record for record in records if record.kind != "event"
        }
        deleted = {item_id: record for item_id, record in newest.items() if record.kind == "deletion"}
        for item_id, record in deleted.items():
            self._items.remove(record.position, item_id)
            if self._mirror is not None:
                self._mirror.remove(item_id)
        put = {item_id: record for item_id, record in newest.items() if item_id not in deleted}
        self._put([record for item_id, record in put.items() if self._base.indexed.items.fits(item_id)])
        for record in records:
            if record.kind == "event" and record.received > self._covered_until and self._events.add(record):
                self._items.count(record.body[ITEM_ID])

    def _put(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            frame = self._frame(records)
            vectors = self._vectors(records, frame)
        except UnavailableError as error:
            raise NotReady("items in the log of live writes cannot be encoded", error) from None
        except Exception as error:  # an item that fails, for whatever reason, must not block the others
            if len(records) == 1:
                position, item_id = records[0].position, self._item_id(records[0])
                _log.error("record %d of the log of live writes, item %r, is skipped: %s", position, item_id, error)
                return
            for record in records:
                self._put([record])
            return
        positions, vectors = [record.position for record in records], self._with_trend(frame, vectors)
        self._items.put(positions, frame, vectors)
        if self._mirror is not None:
            self._mirror.put(positions, frame, vectors)

    def _frame(self, records: Sequence[Record]) -> pd.DataFrame:
        """Return items as rows of the catalogue; cells that do not fit their column are empty, and logged."""
        rows = [{**record.body["cells"], ITEM_ID: self._item_id(record)} for record in records]
        frame, left_out = fitting_rows(self._base.snapshot.catalog.frame, rows, self._base.bundle.spellings)
        for line in left_out:
            first, last = records[0].position, records[-1].position
            _log.warning("records %d to %d of the log of live writes: %s", first, last, line)
        return frame

    def _vectors(self, records: Sequence[Record], frame: pd.DataFrame) -> Float32[np.ndarray, "items width"]:
        """Return the unit vectors of items: those in the records, if they were encoded by this model, else new ones."""
        width = self._base.indexed.embeddings.shape[1]
        sent = [vector_from_json(record.body.get("vector"), self._base.model, width) for record in records]
        vectors = np.array([np.zeros(width, np.float32) if one is None else one for one in sent])
        missing = [place for place, one in enumerate(sent) if one is None]
        if missing:
            vectors[missing] = encoded(self._base.bundle, frame.iloc[missing].reset_index(drop=True))
        return vectors

    def _with_trend(self, frame: pd.DataFrame, vectors: np.ndarray) -> Float32[np.ndarray, "items searched"]:
        """Return vectors as they are searched: an item that is written again keeps its numbers, a new one has none."""
        indexed = self._base.indexed
        dim = indexed.embeddings.shape[1]
        if indexed.vectors.shape[1] == dim:
            return vectors
        numbers = np.zeros((len(vectors), indexed.vectors.shape[1] - dim), dtype=np.float32)
        rows = indexed.items.places(frame[ITEM_ID].tolist())
        is_known = rows >= 0
        numbers[is_known] = indexed.vectors[rows[is_known]][:, dim:]
        return np.concatenate([vectors, numbers], axis=1)

    def _item_id(self, record: Record) -> ExternalId:
        return self._base.indexed.items.parse(record.body[ITEM_ID])

    def _state_at(self) -> ServingState:
        """Return the state as of the position that was read."""
        indexed, items = self._base.indexed, self._items.at(self._position)
        users = self._events.users_at(self._position)
        return ServingState(
            position=self._position,
            items=items.ids,
            users=users,
            titles=self._items.titles,
            filters=LiveFilters(indexed.filters, items),
            vectors=items.vectors,
            embeddings=leading_dims(items.vectors, indexed.embeddings.shape[1]),
            search=items.index,
            user_store=LiveUsers(self._base.bundle, self._events, items, users, self._position),
            popularity=LivePopularity(self._items.popularity, items),
        )


def encoded(bundle: ModelBundle, frame: pd.DataFrame) -> Float32[np.ndarray, "items width"]:
    """Return the unit vectors of items, `[items, dim]`.

    Raises:
        DataError: An item has no vector of length 1, because it has nothing that the model reads.
    """
    vectors = bundle.encode_items(Catalog(frame))
    try:
        check_unit_length(vectors)
    except ValueError as error:
        raise DataError(f"the model cannot encode this item: {error}") from None
    return vectors


def vector_to_json(model: str, vector: Float32[np.ndarray, " width"]) -> dict[str, str]:
    """Return the vector of an item, and the version of its model, for a record of the log."""
    return {"model": model, "float32": b64encode(vector.astype("<f4").tobytes()).decode()}


def vector_from_json(value: Any, model: str, width: int) -> Float32[np.ndarray, " width"] | None:
    """Return the unit vector that `vector_to_json` wrote; None if it is invalid or of another model."""
    if not isinstance(value, Mapping) or value.get("model") != model or not isinstance(value.get("float32"), str):
        return None
    try:
        vector = np.frombuffer(b64decode(value["float32"], validate=True), "<f4").astype(np.float32)
        if len(vector) != width:
            return None
        check_unit_length(vector[None])
    except (binascii.Error, ValueError):
        return None
    return vector
