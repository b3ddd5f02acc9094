"""Rows as JSON has them to a table like another: what arrives over HTTP meets the model as the rows of a file do.

A column's type is that of the table, so that an item that is sent with the cells of its own row becomes that row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd
import pyarrow as pa

from features.errors import DataError
from features.messages import did_you_mean, shown
from features.spelling import Spelling, decide_of_texts, spelt
from features.values.cells import MAX_CELL_CHARACTERS, MAX_CELL_VALUES, refuse_large
from features.values.numbers import MOST_NUMBER

_MOST_NAMED = 12
NO_SPELLINGS: Mapping[str, Spelling] = MappingProxyType({})
"""Kinds of a table that no model reads."""
# Of what a schema promises; more is taken, where the column can hold it.
_SOME_DATE = r"^(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$"


def typed_rows(
    like: pd.DataFrame, rows: Sequence[Mapping[str, Any]], spellings: Mapping[str, Spelling] = NO_SPELLINGS
) -> pd.DataFrame:
    """Return rows as a table with the columns and types of another; what a row does not name is missing.

    Args:
        like: The table, its columns in pyarrow types, as `read_tables` returns it.
        rows: Cells by column. Text is text, a number a number, a list a list, and a date its ISO 8601 text.
        spellings: How the values of columns are spelt that the model reads as values or texts. In these, `3` and `"3"`
            are one value, whatever the column's type is.

    Raises:
        DataError: A row has a column that the table has not, or a cell that its column cannot hold or that is too
            large.
    """
    for row in rows:
        _refuse_strange(list(like.columns), row)
    columns = {
        name: _column(name, _kind(like[name]), [row.get(name) for row in rows], spellings.get(name))
        for name in like.columns
    }
    return pd.DataFrame({name: pd.Series(cells, dtype=like[name].dtype) for name, cells in columns.items()})


def cell_schemas(like: pd.DataFrame, spellings: Mapping[str, Spelling] = NO_SPELLINGS) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of a cell of each column, as `typed_rows` takes it; null is what is missing."""
    return {
        str(name): {"anyOf": [_schema(_kind(like[name]), name in spellings), {"type": "null"}]} for name in like.columns
    }


def fitting_rows(
    like: pd.DataFrame, rows: Sequence[Mapping[str, Any]], spellings: Mapping[str, Spelling] = NO_SPELLINGS
) -> tuple[pd.DataFrame, list[str]]:
    """Return rows as `typed_rows` does, without the cells that the table has no column for or that do not fit there.

    Returns:
        The table, and a line for each column of which cells were left out: how many, and why the first of them.
    """
    try:
        return typed_rows(like, rows, spellings), []
    except DataError:
        left_out: dict[str, list[str]] = {}
        fitting = [_fitting(like, row, spellings, left_out) for row in rows]
        return typed_rows(like, fitting, spellings), [_said(reasons) for reasons in left_out.values()]


def _fitting(
    like: pd.DataFrame, row: Mapping[str, Any], spellings: Mapping[str, Spelling], left_out: dict[str, list[str]]
) -> dict[str, Any]:
    fitting = {}
    for name, cell in row.items():
        if cell is None:
            continue
        try:
            _refuse_strange(list(like.columns), {name: cell})
            _column(name, _kind(like[name]), [cell], spellings.get(name))
            fitting[name] = cell
        except DataError as error:
            left_out.setdefault(name, []).append(str(error))
    return fitting


def _said(reasons: Sequence[str]) -> str:
    more = f" (and {len(reasons) - 1:,} more cells of this column)" if len(reasons) > 1 else ""
    return f"a cell is left out: {reasons[0]}{more}"


def _refuse_strange(columns: list[str], row: Mapping[str, Any]) -> None:
    for name in row:
        if name not in columns:
            there = ", ".join(map(repr, columns[:_MOST_NAMED])) + (", ..." if len(columns) > _MOST_NAMED else "")
            raise DataError(f"{name}: the table has no such column; it has {there}{did_you_mean(name, columns)}")


def _kind(column: pd.Series) -> pa.DataType:
    assert isinstance(column.dtype, pd.ArrowDtype), f"{column.name} is of type {column.dtype}"
    return column.dtype.pyarrow_dtype


def _column(name: str, kind: pa.DataType, values: Sequence[Any], spelling: Spelling | None = None) -> pa.Array:
    for value in values:
        refuse_large(name, value)
    try:
        return pa.array([_cell(name, kind, _retyped(kind, value, spelling)) for value in values], type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        said = " ".join(str(error).split())[:120]
        raise DataError(f"{name}: expected {_spoken(kind)}, which this is not ({said})") from None


def _cell(name: str, kind: pa.DataType, value: Any) -> Any:
    """Return a value as pyarrow takes it for a column.

    Raises:
        DataError: It is of another kind; pyarrow would take some of these and make something else of them.
    """
    if value is None:
        return None
    if _is_list(kind) and isinstance(value, list):
        return [_cell(name, kind.value_type, inner) for inner in value]
    if _is_moment(kind) and isinstance(value, str):
        return pa.scalar(value).cast(kind).as_py()
    if _is_whole(kind) and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, _python_types(kind)) or (isinstance(value, bool) and not pa.types.is_boolean(kind)):
        raise DataError(f"{name}: expected {_spoken(kind)}, found {shown(value)}")
    if isinstance(value, int | float) and pa.types.is_floating(kind) and not abs(value) <= MOST_NUMBER:
        raise DataError(f"{name}: expected a number from -{MOST_NUMBER:g} to {MOST_NUMBER:g}, found {shown(value)}")
    return value


def _retyped(kind: pa.DataType, value: Any, spelling: Spelling | None) -> Any:
    """Return a value of a column whose values are spelt in one way as JSON has it for the column's type today."""
    if value is None or spelling is None:
        return value
    if _is_list(kind):
        return [_retyped(kind.value_type, one, spelling) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, list | dict):
        return value
    if _is_text(kind):
        return value if isinstance(value, str) else spelt(spelling, value)
    if pa.types.is_boolean(kind):
        return {"true": True, "false": False}.get(spelt("boolean", value), value)
    text = spelt("number", value)
    if (_is_whole(kind) or pa.types.is_floating(kind)) and decide_of_texts([text]) == "number":
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    return value.strip() if isinstance(value, str) else value


def _python_types(kind: pa.DataType) -> type | tuple[type, ...]:
    if pa.types.is_boolean(kind):
        return bool
    if _is_whole(kind):
        return int
    if pa.types.is_floating(kind):
        return (int, float)
    if _is_text(kind):
        return str
    return () if _is_list(kind) or _is_moment(kind) else object


def _spoken(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "true or false"
    if _is_whole(kind):
        return "a whole number"
    if pa.types.is_floating(kind):
        return "a number"
    if _is_text(kind):
        return "text"
    if _is_moment(kind):
        zone = "Z" if getattr(kind, "tz", None) else ""
        return "a date such as 2024-03-31" + ("" if pa.types.is_date(kind) else f"T18:00:00{zone}")
    return f"a list, each {_spoken(kind.value_type)}" if _is_list(kind) else str(kind)


def _schema(kind: pa.DataType, is_spelt: bool) -> dict[str, Any]:
    """Return the JSON schema of what `_retyped`, `_cell` and pyarrow take."""
    if _is_list(kind):
        one = _schema(kind.value_type, is_spelt)
        size = {"maxItems": MAX_CELL_VALUES}
        if pa.types.is_fixed_size_list(kind):
            size = {"minItems": kind.list_size, "maxItems": kind.list_size}
        many = {"type": "array", "items": {"anyOf": [one, {"type": "null"}]}, **size}
        return {"anyOf": [many, one]} if is_spelt else many
    if is_spelt and not _is_moment(kind):
        return {
            "anyOf": [{"type": "string", "maxLength": MAX_CELL_CHARACTERS}, {"type": "number"}, {"type": "boolean"}]
        }
    if pa.types.is_boolean(kind):
        return {"type": "boolean"}
    if _is_whole(kind):
        signed = 0 if pa.types.is_unsigned_integer(kind) else 1
        most = 2 ** (kind.bit_width - signed) - 1
        return {"type": "integer", "minimum": -signed * (most + 1), "maximum": most}
    if pa.types.is_floating(kind):
        return {"type": "number", "minimum": -MOST_NUMBER, "maximum": MOST_NUMBER}
    if _is_text(kind):
        return {"type": "string", "maxLength": MAX_CELL_CHARACTERS}
    if _is_moment(kind):
        return {"type": "string", "format": "date", "pattern": _SOME_DATE}
    return {}


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
