"""The columns of a catalogue as the page shows them: pictures, short facts, and fields to filter by.

Only columns that requests may filter by are shown (setting `filter_columns`), because the values of others can be found
out by no client.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.config import FeatureSettings
from features.ids import ITEM_ID
from features.values.cells import are_short
from serving.catalog.filters import ColumnSchema, is_list
from serving.deadline import held
from serving.recommend.recommender import Recommender
from serving.search.conditions import DEFAULT_OPERATOR
from serving.snapshot.snapshot import Snapshot

PICTURE_NAMES = ("image", "picture", "photo", "thumbnail", "img", "poster", "cover")
"""Beginnings of the names of columns with addresses of pictures."""
MAX_CHOICES = 100
"""Maximum number of values of a column that is offered as a list."""
MAX_FIELDS = 8
"""Maximum number of columns with a field to filter by."""
NUM_SHOWN = 3
"""Number of columns that are shown at first."""
_SAMPLE = 1000


@dataclass(frozen=True)
class Field:
    """A column to filter by.

    Attributes:
        name: The column.
        kind: `choice` (one of `choices`), `number` or `date` (from, up to).
        choices: Its values, the most frequent first; empty if there are too many.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the query parameters that its controls set."""
        return (self.name,) if self.kind == "choice" else (f"{self.name}_min", f"{self.name}_max")


@dataclass(frozen=True)
class CatalogColumns:
    """The columns of a catalogue.

    Attributes:
        picture: The column with addresses of pictures; None if there is none.
        fields: The columns to filter by.
        facts: The columns with short values, which can be shown with an item.
        groups: The columns whose values items share, by which a list can be limited.
        conditions: The column and the operator of each query parameter that filters.
    """

    picture: str | None
    fields: tuple[Field, ...]
    facts: tuple[str, ...]
    groups: tuple[str, ...]
    conditions: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, recommender: Recommender) -> CatalogColumns:
        """Return the columns of the catalogue of a recommender's index."""
        frame = recommender.snapshot.catalog.frame
        schemas = recommender.indexed.filters.columns()
        features = recommender.bundle.config.features
        title, settings = features.title, features.item
        picture = next((name for name in schemas if _holds_pictures(name, frame[name])), None)
        facts = [
            name
            for name in schemas
            if name not in (ITEM_ID, title, picture) and not name.startswith(PICTURE_NAMES) and are_short(frame[name])
        ]
        fields = [_field(name, schemas[name], frame[name], settings.get(name)) for name in facts]
        return cls(
            picture,
            tuple(fields[:MAX_FIELDS]),
            tuple(facts),
            tuple(field.name for field in fields if field.kind == "choice"),
            _conditions(schemas),
        )


class ColumnsCache:
    """The columns of the index that is served, read once for each index."""

    def __init__(self) -> None:
        self._snapshot: Callable[[], Snapshot | None] = lambda: None
        self._columns: CatalogColumns | None = None
        self._lock = threading.Lock()

    def of(self, recommender: Recommender) -> CatalogColumns:
        """Return the columns of the catalogue of a recommender's index."""
        with held(self._lock):
            if self._columns is None or self._snapshot() is not recommender.snapshot:
                self._columns = CatalogColumns.of(recommender)
                # A weak reference, so that an index that is no longer served can be freed.
                self._snapshot = weakref.ref(recommender.snapshot)
            return self._columns


def _holds_pictures(name: str, cells: pd.Series) -> bool:
    if not name.casefold().startswith(PICTURE_NAMES):
        return False
    texts = cells.head(_SAMPLE).dropna().astype(str)
    return bool(len(texts) and texts.str.match(r"(?:https?://|data:image/|/)\S").mean() > 0.5)


def _field(name: str, schema: ColumnSchema, cells: pd.Series, settings: FeatureSettings | None) -> Field:
    if schema.has_order:
        is_date = any("format" in one for one in schema.value["anyOf"])
        return Field(name, "date" if is_date else "number")
    values = pa.array(cells)
    if settings is not None and settings.definition.has_several and settings.separator and not is_list(values.type):
        values = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(values, settings.separator)))
    elif is_list(values.type):
        values = pc.list_flatten(values)
    counts = sorted(pc.value_counts(values.drop_null()).to_pylist(), key=lambda one: -one["counts"])
    if len(counts) > MAX_CHOICES:
        return Field(name, "choice")
    return Field(name, "choice", tuple(_text(one["values"]) for one in counts))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _conditions(schemas: Mapping[str, ColumnSchema]) -> dict[str, tuple[str, str]]:
    """Return the column and the operator of each query parameter; a column's own name comes before a condition."""
    found: dict[str, tuple[str, str]] = {name: (name, DEFAULT_OPERATOR) for name in schemas}
    for name, schema in schemas.items():
        for operator in schema.operators:
            found.setdefault(f"{name}_{operator}", (name, operator))
    return found


def shown_columns(columns: CatalogColumns, wanted: Sequence[str]) -> list[str]:
    """Return the columns to show: those that are asked for, or the first ones."""
    asked = [name for name in wanted if name in columns.facts]
    return asked or [*columns.facts[:NUM_SHOWN]]
