"""Single cells: which are empty, how one is shown, and how large one that arrives in a request may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from features.errors import DataError
from features.messages import cut

MAX_CELL_CHARACTERS = 65_536
"""The longest text of one cell, in characters. A cell that holds a list counts the texts in it together."""
MAX_CELL_VALUES = 16_384
"""The most values of one cell that holds a list."""
MAX_SHOWN_CHARACTERS = 60
"""The longest text of a cell that is shown to people, in characters."""
_SAMPLE = 1000


def is_missing(value: object) -> bool:
    """Return whether a cell is empty."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def text_of(cell: Any) -> str:
    """Return a cell as a short text; empty if it is."""
    if isinstance(cell, list | tuple | np.ndarray):
        return cut(", ".join(text_of(one) for one in cell), MAX_SHOWN_CHARACTERS)
    if cell is None or pd.isna(cell):
        return ""
    if isinstance(cell, pd.Timestamp):
        return f"{cell:%Y-%m-%d}"
    if isinstance(cell, float):
        return f"{cell:,.2f}".rstrip("0").rstrip(".") if abs(cell) < 1e15 else f"{cell:g}"
    return cut(str(cell), MAX_SHOWN_CHARACTERS)


def are_short(cells: pd.Series) -> bool:
    """Return whether the cells of a column, most of those of its first thousand rows, are short enough to be shown."""
    texts = cells.head(_SAMPLE).dropna().astype(str)
    return bool(len(texts) and texts.str.len().median() <= MAX_SHOWN_CHARACTERS)


def size_of(cell: object) -> tuple[int, int]:
    """Return how many characters and how many values are in a cell as JSON has it, those of lists within included.

    Above `MAX_CELL_VALUES` values nothing more is counted.
    """
    characters, values, left = 0, 0, [cell]
    while left:
        one = left.pop()
        if isinstance(one, str):
            characters += len(one)
        elif isinstance(one, list | dict):
            values += len(one)
            if values > MAX_CELL_VALUES:
                break
            left.extend(one if isinstance(one, list) else [*one, *one.values()])
    return characters, values


def refuse_large(where: str, cell: object) -> None:
    """Refuse a cell that arrives in a request and is too large, before anything is made of it.

    Raises:
        DataError: It has more than `MAX_CELL_CHARACTERS`, or `MAX_CELL_VALUES`.
    """
    characters, values = size_of(cell)
    if values > MAX_CELL_VALUES:
        raise DataError(f"{where}: expected at most {MAX_CELL_VALUES:,} values, found {values:,}")
    if characters > MAX_CELL_CHARACTERS:
        raise DataError(f"{where}: expected at most {MAX_CELL_CHARACTERS:,} characters, found {characters:,}")
