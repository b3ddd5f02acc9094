"""Times in whatever way they are written, decided by the column as a whole: one reader for all tables.

| written as | looks like |
|---|---|
| `iso` | `2023-11-14`, `2023-11-14T22:13:20Z`, `2023-11-14 22:13:20 UTC`, `2023/11/14` |
| `dmy` | `14.11.2023`, `14/11/2023 22:13`, `14-11-2023` |
| `mdy` | `11/14/2023`, `11/14/2023 10:13 PM` |
| `digits` | `20231114`, `20231114221320` |
| `seconds`, `milliseconds`, `microseconds`, `nanoseconds` | `1700000000`, since 1970 in UTC |
| `excel` | `45244.926`, days since 30 December 1899 |
| a pattern of `strptime` | by the setting `time_format` only, such as `%d %b %y` |

Times without a zone are taken for UTC.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from features.errors import CellError
from features.messages import shown
from features.values.distinct import MOSTLY, Distinct, first, many

_A_DATE = "a date such as 2024-03-31 or 2024-03-31T18:00:00Z"
A_TIME = f"{_A_DATE}, or Unix seconds"
_AS_OTHERS = "as in the other cells of the column"
REMEDY = "correct the cells or leave them empty"
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
"""Ticks in a second."""
FORMATS = ("iso", "dmy", "mdy", "digits", *UNITS, "excel")
MISSING = np.iinfo(np.int64).min
"""Stands for a time that is not there, among microseconds."""
SECONDS_PER_DAY = 86_400
MOST_SECONDS = 1e11
"""From here on, numbers are finer units than seconds; in seconds it would be the year 5138."""
MOST_TIME_CHARACTERS = 64
"""Longest text that is read as a single date."""
DATE_SCHEMAS: tuple[dict[str, Any], ...] = tuple(
    {"type": "string", "format": form, "maxLength": MOST_TIME_CHARACTERS} for form in ("date", "date-time")
)
"""JSON schemas of the texts that `seconds_of` reads."""
_FAR = 9e18
_EXCEL_OF_1970 = 25_569
_EXCEL_OF_2100 = 73_051
_SECONDS_OF_1980 = 315_532_800
_ORDERS = ("iso", "dmy", "mdy")
_DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_PARTS = re.compile(
    r"(?P<first>[0-9]{1,4})(?P<sep>[-./])(?P<second>[0-9]{1,2})(?P=sep)(?P<third>[0-9]{1,4})"
    r"(?:(?:T|,? +)(?P<hour>[0-9]{1,2})(?P<clock>:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,9})?)?)?"
    r"(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?(?P<zone> ?(?:Z|UTC|GMT|[+-][0-9]{2}:?(?:[0-9]{2})?))?)?(?: UTC| GMT)?"
)


@dataclass(frozen=True)
class TimeFormat:
    """How the cells of one column are read as times.

    Attributes:
        name: One of `FORMATS`, or a pattern of `strptime`.
    """

    name: str

    @classmethod
    def decide(cls, cells: pa.Array, time_format: str | None = None) -> TimeFormat:
        """Return the one way in which all cells are times.

        Args:
            cells: Text, or numbers.
            time_format: The way, if it is known.

        Raises:
            CellError: Some cell is no time, units are mixed, or there are two ways and they differ.
        """
        if time_format is not None:
            return cls(time_format)
        if not pa.types.is_large_string(cells.type):
            return cls(_format_of_numbers(cells.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)))
        numbers = _numbers_in(cells)
        return cls(_format_of_texts(cells)) if numbers is None else cls(_format_of_numbers(numbers))

    def read(self, cells: pa.Array) -> tuple[Int64[np.ndarray, " cells"], list[str]]:
        """Return text cells or numbers as microseconds since 1970, `MISSING` where they are empty, and notes.

        Raises:
            CellError: Some cell is not written in this way.
        """
        notes: list[str] = []
        if pa.types.is_large_string(cells.type):
            numbers = _numbers_in(cells) if self.name in (*UNITS, "excel") else None
            micros = self._read_texts(cells) if numbers is None else self._read_numbers(numbers, cells)
            if num_words := Distinct.of(cells).num_words:
                notes.append(f"{many(num_words, 'cell')} such as NULL read as empty")
        else:
            micros = self._read_numbers(cells.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), cells)
        return micros, [
            *([f"times read as {said_of_format(self.name)}"] if self.name not in ("iso", "seconds") else []),
            *notes,
        ]

    def _read_texts(self, cells: pa.Array) -> Int64[np.ndarray, " cells"]:
        found = Distinct.of(cells)
        micros = _parsed(found.values, self.name)
        if (micros == MISSING).any():
            expected = f"{_A_DATE}, {_AS_OTHERS}" if self.name == "iso" else f"times as {said_of_format(self.name)}"
            raise found.error(micros == MISSING, expected, REMEDY)
        spread: np.ndarray = found.spread(micros)
        return spread

    def _read_numbers(self, numbers: Float64[np.ndarray, " cells"], cells: pa.Array) -> Int64[np.ndarray, " cells"]:
        is_known = ~np.isnan(numbers)
        if self.name == "digits":
            micros = _from_digits(numbers)
            wrong = is_known & (micros == MISSING)
            if wrong.any():
                raise _wrong(cells, wrong, "a date such as 20240331 or 20240331180000")
            return micros
        if self.name == "excel":
            seconds = np.round((numbers - _EXCEL_OF_1970) * SECONDS_PER_DAY, 3)  # as exact as Excel is
        elif self.name in UNITS:
            _refuse_mix(numbers, self.name)
            seconds = numbers / UNITS[self.name]
        else:
            raise _wrong(cells, is_known, said_of_format(self.name))
        micros = np.floor(np.clip(np.where(is_known, seconds, 0) * 1e6, -_FAR, _FAR)).astype(np.int64)
        return np.where(is_known, micros, MISSING)


def looks_like_dates(cells: pa.Array) -> bool:
    """Return whether (nearly) all text cells have the parts of a date, a year of four digits among them."""
    found = Distinct.of(cells)
    return found.share([_is_date(value) for value in found.values]) >= MOSTLY


def _is_date(value: str) -> bool:
    match = _PARTS.fullmatch(value)
    return match is not None and 4 in (len(match["first"]), len(match["third"]))


def moment_of(text: str) -> datetime | None:
    """Return a single ISO 8601 date or date and time, in the spellings of `iso` columns; None for other texts.

    For values of JSON and for single cells, where no column decides how dates are written. The result has a time zone
    only where the text names one.
    """
    iso = _as_iso(text.strip(), "iso") if len(text) <= MOST_TIME_CHARACTERS else None
    if iso is None:
        return None
    try:
        return datetime.fromisoformat(iso)
    except ValueError:
        pass
    # Pandas reads more forms, such as a month without a day, and years that datetime does not have, such as 0.
    micros = int(_parsed((iso,), "iso")[0])
    try:
        return None if micros == MISSING else datetime.fromtimestamp(micros / 1e6, UTC)
    except (ValueError, OverflowError):
        return None


def seconds_of(text: str) -> float | None:
    """Return a single ISO 8601 date or time as Unix seconds, in UTC if it names no zone; None for other texts."""
    moment = moment_of(text)
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _format_of_numbers(numbers: Float64[np.ndarray, " cells"]) -> str:
    """Return what numbers count: digits of dates, days of Excel, or Unix time in the unit that their size says.

    Raises:
        CellError: They are of several units.
    """
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return "seconds"
    if known.min() >= 1e7 and not (_from_digits(known) == MISSING).any():
        return "digits"
    middle = float(np.median(known))
    if _EXCEL_OF_1970 <= middle < _EXCEL_OF_2100 and known.min() >= 1 and known.max() < _EXCEL_OF_2100:
        return "excel"
    unit = int(_band(np.array([middle]))[0])
    name = list(UNITS)[unit]
    _refuse_mix(numbers, name)
    return name


def _band(numbers: np.ndarray) -> np.ndarray:
    """Return which unit numbers have by their size: 0 seconds, to 3 nanoseconds."""
    bands: np.ndarray = np.searchsorted(np.array([1e11, 1e14, 1e17]), np.abs(numbers))
    return bands


def _refuse_mix(numbers: Float64[np.ndarray, " cells"], unit: str) -> None:
    """Refuse numbers that in another unit than the column's are a time of our days: seconds among milliseconds."""
    filled = np.where(np.isnan(numbers), 0, numbers)
    bands = _band(filled)
    seconds = filled / np.array(list(UNITS.values()))[bands]
    other = bands != list(UNITS).index(unit)
    wrong = other & (seconds > _SECONDS_OF_1980) & (seconds < time.time() + 366 * SECONDS_PER_DAY)
    if wrong.any():
        row = first(wrong)
        found = f"expected Unix time in {unit}, found {numbers[row]:.0f}, which is {list(UNITS)[bands[row]]}"
        raise CellError(f"{found} ({many(int(wrong.sum()), 'such row')})", "write all of them in one unit", row)


def _from_digits(numbers: Float64[np.ndarray, " cells"]) -> Int64[np.ndarray, " cells"]:
    """Return dates written as whole numbers, `MISSING` where one is none."""
    micros = np.full(len(numbers), MISSING)
    whole = np.where(np.isfinite(numbers) & (numbers > 0) & (numbers < 1e15), numbers, 0).astype(np.int64)
    for length, pattern in _DIGITS.items():
        here = (whole >= 10 ** (length - 1)) & (whole < 10**length) & (whole == np.where(np.isnan(numbers), 0, numbers))
        year = whole // 10 ** (length - 4)
        here &= (year >= 1900) & (year <= 2100)
        if here.any():
            micros[here] = _micros(pd.to_datetime(pd.Series(whole[here].astype(str)), format=pattern, errors="coerce"))
    return micros


def _numbers_in(cells: pa.Array) -> Float64[np.ndarray, " cells"] | None:
    """Return text cells as numbers if most of the first are numbers, so that the others are mistakes and not dates.

    Raises:
        CellError: Some cell is no number.
    """
    found = Distinct.of(cells)
    if not found.values:
        return np.full(len(cells), np.nan)
    numbers = pd.to_numeric(pd.Series(found.values, dtype=object), errors="coerce").to_numpy(np.float64)
    if np.isfinite(numbers[:100]).mean() <= 0.5:
        return None
    if np.isnan(numbers).any():
        raise found.error(np.isnan(numbers), f"a time as a number, {_AS_OTHERS}", REMEDY)
    spread: np.ndarray = found.spread(numbers)
    return spread


def _format_of_texts(cells: pa.Array) -> str:
    found = Distinct.of(cells)
    readings = {"iso": _parsed(found.values, "iso")}
    if not (readings["iso"] == MISSING).any():
        return "iso"
    readings |= {name: _parsed(found.values, name) for name in _ORDERS[1:]}
    possible = [name for name, micros in readings.items() if not (micros == MISSING).any()]
    if not possible:
        wrong = min((micros == MISSING for micros in readings.values()), key=lambda wrong: int(wrong.sum()))
        if wrong.all():
            remedy = 'write them as 2024-03-31, or set time_format to their pattern, such as "%d.%m.%y"'
            raise found.error(wrong, f"{A_TIME}, dd.mm.yyyy or mm/dd/yyyy", remedy)
        raise found.error(wrong, A_TIME, REMEDY)
    differ = readings[possible[0]] != readings[possible[-1]]
    if differ.any():
        row = first(np.append(differ, [False])[found.codes])
        at = found.codes[row]
        dates = " or ".join(str(np.datetime64(int(readings[name][at]), "us"))[:10] for name in possible)
        raise CellError(
            f"{shown(found.values[at])} may be {dates}, and no other cell decides it",
            'set time_format = "dmy" or "mdy" for this column',
            row,
        )
    return possible[0]


def _parsed(values: tuple[str, ...], name: str) -> Int64[np.ndarray, " values"]:
    """Return texts as microseconds, `MISSING` where one is not written in this way."""
    if "%" in name:
        try:
            return _micros(pd.to_datetime(pd.Series(values, dtype=object), format=name, utc=True, errors="coerce"))
        except ValueError as error:
            said = " ".join(str(error).split())
            raise CellError(f"time_format {name!r} is no pattern of dates ({said})", "correct it") from None
    if name == "digits":
        return _from_digits(pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(np.float64))
    if name not in _ORDERS:
        return np.full(len(values), MISSING)
    iso = [_as_iso(value, name) for value in values]
    return _micros(pd.to_datetime(pd.Series(iso, dtype=object), format="ISO8601", utc=True, errors="coerce"))


def _as_iso(value: str, order: str) -> str | None:
    """Return a date as ISO 8601 writes it, None where its parts are in another order."""
    match = _PARTS.fullmatch(value)
    if match is None:
        return value if order == "iso" and re.match(r"[0-9]{4}-?[0-9]{2}", value) else None
    parts = match["first"], match["second"], match["third"]
    if order == "iso":
        year, month, day = parts
    elif order == "dmy":
        day, month, year = parts
    else:
        if match["sep"] == ".":
            return None
        month, day, year = parts
    if len(year) != 4 or len(day) > 2:
        return None
    date = f"{year}-{month:0>2}-{day:0>2}"
    if match["hour"] is None:
        return date
    hour = int(match["hour"])
    if match["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if match["half"] in "Pp" else 0)
    zone = (match["zone"] or "").strip()
    zone = "Z" if zone in ("UTC", "GMT") else zone
    return f"{date}T{hour:02d}{(match['clock'] or ':00').replace(',', '.')}{zone}"


def _micros(moments: pd.Series) -> Int64[np.ndarray, " values"]:
    moments = moments if moments.dt.tz is None else moments.dt.tz_convert(None)
    micros = moments.dt.as_unit("us").to_numpy().astype(np.int64)
    return np.asarray(np.where(moments.isna().to_numpy(), MISSING, micros))


def _wrong(cells: pa.Array, wrong: np.ndarray, expected: str) -> CellError:
    row = first(wrong)
    value = cells[row].as_py()
    return CellError(f"expected {expected}, found {shown(value)} ({many(int(wrong.sum()), 'such row')})", REMEDY, row)


def said_of_format(name: str) -> str:
    """Return what a format is called in a message."""
    return {
        "iso": "ISO 8601",
        "dmy": "day, month, year",
        "mdy": "month, day, year",
        "digits": "digits of dates (20240331)",
        "excel": "days of Excel",
    }.get(name, name if name in UNITS else f"dates written {name}")


def micros_of_moments(cells: pa.Array) -> Int64[np.ndarray, " cells"]:
    """Return timestamps or dates as microseconds since 1970, `MISSING` where they are empty."""
    exact = cells.cast(pa.timestamp("us", tz=getattr(cells.type, "tz", None)), safe=False).cast(pa.int64())
    filled: np.ndarray = pc.fill_null(exact, MISSING).to_numpy(zero_copy_only=False)
    return filled
