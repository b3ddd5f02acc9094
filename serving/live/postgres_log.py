"""The log of live writes in PostgreSQL, for services on several machines; `pip install psycopg[binary]` for it.

A position is given out and committed under one lock, so that whoever has read up to a position never finds an earlier
one later. After a loss of the connection the next request opens another.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from features.errors import DataError, needing
from features.redaction import redacted
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

if TYPE_CHECKING:
    from psycopg import Connection

# A request that waits for the database holds a turn, and one that stands still must not hold all of them.
_SECONDS_TO_CONNECT = 2
_SECONDS_TO_READ = 1.0
_SECONDS_TO_WRITE = 2.0
# Any number that others are not likely to choose.
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

_PORTS = re.compile(r"[0-9,]*")

Result = TypeVar("Result")


class PostgresLog:
    """A log in a database; see `serving.live.log.EventLog`.

    Attributes:
        clock: When writes are received.
    """

    def __init__(self, address: str, *, create: bool = True) -> None:
        """Open the log.

        Args:
            address: Of the database.
            create: Whether the tables are made if there are none. If not, they are looked for when they are needed.

        Raises:
            DataError: psycopg is not installed, or the database cannot be used.
        """
        with needing("live writes in PostgreSQL"):
            import psycopg
        self._address = address
        self._password = _password_of(address)
        self._error = psycopg.Error
        self.clock = RisingClock()
        self._writer = _Line(lambda: self._connect(_SECONDS_TO_WRITE))
        self._reader = _Line(lambda: self._connect(_SECONDS_TO_READ))
        if not create:
            return
        try:
            self._writer.do(_make_log)
        except psycopg.Error as error:
            raise DataError(
                f"live: the database cannot be used ({self._said(error)}); see that it runs, and the address"
            ) from None

    def append(self, writes: Sequence[Write]) -> AppendResult:
        """Remember writes, all or none of them."""
        rows = rows_of(writes, self.clock.now())
        return self._try(self._writer, lambda connection: _append(connection, rows, self.clock), "written to")

    def since(self, position: int) -> list[Record]:
        """Return what stands after a position."""
        question = (
            "SELECT position, received, kind, body FROM towers_log WHERE position > %s ORDER BY position LIMIT %s"
        )

        def read(connection: Connection[Any]) -> list[Any]:
            return list(connection.execute(question, (position, MOST_AT_ONCE)).fetchall())

        return records_of(self._try(self._reader, read, "read"))

    def version(self) -> object:
        """Return which log it is, and its end."""
        return self.state()

    def state(self) -> LogState:
        """Return which log it is now, and its end."""
        question = "SELECT (SELECT log_id FROM towers_about), (SELECT coalesce(max(position), 0) FROM towers_log)"
        log_id, end = self._try(self._reader, lambda connection: _one(connection, question), "read")
        if log_id is None:
            raise NotReady("the log of live writes cannot be read", "its tables are empty")
        return LogState(log_id, end)

    def rename(self, log_id: str) -> None:
        """Give the log another id if it still has this one."""
        question = "UPDATE towers_about SET log_id = gen_random_uuid()::text WHERE log_id = %s"
        self._try(self._writer, lambda connection: connection.execute(question, (log_id,)), "written to")

    def close(self) -> None:
        """Close the connections."""
        self._writer.close()
        self._reader.close()

    def _try(self, line: _Line, action: Callable[[Connection[Any]], Result], what: str) -> Result:
        try:
            return line.do(action)
        except self._error as error:
            raise NotReady(f"the log of live writes cannot be {what}", self._said(error)) from None

    def _said(self, error: Exception) -> str:
        """Return a message of the library in one line and without the password."""
        return redacted(" ".join(str(error).split()), self._password)

    def _connect(self, seconds: float) -> Connection[Any]:
        return _impatient(seconds).connect(
            self._address,
            autocommit=True,
            connect_timeout=_SECONDS_TO_CONNECT,
            client_encoding="utf8",
            # Whatever the server's own settings are: acknowledged means on the disk, and nobody waits for ever.
            options=f"-c synchronous_commit=on -c statement_timeout={seconds:g}s",
        )


def _impatient(seconds: float) -> type[Connection[Any]]:
    """Return a class of connections that are closed where the server does not answer in time.

    The server's own `statement_timeout` does not help where the server, or the network, stands still.
    """
    from psycopg import Connection, OperationalError

    def within(steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        ends = time.monotonic() + seconds
        try:
            wanted = next(steps)
            while True:
                ready = yield wanted
                if time.monotonic() > ends:
                    raise OperationalError(f"the database did not answer within {seconds:g} s")
                wanted = steps.send(ready)
        except StopIteration as ended:
            return ended.value

    class Impatient(Connection[Any]):
        def wait(self, gen: Any, *given: Any, **named: Any) -> Any:
            try:
                return super().wait(within(gen), *given, **named)
            except OperationalError:
                self.close()  # or the end of the transaction would be waited for as well
                raise

    return Impatient


class _Line:
    """One connection, for one thread at a time; opened when it is needed, and again after it broke.

    While it is broken one thread at a time tries it, and the others are told at once.
    """

    def __init__(self, connect: Callable[[], Connection[Any]]) -> None:
        self._connect = connect
        self._connection: Connection[Any] | None = None
        self._turn = threading.Lock()
        self._is_closed = self._is_broken = False
        self._num_broken = 0

    def do(self, action: Callable[[Connection[Any]], Result]) -> Result:
        """Return what an action on the connection does."""
        from psycopg import Error, OperationalError

        num_broken = self._num_broken
        if not self._turn.acquire(blocking=not self._is_broken):
            raise OperationalError("the database is out of reach")
        try:
            if self._is_closed:
                raise OperationalError("the log was closed")
            if num_broken != self._num_broken and self._is_broken:
                raise OperationalError("the database is out of reach")
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            found = action(self._connection)
            self._is_broken = False
            return found
        except Error as error:
            # The next one begins anew, perhaps with a server that takes writes where this one was made to take none;
            # whether this one was done nobody knows, so it is not tried again.
            self._is_broken = isinstance(error, OperationalError)
            self._num_broken += self._is_broken
            if self._connection is not None:
                self._connection.close()
            raise
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close it for good."""
        with self._turn:
            self._is_closed = True
            if self._connection is not None:
                self._connection.close()


def _make_log(connection: Connection[Any]) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_SCHEMA)


def _password_of(address: str) -> str | None:
    """Return the password in an address.

    Raises:
        DataError: It is no address, or one of which a part of the password would be taken for something else. What is
            wrong is not quoted, as it may be a part of the password.
    """
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    try:
        found = conninfo_to_dict(address)
    except Error:
        found = {"host": "@"}
    if "@" in str(found.get("host") or "") or not _PORTS.fullmatch(str(found.get("port") or "")):
        raise DataError(
            "live: expected postgresql://USER@HOST:PORT/DATABASE, found what cannot be read as one; in a password "
            "write @ as %40, : as %3A, / as %2F and % as %25, or leave it out and give it by PGPASSWORD or ~/.pgpass"
        )
    password = found.get("password")
    return None if password is None else str(password)


def _append(connection: Connection[Any], rows: Sequence[tuple[Any, ...]], clock: RisingClock) -> AppendResult:
    question = "INSERT INTO towers_log (received, kind, body, key) VALUES (%s, %s, %s, %s) ON CONFLICT (key) DO NOTHING"
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        last = connection.execute("SELECT received FROM towers_log ORDER BY position DESC LIMIT 1").fetchone()
        rows = not_before(rows, None if last is None else last[0], clock)
        with connection.cursor() as cursor:
            cursor.executemany(question, rows)
            num_new = cursor.rowcount
        (position,) = _one(connection, "SELECT coalesce(max(position), 0) FROM towers_log")
    return AppendResult(position, len(rows) - num_new)


def _one(connection: Connection[Any], question: str) -> tuple[Any, ...]:
    found = connection.execute(question.encode()).fetchone()
    assert found is not None, "what has no table has one row"
    return tuple(found)
