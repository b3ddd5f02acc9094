"""Rows as JSON has them become rows of a table like another: of its types, or one line that says where and what."""

from __future__ import annotations

from datetime import date, datetime

import pandas as pd
import pyarrow as pa
import pytest
from jsonschema import Draft202012Validator

from features.errors import DataError
from features.tables.rows import cell_schemas, fitting_rows, typed_rows
from features.values.cells import MAX_CELL_CHARACTERS

KINDS = {
    "item_id": pa.int64(),
    "title": pa.large_string(),
    "price": pa.float64(),
    "new": pa.bool_(),
    "tags": pa.list_(pa.string()),
    "made": pa.date32(),
    "seen": pa.timestamp("us", "UTC"),
}
LIKE = pd.DataFrame({name: pd.Series([], dtype=pd.ArrowDtype(kind)) for name, kind in KINDS.items()})
ROW = {
    "item_id": 7, "title": "Chair", "price": 2, "new": True, "tags": ["a", "b"], "made": "2024-03-31",
    "seen": "2024-03-31T18:00:00Z",
}  # fmt: skip


def test_cells_have_the_types_of_the_table_and_what_is_not_named_is_missing():
    found = typed_rows(LIKE, [ROW, {"item_id": 8.0, "title": None}])
    assert found.dtypes.to_dict() == LIKE.dtypes.to_dict()
    first, second = found.to_dict("records")
    assert (first["item_id"], first["title"], first["price"], first["new"]) == (7, "Chair", 2.0, True)
    assert (list(first["tags"]), first["made"]) == (["a", "b"], date(2024, 3, 31))
    assert first["seen"] == datetime.fromisoformat("2024-03-31T18:00:00+00:00")
    assert second["item_id"] == 8
    assert all(pd.isna(second[name]) for name in KINDS if name != "item_id")
    assert len(typed_rows(LIKE, [])) == 0


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"titel": "Chair"}, "titel: the table has no such column; .*did you mean 'title'"),
        ({"title": 7}, "title: expected text, found 7"),
        ({"price": "cheap"}, "price: expected a number, found 'cheap'"),
        ({"price": True}, "price: expected a number, found True"),
        ({"new": 1}, "new: expected true or false, found 1"),
        ({"item_id": 1.5}, "item_id: expected a whole number, found 1.5"),
        ({"item_id": 2**63}, "item_id: expected a whole number, which this is not"),
        ({"tags": "a|b"}, "tags: expected a list, each text, found 'a|b'"),
        ({"tags": ["a", 7]}, "tags: expected text, found 7"),
        ({"made": "yesterday"}, "made: expected a date such as 2024-03-31, which this is not"),
        ({"made": 7}, "made: expected a date such as 2024-03-31, found 7"),
        ({"seen": 7}, "seen: expected a date such as 2024-03-31T18:00:00Z, found 7"),
        ({"price": -1000000000000000.1}, "price: expected a number from -1e.15 to 1e.15, found -1000000000000000.1"),
        ({"price": float("nan")}, "price: expected a number from -1e.15 to 1e.15, found nan"),
    ],
)
def test_a_cell_that_does_not_fit_is_one_line_and_can_be_left_out(cells, said):
    with pytest.raises(DataError, match=said):
        typed_rows(LIKE, [ROW, {**ROW, **cells}])
    pd.testing.assert_frame_equal(
        fitting_rows(LIKE, [ROW, {**ROW, **cells}])[0],
        typed_rows(LIKE, [ROW, {name: cell for name, cell in ROW.items() if name not in cells}])
        if cells.keys() <= KINDS.keys()
        else typed_rows(LIKE, [ROW, ROW]),
    )


def test_cells_that_are_left_out_are_named_by_column_with_how_many_and_why():
    found, said = fitting_rows(LIKE, [ROW, {**ROW, "price": "cheap", "colour": "red"}, {**ROW, "price": "dear"}])
    assert said == [
        "a cell is left out: price: expected a number, found 'cheap' (and 1 more cells of this column)",
        said[1],
    ]
    assert said[1].startswith("a cell is left out: colour: the table has no such column")
    assert found["price"].isna().tolist() == [False, True, True]
    large = "a" * (MAX_CELL_CHARACTERS + 1)
    assert fitting_rows(LIKE, [{**ROW, "title": large}])[1][0].startswith("a cell is left out: title: expected at most")


CELLS = (
    None,
    "x",
    "3",
    "true",
    "",
    3,
    -2,
    2.5,
    1e16,
    True,
    False,
    [],
    ["a"],
    ["3", None],
    [1, 2],
    [2.5],
    [["a"]],
    {"a": 1},
)


@pytest.mark.parametrize("name", ["item_id", "title", "price", "new", "tags"])
@pytest.mark.parametrize("spelling", [None, "text", "number", "boolean", "date"])
def test_the_schema_of_a_cell_allows_whatever_is_taken(name, spelling):
    spellings = {name: spelling} if spelling else {}
    schema = Draft202012Validator(cell_schemas(LIKE, spellings)[name])
    taken, allowed = [], []
    for cell in CELLS:
        allowed += [cell] if schema.is_valid(cell) else []
        try:
            typed_rows(LIKE, [{name: cell}], spellings)
            taken.append(cell)
        except DataError:
            pass
    assert [cell for cell in taken if cell not in allowed] == []
    # A text that must be a number is refused where it is none, which no schema says.
    if not spelling or name == "title":
        assert allowed == taken
