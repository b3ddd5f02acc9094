"""One spelling for the values of a column, whatever they came as."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.columns import texts_of, values_of
from features.schema import Feature
from features.spelling import decide, decide_of_texts, spelt
from features.tables.table_files import read_table

SPELLINGS = ("text", "number", "boolean", "date")
VALUES = st.one_of(
    st.text(max_size=20), st.integers(), st.floats(allow_nan=False), st.booleans(), st.dates(), st.datetimes()
)


@pytest.mark.parametrize(
    ("spelling", "values", "expected"),
    [
        ("number", [3, 3.0, "3", " 3 ", "3.0", "3.00", np.int8(3), np.float32(3), "3e+0"], "3"),
        ("number", [0.1, "0.1", "0.10", np.float64(0.1)], "0.1"),
        ("number", [True, 1, "1"], "1"),
        ("number", [-0.0, 0, "-0"], "0"),
        ("number", [2**60 + 1, str(2**60 + 1)], "1152921504606846977"),
        ("boolean", [True, "true", "True", " TRUE ", "yes", "t", 1, 1.0, "1", np.True_], "true"),
        ("boolean", [False, "false", "no", "F", 0, "0.0"], "false"),
        ("date", [date(2024, 3, 31), datetime(2024, 3, 31), "2024-03-31 00:00:00", "2024-03-31T02:00:00+02:00"], "2024-03-31"),  # noqa: DTZ001, E501
        ("date", [pd.Timestamp("2024-03-31 18:00:05"), "2024-03-31 18:00:05", "2024-03-31T18:00:05Z"], "2024-03-31T18:00:05"),  # noqa: E501
        ("text", [" a ", "a"], "a"),
        ("text", [3, 3.0, "3"], "3"),
    ],
)  # fmt: skip
def test_values_that_are_one_are_spelt_in_one_way(spelling, values, expected):
    assert {spelt(spelling, value) for value in values} == {expected}


@pytest.mark.parametrize(
    ("spelling", "first", "second"),
    [
        ("text", "1.10", "1.1"),
        ("text", "3.0", "3"),
        ("text", "ACME", "acme"),
        ("number", "007", "7"),
        ("number", "12e4", "120000"),
        ("number", "1_000", "1000"),
        ("number", "1,000", "1000"),
        ("number", "9" * 100, "1e+100"),
        ("date", "31.03.2024", "2024-03-31"),
        ("boolean", "maybe", "true"),
    ],
)
def test_what_may_be_two_values_stays_two(spelling, first, second):
    assert spelt(spelling, first) != spelt(spelling, second)


@given(st.sampled_from(SPELLINGS), VALUES)
def test_a_spelling_is_spelt_as_itself(spelling, value):
    once = spelt(spelling, value)
    assert once == once.strip()
    assert spelt(spelling, once) == once


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([1, None, 3], "number"),
        ([1.5, None], "number"),
        ([True, False], "boolean"),
        ([date(2024, 1, 2)], "date"),
        (["1", "20"], "number"),
        (["1.0", "2.5"], "number"),
        (["1", "2.5"], "text"),  # 1 and 1.0 may be two codes
        (["1.10", "1.1"], "text"),
        (["007", "1"], "text"),
        (["True", "false"], "boolean"),
        (["2024-01-02", "2024-01-02 10:00:00"], "date"),
        (["20240102"], "number"),
        (["red", "1"], "text"),
        ([" 4 ", "5"], "number"),
        ([], "text"),
        ([None], "text"),
    ],
)
def test_the_column_decides(cells, expected):
    assert decide(pa.array(cells)) == expected


_COLUMNS = st.one_of(
    st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=5),
    st.lists(st.integers(-10_000, 10_000).map(lambda number: number / 8), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.lists(st.dates(date(1900, 1, 1), date(2100, 1, 1)), min_size=1, max_size=5),
    st.lists(st.sampled_from(["red", "a b", "007", "1.10", "x"]), min_size=1, max_size=5),
)


@settings(max_examples=25)
@given(_COLUMNS)
def test_a_column_is_spelt_alike_as_it_is_and_as_csv_has_it(tmp_path_factory, values):
    """Typed cells, their text, and what is read of a CSV file: one spelling, and the same values."""
    path = Path(tmp_path_factory.getbasetemp()) / "one.csv"
    cells = pa.array(values)
    pacsv.write_csv(pa.table({"a": cells, "b": cells}), path)
    read = read_table(path, lambda name: True).frame["a"]
    typed = pd.Series(cells, dtype=pd.ArrowDtype(cells.type))
    feature = Feature("a", "category")
    assert texts_of(feature, read) == texts_of(feature, typed) == texts_of(feature, typed.astype(object))
    spelling = decide(cells)
    assert spelling == decide_of_texts([spelt(spelling, value) for value in values]) or cells.type == pa.float64()


def test_many_cells_are_spelt_as_few_are():
    for cells in ([1.0, None, 2.5] * 40, ["a ", " a", None] * 40, [True, None] * 60):
        column = pd.Series(pa.array(cells), dtype=pd.ArrowDtype(pa.array(cells).type))
        for spelling in SPELLINGS:
            feature = Feature("a", "category", spelling=spelling)
            assert texts_of(feature, column) == [
                text for cell in cells for text in texts_of(feature, pd.Series([cell], dtype=object))
            ]


def test_values_of_32_bits_are_what_they_are_written_as():
    column = pd.Series(pa.array([0.1, None, 3], pa.float32()), dtype=pd.ArrowDtype(pa.float32()))
    assert values_of(Feature("a", "category"), column)[1] == ["0.1", "3"]


def test_categories_of_one_value_and_lists_with_gaps_are_read():
    feature = Feature("a", "categories", "|")
    assert values_of(feature, pd.Series([[1.0, None], 2, "3|1"], dtype=object))[1] == ["1", "2", "3", "1"]
