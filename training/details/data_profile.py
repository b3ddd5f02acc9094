"""The tables of a run as a report shows them: sizes, columns, what is remarkable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from features.config import FeaturesConfig, FeatureSettings
from features.sequences.sequences import UNKNOWN_TIME, Sequences
from features.tables.tables import Tables
from features.values.cells import is_missing
from training.details.examples import cut
from training.details.figures import Compared
from training.evaluation.details import ColumnProfile, Fact, TableProfile

MOST_ROWS = 20_000
"""Rows that the columns are profiled from, a sample of larger tables."""
MOST_COLUMNS = 40
MOST_NOTES = 30
FEW_QUESTIONS = 1_000
MANY_EMPTY, MANY_COLD, TOP_HEAVY = 0.5, 0.2, 0.5


def table_profiles(tables: Tables, config: FeaturesConfig, digests: Mapping[str, str]) -> tuple[TableProfile, ...]:
    """Return the tables that were read, with their columns.

    Args:
        tables: What is left of them.
        config: Which columns are read.
        digests: SHA-256 of each table.
    """
    of_interactions = {
        "user_id": "user",
        "item_id": "item",
        "timestamp": "time",
        "position": "order",
        "rating": "rating",
    }
    found = {
        "interactions": (tables.interactions.frame, of_interactions),
        "items": (tables.catalog.frame, {"item_id": "item", **_roles(config.item)}),
    }
    if tables.users is not None:
        found["users"] = (tables.users.frame, {"user_id": "user", **_roles(config.user)})
    return tuple(_profile(name, frame, roles, digests.get(name, "")) for name, (frame, roles) in found.items())


def data_facts(sequences: Sequences, num_items: int, compared: Compared) -> tuple[Fact, ...]:
    """Return the sizes of the data."""
    lengths = sequences.lengths
    counts = np.bincount(sequences.item_rows, minlength=num_items)
    train, questions = compared.split.train, compared.questions
    facts = [
        Fact("Interactions", f"{sequences.num_events:,}, of which {train.num_events:,} for training"),
        Fact("Users", f"{len(sequences):,}"),
        Fact("Items", f"{num_items:,}, of which {int(compared.split.candidates.sum()):,} are ranked"),
        Fact("Interactions per user", _spread(lengths)),
        Fact("Interactions per item", _spread(counts)),
        Fact("Density", f"{sequences.num_events / max(1, len(sequences) * num_items):.3%} of all pairs"),
        Fact("Questions", f"{len(questions):,}, with {len(questions.target_rows):,} held-out items"),
    ]
    known = None if sequences.times is None else sequences.times[sequences.times != UNKNOWN_TIME]
    if known is not None and len(known):
        facts.insert(1, Fact("Time", f"{_date(int(known.min()))} to {_date(int(known.max()))}"))
    return tuple(facts)


def data_warnings(tables: Tables, profiles: tuple[TableProfile, ...], compared: Compared) -> tuple[str, ...]:
    """Return what reading the tables repaired, and what is remarkable about them."""
    notes = [*tables.notes, *_remarks(profiles, compared)]
    more = (
        [f"{len(notes) - MOST_NOTES:,} more notes; the command prints all of them."] if len(notes) > MOST_NOTES else []
    )
    return (*(cut(note) for note in notes[:MOST_NOTES]), *more)


def _remarks(profiles: tuple[TableProfile, ...], compared: Compared) -> Iterator[str]:
    if len(compared.questions) < FEW_QUESTIONS:
        yield f"Only {len(compared.questions):,} questions: the intervals are wide, and small differences are not seen."
    counts = np.sort(compared.interactions[compared.split.candidates])[::-1]
    cold = float((counts == 0).mean())
    if cold > MANY_COLD:
        yield f"{cold:.0%} of the ranked items have no interactions in the training data."
    top = max(1, len(counts) // 100)
    head = float(counts[:top].sum() / max(1, counts.sum()))
    if head > TOP_HEAVY:
        yield f"The most popular 1 % of the items have {head:.0%} of the interactions."
    for table in profiles:
        empty = [column for column in table.columns if column.role != NOT_READ and 1 - column.filled > MANY_EMPTY]
        if empty:
            columns = ", ".join(f"{column.name} ({1 - column.filled:.0%})" for column in empty[:10])
            yield f"Columns of {table.name} that the model reads and that are mostly empty: {columns}."


NOT_READ = "not read"


def _roles(settings: Mapping[str, FeatureSettings]) -> dict[str, str]:
    return {name: one.kind for name, one in settings.items()}


def _profile(name: str, frame: pd.DataFrame, roles: Mapping[str, str], digest: str) -> TableProfile:
    sample = frame if len(frame) <= MOST_ROWS else frame.sample(MOST_ROWS, random_state=0)
    columns = [_column(column, sample[column], roles.get(column, NOT_READ)) for column in frame.columns[:MOST_COLUMNS]]
    return TableProfile(name, len(frame), digest, tuple(columns), len(frame.columns), len(sample))


def _column(name: str, cells: pd.Series, role: str) -> ColumnProfile:
    there = [
        cell for cell in cells.astype(object) if not (is_missing(cell) or (isinstance(cell, str) and not cell.strip()))
    ]
    distinct = len({cell if isinstance(cell, str | int | float) else str(cell) for cell in there})
    return ColumnProfile(cut(str(name)), role, len(there) / max(1, len(cells)), distinct)


def _spread(numbers: np.ndarray) -> str:
    if not len(numbers):
        return "none"
    median, tenth = np.quantile(numbers, [0.5, 0.9])
    return f"median {median:,.0f}, 90 % have at most {tenth:,.0f}, the most {numbers.max():,}"


def _date(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
