"""The contract of columns: what training saw in each column that the model reads, and what today's tables are held to.

A column that was renamed, re-spelt or re-scaled is read without an error, and then says nothing to the model. So
training writes down how each column was spelt and read, how many of its cells are filled, and how many of its values
the model knows; other tables that are read with the same model are compared with that. A missing column is an error,
and so is a collapse: a share that fell to less than half. A smaller fall is a note.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.columns import numbers_of, texts_of, values_of
from features.config import FeaturesConfig
from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.featurizer.sparse import ValueEncoder
from features.featurizer.vocabulary import UNKNOWN
from features.ids import ITEM_ID, USER_ID
from features.locations.object_path import TablePath
from features.locations.table_path import table_path
from features.messages import ACCEPT, cut, nearest
from features.schema import Feature
from features.spelling import Spelling
from features.tables.tables import Readings, Tables
from features.values.cells import is_missing
from features.values.distinct import many
from features.values.readings import Reading, TextFormat, reading_from_json, reading_to_json
from features.values.text import words as words_in

COLLAPSE = 0.5
"""A share that fell to less than this part of what it was in training is an error."""
FALL = 0.05
"""A share that fell by more than this is noted."""
ENOUGH = 20
"""Minimum number of cells for which shares are compared."""
_LEAST_SHARE = 0.1
_BAND = (0.05, 0.95)
_MOST_WORDS = 4096
_MOST_TEXTS = 20_000
_EXAMPLES = 3
_LONGEST_EXAMPLE = 24
_SIDES = ("items", "users")
_OWN_IDS = (ITEM_ID, USER_ID)


@dataclass(frozen=True)
class ColumnFacts:
    """Statistics of a column.

    Attributes:
        kind: How the model reads it, a name in `features.feature_kinds.FEATURE_KINDS`.
        spelling: How its values are spelt; None where they are numbers, times or vectors.
        cells: How many cells there are.
        filled: Share of the cells that say something.
        known: Share that the model knows: of the values; of the words those that were frequent in training; of the
            numbers those between the 5 % and the 95 % quantile of training; of the model's own ids those that are in
            the table. None where there is no such thing, as of times and vectors.
        examples: Some values, the most frequent first.
        quantiles: Of numbers, and of times in Unix seconds: the least, the quantiles 0.05, 0.5 and 0.95, the greatest.
        length: Of vectors: how many numbers each has.
        words: Of texts: the words that were the most frequent in training.
    """

    kind: str
    spelling: Spelling | None
    cells: int
    filled: float
    known: float | None
    examples: tuple[str, ...]
    quantiles: tuple[float, ...] | None = None
    length: int | None = None
    words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ColumnContract:
    """Statistics of the tables at training time.

    Attributes:
        columns: The facts of each column that the model reads, by table (`items`, `users`) and name.
        names: All columns of these tables.
        readings: How cells were read that can be read in several ways, by table, `interactions` included.
    """

    columns: Mapping[str, Mapping[str, ColumnFacts]]
    names: Mapping[str, tuple[str, ...]]
    readings: Mapping[str, Readings] = field(default_factory=dict)

    @classmethod
    def of(cls, featurizer: Featurizer, tables: Tables) -> ColumnContract:
        """Return the contract of a model that was trained on these tables."""
        frames = _frames(tables)
        columns = {
            side: {one.name: _facts(featurizer, side, one, frame[one.name], None) for one in _read(featurizer, side)}
            for side, frame in frames.items()
        }
        names = {side: tuple(map(str, frame.columns)) for side, frame in frames.items()}
        return cls(columns, names, tables.readings)

    @property
    def readings_to_keep(self) -> dict[str, dict[str, Reading]]:
        """How today's tables are to be read so that the same cell is the same again, as `read_tables` takes it.

        Columns of codes that were text stay text, even if today every cell is a number: `1.0` is not 1 there.
        """
        kept = {table: dict(readings) for table, readings in self.readings.items()}
        for side, columns in self.columns.items():
            for name, facts in columns.items():
                if facts.spelling == "text":
                    kept.setdefault(side, {}).setdefault(name, TextFormat())
        return kept

    def check(
        self, featurizer: Featurizer, tables: Tables, config: FeaturesConfig, folder: Path, *, accept: bool = False
    ) -> list[str]:
        """Return a note for each column that changed somewhat since training.

        Args:
            featurizer: What the model knows.
            tables: Today's tables, read with `readings_to_keep`.
            config: Where they were read from.
            folder: What the paths in it are relative to.
            accept: Whether a collapse is a note, too.

        Raises:
            DataError: A column that the model reads is missing, or what is filled or known of it collapsed.
        """
        notes: list[str] = []
        collapsed: list[str] = []
        for side, frame in _frames(tables).items():
            if side not in self.columns:
                continue
            path = table_path(folder, str(getattr(config, side) or config.interactions))
            self._refuse_missing(side, path, frame, config.title if side == "items" else None)
            notes.extend(self._dropped(side, path, frame))
            for feature in _read(featurizer, side):
                then = self.columns[side][feature.name]
                now = _facts(featurizer, side, feature, frame[feature.name], then)
                for change in _changes(feature, then, now):
                    said = f"{path}: column {feature.name!r}: {change.said}"
                    (collapsed if change.is_collapse else notes).append(said)
        if collapsed and not accept:
            more = f" (and {many(len(collapsed) - 1, 'more such column')})" if len(collapsed) > 1 else ""
            remedy = f"correct the table, train on it, or accept it with `towers index ... {ACCEPT}`"
            raise DataError(f"{collapsed[0]}{more}; {remedy}")
        return [*collapsed, *notes]

    def today(self, featurizer: Featurizer, tables: Tables) -> dict[str, dict[str, ColumnFacts]]:
        """Return the facts of other tables by the measure of these, for the columns that are in both; see `columns`."""
        return {
            side: {
                one.name: _facts(featurizer, side, one, frame[one.name], self.columns[side][one.name])
                for one in _read(featurizer, side)
                if one.name in frame
            }
            for side, frame in _frames(tables).items()
            if side in self.columns
        }

    def _refuse_missing(self, side: str, path: TablePath, frame: pd.DataFrame, title: str | None) -> None:
        there = [str(name) for name in frame.columns if name not in _OWN_IDS]
        shown = title if title in self.names[side] else None
        for name in (*self.columns[side], *([shown] if shown is not None else [])):
            if name not in frame:
                near = nearest(name, there)
                use = "reads" if name in self.columns[side] else "shows as title"
                has = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
                rename = f"rename {near!r} to it" if near is not None else "add it"
                raise DataError(
                    f"{path}: no column {name!r}, which the model {use}; it has {has}; {rename}, or train on this table"
                )

    def _dropped(self, side: str, path: TablePath, frame: pd.DataFrame) -> list[str]:
        gone = [name for name in self.names[side] if name not in frame.columns]
        if not gone:
            return []
        return [f"{path}: no longer there, and not read by the model: {', '.join(map(repr, gone[:12]))}"]

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        content = {
            "columns": {
                side: {name: asdict(facts) for name, facts in columns.items()} for side, columns in self.columns.items()
            },
            "names": self.names,
            "readings": {
                table: {name: reading_to_json(one) for name, one in readings.items()}
                for table, readings in self.readings.items()
            },
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> ColumnContract:
        """Read what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {
                side: {name: _from_json(facts) for name, facts in columns.items()}
                for side, columns in content["columns"].items()
            },
            {side: tuple(names) for side, names in content["names"].items()},
            {
                table: {name: reading_from_json(one) for name, one in readings.items()}
                for table, readings in content["readings"].items()
            },
        )


@dataclass(frozen=True)
class _Change:
    said: str
    is_collapse: bool


def _from_json(facts: Mapping[str, Any]) -> ColumnFacts:
    tuples: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    return ColumnFacts(**tuples)


def _frames(tables: Tables) -> dict[str, pd.DataFrame]:
    """Return the tables that have columns of their own, by name."""
    users = {} if tables.users is None else {"users": tables.users.frame}
    return {"items": tables.catalog.frame, **users}


def _read(featurizer: Featurizer, side: str) -> tuple[Feature, ...]:
    return featurizer.schema.item if side == "items" else featurizer.schema.user


def _facts(
    featurizer: Featurizer, side: str, feature: Feature, column: pd.Series, then: ColumnFacts | None
) -> ColumnFacts:
    """Return the facts of a column.

    Args:
        featurizer: What the model knows.
        side: The table.
        feature: What is read of it.
        column: The cells.
        then: The facts of the same column in training. None: this is training.
    """
    empty = ColumnFacts(feature.kind, feature.spelling, len(column), 0.0, None, ())
    match feature.definition.content:
        case "numbers" | "times":
            return _of_numbers(empty, feature, column, then)
        case "vectors":
            known = [cell for cell in column if not is_missing(cell)]
            return replace(empty, filled=_share(len(known), len(column)), length=len(known[0]) if known else None)
        case "texts":
            return _of_texts(empty, feature, column, then)
        case "values":
            encoders = featurizer.items if side == "items" else featurizer.users
            encoder = encoders.sparse[feature.name]
            assert isinstance(encoder, ValueEncoder), "values are read by their vocabulary"
            return _of_values(empty, encoder, feature, column)


def _of_values(empty: ColumnFacts, encoder: ValueEncoder, feature: Feature, column: pd.Series) -> ColumnFacts:
    lengths, values = values_of(feature, column)
    rows = encoder.vocabulary.rows(values)
    known = _share(int((rows != UNKNOWN).sum()), len(rows))
    if feature.name in _OWN_IDS:  # new ids are no change of the column
        known = _share(len(np.unique(rows[rows != UNKNOWN])), len(encoder.vocabulary) - 1)
    # Of a column that changed, what the model does not know shows what changed.
    unknown = [value for value, row in zip(values, rows, strict=True) if row == UNKNOWN]
    shown = unknown if known < COLLAPSE else values
    return replace(empty, filled=_share(int((lengths > 0).sum()), len(column)), known=known, examples=_most(shown))


def _of_texts(empty: ColumnFacts, feature: Feature, column: pd.Series, then: ColumnFacts | None) -> ColumnFacts:
    if len(column) > _MOST_TEXTS:
        column = column.iloc[np.linspace(0, len(column) - 1, _MOST_TEXTS).astype(np.int64)]
    written = [text for text in texts_of(feature, column) if text]
    counts = Counter(word for text in written for word in words_in(text))
    words = tuple(word for word, _ in counts.most_common(_MOST_WORDS)) if then is None else then.words or ()
    known = sum(counts[word] for word in set(words))
    return replace(
        empty,
        filled=_share(len(written), len(column)),
        known=_share(known, counts.total()),
        examples=_most(written),
        words=words,
    )


def _of_numbers(empty: ColumnFacts, feature: Feature, column: pd.Series, then: ColumnFacts | None) -> ColumnFacts:
    numbers = numbers_of(feature, column)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return empty
    quantiles = tuple(np.quantile(numbers, (0, _BAND[0], 0.5, _BAND[1], 1), method="inverted_cdf").tolist())
    band = quantiles if then is None or then.quantiles is None else then.quantiles
    known = None
    if feature.definition.content == "numbers" and band[1] < band[3]:
        known = _share(int(((numbers >= band[1]) & (numbers <= band[3])).sum()), len(numbers))
    examples = tuple(f"{number:.6g}" for number in quantiles[1:4])
    return replace(empty, filled=_share(len(numbers), len(column)), known=known, examples=examples, quantiles=quantiles)


def _changes(feature: Feature, then: ColumnFacts, now: ColumnFacts) -> list[_Change]:
    """Return how a column changed, as far as there are enough cells to say so."""
    changes = []
    enough = min(then.cells, now.cells) >= ENOUGH
    filled = _change(then.filled, now.filled, enough, "of the cells are filled", then, now)
    if filled is not None:
        changes.append(filled)
    if then.length is not None and now.length not in (None, then.length):
        said = f"vectors of {now.length} numbers, of {then.length} in training"
        changes.append(_Change(said, is_collapse=True))
    if then.known is not None and now.known is not None:
        enough = min(then.cells * then.filled, now.cells * now.filled) >= ENOUGH
        known = _change(then.known, now.known, enough, _said_of_known(feature, then), then, now)
        if known is not None:
            changes.append(known)
    return changes


def _change(
    then: float, now: float, is_enough: bool, what: str, before: ColumnFacts, after: ColumnFacts
) -> _Change | None:
    is_collapse = then >= _LEAST_SHARE and now < then * COLLAPSE
    if not is_collapse and now >= then - FALL:
        return None
    said = f"{now:.0%} {what}, {then:.0%} in training"
    if before.examples and after.examples and before.examples != after.examples:
        said += f" (then such as {_listed(before.examples)}; now {_listed(after.examples)})"
    return _Change(said, is_collapse and is_enough)


def _said_of_known(feature: Feature, then: ColumnFacts) -> str:
    if feature.definition.content == "numbers":
        assert then.quantiles is not None, "a share of numbers is one between quantiles"
        return f"of the numbers are from {then.quantiles[1]:.6g} to {then.quantiles[3]:.6g}"
    if feature.definition.content == "texts":
        return "of the words are known to the model"
    if feature.name in _OWN_IDS:
        return "of the ids that the model knows are there"
    return "of the values are known to the model"


def _most(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(cut(value, _LONGEST_EXAMPLE) for value, _ in Counter(values).most_common(_EXAMPLES))


def _listed(examples: Sequence[str]) -> str:
    return ", ".join(map(repr, examples))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
