"""The log of what arrives while a service runs: items, deletions and events, in the one order that every worker sees.

It is only appended to. A write is acknowledged when it is on the disk, and a reader asks for what came after the
position it knows; whether there is anything new costs it microseconds. SQLite keeps the log for all workers of one
machine, PostgreSQL for several machines (`serving.live.postgres_log`).

A log can be lost, damaged, or replaced by another while it is used. Then nothing is written or read until there is one
again, and whoever reads learns from `Store.state` that it is not what it was.
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
)

Result = TypeVar("Result")


_SECONDS_TO_WAIT = 15.0
# A reader answers requests: it goes on with what is known rather than wait for a file that is locked.
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
    """A log in one file, for all workers of a machine.

    Attributes:
        clock: When writes are received.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the log.

        Args:
            path: The file.
            create: Whether it is made if there is none. If not, it is opened when it is asked for.

        Raises:
            DataError: The file is something else, or its folder cannot be written to.
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
        """Remember writes, all or none of them."""

        def append(opened: _Opened) -> AppendResult:
            # Otherwise one after the other would wait for a file that another process keeps.
            if not opened.writing.acquire(timeout=_SECONDS_TO_WAIT):
                raise sqlite3.OperationalError("others have been writing for too long")
            try:
                done = _append(opened.writer, rows_of(writes, self.clock.now()), self.clock)
            finally:
                opened.writing.release()
            _check_kept(self._path, opened.log_id, done.position)
            return done

        return self._do(append, "written to")

    def since(self, position: int) -> list[Record]:
        """Return what stands after a position."""
        question = "SELECT position, received, kind, body FROM log WHERE position > ? ORDER BY position LIMIT ?"
        return records_of(self._do(lambda opened: opened.read(question, (position, MOST_AT_ONCE))))

    def version(self) -> object:
        """Return SQLite's own count of changes, which it keeps in memory that all processes share, of which opening."""
        return self._do(lambda opened: (opened.number, opened.read("PRAGMA data_version")[0][0]))

    def state(self) -> LogState:
        """Return which log it is now, and its end."""
        question = "SELECT (SELECT log_id FROM about), (SELECT max(position) FROM log)"
        number, ((log_id, end),) = self._do(lambda opened: (opened.number, opened.read(question)))
        return LogState(str(log_id), end or 0, number)

    def rename(self, log_id: str) -> None:
        """Give the log another id if it still has this one."""

        def rename(opened: _Opened) -> None:
            with opened.writing:
                opened.writer.execute("UPDATE about SET log_id = ? WHERE log_id = ?", (uuid.uuid4().hex, log_id))
            self._let_go(opened)

        self._do(rename, "written to")

    def close(self) -> None:
        """Close the file."""
        with self._opening:
            self._is_closed = True
            self._opened = None

    def _do(self, action: Callable[[_Opened], Result], what: str = "read") -> Result:
        """Return what an action on the file does that the path names now; after an error it is opened again."""
        opened = None
        try:
            opened = self._file()
            return action(opened)
        except (sqlite3.Error, OSError) as error:
            if opened is not None and not _is_passing(error):
                self._let_go(opened)
            raise NotReady(f"the log of live writes cannot be {what}", _said(error)) from None

    def _file(self) -> _Opened:
        opened = self._opened
        if opened is not None and opened.is_current():
            return opened
        with self._opening:
            if self._is_closed:
                raise sqlite3.ProgrammingError("it was closed")
            if self._opened is None or not self._opened.is_current():
                self._num_opened += 1
                self._opened = None
                self._opened = _Opened(self._path, self._num_opened)
            return self._opened

    def _let_go(self, opened: _Opened) -> None:
        with self._opening:
            if self._opened is opened:
                self._opened = None


class _Opened:
    """A file with a log in it, opened; it may no longer be the one that its path names.

    It is closed when nobody uses it any more.

    Attributes:
        number: How many files were opened until then.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        self._name = str(path)
        self._identity = _identity(self._name)
        self.writer = _connect(path, _SECONDS_TO_WAIT)
        # Another connection than the writer's: SQLite tells a connection of other's changes only.
        self._reader = _connect(path, _SECONDS_TO_READ)
        self.writing, self._reading = threading.Lock(), threading.Lock()
        found = self.read("SELECT (SELECT log_id FROM about), (SELECT max(position) FROM log)")[0]
        if not isinstance(found[0], str):
            raise sqlite3.DatabaseError("the file has no log in it")
        self.log_id = found[0]

    def read(self, question: str, given: Sequence[Any] = ()) -> list[Any]:
        """Return what the log answers to a question."""
        with self._reading:
            return self._reader.execute(question, given).fetchall()

    def is_current(self) -> bool:
        """Return whether its path still names this file."""
        return _identity(self._name) == self._identity


def _identity(path: str) -> tuple[int, int]:
    """Return what tells the file that a path names from any other.

    Raises:
        OSError: There is no such file, or it is none.
    """
    found = os.stat(path)  # noqa: PTH116 (asked with every request)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is not a plain file")
    return found.st_dev, found.st_ino


def _connect(path: Path, seconds: float) -> sqlite3.Connection:
    """Return a connection to a file that is there."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", timeout=seconds, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: the log is on the disk before a write is acknowledged; by itself WAL would lose the newest to a
        # power cut.
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_log(path: Path) -> None:
    """Make a log where there is none."""
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


def _append(writer: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], clock: RisingClock) -> AppendResult:
    # One writer at a time: so positions rise in the order in which they become visible.
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
    """Make sure that what was written is in the file that the path names, as whoever opens it next finds it.

    A file that was removed or replaced takes writes as before, and so does one whose content was overwritten and is
    still known to the connection.
    """
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=_SECONDS_TO_WAIT, uri=True)) as fresh:
        found = fresh.execute(
            "SELECT (SELECT log_id FROM about), (SELECT 1 FROM log WHERE position = ?)", (position,)
        ).fetchone()
    if found != (log_id, 1 if position else None):
        raise sqlite3.DatabaseError("the file is another than was written to")


def _is_passing(error: Exception) -> bool:
    """Return whether an error says nothing about the file: another keeps it, or the disk is full."""
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
    )


def _said(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is gone; put it back, or restart the service to begin another"
    return " ".join(str(error).split())
