"""The cells that a database filters by, and conditions in their types.

A database must find exactly what a comparison in memory finds. So a column has one of few kinds, numbers are compared
in the precision of the table's own column, and what a database cannot hold exactly is not sent to it: those conditions
are applied to its results instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.search.conditions import Condition, Filter

ColumnKind = Literal["whole", "float32", "float64", "text", "truth", "texts", "wholes"]

Cells = Mapping[str, pa.Array]
"""The cells of the columns by name: of the types in `_KINDS`, null where a cell is empty."""

_KINDS: dict[pa.DataType, ColumnKind] = {
    pa.int64(): "whole",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.string(): "text",
    pa.bool_(): "truth",
    pa.list_(pa.string()): "texts",
    pa.list_(pa.int64()): "wholes",
}
_WHOLE = np.iinfo(np.int64)


def kinds_of(cells: Cells) -> dict[str, ColumnKind]:
    """Return the kind of each column."""
    return {name: _KINDS[column.type] for name, column in cells.items()}


def storable(cells: Cells) -> dict[str, pa.Array]:
    """Return the columns of which a database can hold every cell exactly."""
    return {name: column for name, column in cells.items() if column.type in _KINDS and _holds(column)}


def _holds(column: pa.Array) -> bool:
    """Return whether a column has neither infinite numbers nor texts with a NUL, which PostgreSQL has none of."""
    values = column.flatten() if pa.types.is_list(column.type) else column
    if pa.types.is_floating(values.type):
        is_odd = pc.invert(pc.is_finite(values))
    elif pa.types.is_string(values.type):
        is_odd = pc.match_substring(values, "\0")
    else:
        return True
    return not pc.any(is_odd).as_py()


def pushed_down(wanted: Filter, kinds: Mapping[str, ColumnKind]) -> Filter:
    """Return the conditions that a database can apply, with values in the types of its columns."""
    typed = (_typed(one, kinds[one.column]) for one in wanted if one.column in kinds)
    return tuple(one for one in typed if one is not None)


def _typed(condition: Condition, kind: ColumnKind) -> Condition | None:
    """Return a condition with values that cells of this kind can be compared with; None if there are none."""
    values = condition.values
    match kind:
        case "whole":
            if condition.operator in ("min", "max"):
                values = (math.ceil(values[0]) if condition.operator == "min" else math.floor(values[0]),)
            values = tuple(int(one) for one in values if int(one) == one and _WHOLE.min <= one <= _WHOLE.max)
        case "float32":
            with np.errstate(over="ignore"):
                values = tuple(float(np.float32(one)) for one in values)
        case "float64":
            values = tuple(map(float, values))
        case "text" | "texts":
            values = tuple(one for one in values if _is_storable(one))
        case "truth" | "wholes":
            pass
    if not values or (kind in ("float32", "float64") and not all(map(math.isfinite, values))):
        return None
    return replace(condition, values=values)


def _is_storable(text: str) -> bool:
    """Return whether a database can hold a text: a request may have half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
