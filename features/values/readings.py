"""Readers of columns: the format of a column is inferred once from all of its cells, and then kept.

A decision is a small value (`NumberFormat`, `TimeFormat`, `ListFormat`) that can be written as JSON, so that the same
column of another file is read as this one was. A column whose cells have a type already needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import CellError
from features.messages import shown
from features.values.distinct import first, many, text_cells
from features.values.lists import ListFormat, looks_like_lists
from features.values.numbers import MOST_NUMBER, NumberFormat, bounded, widened
from features.values.times import A_TIME, MISSING, REMEDY, TimeFormat, micros_of_moments


@dataclass(frozen=True)
class TextFormat:
    """That the cells of a column are text as they stand, even if a file holds nothing but numbers there."""


Reading = NumberFormat | TimeFormat | ListFormat | TextFormat
_NAMES: dict[str, type[Reading]] = {
    "number": NumberFormat,
    "time": TimeFormat,
    "list": ListFormat,
    "text": TextFormat,
}
_FIRST_YEAR, _LAST_YEAR = -62_135_596_800_000_000, 253_402_300_799_999_999


@dataclass(frozen=True)
class ReadColumn:
    """A column that was read.

    Attributes:
        cells: In the type of its kind: numbers, timestamps (microseconds), lists, or as they came.
        reading: What was decided; None if the file gave the cells a type.
        notes: One line for each thing that was left off or became empty.
    """

    cells: pa.Array
    reading: Reading | None = None
    notes: tuple[str, ...] = ()


class ReadOptions(Protocol):
    """Settings of the format of cells; None: inferred from all cells of the column."""

    @property
    def decimal(self) -> Literal[".", ","] | None:
        """Decimal separator of numbers."""

    @property
    def time_format(self) -> str | None:
        """Format of times, see `TimeFormat`."""


def reading_to_json(reading: Reading) -> dict[str, Any]:
    """Return a decision as JSON has it."""
    name = next(name for name, kind in _NAMES.items() if isinstance(reading, kind))
    return {"reads": name, **asdict(reading)}


def reading_from_json(value: Mapping[str, Any]) -> Reading:
    """Return what `reading_to_json` wrote."""
    fields = dict(value)
    return _NAMES[fields.pop("reads")](**fields)


def numbers_in(
    cells: pa.Array, reading: NumberFormat | None = None, *, decimal: Any = None, expected: str = "a number"
) -> tuple[np.ndarray, NumberFormat | None, list[str]]:
    """Return cells as doubles, NaN where they are empty, with what was decided and the notes.

    Raises:
        CellError: Some cell is no number, or they are of another type.
    """
    text = text_cells(cells)
    if text is not None:
        reading = reading or NumberFormat.decide(text, decimal, expected=expected)
        numbers, notes = reading.read(text, expected=expected)
        return numbers, reading, notes
    if not (pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type) or pa.types.is_boolean(cells.type)):
        raise CellError(f"expected numbers, found {cells.type}", "save them as numbers")
    plain = cells.cast(pa.int8()) if pa.types.is_boolean(cells.type) else cells
    numbers, notes = bounded(widened(plain))
    return numbers, None, notes


def read_number(cells: pa.Array, options: ReadOptions, earlier: Reading | None) -> ReadColumn:
    """Return cells as numbers; text is read as numbers with currency signs, separators and signs.

    Raises:
        CellError: Some cell is no number, or the decimal separator is undecided.
    """
    earlier = earlier if isinstance(earlier, NumberFormat) else None
    numbers, reading, notes = numbers_in(cells, earlier, decimal=options.decimal)
    if reading is None and not notes:
        return ReadColumn(cells)
    return ReadColumn(pa.array(numbers, pa.float64(), from_pandas=True), reading, tuple(notes))


def read_time(cells: pa.Array, options: ReadOptions, earlier: Reading | None) -> ReadColumn:
    """Return cells as timestamps, or as whole Unix seconds where they came as such numbers.

    Raises:
        CellError: Some cell is no time, or the order of day and month is undecided.
    """
    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        return ReadColumn(cells)
    earlier = earlier if isinstance(earlier, TimeFormat) else None
    micros, reading, notes = times_in(cells, options.time_format, earlier)
    far = (micros != MISSING) & ((micros < _FIRST_YEAR) | (micros > _LAST_YEAR))
    if far.any():
        row = first(far)
        found = f"expected {A_TIME}, found {shown(cells[row].as_py())} ({many(int(far.sum()), 'such row')})"
        raise CellError(found, REMEDY, row)
    if reading.name == "seconds" and text_cells(cells) is None:
        return ReadColumn(cells, reading, tuple(notes))
    times = pa.array(micros, mask=micros == MISSING).cast(pa.timestamp("us"))
    return ReadColumn(times, reading, tuple(notes))


def times_in(
    cells: pa.Array, time_format: str | None = None, earlier: TimeFormat | None = None
) -> tuple[np.ndarray, TimeFormat, list[str]]:
    """Return cells as microseconds since 1970, `MISSING` where they are empty, with what was decided and the notes.

    Raises:
        CellError: Some cell is no time, or there are two ways to read them.
    """
    kind = cells.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return micros_of_moments(cells), TimeFormat("iso"), []
    text = text_cells(cells)
    if text is None and not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise CellError(f"expected {A_TIME}, found {kind}", "save them as dates")
    values = cells if text is None else text
    reading = earlier or TimeFormat.decide(values, time_format)
    micros, notes = reading.read(values)
    return micros, reading, notes


def read_vector(cells: pa.Array, options: ReadOptions, earlier: Reading | None) -> ReadColumn:
    """Return cells as lists of numbers; text is read as lists, such as `[0.1, 0.2]`.

    Raises:
        CellError: Some cell is no vector, or vectors differ in length.
    """
    text, reading = text_cells(cells), None
    notes: list[str] = []
    if text is not None:
        reading = earlier if isinstance(earlier, ListFormat) else ListFormat.decide(text)
        cells, notes = reading.read(text)
    if not is_list(cells.type):
        raise CellError(f"expected lists of numbers, found {cells.type}", "save each vector as a list")
    inner = cells.type.value_type
    if not (pa.types.is_floating(inner) or pa.types.is_integer(inner)) and len(cells.flatten()):
        found = f"expected lists of numbers, found {shown(cells.flatten()[0].as_py())} in one"
        raise CellError(
            found, "save each vector as a list of all its numbers", int(pc.list_parent_indices(cells)[0].as_py())
        )
    _check_vectors(cells)
    return ReadColumn(cells, reading, tuple(notes))


def _check_vectors(cells: pa.Array) -> None:
    """Refuse vectors of several lengths, and those with a number that is missing, infinite or too large."""
    lengths = pc.list_value_length(cells).fill_null(-1).to_numpy(zero_copy_only=False)
    known = np.unique(lengths[lengths >= 0], return_counts=True)
    if len(known[0]) > 1:
        usual = int(known[0][np.argmax(known[1])])
        row = first((lengths >= 0) & (lengths != usual))
        raise CellError(
            f"expected vectors of one length ({usual} as in most cells), found {lengths[row]} numbers",
            "make them equally long, or leave the cell empty",
            row,
        )
    flat = cells.flatten()
    numbers = flat.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    wrong = ~(np.abs(numbers) <= MOST_NUMBER)
    if wrong.any():
        at = first(wrong)
        row = int(pc.list_parent_indices(cells)[at].as_py())
        found = "no number" if np.isnan(numbers[at]) else f"{numbers[at]:g}"
        raise CellError(
            f"expected a vector of numbers from -{MOST_NUMBER:g} to {MOST_NUMBER:g}, found {found} in it",
            "correct the vector, or leave the cell empty",
            row,
        )


def read_categories(cells: pa.Array, options: ReadOptions, earlier: Reading | None) -> ReadColumn:
    """Return cells as lists where they are lists or text that says lists; other cells stay as they are.

    Raises:
        CellError: A cell is a list of lists or of structures.
    """
    earlier = earlier if isinstance(earlier, ListFormat) else None
    if is_list(cells.type) and pa.types.is_nested(cells.type.value_type):
        raise CellError(f"expected lists of values, found {cells.type}", "keep one value of each, such as its name")
    text = text_cells(cells)
    if text is None or not (earlier is not None or looks_like_lists(text)):
        return ReadColumn(cells)
    reading = earlier or ListFormat.decide(text)
    read, notes = reading.read(text)
    return ReadColumn(read, reading, tuple(notes))


def is_list(kind: pa.DataType) -> bool:
    """Return whether cells of a type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
