"""`towers index`: builds an index from the current tables, tunes it, and saves it in the bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click
from tqdm import tqdm

from features.config import FeaturesConfig
from features.errors import DataError
from features.locations.object_path import TablePath
from features.locations.table_path import table_path
from features.sequences.seen_items import SeenItems
from features.tables.table_parts import table_exists
from serving.jobs.database_index import collection_written
from serving.jobs.precompute import precompute_top_k
from serving.live.compaction import compact
from serving.live.open_log import open_log
from serving.recommend.recommender import Recommender
from serving.search.databases.settings import DatabaseSettings
from serving.search.index_config import IndexKind
from serving.search.tuning import Tuning, choose
from serving.snapshot.encoding import ItemEncoder, encode_items
from serving.snapshot.manifest import FOLDER, IndexManifest
from serving.snapshot.precomputed import BYTES_A_PLACE
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle, check_can_sign
from towers.model.trend_head import searched_dim
from towers.rerankers.manifest import has_ranker

# From this number of items on, a note suggests an approximate index.
_MANY_ITEMS = 100_000
LISTED = 100
"""Default number of precomputed recommendations per user."""

# The default applies only if they take at most this memory and, with brute force, this number of comparisons: a minute
# or two.
_MAX_LISTED_BYTES = 1 << 30
_MAX_COMPARED = 100_000_000_000


def build_index(
    bundle: ModelBundle,
    tables: Mapping[str, TablePath | None],
    kind: IndexKind | None = None,
    recall: float | None = None,
    live: str | None = None,
    precomputed: int | None = None,
    *,
    half_precision: bool = False,
    database: DatabaseSettings | None = None,
    filter_columns: Sequence[str] | None = None,
    accept_changed_columns: bool = False,
    encode: ItemEncoder = encode_items,
    tuned: Callable[[Tuning], None] = lambda tuning: None,
) -> Snapshot:
    """Build the index of a bundle and print a summary.

    Args:
        bundle: The model.
        tables: Files to read instead of those that training read, by their key in `[features]`; None keeps a file.
        kind: The index kind. None: `exact`, or with `recall` the fastest kind.
        recall: Target recall@100, 0 to 1, for which the index is tuned. None: it is not tuned.
        live: Address of the log of live writes to compact into the index. None: no log.
        precomputed: Number of recommendations per user to precompute. None: the default, if that is done quickly.
        half_precision: Whether the items' vectors are kept in float16, which halves their file.
        database: The vector database to write the index to as well. None: it is only written into the bundle.
        filter_columns: The columns that the database shall filter by. None: all.
        accept_changed_columns: Whether a column with far more empty or unknown values than in training is only a note.
        encode: Encodes the items.
        tuned: Called with the result of the tuning, if there is one.

    Raises:
        DataError: A table cannot be read, lacks a column that the model reads, or a column changed too much; there are
            too few items for the kind, or no prefixes; recommendations cannot be precomputed because the model reads
            the time of a request; the database cannot hold the index; or the index must be signed and there is no key.
        UnavailableError: The vector database, or a cluster that encodes, does not answer; the index before stays.
    """
    check_can_sign(bundle)
    if precomputed and _depends_on_time(bundle):
        raise DataError(
            f"--precompute {precomputed}: recommendations of this model depend on the time of the request and cannot "
            "be precomputed; remove the flag"
        )
    started = time.perf_counter()
    features = _features(bundle, tables)
    found, compacted = bundle.read_tables(features, accept_changed_columns=accept_changed_columns), None
    if live is not None:
        found, compacted = compact(found, open_log(live), bundle.spellings)
    for note in found.notes:
        click.echo(f"note: {note}")
    tried: list[Tuning] = []
    with (
        tqdm(unit=" users", desc="Encoding", disable=None, leave=False) as encoded,
        tqdm(unit=" kinds", desc="Tuning", disable=True if recall is None else None, leave=False) as trials,
    ):
        choice = partial(
            choose,
            kind=kind,
            recall=recall,
            prefixes=bundle.config.towers.matryoshka_dims,
            tail=searched_dim(bundle.config.towers) - bundle.config.towers.embedding_dim,
            trying=partial(_show_trial, trials),
            tuned=tried.append,
        )
        snapshot = Snapshot.build(
            bundle,
            found,
            choice,
            progress=partial(_show, encoded),
            live=compacted,
            half_precision=half_precision,
            encode=encode,
        )
    for tuning in tried:
        _show_tuning(tuning)
        tuned(tuning)
    snapshot = _with_precomputed(bundle, snapshot, precomputed).with_map(bundle.config.towers.embedding_dim)
    if database is None:
        folder = snapshot.save(bundle.path)
    else:
        queries, columns = snapshot.query_sample(bundle), bundle.config.features.item
        before = IndexManifest.identity_in(bundle.path / FOLDER)
        with collection_written(snapshot, queries, database, columns, filter_columns, recall, before):
            folder = snapshot.save(bundle.path)
    manifest = snapshot.manifest
    listed = (
        "" if manifest.precomputed is None else f", {manifest.precomputed.depth} precomputed recommendations per user"
    )
    click.echo(
        f"{folder}: {manifest.num_items:,} items, {manifest.num_users:,} users with {manifest.num_interactions:,} "
        f"interactions, {manifest.plan.kind} index (recall@100 {manifest.recall_at_100:.3f}){listed}, "
        f"{time.perf_counter() - started:.1f} s"
    )
    if snapshot.tokens is not None:
        tokens = snapshot.tokens
        click.echo(
            f"{folder}: vectors of {len(tokens.values):,} tokens of the items, one byte per dimension, "
            f"{tokens.num_bytes / 1e6:,.1f} MB"
        )
    if recall is None and kind is None and manifest.num_items > _MANY_ITEMS:
        click.echo(
            f"note: each search compares {manifest.num_items:,} items; for a faster, approximate index run: "
            f"towers index {bundle.path} --recall 0.99"
        )
    return snapshot


def _with_precomputed(bundle: ModelBundle, snapshot: Snapshot, depth: int | None) -> Snapshot:
    """Return a snapshot with precomputed recommendations, unless they depend on the time of a request."""
    depth = _usual_depth(bundle, snapshot) if depth is None else depth
    if not depth or _depends_on_time(bundle):
        return snapshot
    with tqdm(total=len(snapshot.histories), unit=" users", desc="Listing", disable=None, leave=False) as bar:
        return snapshot.with_precomputed(precompute_top_k(Recommender(bundle, snapshot), depth, bar.update))


def _usual_depth(bundle: ModelBundle, snapshot: Snapshot) -> int:
    """Return the default number of precomputed recommendations: 0 if they take too long or would not be used."""
    num_users, manifest = len(snapshot.histories), snapshot.manifest
    if _depends_on_time(bundle) or has_ranker(bundle.path):
        return 0
    is_soon_done = not manifest.plan.is_exact or num_users * manifest.num_items <= _MAX_COMPARED
    if is_soon_done and num_users * LISTED * BYTES_A_PLACE <= _MAX_LISTED_BYTES:
        return LISTED
    click.echo(
        "note: no recommendations are precomputed for so many users; to precompute them, which takes "
        f"{num_users * LISTED * BYTES_A_PLACE / 1e9:,.1f} GB, run: towers index {bundle.path} --precompute {LISTED}"
    )
    return 0


def _depends_on_time(bundle: ModelBundle) -> bool:
    """Return whether what users get changes with the time of the request, by the model or the seen-item policy."""
    return bundle.config.reads_time or SeenItems.of(bundle.config.features.recommend_seen).depends_on_time


def _show_tuning(tuning: Tuning) -> None:
    click.echo(tuning.table())
    if tuning.chosen.recall < tuning.wanted:
        click.echo(
            f"note: recall@100 of {tuning.chosen.plan.kind} is at most {tuning.chosen.recall:.4f}, below the target of "
            f"{tuning.wanted:g}"
        )


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _show_trial(bar: tqdm[Any], done: int, total: int, what: str) -> None:
    bar.set_description(f"Trying {what}", refresh=False)
    _show(bar, done, total)
    bar.refresh()


def _features(bundle: ModelBundle, tables: Mapping[str, TablePath | None]) -> FeaturesConfig:
    given = {key: str(path.absolute()) for key, path in tables.items() if path is not None}
    features = bundle.config.features.model_copy(update=given)
    table = "items" if features.interactions is None else "interactions"
    path = table_path(bundle.tables_folder, getattr(features, table))
    if not table_exists(path) and table not in given:
        raise DataError(
            f"{path}: no such file, though the model was trained on it; give the current table: "
            f"towers index {bundle.path} --{table} FILE"
        )
    return features
