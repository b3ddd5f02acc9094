"""The kinds of features: one entry a kind holds everything that depends on it. CONTRIBUTING.md says how to add one.

| part of an entry | used by |
|---|---|
| `settings` | `features.config`, which refuses settings of other kinds |
| `read` | `features.tables`, once for each column of a file |
| `content` | column contract, filters of requests, slices of an audit, statistics of re-rankers |
| `encoder` | `features.featurizer`, which fits it on the training data |
| `request_schemas`, `parse`, `expected` | `serving`, for attributes in requests and the OpenAPI document |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from features.values.cells import MAX_CELL_CHARACTERS, MAX_CELL_VALUES
from features.values.numbers import NUMBER_SCHEMA, json_number
from features.values.readings import (
    ReadColumn,
    Reading,
    ReadOptions,
    read_categories,
    read_number,
    read_time,
    read_vector,
)
from features.values.times import DATE_SCHEMAS, seconds_of

Content = Literal["values", "texts", "numbers", "times", "vectors"]
"""Content of cells once they are read: categorical values, prose, numbers, times (Unix seconds in models), vectors."""


@dataclass(frozen=True)
class FeatureKind:
    """A way in which a column becomes part of a vector.

    Attributes:
        name: Its name in run.toml: `kind = "..."`.
        content: What cells hold. It decides how a column is compared with that of training (column contract), how
            requests filter by it, and how an audit slices by it.
        encoder: Name of what turns a column into model input, among `SPARSE_ENCODERS` or `DENSE_ENCODERS` of
            `features.featurizer`.
        read: Brings the cells of a file to the type of the kind. None: cells stay as the file has them.
        request_schemas: JSON schemas of a value in an HTTP request, any of which may hold. Null (unknown) is always
            allowed.
        parse: Returns a value of a request as a cell; None where it is of the wrong type.
        expected: What `parse` accepts, for error messages: "a number".
        settings: The settings in `FeatureSettings` that belong to this kind and may not be set for others.
        has_several: Whether a cell may hold several values, as a list or as text with a separator.
        is_id: Whether a value identifies the user or item itself. It is hidden at random in training (`id_dropout`),
            and is no part of what the entity's text says.
    """

    name: str
    content: Content
    encoder: str
    request_schemas: tuple[Mapping[str, Any], ...]
    parse: Callable[[Any], Any]
    expected: str
    read: Callable[[pa.Array, ReadOptions, Reading | None], ReadColumn] | None = None
    settings: tuple[str, ...] = ()
    has_several: bool = False
    is_id: bool = False

    @property
    def is_sparse(self) -> bool:
        """Whether values are rows of an embedding table; otherwise they are numbers that are projected."""
        return self.content in ("values", "texts")

    def read_column(self, cells: pa.Array, options: ReadOptions, earlier: Reading | None = None) -> ReadColumn:
        """Return a column of a file, read as this kind.

        Args:
            cells: The column, in a type that `features.tables.table_files` gives.
            options: What the settings say of how cells are written.
            earlier: What was decided when the same column was read before, which holds for this file, too. None: decide
                now.

        Raises:
            CellError: Some cell cannot be read as this kind, or can be read in two ways.
        """
        read = ReadColumn(cells) if self.read is None else self.read(cells, options, earlier)
        if len(cells) and cells.null_count < len(cells) == read.cells.null_count:
            return ReadColumn(read.cells, read.reading, (*read.notes, "every cell is empty once it is read"))
        return read


def _number(value: Any) -> float | None:
    number = json_number(value)
    return None if number is None else float(number)


def _time(value: Any) -> float | None:
    return seconds_of(value) if isinstance(value, str) else _number(value)


def _vector(value: Any) -> list[Any] | None:
    is_vector = isinstance(value, list) and all(json_number(one) is not None for one in value)
    return value if is_vector else None


def _value(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else None


def _values(value: Any) -> Any:
    if isinstance(value, str):
        return value
    values = value if isinstance(value, list) else [value]
    return values if all(_value(one) is not None for one in values) else None


_VALUE_SCHEMA = {"type": ["string", "number", "boolean"], "maxLength": MAX_CELL_CHARACTERS}
_LIST_SCHEMA = {"type": "array", "maxItems": MAX_CELL_VALUES}
_VALUE: dict[str, Any] = {"request_schemas": (_VALUE_SCHEMA,), "parse": _value, "expected": "text or a number"}

_VOCABULARY = ("min_count", "hashed_rows", "hashes")

FEATURE_KINDS: dict[str, FeatureKind] = {
    kind.name: kind
    for kind in (
        FeatureKind("id", "values", "vocabulary", is_id=True, settings=_VOCABULARY, **_VALUE),
        FeatureKind("category", "values", "vocabulary", settings=_VOCABULARY, **_VALUE),
        FeatureKind(
            "categories",
            "values",
            "vocabulary",
            request_schemas=(_VALUE_SCHEMA, {**_LIST_SCHEMA, "items": _VALUE_SCHEMA}),
            parse=_values,
            expected="texts",
            read=read_categories,
            settings=_VOCABULARY,
            has_several=True,
        ),
        FeatureKind(
            "number",
            "numbers",
            "quantiles",
            request_schemas=(NUMBER_SCHEMA,),
            parse=_number,
            expected="a number",
            read=read_number,
            settings=("decimal",),
        ),
        FeatureKind("text", "texts", "ngrams", settings=("frozen_dim", "encoder"), **_VALUE),
        FeatureKind(
            "vector",
            "vectors",
            "unit_vector",
            request_schemas=({**_LIST_SCHEMA, "items": NUMBER_SCHEMA},),
            parse=_vector,
            expected="a list of numbers",
            read=read_vector,
        ),
        FeatureKind(
            "time",
            "times",
            "quantiles",
            request_schemas=(*DATE_SCHEMAS, NUMBER_SCHEMA),
            parse=_time,
            expected="a date or Unix seconds",
            read=read_time,
            settings=("time_format",),
        ),
    )
}
"""By name."""
