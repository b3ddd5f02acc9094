"""Opens the event log at an address, the setting `live`."""

from __future__ import annotations

from pathlib import Path

from features.errors import DataError
from features.redaction import has_password
from serving.live.log import EventLog
from serving.live.sqlite_log import SqliteLog


def open_log(address: str, *, create: bool = True) -> EventLog:
    """Return the log at an address: a file, `sqlite:///FILE` or `postgresql://...`.

    Args:
        address: The address.
        create: Whether to create the log if there is none. If False, it is opened at the first use, and a missing log
            is an error, so that a lost log is not silently replaced by an empty one.

    Raises:
        DataError: The address is invalid, or the log cannot be created or opened.
    """
    scheme, separator, rest = address.partition("://")
    expected = "expected a file, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    if not separator and has_password(address):
        raise DataError(f"live: {expected}, found a connection string with a password")
    if not separator:
        return SqliteLog(Path(address), create=create)
    match scheme:
        case "sqlite":
            # As in other tools: sqlite:///live.db is relative to the working folder, sqlite:////var/live.db absolute.
            return SqliteLog(Path(rest.removeprefix("/")), create=create)
        case "postgresql" | "postgres":
            from serving.live.postgres_log import PostgresLog

            return PostgresLog(address, create=create)
    raise DataError(f"live: {expected}, found {scheme}://...")
