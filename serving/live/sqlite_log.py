"""The log of live writes in a SQLite file, for all workers of one machine (several: `serving.live.postgres_log`).

Records are only appended. A write is acknowledged once it is on disk; a reader requests the records after the position
that it knows, and checks in microseconds whether there are any.

The file can be lost, damaged or replaced while the service runs. Then reads and writes fail until there is a log again,
and readers see from `EventLog.state` that it is another one.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from features.errors import DataError
from serving.errors import NotReady
from serving.live.log import (
    MOST_AT_ONCE,
    AppendResult,
    LogState,
    Record,
    RisingClock,
    Write,
    not_before,
    records_of,
    rows_of,
    unreadable,
)

Result = TypeVar("Result")

_SECONDS_TO_WAIT = 15.0
# Short, as reads happen within requests: rather than wait for a locked file, the last state is used.
_SECONDS_TO_READ = 0.1
_log = logging.getLogger(__name__)
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


class SqliteLog:
    """A log in one file, for all workers of a machine; see `EventLog`.

    Attributes:
        clock: Gives writes their time of arrival.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the log.

        Args:
            path: The file.
            create: Whether to create the file if there is none. If False, it is opened at the first use.

        Raises:
            DataError: The file is not such a log, or its folder is not writable.
        """
        self._path = path.absolute()
        self.clock = RisingClock()
        self._opened: _Opened | None = None
        self._num_opened = 0
        self._is_closed = False
        self._opening = threading.Lock()
        if not create:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _make_log(self._path)
            self._file()
        except (sqlite3.Error, OSError, NotReady) as error:
            raise DataError(f"{path}: cannot be used for live writes ({error}); name another file") from None

    def append(self, writes: Sequence[Write]) -> AppendResult:
        """Append writes, all or none."""

        def append(opened: _Opened) -> AppendResult:
            # With a timeout, or each thread in turn would wait for a file that another process locks.
            if not opened.writing.acquire(timeout=_SECONDS_TO_WAIT):
                raise sqlite3.OperationalError(f"other writes have blocked the file for {_SECONDS_TO_WAIT:g} s")
            try:
                done = _append(opened.writer, rows_of(writes, self.clock.now()), self.clock)
            finally:
                opened.writing.release()
            _check_kept(self._path, opened.log_id, done.position)
            return done

        return self._do(append, "written to")

    def read_after(self, position: int) -> list[Record]:
        """Return the records after a position; those on a damaged page of the file are of the kind "unreadable"."""
        return self._do(lambda opened: _records_after(opened, position))

    def change_token(self) -> object:
        """Return the number of the opening and SQLite's own count of changes, which is in shared memory."""
        return self._do(lambda opened: (opened.number, opened.read("PRAGMA data_version")[0][0]))

    def state(self) -> LogState:
        """Return the identity and the length of the log."""
        query = "SELECT (SELECT log_id FROM about), (SELECT max(position) FROM log)"
        number, ((log_id, end),) = self._do(lambda opened: (opened.number, opened.read(query)))
        return LogState(str(log_id), end or 0, number)

    def rename(self, log_id: str) -> None:
        """Give the log a new id if it has this one."""

        def rename(opened: _Opened) -> None:
            with opened.writing:
                opened.writer.execute("UPDATE about SET log_id = ? WHERE log_id = ?", (uuid.uuid4().hex, log_id))
            self._forget(opened)

        self._do(rename, "written to")

    def close(self) -> None:
        """Close the file."""
        with self._opening:
            self._is_closed = True
            self._opened = None

    def _do(self, action: Callable[[_Opened], Result], what: str = "read") -> Result:
        """Return the result of an action on the file that the path names now; after an error it is opened again."""
        opened = None
        try:
            opened = self._file()
            return action(opened)
        except (sqlite3.Error, OSError) as error:
            if opened is not None and not _is_passing(error):
                self._forget(opened)
            raise NotReady(f"the log of live writes cannot be {what}", _one_line(error)) from None

    def _file(self) -> _Opened:
        opened = self._opened
        if opened is not None and opened.is_current():
            return opened
        with self._opening:
            if self._is_closed:
                raise sqlite3.ProgrammingError("the log was closed")
            if self._opened is None or not self._opened.is_current():
                self._num_opened += 1
                self._opened = None
                self._opened = _Opened(self._path, self._num_opened)
            return self._opened

    def _forget(self, opened: _Opened) -> None:
        with self._opening:
            if self._opened is opened:
                self._opened = None


class _Opened:
    """An open file with a log; it may no longer be the one that its path names.

    It is closed once no thread uses it any more.

    Attributes:
        number: Number of the opening, from 1.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        self._name = str(path)
        self._identity = _identity(self._name)
        self.writer = _connect(path, _SECONDS_TO_WAIT)
        # Separate from the writer's: `PRAGMA data_version` counts only the changes of other connections.
        self._reader = _connect(path, _SECONDS_TO_READ)
        # A damaged text must not raise an error, which would keep all others of the query from being read.
        self._reader.text_factory = partial(str, encoding="utf-8", errors="replace")
        self.writing, self._reading = threading.Lock(), threading.Lock()
        found = self.read("SELECT (SELECT log_id FROM about), (SELECT max(position) FROM log)")[0]
        if not isinstance(found[0], str):
            raise sqlite3.DatabaseError("the file contains no log of live writes")
        self.log_id = found[0]

    def read(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        with self._reading:
            return self._reader.execute(query, parameters).fetchall()

    def is_current(self) -> bool:
        """Return whether the path still names this file."""
        return _identity(self._name) == self._identity


def _identity(path: str) -> tuple[int, int]:
    """Return the device and inode of a file.

    Raises:
        OSError: There is no such file, or it is not a regular file.
    """
    found = os.stat(path)  # noqa: PTH116 (called for every request)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is not a regular file")
    return found.st_dev, found.st_ino


def _connect(path: Path, seconds: float) -> sqlite3.Connection:
    """Return a connection to an existing file; `seconds` is how long it waits for locks."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", timeout=seconds, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a write is on disk before it is acknowledged; with WAL alone a power failure could lose the newest.
        connection.execute("PRAGMA synchronous = FULL")
        # Damaged pages are noticed when they are read, before what is on them is believed.
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_log(path: Path) -> None:
    """Create the file and its tables if they do not exist."""
    if path.exists():
        _identity(str(path))
    else:
        path.touch()
    with closing(_connect(path, _SECONDS_TO_WAIT)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO about SELECT ? WHERE NOT EXISTS (SELECT 1 FROM about)", (uuid.uuid4().hex,))
        connection.execute("COMMIT")


def _records_after(opened: _Opened, position: int) -> list[Record]:
    """Return at most `MOST_AT_ONCE` records after a position, past damaged pages."""
    query = "SELECT position, received, kind, body FROM log WHERE position > ? ORDER BY position LIMIT ?"
    try:
        rows = opened.read(query, (position, MOST_AT_ONCE))
        positions = [position, *(row[0] for row in rows)]
        if all(before < after for before, after in pairwise(positions)):
            return records_of(rows)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
    # One page or more is damaged: without it, the others are still found by the positions that they contain.
    [(end,)] = opened.read("SELECT max(position) FROM log")
    window = range(position + 1, min(position + MOST_AT_ONCE, end or 0) + 1)
    return [_record_at(opened, one) for one in window]


def _record_at(opened: _Opened, position: int) -> Record:
    query = "SELECT position, received, kind, body FROM log WHERE position = ?"
    try:
        rows = opened.read(query, (position,))
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        rows = []
    if rows:
        return records_of(rows)[0]
    return unreadable(position, "its page of the file is damaged")


def _append(writer: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], clock: RisingClock) -> AppendResult:
    # One writer at a time, so that records become visible in the order of their positions.
    writer.execute("BEGIN IMMEDIATE")
    try:
        last = writer.execute("SELECT received FROM log ORDER BY position DESC LIMIT 1").fetchone()
        rows = not_before(rows, None if last is None else last[0], clock)
        before = writer.total_changes
        writer.executemany("INSERT OR IGNORE INTO log (received, kind, body, key) VALUES (?, ?, ?, ?)", rows)
        num_new = writer.total_changes - before
        position = writer.execute("SELECT coalesce(max(position), 0) FROM log").fetchone()[0]
        writer.execute("COMMIT")
    except BaseException:
        if writer.in_transaction:
            writer.execute("ROLLBACK")
        raise
    return AppendResult(position, len(rows) - num_new)


def _check_kept(path: Path, log_id: str, position: int) -> None:
    """Check with a new connection that a write is in the file that the path names.

    Writes to a file that was removed, replaced or overwritten meanwhile succeed as well, but would be lost.
    """
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=_SECONDS_TO_WAIT, uri=True)) as fresh:
        found = fresh.execute(
            "SELECT (SELECT log_id FROM about), (SELECT 1 FROM log WHERE position = ?)", (position,)
        ).fetchone()
    if found != (log_id, 1 if position else None):
        raise sqlite3.DatabaseError("the file was replaced during the write")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT


def _is_passing(error: Exception) -> bool:
    """Return whether an error is temporary and the file intact: it is locked, or the disk is full."""
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is missing; restore it, or restart the service to create a new one"
    return " ".join(str(error).split())
