"""The cells of a column as the model reads them: values, numbers, texts, each as the feature declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from features.config import FeatureSettings
from features.errors import CellError, DataError
from features.schema import Feature
from features.spelling import Spelling, decide, decide_of_texts, spelt
from features.values.cells import is_missing
from features.values.distinct import column_cells, first, text_cells
from features.values.numbers import widened
from features.values.readings import is_list, numbers_in, times_in
from features.values.times import MISSING

_MANY_CELLS = 64


class Table(Protocol):
    """Anything with rows, such as a `Catalog`."""

    @property
    def frame(self) -> pd.DataFrame:
        """The rows."""


def spelling_of(feature: Feature, column: pd.Series) -> Spelling:
    """Return how the values of a column are spelt, decided by all of its cells."""
    try:
        cells = column_cells(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return "text"  # of several types, as only JSON has them
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if is_list(cells.type):
        return decide(cells.flatten())
    text = text_cells(cells)
    if text is None or not feature.separator:
        return decide(cells)
    written = pc.unique(text.drop_null()).to_pylist()
    return decide_of_texts(value for one in written for value in one.split(feature.separator))


def texts_of(feature: Feature, column: pd.Series) -> list[str]:
    """Return every cell as text; empty cells as empty text."""
    spelling = feature.spelling or spelling_of(feature, column)
    if len(column) < _MANY_CELLS or column.dtype == object:
        return ["" if is_missing(cell) else spelt(spelling, cell) for cell in _plain(column)]
    codes, distinct = pd.factorize(column)
    texts = [spelt(spelling, cell) for cell in _plain(pd.Series(distinct))]
    spread: list[str] = np.array([*texts, ""], dtype=object)[codes].tolist()
    return spread


def values_of(feature: Feature, column: pd.Series) -> tuple[Int[np.ndarray, "cells"], list[str]]:
    """Return how many values each cell holds, and all values as text, one cell after the other."""
    if not feature.definition.has_several:
        texts = texts_of(feature, column)
        return np.array([text != "" for text in texts], dtype=np.int64), [text for text in texts if text]
    spelling = feature.spelling or spelling_of(feature, column)
    cells = [_values(feature, spelling, cell) for cell in _plain(column)]
    return np.array([len(cell) for cell in cells], dtype=np.int64), [value for cell in cells for value in cell]


def numbers_of(feature: Feature, column: pd.Series) -> Float[np.ndarray, "cells"]:
    """Return every cell as a number, times as Unix seconds; empty cells as NaN.

    Raises:
        DataError: Some cell is neither empty nor a number; or no time, where times are wanted.
    """
    is_time = feature.definition.content == "times"
    try:
        cells = column_cells(column)
        if is_time and not pd.api.types.is_numeric_dtype(column):
            micros, _, _ = times_in(cells, feature.time_format)
            return np.where(micros == MISSING, np.nan, micros // 10**6)
        numbers = numbers_in(cells, decimal=feature.decimal)[0]
        return np.floor(numbers) if is_time else numbers
    except CellError as error:
        raise DataError(f"column {feature.name!r}, {error}") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        is_number = np.array([is_missing(cell) or isinstance(cell, int | float) for cell in column], dtype=bool)
        row = first(~is_number)
        raise DataError(
            f"column {feature.name!r}, row {row + 1:,}: expected a number, found {column.iloc[row]!r:.60}; "
            "correct the cell or leave it empty"
        ) from None


def item_texts(catalog: Table, features: Mapping[str, FeatureSettings]) -> list[str] | None:
    """Return the text of each item: its columns of text and categories, joined; None without such columns."""
    return texts_written(catalog.frame, features)


def texts_written(frame: pd.DataFrame, features: Mapping[str, FeatureSettings]) -> list[str] | None:
    """Return the text of each row: its columns of text and categories, joined; None without such columns."""
    kinds = {name: settings.definition for name, settings in features.items()}
    columns = [name for name, kind in kinds.items() if kind.is_sparse and not kind.is_id]
    if not columns:
        return None
    cells = zip(*(frame[name].astype(object) for name in columns), strict=True)
    return ["\n".join(text for cell in row if (text := _written(cell))) for row in cells]


def _plain(column: pd.Series) -> Iterable[Any]:
    """Return the cells as Python values; numbers of 32 bits by their shortest decimal representation."""
    if column.dtype == object:
        return column
    dtype = column.dtype.pyarrow_dtype if isinstance(column.dtype, pd.ArrowDtype) else column.dtype
    return widened(column_cells(column)).tolist() if dtype in (pa.float32(), np.dtype(np.float32)) else column


def _values(feature: Feature, spelling: Spelling, cell: Any) -> list[str]:
    """Return the values of one cell of categories, each once."""
    if is_missing(cell):
        return []
    if isinstance(cell, str):
        parts: Iterable[Any] = cell.split(feature.separator) if feature.separator else [cell]
    else:
        parts = cell if isinstance(cell, list | tuple | np.ndarray) else [cell]
    names = [spelt(spelling, part) for part in parts if not is_missing(part)]
    return list(dict.fromkeys(name for name in names if name))


def _written(cell: Any) -> str:
    """Return a cell as text: values of a list separated by blanks; missing values as empty text."""
    if isinstance(cell, list | tuple | np.ndarray):
        return " ".join(map(_written, cell))
    return "" if pd.isna(cell) else spelt("text", cell)
