"""The distinct values of a text column: what is read of a million cells is read once for each spelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Bool, Int64

from features.errors import CellError
from features.messages import shown

MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>", "\\n", "-", "\u2013", "\u2014"})
"""Lower-case spellings of an empty cell in a column of numbers, times or lists, where no such word can be a value."""
MOSTLY = 0.9
"""Share of cells written in one way from which a column is taken for one of such cells, and the others for mistakes."""


@dataclass(frozen=True)
class Distinct:
    """The cells of a text column as positions in its distinct values, blanks around them removed.

    Attributes:
        values: Each value once, in the order in which they first occur; without those that stand for an empty cell.
        codes: Position in `values` of each cell, `[cells]`; -1 where the cell is empty.
        num_words: Cells that are empty because of a word such as `NULL`.
    """

    values: tuple[str, ...]
    codes: Int64[np.ndarray, " cells"]
    num_words: int

    @classmethod
    def of(cls, cells: pa.Array) -> Distinct:
        """Return the distinct values of text cells."""
        encoded = cells.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        stripped = [value.strip() for value in encoded.dictionary.to_pylist()]
        values: dict[str, int] = {}
        places = [-1 if value.lower() in MISSING_WORDS else values.setdefault(value, len(values)) for value in stripped]
        place = np.array([*places, -1], dtype=np.int64)
        is_word = np.array([at < 0 and value != "" for at, value in zip(places, stripped, strict=True)] + [False])
        return cls(tuple(values), place[codes], int(is_word[codes].sum()))

    def spread(self, of_values: np.ndarray) -> np.ndarray:
        """Return one entry per cell from one per value; NaN, or an integer type's lowest number, where it is empty."""
        lowest = np.nan if of_values.dtype.kind == "f" else np.iinfo(of_values.dtype).min
        spread: np.ndarray = np.append(of_values, np.array([lowest], of_values.dtype))[self.codes]
        return spread

    def share(self, is_such: Sequence[bool]) -> float:
        """Return the share of the cells that are not empty with one of the values that are such; 0 of none."""
        such = np.array([*is_such, False])[self.codes]
        return float(such.sum() / max(int((self.codes >= 0).sum()), 1))

    def error(self, is_wrong: Bool[np.ndarray, " values"], expected: str, remedy: str) -> CellError:
        """Return the error that names the first cell with one of the values that are wrong, and counts them."""
        wrong = np.append(is_wrong, [False])[self.codes]
        row = int(np.flatnonzero(wrong)[0])
        found = shown(self.values[self.codes[row]])
        return CellError(f"expected {expected}, found {found} ({many(int(wrong.sum()), 'such row')})", remedy, row)


def column_cells(column: pd.Series) -> pa.Array:
    """Return the cells of a column as one array.

    Raises:
        pa.ArrowInvalid, pa.ArrowTypeError: They are of several types.
    """
    cells = pa.array(column, from_pandas=True)
    return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells


def text_cells(cells: pa.Array) -> pa.Array | None:
    """Return cells of text as `large_string`, None where they are anything else."""
    kind = cells.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return cells.cast(pa.large_string()) if is_text or pa.types.is_null(kind) else None


def first(cells: Bool[np.ndarray, " cells"]) -> int:
    """Return the position of the first cell that is true."""
    return int(np.flatnonzero(cells)[0])


def many(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
