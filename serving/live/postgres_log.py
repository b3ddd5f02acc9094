"""The log of live writes in PostgreSQL, for services on several machines; requires `pip install psycopg[binary]`.

Positions are assigned and committed under one lock, so that records become visible in the order of their positions.
After the connection is lost, the next request opens a new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from features.errors import DataError, needing
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
from serving.postgres import connection_with_timeout, one_line, password_of

if TYPE_CHECKING:
    from psycopg import Connection

# Short, as a request that waits for the database counts against the concurrency limit.
_SECONDS_TO_CONNECT = 2
_SECONDS_TO_READ = 1.0
_SECONDS_TO_WRITE = 2.0
# The key of the advisory lock; an arbitrary number that other applications are unlikely to use.
_LOCK = 0x746F7765
_SCHEMA = """
CREATE TABLE IF NOT EXISTS towers_about (log_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS towers_log (
    position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received DOUBLE PRECISION NOT NULL,
    kind TEXT NOT NULL,
    body BYTEA NOT NULL,
    key TEXT UNIQUE
);
INSERT INTO towers_about SELECT gen_random_uuid()::text WHERE NOT EXISTS (SELECT 1 FROM towers_about);
"""

Result = TypeVar("Result")


class PostgresLog:
    """A log in a database; see `serving.live.log.EventLog`.

    Attributes:
        clock: Gives writes their time of arrival.
    """

    def __init__(self, address: str, *, create: bool = True) -> None:
        """Open the log.

        Args:
            address: URL of the database.
            create: Whether to create the tables if there are none. If False, the database is opened at the first use.

        Raises:
            DataError: psycopg is not installed, or the database cannot be used.
        """
        with needing("live writes in PostgreSQL"):
            import psycopg
        self._address = address
        self._password = password_of(address, "live")
        self._error = psycopg.Error
        self.clock = RisingClock()
        self._writer = _Client(lambda: self._connect(_SECONDS_TO_WRITE))
        self._reader = _Client(lambda: self._connect(_SECONDS_TO_READ))
        if not create:
            return
        try:
            self._writer.do(_make_log)
        except psycopg.Error as error:
            raise DataError(
                f"live: the database cannot be used ({self._one_line(error)}); check that it runs, and the address"
            ) from None

    def append(self, writes: Sequence[Write]) -> AppendResult:
        """Append writes, all or none."""
        rows = rows_of(writes, self.clock.now())
        return self._try(self._writer, lambda connection: _append(connection, rows, self.clock), "written to")

    def read_after(self, position: int) -> list[Record]:
        """Return the records after a position."""
        query = "SELECT position, received, kind, body FROM towers_log WHERE position > %s ORDER BY position LIMIT %s"

        def read(connection: Connection[Any]) -> list[Any]:
            return list(connection.execute(query, (position, MOST_AT_ONCE)).fetchall())

        return records_of(self._try(self._reader, read, "read"))

    def change_token(self) -> object:
        """Return the identity and the length of the log."""
        return self.state()

    def state(self) -> LogState:
        """Return the identity and the length of the log."""
        query = "SELECT (SELECT log_id FROM towers_about), (SELECT coalesce(max(position), 0) FROM towers_log)"
        log_id, end = self._try(self._reader, lambda connection: _one(connection, query), "read")
        if log_id is None:
            raise NotReady("the log of live writes cannot be read", "its tables are empty")
        return LogState(log_id, end)

    def rename(self, log_id: str) -> None:
        """Give the log a new id if it has this one."""
        query = "UPDATE towers_about SET log_id = gen_random_uuid()::text WHERE log_id = %s"
        self._try(self._writer, lambda connection: connection.execute(query, (log_id,)), "written to")

    def close(self) -> None:
        """Close the connections."""
        self._writer.close()
        self._reader.close()

    def _try(self, client: _Client, action: Callable[[Connection[Any]], Result], what: str) -> Result:
        try:
            return client.do(action)
        except self._error as error:
            raise NotReady(f"the log of live writes cannot be {what}", self._one_line(error)) from None

    def _one_line(self, error: Exception) -> str:
        """Return the library's message in one line and without the password."""
        return one_line(error, self._password)

    def _connect(self, seconds: float) -> Connection[Any]:
        return connection_with_timeout(seconds).connect(
            self._address,
            autocommit=True,
            connect_timeout=_SECONDS_TO_CONNECT,
            client_encoding="utf8",
            # Overrides the server's own settings: commits must be on disk, and statements need a timeout.
            options=f"-c synchronous_commit=on -c statement_timeout={seconds:g}s",
        )


class _Client:
    """One connection, for one thread at a time; opened at the first use, and again after it broke.

    While it is broken, one thread at a time tries to open it, and the others get an error at once.
    """

    # psycopg_pool has no such state: with a locked table, 4 threads got 6 errors a second, here 110; its `max_waiting`
    # also refuses writes that a working database would have taken soon, and a read takes 9 to 20 microseconds more.

    def __init__(self, connect: Callable[[], Connection[Any]]) -> None:
        self._connect = connect
        self._connection: Connection[Any] | None = None
        self._lock = threading.Lock()
        self._is_closed = self._is_broken = False
        self._num_broken = 0

    def do(self, action: Callable[[Connection[Any]], Result]) -> Result:
        """Return the result of an action on the connection."""
        from psycopg import Error, OperationalError

        num_broken = self._num_broken
        if not self._lock.acquire(blocking=not self._is_broken):
            raise OperationalError("the database does not respond")
        try:
            if self._is_closed:
                raise OperationalError("the log was closed")
            if num_broken != self._num_broken and self._is_broken:
                raise OperationalError("the database does not respond")
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            found = action(self._connection)
            self._is_broken = False
            return found
        except Error as error:
            # The next action opens a new connection, perhaps to a server that accepts writes where this one is
            # read-only. The failed action is not repeated: it is unknown whether it took effect.
            self._is_broken = isinstance(error, OperationalError)
            self._num_broken += self._is_broken
            if self._connection is not None:
                self._connection.close()
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; it is not opened again."""
        with self._lock:
            self._is_closed = True
            if self._connection is not None:
                self._connection.close()


def _make_log(connection: Connection[Any]) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_SCHEMA)


def _append(connection: Connection[Any], rows: Sequence[tuple[Any, ...]], clock: RisingClock) -> AppendResult:
    statement = (
        "INSERT INTO towers_log (received, kind, body, key) VALUES (%s, %s, %s, %s) ON CONFLICT (key) DO NOTHING"
    )
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        last = connection.execute("SELECT received FROM towers_log ORDER BY position DESC LIMIT 1").fetchone()
        rows = not_before(rows, None if last is None else last[0], clock)
        with connection.cursor() as cursor:
            cursor.executemany(statement, rows)
            num_new = cursor.rowcount
        (position,) = _one(connection, "SELECT coalesce(max(position), 0) FROM towers_log")
    return AppendResult(position, len(rows) - num_new)


def _one(connection: Connection[Any], query: str) -> tuple[Any, ...]:
    found = connection.execute(query.encode()).fetchone()
    assert found is not None, "a SELECT without FROM has one row"
    return tuple(found)
