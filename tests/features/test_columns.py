"""Cells as values, numbers and texts, whatever they came as."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from features.columns import item_texts, numbers_of, values_of
from features.config import FeatureSettings
from features.errors import DataError
from features.schema import Feature
from features.tables.tables import Catalog


def test_texts_are_the_cells_of_text_and_categories_joined():
    frame = pd.DataFrame(
        {
            "item_id": [1, 2, 3],
            "title": ["Blue pen", None, "Ink"],
            "price": [1.0, 2.0, 3.0],
            "tags": [["office", "blue"], [], None],
            "shelf": [4, 5, None],
        }
    ).astype({"shelf": "Int64"})
    kinds = {"item_id": "id", "title": "text", "price": "number", "tags": "categories", "shelf": "category"}
    features = {name: FeatureSettings(kind=kind) for name, kind in kinds.items()}
    assert item_texts(Catalog(frame), features) == ["Blue pen\noffice blue\n4", "5", "Ink"]
    assert item_texts(Catalog(frame), {"price": features["price"]}) is None
    assert item_texts(Catalog(frame), {}) is None


def test_a_cell_of_categories_holds_each_value_once_without_blanks():
    lengths, values = values_of(Feature("tags", "categories", "|"), pd.Series(["a| b |a", "", None, "c"]))
    assert lengths.tolist() == [2, 0, 0, 1]
    assert values == ["a", "b", "c"]


def test_dates_become_seconds_and_what_is_no_number_is_told_with_its_row():
    times = numbers_of(Feature("date", "time"), pd.Series(["1970-01-02", None]))
    np.testing.assert_array_equal(times, [86_400, np.nan])
    numbers = numbers_of(Feature("price", "number"), pd.Series([1.5, None], dtype=object))
    np.testing.assert_array_equal(numbers, [1.5, np.nan])
    with pytest.raises(DataError, match=r"column 'date', row 2: expected a date such as .*found 'soon'"):
        numbers_of(Feature("date", "time"), pd.Series(["1970-01-02", "soon"]))
    with pytest.raises(DataError, match=r"column 'price', row 2: expected a number, found 'x'"):
        numbers_of(Feature("price", "number"), pd.Series([1.5, "x"], dtype=object))
