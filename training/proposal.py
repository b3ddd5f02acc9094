"""What `towers init` proposes: which table plays which part, and settings of the model that suit such tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from features.errors import DataError
from features.inference import SEARCH_WIDTH, Files, Inference, infer_features, infer_search, looks_like_code
from features.table_files import RawTable, read_table

SPARSE = 20
"""Interactions per user below which little is known of anybody, and a model must be kept from learning it by heart."""

ORDERED = """\
history = "transformer"  # the order of a user's interactions is known, and the newest matter most
blocks = 2               # layers of the transformer
heads = 2                # attention heads of each layer
"""
TIMED = """\
time_bias = true         # how long ago matters, too: times are known
"""
UNORDERED = """\
history = "mean"         # the order of a user's interactions is not known
"""

TRAINING = """\
[training]
seed = 0                 # same seed, same weights
epochs = 100             # at most; early stopping usually ends before
patience = 2             # epochs without a better validation N@10 until the learning rates are lowered
rate_cuts = 2            # how often they are lowered before training stops
batch_events = 2048      # interactions per step
negatives = "auto"       # all items up to 30,000 of them, a corrected sample beyond
track = true             # record the run in MLflow
"""


SEARCH_TRAINING = """\
[training]
seed = 0                    # same seed, same weights
epochs = 100                # at most; it ends when held-out queries are answered no better, and keeps the best
negatives = "sampled"       # other documents of the batch, and some drawn; to encode all of them takes long
in_batch_negatives = 512    # how many of the first
uniform_negatives = 512     # and of the second
table_learning_rate = 0.02  # what is learned of a word is a correction, and begins small
track = true                # record the run in MLflow
"""
SEARCH = f"""\
[towers]
width = {SEARCH_WIDTH}             # numbers in a vector; the more, the truer is what the words of a text say
history = "none"         # a query is what is written in it
shared = true            # queries and documents are read by the same encoder
"""


def propose(
    *,
    interactions: Path | None,
    items: Path | None,
    users: Path | None,
    documents: Path | None,
    queries: Path | None,
    pairs: Path | None,
) -> tuple[Inference, Files]:
    """Return what is made of the tables of a recommender, or of a search, and where they are.

    Raises:
        DataError: The tables are not those of either, or cannot be made sense of.
    """
    if documents is None:
        if interactions is None or queries is not None or pairs is not None:
            raise DataError(
                "name the tables: --interactions FILE (and --items, --users) of a recommender, or --documents FILE or "
                "FOLDER (and --queries with --pairs) of a search"
            )
        tables = [_read(path) for path in (interactions, items, users)]
        frames = [None if table is None else table.frame for table in tables]
        assert frames[0] is not None, "the interactions are named"
        inference = infer_features(frames[0], *frames[1:])
        return replace(inference, notes=_notes(tables)), Files(interactions, items, users)
    if interactions is not None or items is not None or users is not None:
        raise DataError("--documents are those of a search: give --queries and --pairs with them, and no other table")
    tables = [_read(path) for path in (documents, queries, pairs)]
    frames = [None if table is None else table.frame for table in tables]
    assert frames[0] is not None, "the documents are named"
    return replace(infer_search(frames[0], *frames[1:]), notes=_notes(tables)), Files(pairs, documents, queries)


def said_of(inference: Inference) -> str:
    """Return what the tables hold, in a few words."""
    events, users, items = f"{inference.num_events:,}", f"{inference.num_users:,}", f"{inference.num_items:,}"
    if not inference.is_search:
        return f"{events} interactions of {users} users with {items} items"
    return f"{events} pairs of {users} queries with {items} documents" if inference.num_events else f"{items} documents"


def _read(path: Path | None) -> RawTable | None:
    return None if path is None else read_table(path, looks_like_code)


def _notes(tables: Sequence[RawTable | None]) -> tuple[str, ...]:
    return tuple(note for table in tables if table is not None for note in table.notes)


def render_model_settings(inference: Inference) -> str:
    """Return the `[towers]` and `[training]` parts of run.toml, commented."""
    if inference.is_search:
        return f"{SEARCH}\n{SEARCH_TRAINING}" if inference.num_events else SEARCH
    per_user = inference.num_events / max(inference.num_users, 1)
    is_sparse = per_user < SPARSE
    few = f"{per_user:.0f} interactions per user {'are few' if is_sparse else 'are many'}"
    towers = [
        "[towers]\nwidth = 64               # numbers in a vector; memory and search cost grow with it\n",
        ORDERED if inference.is_ordered else UNORDERED,
        TIMED if inference.column("timestamp") is not None else "",
        f"dropout = {0.5 if is_sparse else 0.2}            # share of the numbers hidden while training; {few}\n",
    ]
    tables = "table_learning_rate = 0.05  # of the embedding tables, half the usual: little is known of each user\n"
    return f"{''.join(towers)}\n{TRAINING}{tables if is_sparse else ''}"
