"""The log of what arrives while a service runs: items, deletions and events, in the one order that every worker sees.

It is only appended to. A write is acknowledged when it is on the disk, and a reader asks for what came after the
position it knows; whether there is anything new costs it microseconds. SQLite keeps the log for all workers of one
machine, PostgreSQL for several machines (`serving.postgres`).

A log can be lost, damaged, or replaced by another while it is used. Then nothing is written or read until there is one
again, and whoever reads learns from `Store.state` that it is not what it was.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import orjson

from features.errors import DataError
from features.redaction import has_password
from features.schema import ITEM_ID, USER_ID
from serving.errors import NotReady

Kind = Literal["item", "deletion", "event"]
Result = TypeVar("Result")

MOST_AT_ONCE = 10_000
"""Records that a reader gets in one go."""

_SECONDS_TO_WAIT = 15.0
# A reader answers requests: it goes on with what is known rather than wait for a file that is locked.
_SECONDS_TO_READ = 0.1
# Between two numbers of a double that counts seconds since 1970 lies less.
_A_MOMENT = 1e-5
_MOST_SECONDS = 2**53
_ID: tuple[type, ...] = (str, int)
_KINDS = ("item", "deletion", "event")
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


@dataclass(frozen=True, slots=True)
class Write:
    """What is to be remembered.

    Attributes:
        kind: `item`: put one, new or in the place of one; `deletion`: of an item; `event`: someone had something.
        body: `item_id`, with `cells` and perhaps the `vector` of an item (`serving.live.vector_to_json`), `user_id` and
            `time` (Unix seconds) of an event.
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
        kind: As in `Write`; `unreadable` where something else stands in the log.
        body: As in `Write`; of what is unreadable `reason`.
    """

    position: int
    received: float
    kind: Kind | Literal["unreadable"]
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


@dataclass(frozen=True, slots=True)
class State:
    """What a log is at a moment.

    Attributes:
        log_id: Which log it is; a position means something only in its own.
        end: The last position; 0 where nothing was written yet.
        opening: Another value after it was lost and found again: what stood at a position then, another may now.
    """

    log_id: str
    end: int
    opening: object = None


class RisingClock:
    """Unix seconds that never fall, though the clock of the machine may be set back; safe to use from threads.

    What came later must not look older than what was there before: an index holds what was received until a moment, and
    a write that seems to be from before it would be taken for one that is in the index.
    """

    def __init__(self) -> None:
        self._latest = 0.0
        self._turn = threading.Lock()

    def now(self) -> float:
        """Return the time."""
        with self._turn:
            self._latest = max(self._latest, time.time())
            return self._latest

    def pass_over(self, moment: float) -> None:
        """Let the time be later than a moment from now on."""
        with self._turn:
            self._latest = max(self._latest, moment + _A_MOMENT)


class Store(Protocol):
    """A log, safe to use from several threads. A method raises `NotReady` when the log is out of reach."""

    clock: RisingClock
    """When writes are received."""

    def append(self, writes: Sequence[Write]) -> Appended:
        """Remember writes, all or none of them; on return they survive the end of the process and of the machine."""

    def since(self, position: int) -> list[Record]:
        """Return what stands after a position, in order, at most `MOST_AT_ONCE`."""

    def version(self) -> object:
        """Return something that is another value after anything was appended, or the log became another."""

    def state(self) -> State:
        """Return which log it is now, and its end."""

    def rename(self, log_id: str) -> None:
        """Give the log another id if it still has this one: it goes on otherwise than the log of this id did."""

    def close(self) -> None:
        """Let go of the log."""


def rows_of(writes: Sequence[Write], now: float) -> list[tuple[float, Kind, bytes, str | None]]:
    """Return writes as the columns of a log: `received`, `kind`, `body`, `key`."""
    return [(now, write.kind, orjson.dumps(write.body), write.key) for write in writes]


def records_of(rows: Iterable[Sequence[Any]]) -> list[Record]:
    """Return what the columns of a log say: `position`, `received`, `kind`, `body`."""
    return [_record(*row) for row in rows]


def readable(records: Iterable[Record]) -> list[Record]:
    """Return the records that say what their kind has to say; the others are left out, each with a line in the log."""
    found = []
    for record in records:
        reason = _fault(record)
        if reason is None:
            found.append(record)
        else:
            _log.error("record %s of the log of live writes is left out: %s", record.position, reason)
    return found


def _record(position: int, received: object, kind: Any, content: Any) -> Record:
    try:
        body = orjson.loads(content)
    except (orjson.JSONDecodeError, TypeError):
        body = None
    reason = None
    if kind not in _KINDS:
        reason = f"expected a kind of {', '.join(_KINDS)}, found {kind!r:.40}"
    elif not isinstance(received, float | int):
        reason = f"received: expected Unix seconds, found {received!r:.40}"
    elif not isinstance(body, dict):
        reason = "its body is no JSON object"
    if reason is None:
        return Record(position, float(received), kind, body)  # type: ignore[arg-type]
    return Record(position, 0.0, "unreadable", {"reason": reason})


def _fault(record: Record) -> str | None:
    """Return what is wrong with a record; None if nothing is."""
    body = record.body
    if record.kind == "unreadable":
        return str(body["reason"])
    needed = {ITEM_ID: _ID}
    if record.kind == "item":
        needed["cells"] = (dict,)
    elif record.kind == "event":
        needed |= {USER_ID: _ID, "time": (int,)}
    for name, kinds in needed.items():
        if type(body.get(name)) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            return f"{name}: expected {expected}, found {body.get(name)!r:.40}"
    if abs(body.get("time", 0)) > _MOST_SECONDS:
        return f"time: expected Unix seconds, found {body['time']}"
    return None


def open_store(address: str, *, create: bool = True) -> Store:
    """Return the log at an address: a file, `sqlite:///FILE` or `postgresql://...`.

    Args:
        address: The address.
        create: Whether the log is made if there is none. If not, nothing is opened before it is asked for, and a log
            that is lost is not mistaken for one that is new.

    Raises:
        DataError: There can be no log at this address.
    """
    scheme, separator, rest = address.partition("://")
    expected = "expected a file, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    if not separator and has_password(address):
        raise DataError(f"live: {expected}, found a list of settings with a password in it")
    if not separator:
        return SqliteStore(Path(address), create=create)
    match scheme:
        case "sqlite":
            # sqlite:///live.db is a file here, sqlite:////var/live.db one elsewhere, as other tools have it.
            return SqliteStore(Path(rest.removeprefix("/")), create=create)
        case "postgresql" | "postgres":
            from serving.postgres import PostgresStore

            return PostgresStore(address, create=create)
    raise DataError(f"live: {expected}, found {scheme}://...")


class SqliteStore:
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

    def append(self, writes: Sequence[Write]) -> Appended:
        """Remember writes, all or none of them."""

        def append(opened: _Opened) -> Appended:
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

    def state(self) -> State:
        """Return which log it is now, and its end."""
        question = "SELECT (SELECT log_id FROM about), (SELECT max(position) FROM log)"
        number, ((log_id, end),) = self._do(lambda opened: (opened.number, opened.read(question)))
        return State(str(log_id), end or 0, number)

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


def _append(writer: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], clock: RisingClock) -> Appended:
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
    return Appended(position, len(rows) - num_new)


def not_before(rows: Sequence[tuple[Any, ...]], last: Any, clock: RisingClock) -> Sequence[tuple[Any, ...]]:
    """Return the rows of a log received no earlier than its last one, as another machine's clock may be behind."""
    if not isinstance(last, float | int) or not rows or last <= rows[0][0]:
        return rows
    clock.pass_over(last)
    return [(last, *row[1:]) for row in rows]


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
