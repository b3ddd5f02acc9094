"""All data that a request is answered from, immutable: of an index as it was built, or with live updates."""

from __future__ import annotations

from dataclasses import dataclass

from serving.catalog.filters import Filters
from serving.catalog.ids import IdMap
from serving.catalog.popularity import ItemPopularity
from serving.recommend.interfaces import ItemFilters, PopularItems, UserStore
from serving.recommend.known_users import KnownUsers
from serving.search.faiss_index import Device
from serving.search.searcher import ItemSearch, ItemVectors
from serving.search.vectors import leading_dims
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle


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
        cls, bundle: ModelBundle, snapshot: Snapshot, device: Device = "cpu", filter_columns: list[str] | None = None
    ) -> IndexedState:
        """Return the state of a snapshot.

        Args:
            bundle: The model.
            snapshot: What it makes of today's tables.
            device: Where the index searches.
            filter_columns: The columns of the catalogue that requests may filter by. None: all.

        Raises:
            DataError: The catalogue has no such column, or the index cannot search on this device.
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
            search=index,
            user_store=KnownUsers(bundle, snapshot),
            popularity=ItemPopularity(snapshot.interactions),
        )
