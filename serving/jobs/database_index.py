"""`towers index` with a vector database: writes a collection, measures it, and lets the alias name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import click
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from features.config import FeatureSettings
from serving.catalog.filters import Filters
from serving.search.databases.columns import kinds_of, storable
from serving.search.databases.database import Points, Seal
from serving.search.databases.database_search import DatabaseSearch
from serving.search.databases.open_database import open_database
from serving.search.databases.settings import DatabaseSettings
from serving.search.index_config import FIRST_LEVEL, TUNED_CUTOFF
from serving.snapshot.collection import seal_of
from serving.snapshot.snapshot import Snapshot

DEFAULT_RECALL = 0.99
"""Recall@100 that the effort of searches is chosen for, where none is named."""
_MEASURED_USERS = 200
# Writing and measuring have no client who waits.
_SECONDS = 60.0


@contextmanager
def collection_written(
    snapshot: Snapshot,
    queries: Float32[np.ndarray, "users width"],
    settings: DatabaseSettings,
    item_settings: Mapping[str, FeatureSettings],
    filter_columns: Sequence[str] | None,
    recall: float | None,
    before: str | None = None,
) -> Iterator[None]:
    """Write the collection of an index before the block, in which the index is saved, and let the alias name it after.

    The effort of searches is chosen by measurement. Collections of the same model that are too old are deleted.

    Args:
        snapshot: The index, before it is saved.
        queries: Vectors of users to measure recall with.
        settings: The operator's settings of the database.
        item_settings: The model's settings of the columns.
        filter_columns: The columns that requests may filter by. None: all.
        recall: Target recall@100, 0 to 1. None: `DEFAULT_RECALL`.
        before: Identity of the index that the bundle has now, which workers search in until they reload. None: it has
            none.

    Raises:
        DataError: The address is invalid, or the database cannot hold the vectors.
        UnavailableError: The database does not answer, or ran out of space.
    """
    patient = replace(settings, timeout_seconds=_SECONDS, fallback="none")
    database = open_database(patient)
    try:
        search = _write(snapshot, queries, patient, item_settings, filter_columns, recall or DEFAULT_RECALL)
        yield
        _publish(search, settings.keep, before)
    finally:
        database.close()


def _write(
    snapshot: Snapshot,
    queries: Float32[np.ndarray, "users width"],
    settings: DatabaseSettings,
    item_settings: Mapping[str, FeatureSettings],
    filter_columns: Sequence[str] | None,
    recall: float,
) -> DatabaseSearch:
    database = open_database(settings)
    cells = storable(Filters(snapshot.catalog, item_settings, filter_columns).typed_columns())
    cells = {name: column for name, column in cells.items() if database.can_hold(name)}
    seal = seal_of(snapshot.manifest).model_copy(update={"columns": dict(kinds_of(cells)), "effort": FIRST_LEVEL})
    search = DatabaseSearch(database, seal, snapshot.index, settings)
    vectors = snapshot.index.vectors
    with tqdm(total=len(vectors), unit=" items", desc="Writing to the database", disable=None, leave=False) as bar:
        points = Points(np.arange(len(vectors)), vectors, cells)
        database.write(search.collection, seal, points, lambda written: _advance(bar, written))
    seal = with_effort(search, seal, queries[:_MEASURED_USERS], recall, database.max_effort)
    database.reseal(search.collection, seal)
    click.echo(
        f"{search.collection}: {seal.num_items:,} items in the vector database, {len(cells)} columns to filter by, "
        f"recall@{TUNED_CUTOFF} {seal.recall_at_100:.3f} at effort {seal.effort}"
    )
    return search


def _advance(bar: tqdm[Any], written: int) -> None:
    bar.update(written)


def _publish(search: DatabaseSearch, keep: int, before: str | None) -> None:
    """Let the alias name a collection, and delete old collections of the same model.

    Those of runs that were interrupted are as new as any, but in no service: they go before the one that was.
    """
    search.make_current()
    database, mine = search.database, search.check()
    in_service = (search.collection, f"{database.alias}_{before}")
    of_model = [name for name, seal in database.collections().items() if seal.weights_digest == mine.weights_digest]
    of_model = [*(name for name in in_service if name in of_model), *(one for one in of_model if one not in in_service)]
    for name in of_model[keep:]:
        database.drop(name)
        click.echo(f"{name}: deleted; {keep} collections of a model are kept (index_keep)")


def with_effort(
    search: DatabaseSearch, seal: Seal, queries: Float32[np.ndarray, "users width"], wanted: float, most: int
) -> Seal:
    """Return a seal with the least effort that reaches a recall, or the greatest.

    Args:
        search: The searcher over a collection that was written.
        seal: Its seal.
        queries: Vectors of users.
        wanted: Target recall@100, 0 to 1.
        most: The greatest effort.
    """
    true = search.local.scan(queries, TUNED_CUTOFF)
    effort = FIRST_LEVEL
    while True:
        tried = seal.model_copy(update={"effort": effort})
        found = search.with_seal(tried).search(queries, TUNED_CUTOFF).share_of(true)
        tried = tried.model_copy(update={"recall_at_100": round(found, 4)})
        if found >= wanted or effort >= most:
            break
        effort = min(most, 2 * effort)
    if found < wanted:
        click.echo(
            f"note: recall@{TUNED_CUTOFF} of the vector database is at most {found:.4f}, below the target of {wanted:g}"
        )
    return tried
