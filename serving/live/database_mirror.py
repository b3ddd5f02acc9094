"""Writes live items and deletions to the collection of the index in a vector database.

Every worker follows the log and applies it there, too; the collection keeps the position of the last record that it
has, so each record takes effect once. Responses do not wait for that: a worker searches the items that arrived in
memory, and knows itself which rows are deleted. While the database is away, what it lacks is kept and written later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float32

from features.errors import UnavailableError
from features.ids import ITEM_ID
from features.tables.tables import Catalog
from serving.catalog.ids import ExternalId
from serving.recommend.state import IndexedState
from serving.search.databases.columns import Cells, storable
from serving.search.databases.database import LiveChange, Points
from serving.search.databases.database_search import DatabaseSearch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Put:
    """Items that arrived together."""

    keys: list[int]
    frame: pd.DataFrame
    vectors: Float32[np.ndarray, "items width"]


class DatabaseMirror:
    """What the collection of an index lacks of the log of live writes.

    The key of a live item is the position of its record behind all rows of the index, the same for every worker.
    """

    def __init__(self, indexed: IndexedState, search: DatabaseSearch) -> None:
        self._indexed = indexed
        self._search = search
        self._keys: dict[ExternalId, int | None] = {}
        self._put: list[_Put] = []
        self._deleted: list[int] = []
        self._lock = threading.Lock()
        # Of this thread alone: what could not be written, up to where all is written, and whether nothing may be.
        self._thread = ThreadPoolExecutor(1, "towers-mirror")
        self._left: tuple[list[_Put], list[int]] = [], []
        self._position = 0
        self._is_refused = False

    @classmethod
    def of(cls, indexed: IndexedState) -> DatabaseMirror | None:
        """Return the mirror of an index; None if it is in no vector database."""
        search = indexed.search
        return cls(indexed, search) if isinstance(search, DatabaseSearch) else None

    def put(self, positions: Sequence[int], frame: pd.DataFrame, vectors: np.ndarray) -> None:
        """Note items that arrived, or replace those with the same ids."""
        keys = [len(self._indexed.items) + position for position in positions]
        for key, item_id in zip(keys, frame[ITEM_ID].tolist(), strict=True):
            self.remove(item_id)
            self._keys[item_id] = key
        self._put.append(_Put(keys, frame, vectors))

    def remove(self, item_id: ExternalId) -> None:
        """Note that an item was deleted."""
        key = self._keys.get(item_id, self._indexed.items.row(item_id))
        if key is not None:
            self._deleted.append(key)
        self._keys[item_id] = None

    def write(self, log_id: str, until: int) -> None:
        """Write what was noted, all records up to a position, in a thread of its own; what fails is kept for later."""
        with self._lock:
            noted = self._put, self._deleted
            self._put, self._deleted = [], []
        self._thread.submit(self._write, log_id, until, *noted)

    def _write(self, log_id: str, until: int, put: list[_Put], deleted: list[int]) -> None:
        """Write records, and those that could not be written before."""
        put, deleted = [*self._left[0], *put], [*self._left[1], *deleted]
        if self._is_refused or until == self._position:
            return
        try:
            columns = list(self._search.checked().columns)
            points = [Points(np.array(one.keys), one.vectors, self._cells(one.frame, columns)) for one in put]
            keys = np.array(sorted(set(deleted)), dtype=np.int64)
            self._is_refused = not self._search.apply(LiveChange(log_id, self._position, until, _joined(points), keys))
        except UnavailableError as error:
            self._left = put, deleted
            _log.warning("live writes up to %d are not in the vector database yet: %s", until, error)
            return
        except Exception as error:  # whatever is wrong with a record, requests must be answered
            self._left = put, deleted
            _log.error("live writes up to %d cannot be written to the vector database", until, exc_info=error)
            return
        if self._is_refused:
            _log.error(
                "the collection %s follows another log of live writes, and gets none of this one; write it again with "
                "`towers index`",
                self._search.collection,
            )
        self._left, self._position = ([], []), until

    def _cells(self, frame: pd.DataFrame, columns: Iterable[str]) -> Cells:
        """Return the columns of items that arrived; those with a cell that the database cannot hold are empty."""
        cells = storable(self._indexed.filters.of_part(Catalog(frame)).typed_columns())
        return {name: cells.get(name, pa.nulls(len(frame))) for name in columns}


def _joined(parts: Sequence[Points]) -> Points | None:
    """Return items that arrived one after the other; None if none did."""
    if not parts:
        return None
    cells = {
        name: pa.array([cell for part in parts for cell in part.cells[name].to_pylist()]) for name in parts[0].cells
    }
    return Points(np.concatenate([one.keys for one in parts]), np.concatenate([one.vectors for one in parts]), cells)
