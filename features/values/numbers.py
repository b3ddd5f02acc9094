"""Numbers that are written as text: `$1,477.20`, `19,99`, `49 %`, `3,5 kg`, decided by the column as a whole.

One cell often has two readings: `1,234` is 1234 in New York and 1.234 in Berlin. All cells of a column together mostly
have one, and where they do not, the setting `decimal` says which; a cell is never read on its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from features.errors import CellError
from features.messages import shown
from features.values.distinct import Distinct, first, many

Decimal = Literal[".", ","]
MOST_NUMBER = 1e15
"""The greatest number that a cell may be, or the negative of the least: beyond it, neighbours are the same number."""
NUMBER_SCHEMA: Mapping[str, Any] = {"type": "number", "minimum": -MOST_NUMBER, "maximum": MOST_NUMBER}
"""JSON schema of the numbers that `json_number` returns."""


def json_number(value: Any, most: float = MOST_NUMBER) -> int | float | None:
    """Return a value of JSON that is a number from -`most` to `most`; None for true, text, NaN and anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most
    return value if is_number else None


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


CURRENCIES = _listed("$ € £ ¥ ₹ ₽ ₩ ₺ ₫ ฿ ₴ ₦ ₱ ₪ R$ US$ A$ C$ CA$ HK$ NZ$ S$ zł Kč kr kr. Fr. Ft лв")
CURRENCY_CODES = _listed(
    "USD EUR GBP JPY CNY RMB INR RUB KRW TRY VND THB UAH NGN PHP ILS BRL AUD CAD HKD NZD SGD PLN CZK SEK NOK DKK CHF "
    "HUF BGN RON ISK MXN ARS CLP COP ZAR AED SAR MYR IDR TWD"
)
UNITS = _listed(
    "% ‰ ° °c °f kg g mg µg lb lbs oz t l ml cl dl m cm mm km in ft yd mi m² m³ cm² cm³ kb mb gb tb kw kwh w wh v a ah "
    "mah hz khz mhz ghz h hr hrs min mins s sec ms day days year years yr yrs pcs st pt px mp kcal cal bar k€ x"
)
"""Lower-case units that may stand behind a number."""
_LONGEST = 64
_CELL = re.compile(
    r"(?P<open>\()?\s*(?P<sign>[-+\u2212]?)\s*(?P<before>[^\d\s.,'()+-][^\d\s,'()+-]{0,3})?\s*(?P<minus>[-\u2212]?)"
    r"(?P<body>[0-9.,'\u2019\u00a0\u202f ]*[0-9][.,]?)(?P<power>[eE][+-]?[0-9]{1,3})?\s*"
    r"(?P<after>[^\d\s()][^\d\s()]{0,5})?(?P<close>\))?"
)
_BODY: dict[Decimal, re.Pattern[str]] = {
    ".": re.compile(r"([0-9]{1,3}(?P<by>[,'\u2019\u00a0\u202f ])[0-9]{3}((?P=by)[0-9]{3})*|[0-9]*)(\.[0-9]*)?"),
    ",": re.compile(r"([0-9]{1,3}(?P<by>[.'\u2019\u00a0\u202f ])[0-9]{3}((?P=by)[0-9]{3})*|[0-9]*)(,[0-9]*)?"),
}
_EXPECTED = "a number"


@dataclass(frozen=True)
class NumberFormat:
    """How the text cells of one column are read as numbers.

    Attributes:
        decimal: What stands before the fraction. Thousands may be grouped by the other one, by blanks or apostrophes.
        unit: What stands before or after the numbers and is left off, in lower case; None where nothing does.
    """

    decimal: Decimal = "."
    unit: str | None = None

    @classmethod
    def decide(cls, cells: pa.Array, decimal: Decimal | None = None, *, expected: str = _EXPECTED) -> NumberFormat:
        """Return the one way in which all cells are numbers.

        Args:
            cells: Text.
            decimal: The decimal separator, if it is known.
            expected: What each cell should be, for an error.

        Raises:
            CellError: Some cell is no number, units are mixed, or there are two ways and they differ.
        """
        found = Distinct.of(cells)
        parts = [_parts(value) for value in found.values]
        readings = {sign: _values(parts, sign) for sign in _BODY if decimal in (None, sign)}
        possible = [sign for sign, values in readings.items() if not np.isnan(values).any()]
        if not possible:
            wrong = min((np.isnan(values) for values in readings.values()), key=lambda wrong: int(wrong.sum()))
            raise found.error(wrong, expected, "correct the cells or leave them empty")
        if len(possible) > 1:
            differ = ~_same(readings["."], readings[","])
            if differ.any() and not _is_plain(parts):
                raise _two_readings(found, readings["."], readings[","], differ)
        return cls(possible[0], _unit(found, parts))

    def read(self, cells: pa.Array, *, expected: str = _EXPECTED) -> tuple[Float64[np.ndarray, " cells"], list[str]]:
        """Return text cells as numbers, NaN where they are empty, and notes on what was left off or became empty.

        Raises:
            CellError: Some cell is no number written in this way, of another unit, or too large.
        """
        found = Distinct.of(cells)
        parts = [_parts(value) for value in found.values]
        values = _values(parts, self.decimal)
        if np.isnan(values).any():
            written = "" if self.decimal == "." else " with a decimal comma"
            raise found.error(np.isnan(values), f"{expected}{written}", "correct the cells or leave them empty")
        unit = _unit(found, parts)
        if unit is not None and unit != self.unit:
            other = np.array([part is not None and part.unit == unit for part in parts])
            wanted = f"in {self.unit!r}" if self.unit else "without a unit"
            raise found.error(other, f"{expected} {wanted}, as before", "write them in one unit")
        numbers, notes = bounded(found.spread(values))
        if self.unit is not None:
            with_unit = np.array([part is not None and part.unit is not None for part in parts] + [False])
            notes.append(f"{many(int(with_unit[found.codes].sum()), 'number')} read without the {self.unit!r} at them")
        if self.decimal == ",":
            notes.append(f"numbers such as {shown(_example(found.values, ','))} read with a decimal comma")
        if found.num_words:
            notes.append(f"{many(found.num_words, 'cell')} such as NULL read as empty")
        return numbers, notes


def widened(cells: pa.Array) -> Float64[np.ndarray, " cells"]:
    """Return numbers as doubles, NaN where they are empty; of 32 bits as what they are written as, in a file or JSON.

    0.1 in 32 bits is 0.10000000149 in 64; saved as CSV and read again it is 0.1.
    """
    if not pa.types.is_float32(cells.type):
        doubles: np.ndarray = cells.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return doubles
    distinct, codes = np.unique(cells.to_numpy(zero_copy_only=False), return_inverse=True)
    return np.array([float(str(number)) for number in distinct], dtype=np.float64)[codes]


def bounded(numbers: Float64[np.ndarray, " cells"]) -> tuple[Float64[np.ndarray, " cells"], list[str]]:
    """Return numbers with those that are infinite as missing (NaN), and a note that counts them.

    Raises:
        CellError: A number is too large to be represented exactly.
    """
    infinite = np.isinf(numbers)
    large = (np.abs(numbers) > MOST_NUMBER) & ~infinite
    if large.any():
        row = first(large)
        found = f"expected numbers from -{MOST_NUMBER:g} to {MOST_NUMBER:g}, found {numbers[row]:g}"
        raise CellError(
            f"{found} ({many(int(large.sum()), 'such row')})", 'read codes with kind = "category", or scale them', row
        )
    if not infinite.any():
        return numbers, []
    return np.where(infinite, np.nan, numbers), [f"{many(int(infinite.sum()), 'infinite number')} read as empty"]


def is_written_as_number(cells: pa.Array) -> bool:
    """Return whether something about text cells says that they are quantities: a unit, a fraction, grouped thousands.

    Whole numbers that were saved as text are codes as likely as not.
    """
    found = Distinct.of(cells)
    parts = [_parts(value) for value in found.values]
    if not parts or any(part is None for part in parts):
        return False
    known = [part for part in parts if part is not None]
    if any(part.is_padded or part.power_of_whole for part in known):
        return False
    units = {part.unit for part in known if part.unit}
    if units:
        return len(units) == 1 or all(unit.upper() in CURRENCY_CODES or not unit.isalnum() for unit in units)
    possible = [sign for sign in _BODY if not np.isnan(_values(parts, sign)).any()]
    if not possible or not any(re.search(r"[^0-9]", part.body) for part in known):
        return False
    fractions = [part.body.rpartition(",")[2] for part in known if "," in part.body] if possible == [","] else []
    # 12,5 and 7,10 may be lists of codes: a program writes a fraction in one length, or without the zeros at its end.
    return len({len(fraction) for fraction in fractions}) < 2 or not any(one.endswith("0") for one in fractions)


@dataclass(frozen=True)
class _Parts:
    """A cell taken apart: its digits with what separates them, what stands around them, and its sign and power."""

    body: str
    factor: float
    unit: str | None
    power: str

    @property
    def is_padded(self) -> bool:
        """Whether it begins with zeros, as codes do."""
        return len(self.body) > 1 and self.body[0] == "0" and self.body[1].isdecimal()

    @property
    def power_of_whole(self) -> bool:
        """Whether it is like 12e4, which may be a code."""
        return bool(self.power) and self.power[1] not in "+-" and self.body.isdecimal()


_INFINITE = re.compile(r"[-+]?inf(inity)?", re.IGNORECASE)


def _parts(value: str) -> _Parts | None:
    """Return a cell taken apart, None where it is no number in any way of writing."""
    if len(value) > _LONGEST:
        return None
    if _INFINITE.fullmatch(value):
        return _Parts("1", np.inf if value[0] != "-" else -np.inf, None, "")
    match = _CELL.fullmatch(value)
    if match is None or bool(match["open"]) != bool(match["close"]) or (match["sign"] and match["minus"]):
        return None
    units = [unit for unit in (_known(match["before"], before=True), _known(match["after"])) if unit]
    if len(units) != sum(part is not None for part in (match["before"], match["after"])) or len(units) > 1:
        return None
    is_negative = "-" in (sign := match["sign"] + match["minus"]) or "\u2212" in sign or match["open"]
    return _Parts(
        match["body"].strip(), -1.0 if is_negative else 1.0, units[0] if units else None, match["power"] or ""
    )


def _known(affix: str | None, *, before: bool = False) -> str | None:
    if affix is None:
        return None
    if affix in CURRENCIES or affix.upper() in CURRENCY_CODES:
        return affix.lower()
    return affix.lower() if not before and affix.lower() in UNITS else None


def _values(parts: Sequence[_Parts | None], decimal: Decimal) -> Float64[np.ndarray, " values"]:
    return np.array([np.nan if part is None else _value(part, decimal) for part in parts], dtype=np.float64)


def _value(part: _Parts, decimal: Decimal) -> float:
    match = _BODY[decimal].fullmatch(part.body)
    if match is None:
        return float("nan")
    digits = part.body.replace(match["by"], "") if match["by"] else part.body
    return part.factor * float(digits.replace(decimal, ".") + part.power)


def _same(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray((left == right) | (np.isnan(left) & np.isnan(right)))


def _is_plain(parts: Sequence[_Parts | None]) -> bool:
    """Return whether all are as programs write numbers, 1.234 and 1234.5, so that a point is no mark of thousands."""
    return all(part is not None and part.unit is None and re.fullmatch(r"[0-9]*\.?[0-9]*", part.body) for part in parts)


def _unit(found: Distinct, parts: Sequence[_Parts | None]) -> str | None:
    """Return the one unit of the column.

    Raises:
        CellError: There are two, or one that changes what a number means stands at some numbers only.
    """
    units = list(dict.fromkeys(part.unit for part in parts if part is not None and part.unit is not None))
    if len(units) > 1:
        other = np.array([part is not None and part.unit == units[1] for part in parts])
        raise found.error(other, f"numbers of one unit, {units[0]!r} as in other cells", "write all in one unit")
    if units and units[0] in ("%", "\u2030"):
        bare = np.array([part is not None and part.unit is None for part in parts])
        if bare.any():
            raise found.error(bare, f"numbers with {units[0]!r} as in other cells", "write all in one unit")
    return units[0] if units else None


def _two_readings(found: Distinct, point: np.ndarray, comma: np.ndarray, differ: np.ndarray) -> CellError:
    row = first(np.append(differ, [False])[found.codes])
    at = found.codes[row]
    return CellError(
        f"{shown(found.values[at])} may be {point[at]:.15g} or {comma[at]:.15g}, and no other cell decides it",
        'set decimal = "." or decimal = "," for this column',
        row,
    )


def _example(values: Sequence[str], part: str) -> str:
    return next((value for value in values if part in value), values[0] if values else "")
