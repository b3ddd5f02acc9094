"""Opens the recommender of a bundle for a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from features.errors import DataError
from serving.config import ServingConfig
from serving.jobs.build_index import build_index
from serving.recommend.recommender import Recommender
from serving.recommend.reranking import RerankStage
from serving.search.conditions import Filter
from serving.search.faiss_index import check_device
from serving.snapshot.manifest import NAME
from serving.snapshot.snapshot import FOLDER, Snapshot
from towers.bundle.bundle import ModelBundle


def open_recommender(
    path: Path | ModelBundle,
    settings: ServingConfig | None = None,
    *,
    with_database: bool = False,
    accept_changed_columns: bool = False,
) -> Recommender:
    """Return the recommender of a bundle; its index is built first if there is none.

    Args:
        path: The folder of the bundle, or the bundle, if it is open already.
        settings: The settings of the service. None: the defaults.
        with_database: Whether to search in the vector database of the settings, as the service does; commands that
            search for all users are faster with the bundle's own index.
        accept_changed_columns: Used if the index is built; see `build_index`.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: There is no index and the tables cannot be read, or there is no GPU to search on.
    """
    settings = settings or ServingConfig()
    check_device(settings.device)
    bundle = path if isinstance(path, ModelBundle) else ModelBundle.open(path, trust=settings.trust)
    has_index = (bundle.path / FOLDER / NAME).exists()
    if has_index:
        snapshot = Snapshot.open(bundle)
    else:
        snapshot = build_index(
            bundle,
            {},
            database=settings.database,
            filter_columns=settings.filter_columns,
            accept_changed_columns=accept_changed_columns,
        )
    # Without a time budget, as no client waits.
    reranking = RerankStage.open(bundle, snapshot, settings.rerank_candidates, None) if settings.rerank else None
    return Recommender(
        bundle,
        snapshot,
        device=settings.device,
        recommend_seen=settings.recommend_seen,
        rerank=reranking,
        database=settings.database if with_database else None,
    )


def parse_conditions(conditions: Sequence[str], recommender: Recommender) -> Filter:
    """Return the filter of `--where` conditions, such as `brand=Acme` and `price_max=50`.

    Raises:
        DataError: A condition does not have the form NAME=VALUE, or its column or value is invalid.
    """
    given: dict[str, list[str]] = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise DataError(f"--where {condition}: expected NAME=VALUE, such as brand=Acme or price_max=50")
        given.setdefault(name, []).append(value)
    return recommender.state.filters.from_query(given)
