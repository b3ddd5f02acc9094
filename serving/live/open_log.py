"""The log at an address."""

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
        return SqliteLog(Path(address), create=create)
    match scheme:
        case "sqlite":
            # sqlite:///live.db is a file here, sqlite:////var/live.db one elsewhere, as other tools have it.
            return SqliteLog(Path(rest.removeprefix("/")), create=create)
        case "postgresql" | "postgres":
            from serving.live.postgres_log import PostgresLog

            return PostgresLog(address, create=create)
    raise DataError(f"live: {expected}, found {scheme}://...")
