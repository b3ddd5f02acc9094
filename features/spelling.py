"""How the values of a column are spelt: decided once from the column's type in training, and the same from then on.

A program writes the number 3 as `3`, as `3.0` where a cell of the column is empty, or as `"3"`; all of them are one
value of a column of numbers. In a column of text, `1.10` and `1.1` are two.

| spelling | decided where the column holds | `3`, `3.0`, `"3"`, `" 3 "` | `true`, `"True"`, `"TRUE"` | dates |
|---|---|---|---|---|
| `number` | whole numbers or fractions | `3` | `1`, as they came | as they came |
| `boolean` | true and false | `3`; of 1 and 0 `true`, `false` | `true` | as they came |
| `date` | dates or times | `3` | as they came | `2024-03-31`, `2024-03-31T18:00:00` |
| `text` | anything else | `3`, `3`, as they came without blanks | `true`, as they came | as they came |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.values.times import moment_of

Spelling = Literal["text", "number", "boolean", "date"]

_LONGEST = 64
# 12e4 is no number: it is as likely to be a code.
_NUMBER = re.compile(
    r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][+-]?[0-9]+)?|[eE][+-][0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
)
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
_TRUTH = dict.fromkeys(("true", "t", "yes", "y", "1"), "true") | dict.fromkeys(("false", "f", "no", "n", "0"), "false")
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)


def decide(cells: pa.Array) -> Spelling:
    """Return how the values in the cells of a column (not lists) are spelt."""
    kind = cells.type
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "date"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return decide_of_texts(pc.unique(cells.drop_null()).to_pylist())
    return "text"


def decide_of_texts(values: Iterable[str]) -> Spelling:
    """Return how values that are text are spelt: as the values they are, where a program would write these just so.

    Numbers are numbers if all of them are whole or all have the shortest fraction, as where a CSV file is typed: `3.0`
    and `3` in one column, or `1.10`, are codes.
    """
    texts = list(dict.fromkeys(stripped for value in values if (stripped := value.strip())))
    tests: tuple[tuple[Spelling, Callable[[str], bool]], ...] = (
        ("number", _is_whole),
        ("number", _is_fraction),
        ("boolean", lambda text: text.lower() in ("true", "false")),
        ("date", lambda text: _date(text) is not None),
    )
    return next((name for name, test in tests if texts and all(map(test, texts))), "text")


def spelt(spelling: Spelling, value: Any) -> str:
    """Return one value, of whatever type it came in, as text; nothing where it is empty or blank."""
    if isinstance(value, str):
        text = value.strip()
        return text if spelling == "text" else _READERS[spelling](text)
    if isinstance(value, bool | np.bool_):
        return ("1" if value else "0") if spelling == "number" else ("true" if value else "false")
    if isinstance(value, int | float | np.number):
        text = _of_number(value)
        return _TRUTH.get(text, text) if spelling == "boolean" else text
    if isinstance(value, date):
        return _of_date(value)
    return str(value).strip()


def _of_number(value: Any) -> str:
    """Return a number the shortest way; a whole one without a fraction."""
    if isinstance(value, int | np.integer):
        return str(int(value))
    return str(int(value)) if np.isfinite(value) and float(value).is_integer() else str(value)


def _of_date(value: date) -> str:
    """Return a date, or a time in UTC, in ISO 8601; midnight is the date."""
    if not isinstance(value, datetime):
        return value.isoformat()
    moment = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    if isinstance(moment, pd.Timestamp):
        is_midnight = moment == moment.normalize()
    else:
        is_midnight = moment.time() == datetime.min.time()
    return moment.date().isoformat() if is_midnight else moment.isoformat()


def _number_in(text: str) -> str:
    if len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        return text
    body = text.removeprefix("-")
    if body.isdecimal():
        return str(int(text))
    number = float(text)
    return _of_number(number) if np.isfinite(number) else text


def _truth_in(text: str) -> str:
    return text if len(text) > _LONGEST else _TRUTH.get(_number_in(text).lower(), text)


def _date_in(text: str) -> str:
    moment = _date(text)
    return text if moment is None else _of_date(moment)


_READERS: dict[str, Callable[[str], str]] = {"number": _number_in, "boolean": _truth_in, "date": _date_in}


def _date(text: str) -> datetime | None:
    return moment_of(text) if len(text) <= _LONGEST and _DATE.fullmatch(text) else None


def _is_whole(text: str) -> bool:
    return len(text) <= _LONGEST and _WHOLE.fullmatch(text) is not None


def _is_fraction(text: str) -> bool:
    if len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        return False
    return not text.lstrip("+-").isdecimal() and repr(float(text)) == text
