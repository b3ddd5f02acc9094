"""The recommender of a bundle, as a command opens it."""

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
    path: Path, settings: ServingConfig | None = None, *, accept_changed_columns: bool = False
) -> Recommender:
    """Return the recommender of a bundle, its index made first if there is none.

    Args:
        path: The bundle.
        settings: Those of the service whose answers are wanted. None: the defaults.
        accept_changed_columns: Where the index is made first: see `build_index`.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: There is no index and the tables cannot be read, or there is no GPU to search on.
    """
    settings = settings or ServingConfig()
    check_device(settings.device)
    bundle = ModelBundle.open(path, trust=settings.trust)
    has_index = (path / FOLDER / NAME).exists()
    if has_index:
        snapshot = Snapshot.open(bundle)
    else:
        snapshot = build_index(bundle, {}, accept_changed_columns=accept_changed_columns)
    # Nobody waits, so that it may take as long as it takes.
    reranking = RerankStage.open(bundle, snapshot, settings.rerank_candidates, None) if settings.rerank else None
    return Recommender(
        bundle, snapshot, device=settings.device, recommend_seen=settings.recommend_seen, rerank=reranking
    )


def parse_conditions(conditions: Sequence[str], recommender: Recommender) -> Filter:
    """Return the filter of `--where` conditions, such as `brand=Acme` and `price_max=50`.

    Raises:
        DataError: A condition is not NAME=VALUE, or cannot hold.
    """
    given: dict[str, list[str]] = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise DataError(f"--where {condition}: expected NAME=VALUE, such as brand=Acme or price_max=50")
        given.setdefault(name, []).append(value)
    return recommender.state.filters.from_query(given)
