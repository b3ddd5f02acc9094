"""All data that a request is answered from, immutable: of an index as it was built, or with live updates."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from features.errors import UnavailableError
from serving.catalog.filters import Filters
from serving.catalog.ids import IdMap
from serving.catalog.popularity import ItemPopularity
from serving.recommend.interfaces import ItemFilters, PopularItems, UserStore
from serving.recommend.known_users import KnownUsers
from serving.search.databases.database_search import DatabaseSearch
from serving.search.databases.open_database import open_database
from serving.search.databases.settings import DatabaseSettings
from serving.search.faiss_index import Device, ItemIndex
from serving.search.searcher import ItemSearch
from serving.search.vectors import ItemVectors, leading_dims
from serving.snapshot.collection import seal_of
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServingState:
    """The items and users at one moment. A request reads one state from beginning to end, whatever arrives meanwhile.

    Attributes:
        position: The last record of the event log that is in it; None without a log.
        items: The items' ids by row.
        users: The users' ids by row.
        titles: The items' titles by row; None where the catalogue has no titles.
        filters: Which items a request allows.
        vectors: The items' vectors by row, as they are searched: unit vectors, and behind them the recent popularity of
            models that read it.
        embeddings: The unit vectors alone.
        search: Finds items.
        user_store: Users' histories, vectors and attributes.
        popularity: The fallback for users without a vector.
    """

    position: int | None
    items: IdMap
    users: IdMap
    titles: list[str] | None
    filters: ItemFilters
    vectors: ItemVectors
    embeddings: ItemVectors
    search: ItemSearch
    user_store: UserStore
    popularity: PopularItems


@dataclass(frozen=True)
class IndexedState(ServingState):
    """The state of an index as it was built, on which live updates are put."""

    filters: Filters
    user_store: KnownUsers
    popularity: ItemPopularity

    @classmethod
    def of(
        cls,
        bundle: ModelBundle,
        snapshot: Snapshot,
        device: Device = "cpu",
        filter_columns: list[str] | None = None,
        database: DatabaseSettings | None = None,
    ) -> IndexedState:
        """Return the state of a snapshot.

        Args:
            bundle: The model.
            snapshot: What it makes of today's tables.
            device: Where the index searches.
            filter_columns: The columns of the catalogue that requests may filter by. None: all.
            database: The vector database to search in. None: the snapshot's index is searched.

        Raises:
            DataError: The catalogue has no such column, the index cannot search on this device, or the database has no
                collection that fits.
            UnavailableError: The database does not answer, and the operator wants no other answer.
        """
        features = bundle.config.features
        has_titles = features.title is not None and features.title in snapshot.catalog.frame
        index = snapshot.index.to(device)
        return cls(
            position=None,
            items=IdMap(snapshot.catalog.item_ids),
            users=IdMap(snapshot.histories.user_ids),
            titles=snapshot.catalog.titles(features.title) if has_titles else None,
            filters=Filters(snapshot.catalog, features.item, filter_columns),
            vectors=index.vectors,
            embeddings=leading_dims(index.vectors, bundle.config.towers.embedding_dim),
            search=index if database is None else _checked(database, snapshot, index),
            user_store=KnownUsers(bundle, snapshot),
            popularity=ItemPopularity(snapshot.popularity),
        )


def _checked(database: DatabaseSettings, snapshot: Snapshot, index: ItemIndex) -> DatabaseSearch:
    """Return the searcher over the snapshot's collection, which is compared with it if the database answers."""
    search = DatabaseSearch(open_database(database), seal_of(snapshot.manifest), index, database)
    try:
        search.check()
    except UnavailableError as error:
        if database.fallback == "none":
            raise
        _log.error("the bundle's own index is searched, until the vector database can be used: %s", error)
    return search
