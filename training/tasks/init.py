"""`towers init`: infers features from the tables, and proposes model settings that fit them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click

from features.config import ColumnSettings, FeaturesConfig
from features.errors import DataError, Problems
from features.files import atomic_file
from features.inference.column_names import may_be_ids
from features.inference.inference import (
    SEARCH_WIDTH,
    Files,
    Inference,
    document_key,
    infer_features,
    infer_search,
    render_run_toml,
    render_table,
)
from features.locations.object_path import TablePath
from features.sequences.seen_items import SeenItems
from features.settings import parse_settings
from features.tables.table_files import RawTable, read_table
from features.tables.tables import read_tables
from training.evaluation.popular_items import PopularityGain, popularity_gain
from training.prepared.prepare import PREPARED_FROM

SPARSE = 20
"""Interactions per user below which dropout is raised and the embedding learning rate lowered, against overfitting."""

ORDERED = """\
history_encoder = "transformer"  # the order of a user's interactions is known
num_layers = 2                   # layers of the transformer
num_heads = 2                    # attention heads of each layer
"""
TIMED = """\
time_bias = true                 # timestamps are known: attention also reads the time since each event
"""
TREND = """\
# held out: recent popularity has an N@10 of {recent:.3f}, all-time popularity {all_time:.3f}
trend = [1, 7, 30]               # recent popularity is part of the score (half-lives in days); index often
"""
NO_TREND = """\
# trend = [1, 7, 30]             # on: recent popularity is part of the score (half-lives in days); then index often
"""
UNORDERED = """\
history_encoder = "mean"         # the order of a user's interactions is not known
"""

TRAINING = """\
[training]
seed = 0                         # the same seed gives the same weights
epochs = 100                     # maximum; early stopping usually ends training before
patience = 2                     # epochs without a better validation N@10 until the learning rates are lowered
lr_decays = 2                    # how often they are lowered before training stops
batch_size = 2048                # maximum interactions per step
negatives = "auto"               # exact softmax up to 30,000 items, a log-Q corrected sample above
track = true                     # record the run in MLflow
"""


QUESTIONS = {
    "leave-one-out": 'validation = "leave-one-out"     # the question is what comes next\n',
    "time": 'validation = "time"              # the question is what users will have in the coming weeks\n',
    "users": 'validation = "users"             # the question is what else users like that training does not know\n',
}

SEARCH_TRAINING = """\
[training]
seed = 0                         # the same seed gives the same weights
epochs = 100                     # maximum; early stopping keeps the best epoch on held-out queries
negatives = "sampled"            # a sample of the documents: encoding all of them in each step takes too long
in_batch_negatives = 512         # documents of the batch's other queries
uniform_negatives = 512          # documents drawn uniformly
embedding_learning_rate = 0.02   # low: word embeddings only correct the frozen text vectors
track = true                     # record the run in MLflow
"""
SEARCH = f"""\
[towers]
embedding_dim = {SEARCH_WIDTH}              # dimensions of a vector; more keep more of a text's words
history_encoder = "none"         # a query is its text; there is no history
shared_text_encoder = true       # queries and documents are written in the same words
"""


@dataclass(frozen=True)
class Proposal:
    """The proposal of `towers init`.

    Attributes:
        inference: What was found in them.
        settings: The text of run.toml.
        problems: What is wrong with the tables, so that training would refuse them.
        popularity: How good recent popularity is. None: there are no times, or the tables are not read in memory.
    """

    inference: Inference
    settings: str
    problems: tuple[DataError, ...] = ()
    popularity: PopularityGain | None = None


def propose(
    output: Path,
    *,
    interactions: TablePath | None,
    items: TablePath | None,
    users: TablePath | None,
    documents: TablePath | None,
    queries: TablePath | None,
    pairs: TablePath | None,
    named: Mapping[str, str] | None = None,
    time_format: str | None = None,
) -> Proposal:
    """Return the proposal for the tables of a recommender or a search, after reading them as training does.

    Args:
        output: Where run.toml will be.
        interactions: Interactions of a recommender.
        items: Its catalogue.
        users: Its users' attributes.
        documents: Of a search: what there is.
        queries: Queries of a search.
        pairs: Which documents answer which query.
        named: Columns of the interactions whose role is known: `user_id`, `item_id`, `timestamp`.
        time_format: How the times are written, if it is known.

    Raises:
        DataError: The tables are not those of either, or cannot be made sense of; all that is wrong at once.
    """
    if documents is None:
        if interactions is None or queries is not None or pairs is not None:
            raise DataError(
                "name the tables: --interactions FILE (and --items, --users) of a recommender, or --documents FILE or "
                "FOLDER (and --queries with --pairs) of a search"
            )
        files = Files(interactions, items, users)
    elif interactions is not None or items is not None or users is not None:
        raise DataError("--documents are those of a search: give --queries and --pairs with them, and no other table")
    elif named or time_format:
        raise DataError("--user-column, --item-column and the like are about --interactions; a search has none")
    else:
        files = Files(pairs, documents, queries)
    problems = Problems()
    tables: dict[str, RawTable] = {}
    for name, path in (("interactions", files.interactions), ("items", files.items), ("users", files.users)):
        if path is not None:
            with problems:
                tables[name] = read_table(path, may_be_ids)
    unreadable = Problems(problems.found)
    if ("interactions" if documents is None else "items") not in tables or (documents is not None and unreadable.found):
        unreadable.raise_all()
    inference = None
    with problems:
        inference = _inferred(tables, named, time_format, is_search=documents is not None)
    if inference is None:
        unreadable.raise_all()  # with that table there, it might have been made sense of
        _check_alone(files, tables, problems)
        problems.raise_all()
    assert inference is not None, "nothing was wrong"
    files = Files(files.interactions, *(getattr(files, one) if one in tables else None for one in ("items", "users")))
    proposal = _read_as_training(inference, files, output, problems)
    if unreadable.found:
        Problems(proposal.problems).raise_all()
    return proposal


def write_proposal(proposal: Proposal, output: Path, validation: str = "auto") -> None:
    """Print how each column will be used, and write run.toml.

    Args:
        proposal: What to write.
        output: Where run.toml goes.
        validation: As `[training] validation`; other than `auto` it is written down.

    Raises:
        DataError: Training would refuse the tables; all that is wrong at once. Nothing is written.
    """
    click.echo(f"{render_table(proposal.inference)}\n")
    for warning in proposal.inference.warnings:
        click.echo(f"note: {warning}", err=True)
    Problems(proposal.problems).raise_all()
    with atomic_file(output) as temporary:
        asked = "" if validation == "auto" else QUESTIONS[validation]
        text = f"{proposal.settings}\n{render_model_settings(proposal.inference, proposal.popularity)}{asked}"
        temporary.write_text(text, encoding="utf-8")


def _inferred(
    tables: Mapping[str, RawTable], named: Mapping[str, str] | None, time_format: str | None, *, is_search: bool
) -> Inference:
    frames = {name: table.frame for name, table in tables.items()}
    notes = tuple(note for table in tables.values() for note in table.notes)
    if is_search:
        found = infer_search(frames["items"], frames.get("users"), frames.get("interactions"))
    else:
        found = infer_features(
            frames["interactions"], frames.get("items"), frames.get("users"), named=named, time_format=time_format
        )
    return replace(found, notes=notes)


def _read_as_training(inference: Inference, files: Files, output: Path, problems: Problems) -> Proposal:
    """Return the proposal with the counts and the notes of the tables as training will read them."""
    settings = render_run_toml(inference, files, output.parent)
    config = parse_settings(FeaturesConfig, tomllib.loads(settings)["features"], str(output))
    tables = None
    with problems:
        tables = read_tables(config, output.parent)
    if tables is None or problems.found:
        return Proposal(inference, settings, tuple(problems.found))
    if inference.num_events:
        events = tables.interactions.frame
        inference = replace(
            inference,
            num_events=len(events),
            num_users=events["user_id"].nunique(),
            num_items=events["item_id"].nunique(),
        )
    inference = replace(inference, notes=tables.notes, is_read=True)
    popularity = None
    if inference.column("timestamp") is not None and inference.num_events < PREPARED_FROM:
        sequences, seen_items = tables.interactions.sequences(tables.catalog), SeenItems.of(config.recommend_seen)
        popularity = popularity_gain(sequences, len(tables.catalog), seen_items)
    return Proposal(inference, render_run_toml(inference, files, output.parent), popularity=popularity)


def _check_alone(files: Files, tables: Mapping[str, RawTable], problems: Problems) -> None:
    """Find what is wrong with the items' and the users' tables, without interactions to compare them with."""
    for name, path in (("items", files.items), ("users", files.users)):
        if path is not None and name in tables:
            with problems:
                key = ColumnSettings(item_id=document_key(tables[name].frame))
                read_tables(FeaturesConfig(items=str(path.absolute()), columns=key, missing_ids="drop"), Path())


def said_of(inference: Inference) -> str:
    """Return what the tables hold, in a few words."""
    events, users, items = f"{inference.num_events:,}", f"{inference.num_users:,}", f"{inference.num_items:,}"
    if not inference.is_search:
        return f"{events} interactions of {users} users with {items} items"
    return f"{events} pairs of {users} queries with {items} documents" if inference.num_events else f"{items} documents"


def render_model_settings(inference: Inference, popularity: PopularityGain | None = None) -> str:
    """Return the `[towers]` and `[training]` parts of run.toml, commented.

    Args:
        inference: What was found in the tables.
        popularity: How good recent popularity is, if that was measured.
    """
    if inference.is_search:
        return f"{SEARCH}\n{SEARCH_TRAINING}" if inference.num_events else SEARCH
    per_user = inference.num_events / max(inference.num_users, 1)
    is_sparse = per_user < SPARSE
    few = f"{per_user:.0f} interactions per user {'are few' if is_sparse else 'are many'}"
    towers = [
        "[towers]\nembedding_dim = 64               # dimensions of a vector; memory and search time grow with it\n",
        ORDERED if inference.is_ordered else UNORDERED,
        "" if inference.column("timestamp") is None else f"{TIMED}{_render_trend(popularity)}",
        f"dropout = {0.5 if is_sparse else 0.2}                    # dropout rate in the history encoder; {few}\n",
    ]
    rate = "embedding_learning_rate = 0.05   # half the default: few interactions per user\n"
    return f"{''.join(towers)}\n{TRAINING}{rate if is_sparse else ''}"


def _render_trend(popularity: PopularityGain | None) -> str:
    if popularity is None or not popularity.is_clear:
        return NO_TREND
    return TREND.format(recent=popularity.recent, all_time=popularity.all_time)
