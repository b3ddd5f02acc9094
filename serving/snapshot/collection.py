"""The collection of an index in a vector database: what its seal must say."""

from __future__ import annotations

from features.errors import UnavailableError
from serving.search.databases.database import Seal, check_complete, checked_seal, collection_of
from serving.search.databases.open_database import open_database
from serving.search.databases.settings import DatabaseSettings
from serving.snapshot.manifest import IndexManifest


def seal_of(manifest: IndexManifest) -> Seal:
    """Return what the seal of an index's collection says of its origin."""
    return Seal(
        model=manifest.model,
        weights_digest=manifest.weights_digest,
        catalog_digest=manifest.catalog_digest,
        index=manifest.identity,
        num_items=manifest.num_items,
        width=manifest.width,
        created=manifest.created,
    )


def check_collection(settings: DatabaseSettings, manifest: IndexManifest) -> None:
    """Check that the database has the collection of an index, and all of its items.

    One that does not answer is no error if another index does.

    Raises:
        DataError: There is no such collection, it belongs to another bundle or index, or lost items.
        UnavailableError: The database does not answer, and the operator wants no other answer.
    """
    database, wanted = open_database(settings), seal_of(manifest)
    collection = collection_of(database, wanted)
    try:
        check_complete(database, collection, checked_seal(database, collection, wanted))
    except UnavailableError:
        if settings.fallback == "none":
            raise
    finally:
        database.close()
