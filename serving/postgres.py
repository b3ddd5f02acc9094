"""Connections to PostgreSQL that do not wait longer than they may, and messages without the password."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from features.errors import DataError
from features.redaction import redacted

if TYPE_CHECKING:
    from psycopg import Connection

# Why a response is not waited for any longer, from the seconds it was waited for; None: it is.
_Limit = Callable[[float], "str | None"]
_PORTS = re.compile(r"[0-9,]*")


def connection_with_timeout(seconds: float) -> type[Connection[Any]]:
    """Return a class of connections that are closed if the server does not respond in time.

    The server's own `statement_timeout` has no effect if the server or the network hangs.
    """

    def over(waited: float) -> str | None:
        return f"the database did not respond within {seconds:g} s" if waited > seconds else None

    return _connection_that_ends(lambda: over)


def connection_while_alive(seconds: float, is_alive: Callable[[], bool]) -> type[Connection[Any]]:
    """Return a class of connections whose statements may take hours, as long as the server is alive.

    Args:
        seconds: After how many seconds without a response, and how often, `is_alive` is called.
        is_alive: Whether the server responds to another connection. If it does not, this one is closed.
    """

    def new_limit() -> _Limit:
        due = seconds

        def over(waited: float) -> str | None:
            nonlocal due
            if waited < due:
                return None
            if not is_alive():
                return f"the database did not respond within {waited:.0f} s, and takes no other connections"
            due = waited + seconds
            return None

        return over

    return _connection_that_ends(new_limit)


def _connection_that_ends(new_limit: Callable[[], _Limit]) -> type[Connection[Any]]:
    """Return a class of connections, each response of which is waited for until a new limit says why it is not."""
    from psycopg import Connection, OperationalError

    def within(steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        began, over = time.monotonic(), new_limit()
        try:
            awaited = next(steps)
            while True:
                ready = yield awaited
                why = over(time.monotonic() - began)
                if why is not None:
                    raise OperationalError(why)
                awaited = steps.send(ready)
        except StopIteration as ended:
            return ended.value

    class ConnectionThatEnds(Connection[Any]):
        def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
            try:
                return super().wait(within(gen), *arguments, **options)
            except OperationalError:
                self.close()  # else the rollback would wait for the server, too
                raise

    return ConnectionThatEnds


def password_of(address: str, setting: str) -> str | None:
    """Return the password in an address.

    Args:
        address: URL of a database.
        setting: The setting that has it, for messages.

    Raises:
        DataError: The address is invalid, or ambiguous because of special characters in the password. The message does
            not quote it, as it may contain the password.
    """
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    try:
        found = conninfo_to_dict(address)
    except Error:
        found = {"host": "@"}
    if "@" in str(found.get("host") or "") or not _PORTS.fullmatch(str(found.get("port") or "")):
        raise DataError(
            f"{setting}: expected postgresql://USER@HOST:PORT/DATABASE, found an invalid address; in a password write "
            "@ as %40, : as %3A, / as %2F and % as %25, or set the password in PGPASSWORD or ~/.pgpass instead"
        )
    password = found.get("password")
    return None if password is None else str(password)


def one_line(error: Exception, password: str | None) -> str:
    """Return the library's message in one line and without the password."""
    return redacted(" ".join(str(error).split()), password)
