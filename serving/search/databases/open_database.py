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
    scheme, _, rest = settings.address.partition("://")
    match scheme:
        case "postgresql" | "postgres" if rest:
            from serving.search.databases.pgvector import PgVector

            return PgVector(settings.address, settings.timeout_seconds)
        case "qdrant" if rest.startswith("/"):
            from serving.search.databases.qdrant_engine import QdrantEngine

            return QdrantEngine(settings.address)
        case "qdrant" if rest:
            from serving.search.databases.qdrant_server import QdrantServer

            return QdrantServer(settings.address, settings.key, settings.timeout_seconds)
    expected = "postgresql://USER@HOST/DATABASE?table=NAME or qdrant://HOST:PORT?collection=NAME"
    raise DataError(f"index: expected {expected}, found {f'{scheme}://...' if rest else 'no address'}")
