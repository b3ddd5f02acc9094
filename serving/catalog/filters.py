"""Which items a request allows: conditions on the columns of the catalogue, typed by the column.

| condition | in a query | in a body or from Python | columns |
|---|---|---|---|
| any of these | `category=shoes&category=boots` | `{"category": ["shoes", "boots"]}`, or one value | all |
| none of these | `brand_not=Acme` | `{"brand": {"not": ["Acme"]}}` | all |
| from, up to | `price_min=10&price_max=50` | `{"price": {"min": 10, "max": 50}}` | numbers, times |

All conditions must hold. A range includes both ends; a date stands for the beginning of the day. A cell with several
values (a list, or text with a separator) matches if any of them does. An empty cell matches only "none of these".
`item_id` can be used as a column, for lists of items to allow or to deny. If a column has the name of a condition
(`price_max`), the name refers to the column. The table of
operators is `serving.search.conditions.OPERATORS`.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache
from jaxtyping import Bool, Int64

from features.config import FeatureSettings
from features.errors import DataError
from features.ids import ITEM_ID
from features.messages import did_you_mean, shown
from features.sequences.ragged import offsets_of, ragged_arange
from features.tables.tables import Catalog
from features.values.numbers import json_number
from features.values.times import DATE_SCHEMAS, seconds_of
from serving.bounds import MAX_CONDITIONS, MAX_FILTER_VALUES, MAX_NUMBER_CHARACTERS, MAX_VALUE_CHARACTERS
from serving.search.conditions import DEFAULT_OPERATOR, OPERATORS, Comparable, Condition, Filter, Mask, as_filter
from serving.search.results import AllowedItems

# Without ambiguity, so that matching takes linear time.
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"-?[0-9]{1,19}")
# Memory of the cache of filters; for each item a mask, the row and its order by partitions take 17 bytes.
_CACHE_BYTES = 1 << 27
_BYTES_PER_ITEM = 17
# Filters with more values are not cached: they are unlikely to be repeated, and take memory themselves.
_MAX_CACHED_VALUES = 1000
# Above this number of values, a column of numbers is compared with all of them in one pass.
_MANY_VALUES = 8
_MOST_NAMED = 12
_MOST_NUMBER = 1e300
# 2024 and 20240331 are dates; any other number of digits are Unix seconds.
_DIGITS_OF_DATES = (4, 8)


class Filters:
    """The columns of a catalogue as filters; safe to use from several threads.

    Attributes:
        catalog: The items.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Mapping[str, FeatureSettings] | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        """Prepare the columns of a catalogue.

        Args:
            catalog: The items.
            settings: The model's settings of the columns: which hold times, and what separates several values.
            columns: The columns that may be filtered by. None: all.

        Raises:
            DataError: The catalogue has no such column.
        """
        self.catalog = catalog
        self._settings = settings or {}
        self._allowed = list(catalog.frame.columns if columns is None else columns)
        self._read: dict[str, _Column] = {}
        self._by_value: dict[str, ItemsByValue] = {}
        num_cached = max(2, min(1024, _CACHE_BYTES // (_BYTES_PER_ITEM * max(1, len(catalog)))))
        self._cache: LRUCache[Filter, AllowedItems] = LRUCache(num_cached)
        self._lock = threading.Lock()
        missing = [name for name in self._allowed if name not in catalog.frame.columns]
        if missing:
            there = _named(list(catalog.frame.columns))
            raise DataError(f"filter_columns: the catalogue has no column {missing[0]!r}; it has {there}")

    def of_part(self, catalog: Catalog, columns: Sequence[str] | None = None) -> Filters:
        """Return filters on the same columns, or some of them, of other items with the same column types."""
        return Filters(catalog, self._settings, self._allowed if columns is None else columns)

    def parse(self, given: Mapping[str, Any], place: str = "filter") -> Filter:
        """Return the filter that a JSON object describes.

        Args:
            given: By column: a value, a list of values, or a table of `OPERATORS`.
            place: Path of the object in the request, for messages.

        Raises:
            DataError: Names the column, what was expected and what was found.
        """
        _refuse_many(place, len(given), MAX_CONDITIONS, "columns")
        conditions = []
        for column, wanted in given.items():
            where = f"{place}.{column}"
            self._check(column, where)
            conditions += [(column, operator, values, path) for operator, values, path in _comparisons(wanted, where)]
        _refuse_many(place, sum(len(values) for _, _, values, _ in conditions), MAX_FILTER_VALUES, "values")
        return as_filter([self._condition(*one) for one in conditions])

    def from_query(self, given: Mapping[str, Sequence[str]]) -> Filter:
        """Return the filter that the parameters of a query describe.

        Args:
            given: The values of each parameter, `category`, `category_not`, `price_min`, `price_max`.

        Raises:
            DataError: Names the parameter, what was expected and what was found.
        """
        _refuse_many("query", len(given), MAX_CONDITIONS, "conditions")
        _refuse_many("query", sum(map(len, given.values())), MAX_FILTER_VALUES, "values to filter by")
        conditions = []
        for name, values in given.items():
            column, operator = self._column_and_operator(name)
            if len(values) > 1 and not OPERATORS[operator].takes_list:
                raise DataError(f"{name}: expected once, found {len(values)} times")
            conditions.append(self._condition(column, operator, values, name))
        return as_filter(conditions)

    def columns(self) -> dict[str, ColumnSchema]:
        """Return the schema of each column that can be filtered by; does not read the cells."""
        nothing = Catalog(self.catalog.frame.iloc[:0])
        read = {name: _read(nothing, name, self._settings.get(name)) for name in self._allowed}
        return {
            name: ColumnSchema(column.value.schema, column.has_order)
            for name, column in read.items()
            if column.value is not None
        }

    def cells(self, rows: Int64[np.ndarray, " rows"]) -> pd.DataFrame:
        """Return items' cells in the columns that can be filtered by, one row each."""
        return self.catalog.frame[self._allowed].iloc[rows]

    def typed_columns(self) -> dict[str, pa.Array]:
        """Return the cells of each column that can be filtered by, as they are compared.

        Numbers are int64, float32 or float64, times are Unix seconds, texts and booleans what they are, and cells with
        several values lists; null where a cell is empty. Texts that are longer than any condition, which none matches,
        are empty, too.
        """
        found = {name: self._column(name).typed() for name in self._allowed}
        return {name: cells for name, cells in found.items() if cells is not None}

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self.catalog)

    def mask(self, wanted: Filter) -> Mask:
        """Return which items match a filter, `[items]`; all for an empty filter."""
        allowed = self.allowed(wanted)
        return np.ones(self.num_items, dtype=bool) if allowed is None else allowed.mask

    def by_value(self, column: str, where: str) -> ItemsByValue:
        """Return the items by the values of a column.

        Args:
            column: The column.
            where: Path in the request, for messages.

        Raises:
            DataError: There is no such column to filter by, or its cells cannot be compared.
        """
        self._check(column, where)
        found = self._by_value.get(column)
        if found is None:
            read = self._column(column)
            _comparable(read, column, where)
            found = self._by_value[column] = ItemsByValue.of(*read.cells(), self.num_items)
        return found

    def allowed(self, wanted: Filter) -> AllowedItems | None:
        """Return the items that match a filter, cached for later requests; None for an empty filter."""
        if not wanted:
            return None
        with self._lock:
            known = self._cache.get(wanted)
            if known is not None:
                return known
        mask = np.ones(len(self.catalog), dtype=bool)
        for condition in wanted:
            mask &= self._mask(condition)
        found = AllowedItems(mask, wanted)
        if sum(len(condition.values) for condition in wanted) <= _MAX_CACHED_VALUES:
            with self._lock:
                self._cache[wanted] = found
        return found

    def _mask(self, condition: Condition) -> Mask:
        return OPERATORS[condition.operator].mask(self._column(condition.column), condition.values)

    def _condition(self, name: str, operator: str, values: Sequence[Any], where: str) -> Condition:
        column = self._column(name)
        value = _comparable(column, name, where)
        if OPERATORS[operator].needs_order and not column.has_order:
            raise DataError(f"{where}: expected a column of numbers or times, but {name!r} holds {column.holds}")
        typed = [value.read(one) for one in values]
        for one, known in zip(values, typed, strict=True):
            if known is None:
                raise DataError(f"{where}: expected {value.expectation(one)}, found {shown(one)}")
        return Condition(name, operator, tuple(sorted(set(typed))))

    def _column(self, name: str) -> _Column:
        found = self._read.get(name)
        if found is None:
            settings = self._settings.get(name)
            found = self._read[name] = _read(self.catalog, name, settings)
        return found

    def _column_and_operator(self, name: str) -> tuple[str, str]:
        if name in self._allowed:
            return name, DEFAULT_OPERATOR
        for operator in sorted(OPERATORS.keys() - {DEFAULT_OPERATOR}, key=len):
            column = name.removesuffix(f"_{operator}")
            if column != name and column in self._allowed:
                return column, operator
        raise self._unknown(name, name)

    def _check(self, column: str, where: str) -> None:
        if column not in self._allowed:
            raise self._unknown(column, where)

    def _unknown(self, name: str, where: str) -> DataError:
        hint = did_you_mean(name, self._allowed)
        return DataError(f"{where}: no column to filter by; the catalogue has {_named(self._allowed)}{hint}")


@dataclass(frozen=True)
class ColumnSchema:
    """The conditions that a request may have on a column.

    Attributes:
        value: The JSON schema of a value.
        has_order: Whether the values can be ordered.
    """

    value: Mapping[str, Any]
    has_order: bool

    @property
    def operators(self) -> list[str]:
        """Names of the operators that the column can be compared by."""
        return [name for name, operator in OPERATORS.items() if self.has_order or not operator.needs_order]


@dataclass(frozen=True)
class ItemsByValue:
    """The items by the values of a column. Values are numbered from 0.

    Attributes:
        values: The distinct values of each item, item by item, `[cells]`.
        offsets: Start of each item's values, `[items + 1]`.
    """

    values: Int64[np.ndarray, " cells"]
    offsets: Int64[np.ndarray, " items_plus_1"]

    @classmethod
    def of(cls, rows: np.ndarray, values: np.ndarray, num_items: int) -> ItemsByValue:
        """Return the items by their values, from pairs of an item's row and a value, in any order."""
        num_values = int(values.max(initial=0)) + 1
        pairs = np.unique(rows.astype(np.int64) * num_values + values)
        return cls(pairs % num_values, offsets_of(np.bincount(pairs // num_values, minlength=num_items)))

    def of_item(self, row: int) -> list[int]:
        """Return the values of an item."""
        values: list[int] = self.values[self.offsets[row] : self.offsets[row + 1]].tolist()
        return values

    @cached_property
    def num_values(self) -> int:
        """Number of values."""
        return int(self.values.max(initial=-1)) + 1

    def have(self, rows: Int64[np.ndarray, " rows"], wanted: Bool[np.ndarray, " values"]) -> Bool[np.ndarray, " rows"]:
        """Return which of the items have at least one of the wanted values."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        is_wanted = wanted[self.values[ragged_arange(self.offsets[rows], lengths)]]
        found = np.zeros(len(rows), dtype=bool)
        found[np.repeat(np.arange(len(rows)), lengths)[is_wanted]] = True
        return found

    def with_value(self, value: int) -> Int64[np.ndarray, " rows"]:
        """Return the items that have a value."""
        rows, offsets = self._by_value
        return rows[offsets[value] : offsets[value + 1]]

    @cached_property
    def _by_value(self) -> tuple[Int64[np.ndarray, " cells"], Int64[np.ndarray, " values_plus_1"]]:
        """The items of each value, value by value, and the start of each value's items."""
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        counts = np.bincount(self.values, minlength=self.num_values)
        return rows[np.argsort(self.values, kind="stable")], offsets_of(counts)


@dataclass(frozen=True)
class ValueType:
    """The type of a column's values.

    Attributes:
        typed: Converts a value from a request to the column's type; returns None if that is not possible.
        expected: Description of valid values, for messages.
        schema: JSON schema of valid values.
        longest: Maximum number of characters of a value given as text.
    """

    typed: Callable[[Any], Any]
    expected: str
    schema: Mapping[str, Any]
    longest: int = MAX_NUMBER_CHARACTERS

    def read(self, given: Any) -> Any:
        """Return the converted value; None if it is invalid or too long."""
        return None if self._is_long(given) else self.typed(given)

    def expectation(self, given: Any) -> str:
        """Return the description of valid values for an error about an invalid one."""
        return f"{self.expected} of at most {self.longest} characters" if self._is_long(given) else self.expected

    def _is_long(self, given: Any) -> bool:
        return isinstance(given, str) and len(given) > self.longest


class _Column(Comparable, Protocol):
    """A column that can be asked which rows fit."""

    value: ValueType | None
    """The type of its values; None if they cannot be compared."""
    holds: str
    """Description of its content, for messages."""
    has_order: bool
    """Whether its values are ordered, for `min` and `max`."""

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and the numbers of their values, from 0; a row with several values is repeated."""

    def typed(self) -> pa.Array | None:
        """Return the cells as `Filters.cells` does; None if they cannot be compared, or have no exact type there."""


class _Ordered:
    """Numbers, and times as Unix seconds.

    A value is compared in the type of the column: in a floating-point column it is rounded as the cells were, in an
    integer column it is compared exactly, however large.
    """

    has_order = True

    def __init__(self, values: np.ndarray, present: Mask, value: ValueType, holds: str) -> None:
        self.value: ValueType | None = value
        self.holds = holds
        self._values = values
        self._present = present

    def any_of(self, values: Sequence[Any]) -> Mask:
        known = np.array([one for one in map(self._typed, values) if one is not None], dtype=self._values.dtype)
        if len(known) > _MANY_VALUES:
            return np.asarray(np.isin(self._values, known) & self._present)
        mask = np.zeros(len(self._values), dtype=bool)
        for value in known:
            mask |= self._values == value
        return np.asarray(mask & self._present)

    def at_least(self, value: Any) -> Mask:
        bound = math.ceil(value) if self._is_whole else self._nearest(value)
        return np.asarray(self._present & (self._values >= bound))

    def at_most(self, value: Any) -> Mask:
        bound = math.floor(value) if self._is_whole else self._nearest(value)
        return np.asarray(self._present & (self._values <= bound))

    @property
    def _is_whole(self) -> bool:
        return bool(np.issubdtype(self._values.dtype, np.integer))

    def _typed(self, value: Any) -> Any:
        """Return a value in the type of the column; None if no cell can have it."""
        if self._is_whole:
            limits = np.iinfo(self._values.dtype)
            whole = int(value)
            return whole if whole == value and limits.min <= whole <= limits.max else None
        return self._nearest(value)

    def _nearest(self, value: Any) -> Any:
        """Return the number of the column's type that is nearest to a value."""
        with np.errstate(over="ignore"):
            return self._values.dtype.type(value)

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.flatnonzero(self._present)
        return rows, np.unique(self._values[rows], return_inverse=True)[1]

    def typed(self) -> pa.Array | None:
        cells = pa.array(self._values, mask=~self._present)
        if self._is_whole:
            fits = self._values.max(initial=0) <= np.iinfo(np.int64).max
            return cells.cast(pa.int64()) if fits else None
        return cells if cells.type in (pa.float32(), pa.float64()) else None


class _Named:
    """Texts, booleans and lists of them: for each value the rows that have it."""

    has_order = False

    def __init__(self, rows: np.ndarray, values: pa.Array, num_items: int, value: ValueType, holds: str) -> None:
        self.value: ValueType | None = value
        self.holds = holds
        encoded = values.dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        self._codes = {value: code for code, value in enumerate(encoded.dictionary.to_pylist())}
        self._rows = rows[np.argsort(codes, kind="stable")].astype(np.int32)
        self._offsets = offsets_of(np.bincount(codes, minlength=len(self._codes)))
        self._num_items = num_items

    def any_of(self, values: Sequence[Any]) -> Mask:
        mask = np.zeros(self._num_items, dtype=bool)
        for value in values:
            code = self._codes.get(value)
            if code is not None:
                mask[self._rows[self._offsets[code] : self._offsets[code + 1]]] = True
        return mask

    def at_least(self, value: Any) -> Mask:
        raise AssertionError("the column has no order")

    at_most = at_least

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        return self._rows, np.repeat(np.arange(len(self._codes)), np.diff(self._offsets))

    def typed(self) -> pa.Array | None:
        rows, codes = self.cells()
        order = np.argsort(rows, kind="stable")
        values = pa.array(list(self._codes), pa.string() if self.value is _TEXT_VALUE else None)
        if pa.types.is_string(values.type):
            values = pc.if_else(pc.less_equal(pc.utf8_length(values), MAX_VALUE_CHARACTERS), values, None)
        elif not pa.types.is_boolean(values.type):
            values = values.cast(pa.int64())
        taken = values.take(pa.array(codes[order]))
        counts = np.bincount(rows, minlength=self._num_items)
        if self.holds.startswith("lists"):
            kept = np.concatenate([[0], np.cumsum(taken.is_valid().to_numpy(zero_copy_only=False))])
            return pa.ListArray.from_arrays(kept[offsets_of(counts)].astype(np.int32), taken.drop_null())
        places = np.cumsum(counts) - 1
        return taken.take(pa.array(np.where(counts, places, 0), mask=counts == 0))


class _Ids:
    """The items' own ids."""

    has_order = False
    holds = "ids"

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        value = _WHOLE_VALUE if np.issubdtype(catalog.item_ids.dtype, np.integer) else _TEXT_VALUE
        self.value: ValueType | None = replace(value, expected=f"{value.expected}, as items' ids are")

    def any_of(self, values: Sequence[Any]) -> Mask:
        if not self._catalog.is_unique:
            return self._catalog.frame[ITEM_ID].isin(values).to_numpy(bool)
        mask: Mask = np.zeros(len(self._catalog), dtype=bool)
        rows = self._catalog.rows_of(list(values))
        mask[rows[rows >= 0]] = True
        return mask

    def at_least(self, value: Any) -> Mask:
        raise AssertionError("the column has no order")

    at_most = at_least

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(self._catalog)), np.arange(len(self._catalog))

    def typed(self) -> pa.Array | None:
        return pa.array(self._catalog.item_ids.tolist())


class _Incomparable:
    """Vectors, structures, bytes: values that a request cannot name."""

    has_order = False

    def __init__(self, kind: pa.DataType) -> None:
        self.value: ValueType | None = None
        self.holds = str(kind)

    def any_of(self, values: Any) -> Mask:
        raise AssertionError("no value fits")

    at_least = at_most = any_of

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("the values cannot be compared")

    def typed(self) -> pa.Array | None:
        return None


def _comparable(column: _Column, name: str, where: str) -> ValueType:
    if column.value is None:
        raise DataError(f"{where}: column {name!r} holds {column.holds}, which cannot be compared; choose another")
    return column.value


def _read(catalog: Catalog, name: str, settings: FeatureSettings | None) -> _Column:
    """Return a column as a filter, by its type and its settings."""
    if name == ITEM_ID:
        return _Ids(catalog)
    cells = pa.array(catalog.frame[name])
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    kind = cells.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _numbers(cells, is_time=settings is not None and settings.definition.content == "times")
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _times(cells)
    if is_list(kind):
        inner = kind.value_type
        if not (_is_text(inner) or pa.types.is_integer(inner)):
            return _Incomparable(kind)
        # Not arrow's `list_parent_indices`, which for lists of a fixed size includes the content of empty cells.
        there = cells.drop_null()
        lengths = pc.list_value_length(there).to_numpy(zero_copy_only=False)
        rows = np.repeat(np.flatnonzero(cells.is_valid().to_numpy(zero_copy_only=False)), lengths)
        return _several(rows, there.flatten(), len(cells))
    if settings is not None and settings.definition.has_several and settings.separator and _is_text(kind):
        parts = pc.split_pattern(cells, settings.separator)
        rows = pc.list_parent_indices(parts).to_numpy(zero_copy_only=False)
        return _several(rows, pc.utf8_trim_whitespace(parts.flatten()), len(cells))
    rows = np.flatnonzero(cells.is_valid().to_numpy(zero_copy_only=False))
    if _is_text(kind):
        return _Named(rows, cells.drop_null(), len(cells), _TEXT_VALUE, "text")
    if pa.types.is_boolean(kind):
        return _Named(rows, cells.drop_null(), len(cells), _TRUTH_VALUE, "booleans")
    return _Incomparable(kind)


def _numbers(cells: pa.Array, *, is_time: bool) -> _Column:
    present = cells.is_valid().to_numpy(zero_copy_only=False)
    values = cells.fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(cells.type):
        present = present & ~np.isnan(values)
    if is_time:
        return _Ordered(values, present, _MOMENT_VALUE, "times")
    return _Ordered(values, present, _NUMBER_VALUE, "numbers")


def _times(cells: pa.Array) -> _Column:
    present = cells.is_valid().to_numpy(zero_copy_only=False)
    moments = pd.to_datetime(pd.Series(cells.to_pandas()), utc=True)
    seconds = moments.astype("datetime64[us, UTC]").astype("int64").to_numpy(np.float64) / 1e6
    return _Ordered(seconds, present, _MOMENT_VALUE, "times")


def _several(rows: np.ndarray, values: pa.Array, num_items: int) -> _Column:
    kept = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(values.type):
        return _Named(rows[kept], values.drop_null(), num_items, _WHOLE_VALUE, "lists of whole numbers")
    return _Named(rows[kept], values.drop_null(), num_items, _TEXT_VALUE, "lists of texts")


def _without_point(value: Any) -> Any:
    """Return a whole number such as 7.0 as an integer, which is the same in JSON; other values unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> int | float | None:
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            return None
        value = int(value) if _WHOLE.fullmatch(value) else float(value)
    return json_number(value, _MOST_NUMBER)


def _whole(value: Any) -> int | None:
    value = _without_point(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value) and (value == "0" or value.lstrip("-")[0] != "0"):
        value = int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and -(2**63) <= value < 2**63 else None


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    number = _whole(value)
    return None if number is None else str(number)


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _moment(value: Any) -> int | float | None:
    if not isinstance(value, str):
        return _number(value)
    if _NUMBER.fullmatch(value) and not (value.isdigit() and len(value) in _DIGITS_OF_DATES):
        return _number(value)
    seconds = seconds_of(f"{value}-01-01" if len(value) == _DIGITS_OF_DATES[0] else value)
    # Digits that are no date, such as 12345678, are seconds after all.
    return _number(value) if seconds is None else seconds


_INTEGER = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
# Query parameters are text, and in a body, too, a number may be given as text.
_WHOLE_SCHEMA = {"anyOf": [_INTEGER, {"type": "string", "pattern": "^(0|-?[1-9][0-9]{0,17})$", "maxLength": 19}]}
_NUMBER_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": -_MOST_NUMBER, "maximum": _MOST_NUMBER},
        {
            "type": "string",
            "pattern": r"^[+-]?([0-9]{1,30}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,2})?$",
            "maxLength": MAX_NUMBER_CHARACTERS,
        },
    ]
}
_NUMBER_VALUE = ValueType(_number, "a number", _NUMBER_SCHEMA)
_WHOLE_VALUE = ValueType(_whole, "a whole number", _WHOLE_SCHEMA)
_TEXT_VALUE = ValueType(
    _text,
    "text",
    {"anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_VALUE_CHARACTERS}, _INTEGER]},
    MAX_VALUE_CHARACTERS,
)
_TRUTH_VALUE = ValueType(
    _truth, "true or false", {"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["true", "false"]}]}
)
_MOMENT_VALUE = ValueType(
    _moment, "a date such as 2024-03-31, or Unix seconds", {"anyOf": [*DATE_SCHEMAS, *_NUMBER_SCHEMA["anyOf"]]}
)


def _comparisons(wanted: Any, where: str) -> list[tuple[str, Sequence[Any], str]]:
    """Return the conditions of a body on one column: operator, values, and path in the request."""
    if not isinstance(wanted, Mapping):
        return [(DEFAULT_OPERATOR, wanted if isinstance(wanted, list | tuple) else [wanted], where)]
    strange = [name for name in wanted if name not in OPERATORS]
    if strange or not wanted:
        *names, last = OPERATORS
        found_instead = shown(strange[0] if strange else "nothing")
        raise DataError(f"{where}: expected {', '.join(names)} or {last}, found {found_instead}")
    found: list[tuple[str, Sequence[Any], str]] = []
    for name, operator in OPERATORS.items():
        if name in wanted:
            values = wanted[name]
            is_several = isinstance(values, list | tuple) and operator.takes_list
            found.append((name, values if is_several else [values], f"{where}.{name}"))
    return found


def _refuse_many(where: str, count: int, most: int, what: str) -> None:
    if count > most:
        raise DataError(f"{where}: expected at most {most:,} {what}, found {count:,}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column of this type has several values in a cell."""
    return any(
        is_of_kind(kind)
        for is_of_kind in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def _named(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in list(columns)[:_MOST_NAMED])
    return f"{shown}, ..." if len(columns) > _MOST_NAMED else shown or "none"
