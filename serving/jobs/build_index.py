"""What `towers index` does: an index of today's tables, tuned and saved in the bundle."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from features.config import FeaturesConfig
from features.errors import DataError
from features.sequences.seen_items import SeenItems
from features.tables.table_parts import table_exists
from serving.jobs.precompute import precompute_top_k
from serving.live.compaction import compact
from serving.live.open_log import open_log
from serving.recommend.recommender import Recommender
from serving.search.index_config import IndexKind
from serving.search.tuning import Tuning, choose
from serving.snapshot.precomputed import BYTES_A_PLACE
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle, check_can_sign
from towers.rerankers.manifest import has_ranker

# From so many items on, comparing each is worth a hint.
_MANY_ITEMS = 100_000
LISTED = 100
"""How many items of each user are listed, unless told otherwise."""

# That is, where they take no more room, and where every item is compared with every user no more comparisons: a minute
# or two.
_MOST_LISTED_BYTES = 1 << 30
_MOST_COMPARED = 100_000_000_000


def build_index(
    bundle: ModelBundle,
    tables: dict[str, Path | None],
    kind: IndexKind | None = None,
    recall: float | None = None,
    live: str | None = None,
    shortlists: int | None = None,
    *,
    accept_changed_columns: bool = False,
) -> Snapshot:
    """Make the index of a bundle and say what it holds.

    Args:
        bundle: The model.
        tables: Files in the place of those that training read, by their key in `[features]`; None to keep that one.
        kind: How the index searches. None: it compares every item, or as the recall is reached the fastest.
        recall: The share of the true best 100 of each user that the index is tuned to find. None: it is not tuned.
        live: The log of live writes to fold in. None: none is.
        shortlists: How many items of each user are listed. None: as many as is usual, where that is soon done.
        accept_changed_columns: Whether a column of which far less is filled or known than in training is a note.

    Raises:
        DataError: A table cannot be read, lacks a column that the model reads, or one changed too much; there are too
            few items for the kind, or no prefixes, nothing can be listed because it depends on the time of the request,
            or the index has to be signed and there is no key.
    """
    check_can_sign(bundle)
    if shortlists and _depends_on_time(bundle):
        raise DataError(
            f"--precompute {shortlists}: what this model recommends depends on the time of the request, so it cannot "
            "be computed in advance; leave the flag out"
        )
    started = time.perf_counter()
    features = _features(bundle, tables)
    found, folded = bundle.read_tables(features, accept_changed_columns=accept_changed_columns), None
    if live is not None:
        found, folded = compact(found, open_log(live), bundle.spellings)
    for note in found.notes:
        click.echo(f"note: {note}")
    tried: list[Tuning] = []
    with (
        tqdm(unit=" users", desc="Encoding", disable=None, leave=False) as encoded,
        tqdm(unit=" kinds", desc="Tuning", disable=True if recall is None else None, leave=False) as tuned,
    ):
        choice = partial(
            choose,
            kind=kind,
            recall=recall,
            prefixes=bundle.config.towers.matryoshka_dims,
            trying=partial(_show_trial, tuned),
            tuned=tried.append,
        )
        snapshot = Snapshot.build(bundle, found, choice, progress=partial(_show, encoded), live=folded)
    for tuning in tried:
        _say_what_was_tried(tuning)
    snapshot = _with_shortlists(bundle, snapshot, shortlists)
    folder = snapshot.save(bundle.path)
    seal = snapshot.seal
    listed = "" if seal.shortlists is None else f", the best {seal.shortlists.depth} of each user listed"
    click.echo(
        f"{folder}: {seal.num_items:,} items, {seal.num_users:,} users with {seal.num_interactions:,} interactions, "
        f"{seal.plan.kind} index (recall@100 {seal.recall_at_100:.3f}){listed}, {time.perf_counter() - started:.1f} s"
    )
    if snapshot.tokens is not None:
        tokens = snapshot.tokens
        click.echo(
            f"{folder}: the vectors of {len(tokens.values):,} tokens of the items, a byte a number, "
            f"{tokens.num_bytes / 1e6:,.1f} MB"
        )
    if recall is None and kind is None and seal.num_items > _MANY_ITEMS:
        click.echo(
            f"note: each search compares {seal.num_items:,} items; `towers index {bundle.path} --recall 0.99` finds a "
            "faster index"
        )
    return snapshot


def _with_shortlists(bundle: ModelBundle, snapshot: Snapshot, depth: int | None) -> Snapshot:
    """Return a snapshot with the best items of each user listed, as far as they can be known before anybody asks."""
    depth = _usual_depth(bundle, snapshot) if depth is None else depth
    if not depth or _depends_on_time(bundle):
        return snapshot
    with tqdm(total=len(snapshot.histories), unit=" users", desc="Listing", disable=None, leave=False) as bar:
        return snapshot.with_shortlists(precompute_top_k(Recommender(bundle, snapshot), depth, bar.update))


def _usual_depth(bundle: ModelBundle, snapshot: Snapshot) -> int:
    """Return how many items of each user are listed where nobody says: none where it takes long or is of no use."""
    num_users, seal = len(snapshot.histories), snapshot.seal
    if _depends_on_time(bundle) or has_ranker(bundle.path):
        return 0
    is_soon_done = not seal.plan.is_exact or num_users * seal.num_items <= _MOST_COMPARED
    if is_soon_done and num_users * LISTED * BYTES_A_PLACE <= _MOST_LISTED_BYTES:
        return LISTED
    click.echo(
        f"note: no shortlists for so many users; `towers index {bundle.path} --precompute {LISTED}` makes them, in "
        f"{num_users * LISTED * BYTES_A_PLACE / 1e9:,.1f} GB"
    )
    return 0


def _depends_on_time(bundle: ModelBundle) -> bool:
    """Return whether what users get changes with the time of the request, by the model or the seen-item policy."""
    return bundle.config.reads_time or SeenItems.of(bundle.config.features.recommend_seen).depends_on_time


def _say_what_was_tried(tuning: Tuning) -> None:
    click.echo(tuning.table())
    if tuning.chosen.recall < tuning.wanted:
        click.echo(
            f"note: {tuning.chosen.plan.kind} finds {tuning.chosen.recall:.4f} at most, less than the "
            f"{tuning.wanted:g} asked for"
        )


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _show_trial(bar: tqdm[Any], done: int, total: int, what: str) -> None:
    bar.set_description(f"Trying {what}", refresh=False)
    _show(bar, done, total)
    bar.refresh()


def _features(bundle: ModelBundle, tables: dict[str, Path | None]) -> FeaturesConfig:
    given = {key: str(path.absolute()) for key, path in tables.items() if path is not None}
    features = bundle.config.features.model_copy(update=given)
    table = "items" if features.interactions is None else "interactions"
    path = bundle.tables_folder / getattr(features, table)
    if not table_exists(path) and table not in given:
        raise DataError(
            f"{path}: no such file, though the model was trained on it; say where today's tables are: "
            f"towers index {bundle.path} --{table} FILE"
        )
    return features
