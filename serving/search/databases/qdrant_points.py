"""Items and conditions as Qdrant has them, the same for its server and for its engine in the process.

Booleans are stored as the words `true` and `false`, because the engine's Python interface compares them with 1 and 0.
Whole numbers are compared as doubles in ranges, which lets through a few too many beyond 2^53; the searcher leaves them
out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

import numpy as np

from features.errors import DataError
from serving.search.conditions import Condition, Filter
from serving.search.databases.columns import ColumnKind
from serving.search.databases.database import Points

INDEX_TYPES: dict[ColumnKind, str] = {
    "whole": "integer",
    "float32": "float",
    "float64": "float",
    "text": "keyword",
    "truth": "keyword",
    "texts": "keyword",
    "wholes": "integer",
}
"""Qdrant's type of index for each kind of column."""
NEIGHBOURS, CANDIDATES_WHILE_BUILDING = 16, 128
"""m and ef_construct of Qdrant's graph."""
INDEXED_KILOBYTES = 10_000
"""Collections whose vectors take less have no graph; all items are compared."""
MAX_EFFORT = 4096
"""The greatest hnsw_ef that is worth its time: comparing all items is faster."""
EXPECTED = (
    "expected qdrant://HOST:PORT?collection=NAME, or qdrant:///FOLDER?collection=NAME for the engine in the process"
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
_SIMPLE = re.compile(r"[A-Za-z0-9_-]+")
_POINTS_AT_ONCE = 1000


def parsed(address: str) -> tuple[SplitResult, str]:
    """Return the parts of an address, and the name of the alias in it.

    Raises:
        DataError: The address is invalid, or has no such name; the message does not quote it.
    """
    try:
        parts = urlsplit(address)
        names = parse_qs(parts.query).get("collection", [])
    except ValueError:
        names = []
    if len(names) != 1 or not _NAME.fullmatch(names[0]):
        raise DataError(f"index: {EXPECTED}, with a name of at most 100 letters, digits, _ and -")
    return parts, names[0]


def can_hold(column: str) -> bool:
    """Return whether a column can have this name: it is a path in JSON, in which a quote cannot be quoted."""
    return bool(column) and '"' not in column and "\0" not in column


def path_of(column: str) -> str:
    """Return a column's name as a path in the points."""
    return column if _SIMPLE.fullmatch(column) else f'"{column}"'


def batches(points: Points) -> Iterator[tuple[list[int], np.ndarray, list[dict[str, Any]]]]:
    """Yield keys, vectors and columns of some items at a time; empty cells are left out."""
    for start in range(0, len(points), _POINTS_AT_ONCE):
        part = slice(start, start + _POINTS_AT_ONCE)
        columns = {name: _values(cells[part].to_pylist()) for name, cells in points.cells.items()}
        keys = points.keys[part].tolist()
        payloads = [
            {name: values[place] for name, values in columns.items() if values[place] is not None}
            for place in range(len(keys))
        ]
        yield keys, points.vectors[part], payloads


def filter_of(where: Filter, kinds: Mapping[str, ColumnKind], excluded: np.ndarray) -> dict[str, Any] | None:
    """Return conditions and exclusions as a filter in Qdrant's JSON; None if there are none."""
    must: list[dict[str, Any]] = []
    must_not: list[dict[str, Any]] = []
    for one in where:
        (must_not if one.operator == "not" else must).append(_condition(one, kinds[one.column]))
    if len(excluded):
        must_not.append({"has_id": excluded.tolist()})
    found = {name: conditions for name, conditions in (("must", must), ("must_not", must_not)) if conditions}
    return found or None


def _condition(one: Condition, kind: ColumnKind) -> dict[str, Any]:
    path = path_of(one.column)
    if one.operator in ("min", "max"):
        is_least = one.operator == "min"
        return {"key": path, "range": {"gte" if is_least else "lte": _outwards(one.values[0], is_least=is_least)}}
    if kind in ("float32", "float64"):
        return {"should": [{"key": path, "range": {"gte": value, "lte": value}} for value in one.values]}
    return {"key": path, "match": {"any": _values(list(one.values))}}


def _outwards(bound: float, *, is_least: bool) -> float:
    """Return a bound as a double: the nearest that leaves nothing out."""
    rounded = float(bound)
    if is_least:
        return math.nextafter(rounded, -math.inf) if rounded > bound else rounded
    return math.nextafter(rounded, math.inf) if rounded < bound else rounded


def _values(cells: list[Any]) -> list[Any]:
    return [("false", "true")[cell] if isinstance(cell, bool) else cell for cell in cells]
