"""What the operator's commands do: an index from today's tables, candidates for everyone, another bundle to serve."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from features.config import FeaturesConfig
from features.errors import DataError
from features.files import LATEST, move_link
from features.table_parts import table_exists
from serving.config import PRODUCTION, ServingConfig
from serving.filters import Filter
from serving.folding import fold
from serving.index import check_device
from serving.kinds import Kind
from serving.offline import Audience, make_shortlists, write_candidates
from serving.registry import Alias, point_back, promote
from serving.reranking import Reranking
from serving.retriever import Retriever
from serving.seal import NAME
from serving.shortlists import BYTES_A_PLACE
from serving.snapshot import FOLDER, Snapshot
from serving.source import warm
from serving.store import open_store
from serving.tuning import Tuning, choose
from serving.wanted import Wanted
from towers.bundle import ModelBundle
from towers.ranker import has_ranker
from towers.trust import check_can_sign

# From so many items on, comparing each is worth a hint.
_MANY_ITEMS = 100_000
LISTED = 100
"""How many items of each user are listed, unless told otherwise."""

# That is, where they take no more room, and where every item is compared with every user no more comparisons: a minute
# or two.
_MOST_LISTED_BYTES = 1 << 30
_MOST_COMPARED = 100_000_000_000


def recommend_everyone(
    bundle: Path,
    output: Path,
    k: int,
    users: Path | None,
    conditions: Sequence[str] = (),
    *,
    with_fallback: bool,
    settings: ServingConfig | None = None,
    accept_changed_columns: bool = False,
) -> None:
    """Write k recommendations for everyone, or for the users in a table, and say how many.

    Args:
        bundle: The bundle.
        output: The file to write.
        k: How many for each.
        users: A table of those who are to be recommended something. None: everyone.
        conditions: What must hold of the items, such as `brand=Acme` and `price_max=50`.
        with_fallback: Whether to say what answered in the model's place.
        settings: Those of the service whose answers these are. None: the defaults.
        accept_changed_columns: Where the index is made first: see `build_index`.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: The output is a folder, a table cannot be read, or a condition cannot hold.
    """
    if output.is_dir():
        raise DataError(
            f"{output}: a folder; --output names the file to write, such as {output / 'candidates.parquet'}"
        )
    retriever = open_retriever(bundle, settings, accept_changed_columns=accept_changed_columns)
    where = _filter(conditions, retriever)
    audience = Audience.read(users, retriever) if users else Audience.everyone(retriever)
    started = time.perf_counter()
    with tqdm(total=len(audience), unit=" users", desc="Recommending", disable=None, leave=False) as bar:
        num_rows = write_candidates(
            retriever, audience, k, output, where=where, with_fallback=with_fallback, progress=bar.update
        )
    seconds = time.perf_counter() - started
    click.echo(f"{output}: {num_rows:,} recommendations for {len(audience):,} users, {seconds:.1f} s")
    if audience.num_unknown:
        click.echo(f"{audience.num_unknown:,} users are unknown and got what is popular")


def show_search(
    bundle: Path, words: str, k: int, conditions: Sequence[str] = (), settings: ServingConfig | None = None
) -> None:
    """Show the k items nearest to some words, as a service of these settings finds them.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: The model reads no texts, or a condition cannot hold.
    """
    retriever = open_retriever(bundle, settings)
    answer = retriever.search(words, Wanted(k, where=_filter(conditions, retriever)))
    if answer.fallback is not None:
        click.echo(f"none of the words is known; {answer.fallback} items in their place", err=True)
    for item in answer.items:
        title = "" if item.title is None else f"  {textwrap.shorten(item.title, 80, placeholder='...')}"
        click.echo(f"{item.rank:4}  {item.score:.3f}  {item.item_id}{title}")


def open_retriever(
    path: Path, settings: ServingConfig | None = None, *, accept_changed_columns: bool = False
) -> Retriever:
    """Return the retriever of a bundle, its index made first if there is none.

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
    reranking = Reranking.open(bundle, snapshot, settings.rerank_candidates, None) if settings.rerank else None
    return Retriever(
        bundle, snapshot, device=settings.device, recommend_seen=settings.recommend_seen, reranking=reranking
    )


def swap_bundle(bundle: Path, link: Path, settings: ServingConfig | None = None) -> None:
    """Verify a bundle, make its index if there is none, and let a link or an alias point to it.

    Args:
        bundle: The bundle.
        link: What is to point to it.
        settings: Those of the service that serves it. None: the defaults.

    Raises:
        BundleError: The bundle or the index cannot be used; the link stays as it is.
        DataError: What should be a link is something else, there is no index and the tables cannot be read, or the
            registry does not answer.
    """
    alias = Alias.parse(link)
    if alias is not None:
        warm(open_retriever(bundle.resolve(), settings))
        version = promote(bundle, alias, settings)
        click.echo(f"{alias}: version {version}, from {bundle}; `towers rollback --link {alias}` goes back")
        return
    if link.exists() and not link.is_symlink():
        raise DataError(f"{link}: expected a link to a bundle, found no link; serve one, such as {PRODUCTION}")
    if link.name == LATEST:
        raise DataError(
            f"{link}: the newest training's; it is moved by trainings. Swap another link, such as {PRODUCTION}"
        )
    before = link.resolve().name if link.is_symlink() else "nothing"
    warm(open_retriever(bundle.resolve(), settings))
    move_link(link, bundle.resolve(), _previous(link))  # to the bundle, and not to a link that moves
    click.echo(f"{link}: {before} -> {bundle.resolve().name}; `towers rollback{_said(link)}` goes back")


def roll_back(link: Path, settings: ServingConfig | None = None) -> None:
    """Let a link or an alias point to what it pointed to before.

    Args:
        link: The link or the alias.
        settings: Those of the service that serves it. None: the defaults.

    Raises:
        BundleError: What it pointed to cannot be used any more; the link stays as it is.
        DataError: It is not known what it pointed to before.
    """
    alias = Alias.parse(link)
    if alias is not None:
        click.echo(f"{alias}: version {point_back(alias)}")
        return
    previous = _previous(link)
    if not previous.is_symlink():
        raise DataError(f"{previous}: no such link, so {link} never pointed elsewhere; name a bundle to `towers swap`")
    swap_bundle(previous.parent / previous.readlink(), link, settings)


def _previous(link: Path) -> Path:
    return link.with_name(f"{link.name}.previous")


def _said(link: Path) -> str:
    return "" if link == PRODUCTION else f" --link {link}"


def build_index(
    bundle: ModelBundle,
    tables: dict[str, Path | None],
    kind: Kind | None = None,
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
            few items for the kind, or no prefixes, nothing can be listed because the model looks at the clock, or the
            index has to be signed and there is no key.
    """
    check_can_sign(bundle)
    if shortlists and bundle.config.reads_time:
        raise DataError(
            f"--shortlists {shortlists}: this model looks at the clock, so that what somebody gets is not known before "
            "the request; leave the flag out"
        )
    started = time.perf_counter()
    features = _features(bundle, tables)
    found, folded = bundle.read_tables(features, accept_changed_columns=accept_changed_columns), None
    if live is not None:
        found, folded = fold(found, open_store(live), bundle.spellings)
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
            prefixes=bundle.config.towers.prefixes,
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
    if not depth or snapshot.user_vectors is None:
        return snapshot
    with tqdm(total=len(snapshot.histories), unit=" users", desc="Listing", disable=None, leave=False) as bar:
        return snapshot.with_shortlists(make_shortlists(Retriever(bundle, snapshot), depth, bar.update))


def _usual_depth(bundle: ModelBundle, snapshot: Snapshot) -> int:
    """Return how many items of each user are listed where nobody says: none where it takes long or is of no use."""
    num_users, seal = len(snapshot.histories), snapshot.seal
    if snapshot.user_vectors is None or has_ranker(bundle.path):
        return 0
    is_soon_done = not seal.plan.is_exact or num_users * seal.num_items <= _MOST_COMPARED
    if is_soon_done and num_users * LISTED * BYTES_A_PLACE <= _MOST_LISTED_BYTES:
        return LISTED
    click.echo(
        f"note: no shortlists for so many users; `towers index {bundle.path} --shortlists {LISTED}` makes them, in "
        f"{num_users * LISTED * BYTES_A_PLACE / 1e9:,.1f} GB"
    )
    return 0


def _filter(conditions: Sequence[str], retriever: Retriever) -> Filter:
    given: dict[str, list[str]] = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise DataError(f"--where {condition}: expected NAME=VALUE, such as brand=Acme or price_max=50")
        given.setdefault(name, []).append(value)
    return retriever.filters.from_query(given)


def _say_what_was_tried(tuning: Tuning) -> None:
    click.echo(tuning.table())
    if tuning.chosen.recall < tuning.wanted:
        click.echo(
            f"note: {tuning.chosen.plan.kind} finds {tuning.chosen.recall:.4f} at most, less than the "
            f"{tuning.wanted:g} asked for"
        )


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


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _show_trial(bar: tqdm[Any], done: int, total: int, what: str) -> None:
    bar.set_description(f"Trying {what}", refresh=False)
    _show(bar, done, total)
    bar.refresh()
