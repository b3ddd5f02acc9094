"""Random tables of a shop, and what stands in them: the same values in any spelling, type, encoding and file format.

A `Case` knows the values that were meant, so that what a reader makes of the cells can be held against them.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from hypothesis import strategies as st

Value = str | float | int | bool | dt.datetime | list[str] | None
Spell = Callable[[Any], str]
Means = Literal["number", "time", "words", "list", "truth"]

_FIRST = dt.datetime(2021, 3, 4, 5, 6, 7)  # noqa: DTZ001 (files have no zone)
_WORDS = ("red", "blue", "Grün", "old book", "茶碗", "café", "x-1", "N/A shirt", "a, b", 'say "so"', "ไทย", "v1.10")


def _grouped(number: float, group: str, decimal: str) -> str:
    return f"{number:,.2f}".replace(",", "_").replace(".", decimal).replace("_", group)


_NUMBERS: dict[str, Spell] = {
    "plain": lambda number: repr(float(number)),
    "whole": lambda number: str(int(number)),
    "dollars": lambda number: "$" + _grouped(number, ",", "."),
    "euros": lambda number: _grouped(number, ".", ",") + " €",
    "comma": lambda number: _grouped(number, "", ","),
    "blanks": lambda number: _grouped(number, "\u202f", ","),
    "percent": lambda number: f"{number:g}%",
    "kilos": lambda number: f"{number:.1f}".replace(".", ",") + " kg",
}
_TIMES: dict[str, Spell] = {
    "iso": lambda when: f"{when:%Y-%m-%dT%H:%M:%S}Z",
    "bigquery": lambda when: f"{when:%Y-%m-%d %H:%M:%S} UTC",
    "dots": lambda when: f"{when:%d.%m.%Y %H:%M:%S}",
    "slashes": lambda when: f"{when:%m/%d/%Y %H:%M:%S}",
    "digits": lambda when: f"{when:%Y%m%d%H%M%S}",
    "seconds": lambda when: str(_seconds(when)),
    "milliseconds": lambda when: str(_seconds(when) * 1000),
}
_LISTS: dict[str, Spell] = {
    "python": repr,
    "json": lambda values: json.dumps(values, ensure_ascii=False),
    "postgresql": lambda values: "{" + ",".join(json.dumps(one, ensure_ascii=False) for one in values) + "}",
    "bars": "|".join,
}
_GAPS = ("", "NA", "null", "NaN")


def _seconds(when: dt.datetime) -> int:
    return int(when.replace(tzinfo=dt.UTC).timestamp())


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its name.
        means: What its values are.
        values: Those that were meant; None where there is none.
        cells: How they are spelled.
    """

    name: str
    means: Means
    values: tuple[Value, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """Two tables and how they are written.

    Attributes:
        interactions: The columns of the interactions; the first three are users, items and times.
        items: The columns of the items' table; the first is the id.
        separator: Of CSV.
        encoding: Of CSV.
        line_end: Of CSV.
        quotes_all: Whether every cell of CSV stands in quotes.
        kind: How each table is written.
    """

    interactions: tuple[Column, ...]
    items: tuple[Column, ...]
    separator: str
    encoding: str
    line_end: str
    quotes_all: bool
    kind: Literal["csv", "parts", "parquet"]

    def write(self, folder: Path) -> dict[str, Path]:
        """Write both tables, and return where they are."""
        return {
            name: self._write(folder / name, columns)
            for name, columns in (("interactions", self.interactions), ("items", self.items))
        }

    def _write(self, path: Path, columns: Sequence[Column]) -> Path:
        if self.kind == "parquet":
            pd.DataFrame({one.name: _typed(one) for one in columns}).to_parquet(path.with_suffix(".parquet"))
            return path.with_suffix(".parquet")
        rows = list(zip(*(one.cells for one in columns), strict=True))
        if self.kind == "csv":
            self._write_csv(path.with_suffix(".csv"), columns, rows)
            return path.with_suffix(".csv")
        path.mkdir()
        for number, start in enumerate(range(0, len(rows), 7)):
            self._write_csv(path / f"part-{number:03d}.csv", columns, rows[start : start + 7])
        (path / "_SUCCESS").touch()
        return path

    def _write_csv(self, path: Path, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        lines = [self.separator.join(map(self._quoted, row)) for row in ([one.name for one in columns], *rows)]
        text = "".join(line + self.line_end for line in lines)
        try:
            path.write_bytes(text.encode(self.encoding))
        except UnicodeEncodeError:  # the old encodings of Windows do not know every letter
            path.write_bytes(text.encode())

    def _quoted(self, cell: str) -> str:
        needs = self.quotes_all and cell not in _GAPS
        needs = needs or any(one in cell for one in (self.separator, '"', "\n")) or cell == "N/A"
        return '"' + cell.replace('"', '""') + '"' if needs else cell


def _typed(column: Column) -> list[Any]:
    """Return the values as a program keeps them that has types: a missing number is NaN."""
    if column.means == "number":
        return [math.nan if value is None else float(value) for value in column.values]  # type: ignore[arg-type]
    if column.means in ("time", "truth", "list"):
        return list(column.values)
    return [None if value is None else str(value) for value in column.values]


@st.composite
def _column(draw: st.DrawFn, name: str, num_rows: int) -> Column:
    means: Means = draw(st.sampled_from(["number", "time", "words", "list", "truth"]))
    spell: Spell
    some: st.SearchStrategy[Any]
    if means == "number":
        style = draw(st.sampled_from(sorted(_NUMBERS)))
        spell = _NUMBERS[style]
        some = {
            "whole": st.integers(0, 5000),
            "percent": st.integers(0, 100),
            "kilos": st.integers(1, 990).map(lambda tenths: tenths / 10),
        }.get(style, st.integers(1, 900_000).map(lambda cents: cents / 100))
    elif means == "time":
        spell = _TIMES[draw(st.sampled_from(sorted(_TIMES)))]
        some = st.integers(0, 900).map(lambda days: _FIRST + dt.timedelta(days=days, seconds=days * 37))
    elif means == "list":
        spell = _LISTS[draw(st.sampled_from(sorted(_LISTS)))]
        some = st.lists(st.sampled_from(("tea", "red wine", "Käse", "茶", "it's")), min_size=1, max_size=3, unique=True)
    elif means == "truth":
        spell, some = draw(st.sampled_from([str, lambda value: str(value).lower()])), st.booleans()
    else:
        pool = draw(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=5, unique=True))
        spell, some = str, st.sampled_from(pool)
    gap = draw(st.sampled_from(_GAPS))
    share = draw(st.sampled_from([0, 0, 1, 4]))
    values = tuple(
        None if draw(st.integers(0, 9)) < share else value
        for value in draw(st.lists(some, min_size=num_rows, max_size=num_rows))
    )
    return Column(name, means, values, tuple(gap if value is None else spell(value) for value in values))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return a strategy for cases."""
    num_items, num_events = draw(st.integers(8, 14)), draw(st.integers(40, 60))
    is_text = draw(st.booleans())
    item_ids = [f"SKU-{row:03d}" if is_text else str(1000 + row) for row in range(num_items)]
    user_end = draw(st.sampled_from(["", "", ".0"]))
    names = draw(
        st.sampled_from(
            [
                ("user_id", "item_id", "timestamp", "item_id"),
                ("CustomerID", "StockCode", "InvoiceDate", "StockCode"),
                ("Kunden-Nr.", "Artikelnummer", "Kaufdatum", "Artikelnummer"),
                ("cust_no", "product_code", "order_timestamp", "sku"),
                ("c1", "c2", "c3", "code"),
            ]
        )
    )
    spell = _TIMES[draw(st.sampled_from(sorted(_TIMES)))]
    guests = draw(st.sampled_from([0, 0, 3]))
    rows = range(num_events)
    users = [None if row < guests else str(100 + row * row % 7) for row in rows]
    bought = [item_ids[(row * 5 + row // 7) % num_items] for row in rows]
    whens = [_FIRST + dt.timedelta(days=row * 11, hours=row) for row in rows]
    events = (
        Column(names[0], "words", tuple(users), tuple("" if user is None else user + user_end for user in users)),
        Column(names[1], "words", tuple(bought), tuple(bought)),
        Column(names[2], "time", tuple(whens), tuple(map(spell, whens))),
    )
    num_columns = draw(st.integers(1, 4))
    items = [Column(names[3], "words", tuple(item_ids), tuple(item_ids))]
    items += [draw(_column(f"col_{letter}", num_items)) for letter in "abcd"[:num_columns]]
    return Case(
        events,
        tuple(items),
        draw(st.sampled_from([",", ";", "\t", "|"])),
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "cp1252", "utf-16"])),
        draw(st.sampled_from(["\n", "\r\n"])),
        draw(st.booleans()),
        draw(st.sampled_from(["csv", "csv", "parts", "parquet"])),
    )


def wrong_cells(column: Column, read: Sequence[Any], settings: Mapping[str, Any]) -> list[str]:
    """Return what is wrong about a column that was read: each cell that says something else than was meant.

    Args:
        column: What was meant.
        read: The cells as the model gets them, None where they are missing.
        settings: How run.toml says the column is read.
    """
    return [
        f"{column.name!r}, row {row + 1}: meant {value!r}, written {cell!r}, read {found!r} as {settings['kind']}"
        for row, (value, cell, found) in enumerate(zip(column.values, column.cells, read, strict=True))
        if not _is_same(value, cell, found, settings)
    ]


def _is_same(value: Value, cell: str, found: Any, settings: Mapping[str, Any]) -> bool:
    if value is None or found is None:
        return value is None and found is None
    match settings["kind"]:
        case "number":
            if isinstance(value, dt.datetime):  # that numbers are times may be said by nothing but the name
                return cell.isdecimal() and len(cell) != len("20240331180000") and int(cell) == found
            return not isinstance(value, list | str | dt.datetime) and math.isclose(float(value), float(found))
        case "time":
            seconds = found if isinstance(found, int | float) else _seconds(found.replace(tzinfo=None))
            return isinstance(value, dt.datetime) and _seconds(value) == int(seconds)
        case "categories":
            parts = found.split(settings.get("separator") or "|") if isinstance(found, str) else list(found)
            whole = value if isinstance(value, list) else str(value).split(settings.get("separator") or "|")
            return [part.strip() for part in parts] == [part.strip() for part in whole]
        case _:
            # A category is what is written; a number that is one may be written in several ways.
            is_spelled = str(found) in (cell.strip(), _as_text(value))
            return is_spelled or (_is_number(value) and _is_number(found) and bool(value == found))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_text(value: Value) -> str:
    return "|".join(value) if isinstance(value, list) else str(value)
