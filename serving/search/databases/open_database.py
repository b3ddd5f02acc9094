"""Opens the vector database at an address, the setting `index`."""

from __future__ import annotations

from functools import lru_cache

from features.errors import DataError
from serving.search.databases.database import VectorDatabase
from serving.search.databases.settings import DatabaseSettings


@lru_cache(maxsize=8)  # the searchers of a process share its connections
def open_database(settings: DatabaseSettings) -> VectorDatabase:
    """Return the database at an address; it is asked at its first use.

    Raises:
        DataError: The address is invalid, or a library is not installed.
    """
    scheme = settings.address.partition("://")[0] if "://" in settings.address else ""
    match scheme:
        case "postgresql" | "postgres":
            from serving.search.databases.pgvector import PgVector

            return PgVector(settings.address, settings.timeout_seconds)
    raise DataError(f"index: expected postgresql://USER@HOST/DATABASE?table=NAME, found {_shown(scheme)}")


def _shown(scheme: str) -> str:
    return f"{scheme}://..." if scheme else "no address of this kind"
