"""A recommender that follows the event log: before each request it reads what arrived since the last one.

Whether anything did costs microseconds to ask. Every worker does the same, so that an acknowledged write is in the next
response of each of them.
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
from features.schema import ITEM_ID
from features.tables.rows import fitting_rows
from features.tables.tables import Catalog
from serving.catalog.ids import ExternalId
from serving.errors import NotReady
from serving.live.delta import DeltaEvents, DeltaItems, LiveFilters, LivePopularity, LiveUsers
from serving.live.log import EventLog, LogState, Record, readable
from serving.recommend.recommender import Recommender
from serving.recommend.state import ServingState
from serving.search.faiss_index import check_unit_length
from towers.bundle.bundle import ModelBundle

# Superseded rows after the index are removed when they outnumber the live ones, and at least so many.
_WORTH_REMOVING = 4096
_log = logging.getLogger(__name__)


class LiveRecommender:
    """A recommender that follows a log; `current` is safe to call from several threads."""

    def __init__(self, base: Recommender, store: EventLog) -> None:
        self._base = base
        self._store = store
        self._version: object = None
        self._turn = threading.Lock()
        self._num_failed = 0
        # Whatever the clock says: what is written while an index is served is not in its tables.
        store.clock.pass_over(base.snapshot.seal.events_until)
        self._begin()
        self._latest = base.with_state(self._state_at())

    def _begin(self) -> None:
        """Begin with the index alone, before any record of a log."""
        base = self._base
        self._log_state: LogState | None = None
        self._position, self._held_until = 0, base.snapshot.seal.events_until
        self._items = DeltaItems(base.indexed, base.snapshot, base.bundle.config.features.title)
        self._events = DeltaEvents(base.indexed)

    @property
    def latest(self) -> Recommender:
        """The recommender as of the last time that the log was read."""
        return self._latest

    def current(self) -> Recommender:
        """Return the recommender with everything that was in the log when this was called.

        Raises:
            NotReady: The log cannot be read.
        """
        num_failed = self._num_failed
        with self._turn:
            if num_failed != self._num_failed:  # who was waited for could not read it, so it is not waited for again
                raise NotReady("the log of live writes cannot be read")
            try:
                version = self._store.version()
            except NotReady:
                self._num_failed += 1
                raise
            if version != self._version:
                self._catch_up()
                self._version = version
            return self._latest

    def _catch_up(self) -> None:
        state = self._store.state()
        if self._is_another(state):
            self._begin_with(state)
        while records := self._store.since(self._position):
            self._take_in(records)
            self._position = records[-1].position
            if self._items.num_superseded > max(_WORTH_REMOVING, self._items.num_new // 2):
                self._items = self._items.compacted(self._position)
        self._latest = self._base.with_state(self._state_at())

    def _is_another(self, state: LogState) -> bool:
        """Return whether the log is not the one that was read until now, gone on."""
        before = self._log_state
        if before is None:
            return True
        return (before.log_id, before.opening) != (state.log_id, state.opening) or state.end < self._position

    def _begin_with(self, state: LogState) -> None:
        """Begin with the index and with a log of which nothing was read yet."""
        before, folded = self._log_state, self._base.snapshot.seal.live
        if folded is not None and folded.log_id == state.log_id and state.end < folded.position:
            # It was put back to what it was before, and what is written next has positions that the index knows.
            _log.error("the log of live writes ends before what is in the index: it counts as another from now on")
            self._store.rename(state.log_id)
            state, folded = self._store.state(), None
        if before is not None:
            _log.warning("the log of live writes is another, or was put back; all of it is read again")
            self._begin()
        if folded is not None and folded.log_id == state.log_id:
            self._position, self._held_until = folded.position, 0.0
        self._log_state = state

    def _take_in(self, records: Sequence[Record]) -> None:
        records = readable(records)
        newest = {
            self._base.indexed.items.parse(record.body[ITEM_ID]): record for record in records if record.kind != "event"
        }
        gone = {item_id: record for item_id, record in newest.items() if record.kind == "deletion"}
        for item_id, record in gone.items():
            self._items.remove(record.position, item_id)
        put = {item_id: record for item_id, record in newest.items() if item_id not in gone}
        self._put([record for item_id, record in put.items() if self._base.indexed.items.fits(item_id)])
        for record in records:
            if record.kind == "event" and record.received > self._held_until and self._events.add(record):
                self._items.count(record.body[ITEM_ID])

    def _put(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            frame = self._frame(records)
            vectors = self._vectors(records, frame)
        except UnavailableError as error:
            raise NotReady("the vectors of items in the log of live writes cannot be made", error) from None
        except Exception as error:  # one item must not keep the others away, whatever is wrong with it
            if len(records) == 1:
                place = records[0].position
                _log.error("item %r of the log, record %d, is left out: %s", self._item_id(records[0]), place, error)
                return
            for record in records:
                self._put([record])
            return
        self._items.put([record.position for record in records], frame, vectors)

    def _frame(self, records: Sequence[Record]) -> pd.DataFrame:
        """Return items as rows of the catalogue; cells that do not fit there are missing, and logged."""
        rows = [{**record.body["cells"], ITEM_ID: self._item_id(record)} for record in records]
        frame, left_out = fitting_rows(self._base.snapshot.catalog.frame, rows, self._base.bundle.spellings)
        for line in left_out:
            _log.warning("records %d to %d of the log: %s", records[0].position, records[-1].position, line)
        return frame

    def _vectors(self, records: Sequence[Record], frame: pd.DataFrame) -> Float32[np.ndarray, "items width"]:
        """Return the unit vectors of items: those that came with them, where this model made them."""
        width = self._base.indexed.vectors.shape[1]
        sent = [vector_from_json(record.body.get("vector"), self._base.model, width) for record in records]
        vectors = np.array([np.zeros(width, np.float32) if one is None else one for one in sent])
        missing = [place for place, one in enumerate(sent) if one is None]
        if missing:
            vectors[missing] = encoded(self._base.bundle, frame.iloc[missing].reset_index(drop=True))
        return vectors

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
            search=items.index,
            user_store=LiveUsers(self._base.bundle, self._events, items, users, self._position),
            popularity=LivePopularity(self._items.popularity, items),
        )


def encoded(bundle: ModelBundle, frame: pd.DataFrame) -> Float32[np.ndarray, "items width"]:
    """Return the unit vectors of items.

    Raises:
        DataError: The model cannot place one of them.
    """
    vectors = bundle.encode_items(Catalog(frame))
    try:
        check_unit_length(vectors)
    except ValueError as error:
        raise DataError(f"the model cannot place this item: {error}") from None
    return vectors


def vector_to_json(model: str, vector: Float32[np.ndarray, " width"]) -> dict[str, str]:
    """Return the vector of an item and the version of the model that made it, as they stand in a log."""
    return {"model": model, "float32": b64encode(vector.astype("<f4").tobytes()).decode()}


def vector_from_json(value: Any, model: str, width: int) -> Float32[np.ndarray, " width"] | None:
    """Return the unit vector that `vector_to_json` wrote for this model; None where it is of another, or none."""
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
