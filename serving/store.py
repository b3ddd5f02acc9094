"""The log of what arrives while a service runs: items, deletions and events, in the one order that every worker sees.

It is only appended to. A write is acknowledged when it is on the disk, and a reader asks for what came after the
position it knows; whether there is anything new costs it microseconds. SQLite keeps the log for all workers of one
machine, PostgreSQL for several machines (`serving.postgres`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson

from features.errors import DataError
from serving.errors import NotReady

Kind = Literal["item", "deletion", "event"]

MOST_AT_ONCE = 10_000
"""Records that a reader gets in one go."""

_SECONDS_TO_WAIT = 15.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (log_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS log (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    received REAL NOT NULL,
    kind TEXT NOT NULL,
    body BLOB NOT NULL,
    key TEXT UNIQUE
);
"""


@dataclass(frozen=True, slots=True)
class Write:
    """What is to be remembered.

    Attributes:
        kind: `item`: put one, new or in the place of one; `deletion`: of an item; `event`: someone had something.
        body: `item_id`, with `cells` of an item, `user_id` and `time` (Unix seconds) of an event.
        key: A second write with the same key is a repetition of the first and changes nothing. None: it is one of
            its own.
    """

    kind: Kind
    body: dict[str, Any]
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered.

    Attributes:
        position: Its place in the log; later ones are higher.
        received: When it came, in Unix seconds.
        kind: As in `Write`.
        body: As in `Write`.
    """

    position: int
    received: float
    kind: Kind
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of writes.

    Attributes:
        position: The end of the log: whoever has read up to here has read them.
        num_repeated: How many of them were repetitions.
    """

    position: int
    num_repeated: int


class Store(Protocol):
    """A log, safe to use from several threads. A method raises `NotReady` when the log is out of reach."""

    log_id: str
    """Which log this is; a position means something only in its own."""

    def append(self, writes: Sequence[Write]) -> Appended:
        """Remember writes, all or none of them; on return they survive the end of the process and of the machine."""

    def since(self, position: int) -> list[Record]:
        """Return what stands after a position, in order, at most `MOST_AT_ONCE`."""

    def version(self) -> object:
        """Return something that is another value after anything was appended."""

    def close(self) -> None:
        """Let go of the log."""


def rows_of(writes: Sequence[Write]) -> list[tuple[float, Kind, bytes, str | None]]:
    """Return writes as the columns of a log, received now: `received`, `kind`, `body`, `key`."""
    now = time.time()
    return [(now, write.kind, orjson.dumps(write.body), write.key) for write in writes]


def records_of(rows: Iterable[Sequence[Any]]) -> list[Record]:
    """Return what the columns of a log say: `position`, `received`, `kind`, `body`."""
    return [Record(position, received, kind, orjson.loads(body)) for position, received, kind, body in rows]


def open_store(address: str) -> Store:
    """Return the log at an address: a file, `sqlite:///FILE` or `postgresql://…`; it is made if there is none.

    Raises:
        DataError: There can be no log at this address.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return SqliteStore(Path(address))
    match scheme:
        case "sqlite":
            # sqlite:///live.db is a file here, sqlite:////var/live.db one elsewhere, as other tools have it.
            return SqliteStore(Path(rest.removeprefix("/")))
        case "postgresql" | "postgres":
            from serving.postgres import PostgresStore

            return PostgresStore(address)
    raise DataError(f"live = {address!r}: expected a file, sqlite:///FILE or postgresql://USER@HOST/DATABASE")


class SqliteStore:
    """A log in one file, for all workers of a machine.

    Attributes:
        log_id: Which log this is.
    """

    def __init__(self, path: Path) -> None:
        """Open the log, and make it if there is none.

        Raises:
            DataError: The file is something else, or its folder cannot be written to.
        """
        self._path = path
        try:
            self._writer = self._connect()
            # Another connection than the writer's: SQLite tells a connection of other's changes only.
            self._reader = self._connect()
            self.log_id = self._begin()
        except sqlite3.Error as error:
            raise DataError(f"{path}: cannot be used for live writes ({error}); name another file") from None
        self._writing, self._reading = threading.Lock(), threading.Lock()

    def append(self, writes: Sequence[Write]) -> Appended:
        """Remember writes, all or none of them."""
        rows = rows_of(writes)
        with self._writing:
            try:
                return self._append(rows)
            except sqlite3.Error as error:
                raise NotReady(f"the log of live writes cannot be written to ({error})") from None

    def since(self, position: int) -> list[Record]:
        """Return what stands after a position."""
        question = "SELECT position, received, kind, body FROM log WHERE position > ? ORDER BY position LIMIT ?"
        return records_of(self._read(question, (position, MOST_AT_ONCE)))

    def version(self) -> object:
        """Return SQLite's own count of changes, which it keeps in memory that all processes share."""
        return self._read("PRAGMA data_version")[0][0]

    def close(self) -> None:
        """Close the file."""
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()

    def _read(self, question: str, given: Sequence[Any] = ()) -> list[Any]:
        with self._reading:
            try:
                return self._reader.execute(question, given).fetchall()
            except sqlite3.Error as error:
                raise NotReady(f"the log of live writes cannot be read ({error})") from None

    def _append(self, rows: Sequence[tuple[Any, ...]]) -> Appended:
        # One writer at a time: so positions rise in the order in which they become visible.
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            before = self._writer.total_changes
            self._writer.executemany("INSERT OR IGNORE INTO log (received, kind, body, key) VALUES (?, ?, ?, ?)", rows)
            num_new = self._writer.total_changes - before
            position = self._writer.execute("SELECT coalesce(max(position), 0) FROM log").fetchone()[0]
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        return Appended(position, len(rows) - num_new)

    def _connect(self) -> sqlite3.Connection:
        self._path.absolute().parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._path, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: the log is on the disk before a write is acknowledged; by itself WAL would lose the newest to a
        # power cut.
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _begin(self) -> str:
        with closing(self._writer.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                cursor.execute(statement)
            cursor.execute("INSERT INTO about SELECT ? WHERE NOT EXISTS (SELECT 1 FROM about)", (uuid.uuid4().hex,))
            log_id = cursor.execute("SELECT log_id FROM about").fetchone()[0]
            cursor.execute("COMMIT")
        return str(log_id)
