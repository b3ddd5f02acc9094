"""Lists that are written as text, as programs write them into CSV files, decided by the column as a whole.

| written by | looks like |
|---|---|
| Python, pandas | `['Comedy', 'Drama']`, `('a', 'b')` |
| JSON | `["Comedy", "Drama"]`, `[0.12, -0.3]` |
| numpy | `[0.12 -0.3]`, `['Comedy' 'Drama']` |
| PostgreSQL | `{Comedy,"Science Fiction",NULL}` |
| Java, Spark | `[Comedy, Drama]` |
| TMDB, JSON | `[{'id': 18, 'name': 'Drama'}]`: a list of records, of each its name |
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from features.errors import CellError
from features.messages import cut
from features.values.distinct import MOSTLY, Distinct, many

Holds = Literal["texts", "whole numbers", "numbers"]
Style = Literal["json", "python", "numpy", "postgresql", "bare"]
_LABELS = ("name", "title", "label", "value", "id")
_ENDS = {"[": "]", "{": "}", "(": ")"}
_REMEDY = 'write all of them as JSON, such as ["a", "b"], or leave the column out'
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_NUMPY_ITEM = re.compile(rf"\s*(?:({_QUOTED})|([^\s'\",\[\]{{}}]+))", re.DOTALL)
_POSTGRESQL_ITEM = re.compile(r"\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\"',{}\s](?:[^\",{}]*[^\",{}\s])?))\s*(,|$)", re.DOTALL)
_BARE = re.compile(r"[^\[\]{}()\"']*(?:(?<=\w)'(?=\w)[^\[\]{}()\"']*)*")

Items = list[Any]


@dataclass(frozen=True)
class ListFormat:
    """How the text cells of one column are read as lists.

    Attributes:
        style: Who writes lists in this way.
        key: Of lists of records: the field that is read; None where the lists hold values.
        holds: What the values are.
    """

    style: Style
    key: str | None = None
    holds: Holds = "texts"

    @classmethod
    def decide(cls, cells: pa.Array) -> ListFormat:
        """Return the one way in which all cells are lists.

        Raises:
            CellError: There is none, or the lists hold something that has no values to read.
        """
        found = Distinct.of(cells)
        best: tuple[int, np.ndarray] | None = None
        for style in _READERS:
            parsed = [_items(style, value) for value in found.values]
            wrong = np.array([items is None for items in parsed], dtype=bool)
            if not wrong.any():
                lists = [items for items in parsed if items is not None]
                key = _key(found, lists)
                return cls(style, key, _holds([item if key is None else item[key] for one in lists for item in one]))
            best = min(best or (len(wrong) + 1, wrong), (int(wrong.sum()), wrong), key=lambda pair: pair[0])
        assert best is not None, "there are ways of writing"
        good = next((value for value, wrong in zip(found.values, best[1], strict=True) if not wrong), None)
        others = "" if good is None else f" as in other cells ({cut(good, 60)})"
        raise found.error(best[1], f"a list{others}", _REMEDY)

    def read(self, cells: pa.Array) -> tuple[pa.Array, list[str]]:
        """Return text cells as lists of doubles, of whole numbers or of texts, null where they are empty.

        Raises:
            CellError: Some cell is no list written in this way, or its records lack the field.
        """
        found = Distinct.of(cells)
        parsed = [self._values(value) for value in found.values]
        wrong = np.array([values is None for values in parsed], dtype=bool)
        if wrong.any():
            what = f"records with {self.key!r}" if self.key else self.holds
            raise found.error(wrong, f"a list of {what} as {_SPOKEN[self.style]} writes it", _REMEDY)
        read = pa.array(parsed, pa.list_(_TYPES[self.holds])).take(pa.array(found.codes, mask=found.codes < 0))
        said = f", of each record its {self.key!r}" if self.key else ""
        notes = [f"lists as {_SPOKEN[self.style]} writes them read{said}"]
        if found.num_words:
            notes.append(f"{many(found.num_words, 'cell')} such as NULL read as empty")
        return read, notes

    def _values(self, value: str) -> Items | None:
        items = _items(self.style, value)
        if items is None or any(isinstance(item, dict) != (self.key is not None) for item in items):
            return None
        if self.key is not None:
            items = [item.get(self.key) for item in items]
        if self.holds == "texts":
            return [str(item) for item in items] if all(map(_is_value, items)) else None
        if self.holds == "whole numbers":
            return items if _holds(items) == "whole numbers" or not items else None
        return [float(item) for item in items] if _holds(items) != "texts" or not items else None


def looks_like_lists(cells: pa.Array) -> bool:
    """Return whether (nearly) all text cells are in brackets."""
    found = Distinct.of(cells)
    return found.share([_is_enclosed(value) for value in found.values]) >= MOSTLY


def _is_enclosed(value: str) -> bool:
    return len(value) > 1 and _ENDS.get(value[0]) == value[-1]


def _items(style: Style, value: str) -> Items | None:
    """Return what a cell lists, None where it is no list in this way of writing; empty items are left out."""
    if not _is_enclosed(value):
        return None
    items = _READERS[style](value)
    if items is None:
        return None
    kept = [item for item in items if item is not None and item != ""]
    return kept if all(_is_value(item) or isinstance(item, dict) for item in kept) else None


def _is_value(item: Any) -> bool:
    return isinstance(item, str | int | float)


def _json(value: str) -> Items | None:
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, list) else None


def _python(value: str) -> Items | None:
    if _joins_neighbours(value):
        return None
    try:
        read = ast.literal_eval(re.sub(r"\bnan\b", "None", value) if "nan" in value and "'" not in value else value)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return list(read) if isinstance(read, list | tuple) else sorted(read, key=str) if isinstance(read, set) else None


def _joins_neighbours(value: str) -> bool:
    """Return whether two texts stand side by side, as numpy writes them: Python would make one text of both."""
    return bool(re.search(r"['\"]\s+['\"]", re.sub(r"\\.", "", value)))


def _numpy(value: str) -> Items | None:
    inside, items, at = value[1:-1].strip(), [], 0
    if value[0] != "[":
        return None
    while at < len(inside):
        match = _NUMPY_ITEM.match(inside, at)
        item = None if match is None else _numpy_item(*match.groups())
        if match is None or item is None:
            return None
        items.append(item)
        at = match.end()
    return items


def _numpy_item(quoted: str | None, bare: str | None) -> str | float | None:
    if quoted is not None:
        return str(ast.literal_eval(quoted)) if "\n" not in quoted else quoted[1:-1]
    try:
        return float(bare or "")
    except ValueError:
        return None


def _postgresql(value: str) -> Items | None:
    if value[0] != "{":
        return None
    inside, items, at = value[1:-1].strip(), [], 0
    while at < len(inside):
        match = _POSTGRESQL_ITEM.match(inside, at)
        if match is None or (match.end() == len(inside) and match[3] == ","):
            return None
        items.append(_postgresql_item(match[1], match[2]))
        at = match.end()
    return items


def _postgresql_item(quoted: str | None, bare: str | None) -> str | int | float | None:
    if bare is None:
        return re.sub(r"\\(.)", r"\1", quoted or "", flags=re.DOTALL)
    if bare.upper() == "NULL":
        return None
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", bare):
        return int(bare)
    return float(bare) if re.fullmatch(r"-?[0-9]+\.[0-9]+([eE][+-]?[0-9]+)?|NaN", bare) else bare


def _bare(value: str) -> Items | None:
    inside = value[1:-1].strip()
    if value[0] != "[" or "..." in inside or not _BARE.fullmatch(inside):
        return None  # numpy leaves out the middle of long vectors
    return [part.strip() for part in inside.split(",")]


_READERS: dict[Style, Callable[[str], Items | None]] = {
    "json": _json,
    "postgresql": _postgresql,  # before Python, whose sets have no order
    "python": _python,
    "numpy": _numpy,
    "bare": _bare,
}
_TYPES: dict[Holds, pa.DataType] = {
    "texts": pa.large_string(),
    "whole numbers": pa.int64(),
    "numbers": pa.float64(),
}
_MOST_FLOAT = 1e308
_SPOKEN: dict[Style, str] = {
    "json": "JSON",
    "python": "Python",
    "numpy": "numpy",
    "postgresql": "PostgreSQL",
    "bare": "Java",
}


def _key(found: Distinct, lists: Sequence[Items]) -> str | None:
    """Return the field that names a record, None where the lists hold values.

    Raises:
        CellError: They hold both, or records without a field that all of them have.
    """
    records = [item for items in lists for item in items if isinstance(item, dict)]
    if not records:
        return None
    if len(records) < sum(map(len, lists)):
        mixed = np.array([any(not isinstance(item, dict) for item in items) for items in lists])
        raise found.error(mixed, "a list of records as in other cells", _REMEDY)
    shared = set.intersection(*(set(record) for record in records))
    texts = [name for name in records[0] if name in shared and all(isinstance(one[name], str) for one in records)]
    key = next((name for name in _LABELS if name in shared and all(_is_value(one[name]) for one in records)), None)
    key = key or (texts[0] if len(texts) == 1 else None)
    if key is None:
        names = ", ".join(map(repr, list(records[0])[:6])) or "no fields"
        raise CellError(
            f"lists of records with {names}, none of which ({', '.join(_LABELS)}) names a record",
            "keep one value of each, or leave the column out",
        )
    return key


def _holds(items: Sequence[Any]) -> Holds:
    if not items or not all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        return "texts"
    if all(isinstance(item, int) and abs(item) < 2**63 for item in items):
        return "whole numbers"
    return "numbers" if all(abs(item) < _MOST_FLOAT for item in items if isinstance(item, int)) else "texts"
