from __future__ import annotations

import threading
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.config import FeatureSettings
from features.errors import DataError
from features.tables.tables import Catalog
from serving.catalog import filters as filters_module
from serving.catalog.filters import Filters
from serving.search.conditions import OPERATORS, Operator

NOON = datetime(2024, 3, 31, 12, tzinfo=UTC)
LONG_AGO = datetime(1950, 6, 1, 12, tzinfo=UTC)
ITEMS = ["a", "b", "c", "d", "e"]


def column(values, kind):
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([pa.array(values, kind)])))


COLUMNS = {
    "item_id": column(ITEMS, pa.string()),
    "category": column(["shoe", "boot", "shoe", None, "Shoe"], pa.large_string()),
    "price": column([10.0, 20.5, None, 40.0, 20.5], pa.float64()),
    "stock": column([0, 5, 2**62, None, -1], pa.int64()),
    "tags": column(["red|wool", "red", " wool |blue", None, ""], pa.large_string()),
    "sizes": column([[38, 39], [39], [], None, [40]], pa.list_(pa.int64())),
    "colours": column([["red"], ["red", "blue"], None, [None, "blue"], ["green"]], pa.large_list(pa.string())),
    "launched": column([NOON, datetime(2020, 1, 1, tzinfo=UTC), None, NOON, NOON], pa.timestamp("ms", "UTC")),
    "printed": column(
        [None, NOON.replace(1950, 6, 1, tzinfo=None), NOON.replace(tzinfo=None), None, None], pa.timestamp("us")
    ),
    "added": column([1_711_843_200, 5, None, 0, 2_000_000_000], pa.int64()),
    "day": column([NOON.date(), None, NOON.date(), None, None], pa.date32()),
    "is_new": column([True, False, None, True, False], pa.bool_()),
    "vector": column([[0.5, 0.5]] * 5, pa.list_(pa.float64())),
    "price_min": column([1, 2, 3, 4, 5], pa.int64()),
}
SETTINGS = {"tags": FeatureSettings(kind="categories", separator="|"), "added": FeatureSettings(kind="time")}


@pytest.fixture(scope="module")
def filters():
    return Filters(Catalog(pd.DataFrame(COLUMNS)), SETTINGS)


def fitting(filters, wanted):
    allowed = filters.allowed(wanted)
    return "".join(ITEMS) if allowed is None else "".join(ITEMS[row] for row in allowed.rows)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("category=shoe", "ac"),
        ("category=shoe&category=Shoe", "ace"),
        ("category=nothing", ""),
        ("category_not=shoe", "bde"),  # an empty cell is none of these
        ("category_not=shoe&category_not=boot", "de"),
        ("category=shoe&category_not=shoe", ""),
        ("price=20.5", "be"),
        ("price=10&price=4e1", "ad"),
        ("price_max=20.5", "abe"),  # an empty cell is in no range; both ends belong to it
        ("price_not=20.5", "acd"),
        ("stock=5", "b"),
        ("stock=4611686018427387904", "c"),
        ("stock_min=0&stock_max=5", "ab"),
        ("stock_min=-.5&stock_max=1e30", "abc"),
        ("stock=99999999999999999999", ""),
        ("tags=red", "ab"),
        ("tags=wool", "ac"),
        ("tags=blue&tags=red", "abc"),
        ("tags_not=red", "cde"),
        ("sizes=39", "ab"),
        ("sizes_not=39&sizes_not=40", "cd"),
        ("colours=blue", "bd"),
        ("launched_min=2024-03-31", "ade"),
        ("launched_min=2024-03-31T12:00:00Z&launched_max=2024-03-31T14:00:00%2B02:00", "ade"),
        ("launched_max=2024", "b"),
        ("launched_min=20240331", "ade"),
        ("launched_min=1711886400", "ade"),  # 2024-03-31T12:00:00Z
        ("launched_min=1711886401", ""),
        ("printed_max=1950-06-01T12:00", "b"),
        ("added_max=2024-03-31", "abd"),  # Unix seconds that the settings call a time
        ("day=2024-03-31", "ac"),
        ("is_new=true", "ad"),
        ("is_new_not=True", "bce"),
        ("item_id=b&item_id=gone&item_id=a", "ab"),
        ("item_id_not=b", "acde"),
        ("item_id=a&item_id=b&item_id_not=b", "a"),
        ("category=shoe&price_max=15&tags=red", "a"),
        ("price_min=3", "c"),  # the column of this name comes first
        ("price_min_min=4", "de"),
        ("", "abcde"),
    ],
)
def test_a_query_lets_through_what_fits(filters, query, expected):
    from urllib.parse import parse_qs

    assert fitting(filters, filters.from_query(parse_qs(query))) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "abcde"),
        ({"category": "shoe"}, "ac"),
        ({"category": ["shoe", "boot"]}, "abc"),
        ({"category": {"any": ["shoe"], "not": "boot"}}, "ac"),
        ({"category": {"not": ["shoe", "boot"]}}, "de"),
        ({"category": []}, ""),
        ({"category": {"not": []}}, "abcde"),
        ({"price": {"min": 15, "max": 30.5}}, "be"),
        ({"price": {"min": "15"}, "category": {"not": "boot"}}, "de"),
        ({"price": {"max": 3}, "price_min": {"max": 3}}, ""),
        ({"price_min": {"max": 3}}, "abc"),
        ({"is_new": True}, "ad"),
        ({"sizes": [38, 40]}, "ae"),
        ({"launched": {"min": 1_711_886_400}}, "ade"),
        ({"item_id": {"not": ["a", "b", "c"]}, "stock": {"max": 0}}, "e"),
        ({"price": [*range(30), 20.5]}, "abe"),
    ],
)
def test_a_body_lets_through_what_fits(filters, body, expected):
    assert fitting(filters, filters.parse(body)) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"categry": ["a"]}, "categry: no column to filter by; the catalogue has .*; did you mean 'category'?"),
        ({"page": ["2"]}, "page: no column to filter by; the catalogue has 'item_id', 'category', 'price', .*, ...$"),
        ({"x_min": ["2"]}, "x_min: no column to filter by"),
        ({"price": ["cheap"]}, "price: expected a number, found 'cheap'"),
        ({"price_max": [""]}, "price_max: expected a number, found ''"),
        ({"price_max": ["nan"]}, "price_max: expected a number, found 'nan'"),
        ({"price_max": ["1_000"]}, "price_max: expected a number, found '1_000'"),
        ({"price_max": ["inf"]}, "expected a number, found 'inf'"),
        ({"price_max": ["1e999"]}, "expected a number, found '1e999'"),
        ({"price_max": ["1", "2"]}, "price_max: expected once, found 2 times"),
        ({"stock_min": ["9"], "stock_max": ["1"]}, "stock: expected min <= max, found min 9 and max 1"),
        ({"category_min": ["a"]}, "category_min: expected a column of numbers or times, but 'category' holds text"),
        ({"tags_max": ["a"]}, "tags_max: expected a column of numbers or times, but 'tags' holds lists of texts"),
        ({"category": [""]}, "category: expected text, found ''"),
        ({"launched_min": ["soon"]}, "launched_min: expected a date such as 2024-03-31, or Unix seconds, found 'soon'"),
        ({"launched_min": ["2024-13-01"]}, "launched_min: expected a date"),
        ({"is_new": ["1"]}, "is_new: expected true or false, found '1'"),
        ({"sizes": ["large"]}, "sizes: expected a whole number, found 'large'"),
        ({"sizes": ["4.5"]}, "sizes: expected a whole number, found '4.5'"),
        ({"vector": ["1"]}, "vector: column 'vector' holds list<.*double>, which cannot be compared"),
    ],
)
def test_a_query_that_cannot_be_names_the_parameter_what_was_expected_and_what_was_found(filters, query, message):
    with pytest.raises(DataError, match=message):
        filters.from_query(query)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"categry": "a"}, "filter.categry: no column to filter by"),
        ({"price": "cheap"}, "filter.price: expected a number, found 'cheap'"),
        ({"price": True}, "filter.price: expected a number, found True"),
        ({"price": [1, None]}, "filter.price: expected a number, found None"),
        ({"price": {"above": 5}}, "filter.price: expected any, not, min or max, found 'above'"),
        ({"price": {}}, "filter.price: expected any, not, min or max, found 'nothing'"),
        ({"price": {"min": [5]}}, r"filter.price.min: expected a number, found \[5\]"),
        ({"price": {"min": float("nan")}}, "filter.price.min: expected a number, found nan"),
        ({"price": {"min": 10**400}}, "filter.price.min: expected a number"),
        ({"category": 1.5}, "filter.category: expected text, found 1.5"),
        ({"category": {"not": [["a"]]}}, r"filter.category.not: expected text, found \['a'\]"),
        ({"is_new": 1}, "filter.is_new: expected true or false, found 1"),
        ({"sizes": 38.5}, "filter.sizes: expected a whole number, found 38.5"),
    ],
)
def test_a_body_that_cannot_be_says_where(filters, body, message):
    with pytest.raises(DataError, match=message) as caught:
        filters.parse(body)
    assert "\n" not in str(caught.value)


def test_ids_that_are_whole_numbers_are_named_by_numbers_or_their_text():
    filters = Filters(Catalog(pd.DataFrame({"item_id": column([7, 42, 9], pa.int64())})))
    for wanted in (filters.from_query({"item_id": ["42", "8"]}), filters.parse({"item_id": [42]})):
        assert filters.allowed(wanted).rows.tolist() == [1]
    for wrong in ("x", "042", 1.5, True, 2**70):
        with pytest.raises(DataError, match=r"filter.item_id: expected a whole number, as items' ids are, found"):
            filters.parse({"item_id": wrong})


def test_a_category_of_whole_numbers_in_text_is_found_by_either():
    filters = Filters(
        Catalog(pd.DataFrame({"item_id": column([1, 2], pa.int64()), "size": column(["38", "x"], pa.string())}))
    )
    assert filters.allowed(filters.parse({"size": 38})).rows.tolist() == [0]


def test_only_the_columns_that_the_operator_names_can_be_filtered_by():
    catalog = Catalog(pd.DataFrame(COLUMNS))
    filters = Filters(catalog, SETTINGS, ["category"])
    assert fitting(filters, filters.parse({"category": "shoe"})) == "ac"
    for ask in (lambda: filters.parse({"price": 1}), lambda: filters.from_query({"price_min": ["1"]})):
        with pytest.raises(DataError, match=r"no column to filter by; the catalogue has 'category'$"):
            ask()
    with pytest.raises(DataError, match="filter_columns: the catalogue has no column 'colour'; it has 'item_id'"):
        Filters(catalog, SETTINGS, ["colour"])
    with pytest.raises(DataError, match="the catalogue has none"):
        Filters(catalog, SETTINGS, []).parse({"price": 1})


def test_an_operator_is_added_to_the_table(filters, monkeypatch):
    """The section "Add a filter operator" of CONTRIBUTING.md."""
    above = Operator(
        lambda column, values: column.at_least(values[0]) & ~column.any_of(values), "is above this", needs_order=True
    )
    monkeypatch.setitem(OPERATORS, "above", above)
    assert fitting(filters, filters.from_query({"price_above": ["20.5"]})) == "d"
    assert fitting(filters, filters.parse({"price": {"above": 10, "max": 20.5}})) == "be"
    assert filters.columns()["price"].operators == ["any", "not", "min", "max", "above"]
    assert filters.columns()["category"].operators == ["any", "not"]
    with pytest.raises(DataError, match="price_above: expected once, found 2 times"):
        filters.from_query({"price_above": ["1", "2"]})
    with pytest.raises(DataError, match="category_above: expected a column of numbers or times"):
        filters.from_query({"category_above": ["1"]})
    with pytest.raises(DataError, match="expected any, not, min, max or above, found 'below'"):
        filters.parse({"price": {"below": 1}})


def test_an_operator_may_have_an_underscore_in_its_name(filters, monkeypatch):
    monkeypatch.setitem(OPERATORS, "not_in", OPERATORS["not"])
    assert filters.from_query({"category_not_in": ["shoe"]}) == filters.parse({"category": {"not_in": ["shoe"]}})
    assert fitting(filters, filters.from_query({"category_not_in": ["shoe"]})) == fitting(
        filters, filters.from_query({"category_not": ["shoe"]})
    )


def test_an_operator_may_have_a_comparison_of_its_own(filters, monkeypatch):
    """Step 2 of the section "Add a filter operator" of CONTRIBUTING.md."""

    def starts_with(column, value):
        return column.any_of([known for known in column._codes if known.startswith(value)])

    def nothing(column, value):
        return np.zeros(len(ITEMS), dtype=bool)

    monkeypatch.setattr(filters_module._Named, "starts_with", starts_with, raising=False)
    monkeypatch.setattr(filters_module._Ordered, "starts_with", nothing, raising=False)
    starts = Operator(lambda column, values: column.starts_with(values[0]), "starts with this")
    monkeypatch.setitem(OPERATORS, "starts", starts)
    assert fitting(filters, filters.from_query({"category_starts": ["sh"]})) == "ac"
    assert fitting(filters, filters.parse({"price": {"starts": 2}})) == ""


def test_the_same_conditions_in_any_order_are_one_filter(filters):
    one = filters.parse({"category": ["shoe", "boot"], "stock": {"min": 1, "max": 15}})
    two = filters.parse({"stock": {"max": 15, "min": 1.0}, "category": ["boot", "shoe", "shoe"]})
    asked = {"stock_max": ["15"], "category": ["boot", "shoe"], "stock_min": ["1"]}
    assert one == two == filters.from_query(asked)
    assert filters.allowed(one) is filters.allowed(two)
    assert one != filters.parse({"category": ["shoe", "boot"], "stock": {"min": 1}})


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(filters_module, "_CACHE_BYTES", 3 * 17 * 5)
    filters = Filters(Catalog(pd.DataFrame(COLUMNS)), SETTINGS)
    first = filters.allowed(filters.parse({"stock": 0}))
    for stock in range(1, 10):
        filters.allowed(filters.parse({"stock": stock}))
    assert len(filters._cache) == 3
    assert filters.allowed(filters.parse({"stock": 0})) is not first
    many = filters.parse({"stock": list(range(2000))})
    assert filters.allowed(many) is not filters.allowed(many)


def test_threads_that_filter_at_once_get_their_own_answers():
    rng = np.random.default_rng(0)
    names = rng.choice(["x", "y", "z"], size=3000)
    frame = pd.DataFrame(
        {"item_id": column(list(range(3000)), pa.int64()), "name": column(names.tolist(), pa.string())}
    )
    filters, wrong = Filters(Catalog(frame)), []

    def ask(name):
        for _ in range(20):
            rows = filters.allowed(filters.parse({"name": name})).rows
            if not (names[rows] == name).all() or len(rows) != (names == name).sum():
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "xyz" * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


VALUES = st.none() | st.integers(-3, 3)


@given(
    cells=st.lists(st.tuples(VALUES, st.none() | st.sampled_from("xyz")), min_size=1, max_size=30),
    any_of=st.lists(st.integers(-3, 3), max_size=12),
    none_of=st.lists(st.sampled_from("xyzw"), max_size=3),
    least=st.integers(-4, 4),
)
def test_conditions_are_what_plain_python_says_they_are(cells, any_of, none_of, least):
    frame = pd.DataFrame(
        {
            "item_id": column(list(range(len(cells))), pa.int64()),
            "n": column([number for number, _ in cells], pa.int64()),
            "t": column([text for _, text in cells], pa.string()),
        }
    )
    filters = Filters(Catalog(frame))
    found = filters.allowed(filters.parse({"n": {"any": any_of, "min": least}, "t": {"not": none_of}})).rows.tolist()
    expected = [
        row
        for row, (number, text) in enumerate(cells)
        if number is not None and number in any_of and number >= least and text not in none_of
    ]
    assert found == expected


BIG = 2**53
WHOLE = [0, 1, 2, 3, -1, 100, *range(BIG - 2, BIG + 4), 2**62, 2**63 - 1]
FRACTIONS = [0.1, 0.2, 0.3, 1.1, 9.99, 19.99, -0.1, 1e30, 3.0, 16777217.0]
WORDS = [*"abcdefghijkl"]
# Of each sort of column: the type, what may be in a cell, and how a value is read before it is compared with one.
TYPES = {
    "int8": (pa.int8(), st.sampled_from([0, 1, 2, 3, -1, 100]), int),
    "int64": (pa.int64(), st.sampled_from(WHOLE), int),
    "uint64": (pa.uint64(), st.sampled_from([0, 1, BIG, BIG + 1, 2**63, 2**63 + 1, 2**64 - 1]), int),
    "float32": (pa.float32(), st.sampled_from(FRACTIONS), np.float32),
    "float64": (pa.float64(), st.sampled_from([*FRACTIONS, float(BIG)]), float),
    "text": (pa.large_string(), st.sampled_from(WORDS), str),
    "texts": (pa.list_(pa.string()), st.lists(st.sampled_from(WORDS), max_size=3), str),
    "pairs": (pa.list_(pa.string(), 2), st.lists(st.sampled_from(WORDS), min_size=2, max_size=2), str),
    "views": (pa.list_view(pa.string()), st.lists(st.sampled_from(WORDS), max_size=3), str),
    "whole pairs": (pa.list_(pa.int32(), 2), st.lists(st.integers(0, 12), min_size=2, max_size=2), int),
}
ASKED = {
    int: st.sampled_from([*WHOLE, 0.5, 2.5, 3.0, -0.5, float(BIG), 2**63, 2**63 + 1, 2**64, 1e30, BIG + 2.5]),
    np.float32: st.sampled_from([*FRACTIONS, 0.15, 1e300, 16777216, 16777217, 3]),
    float: st.sampled_from([*FRACTIONS, 0.15, 1e300, BIG, BIG + 1, 3]),
    str: st.sampled_from([*WORDS, "z"]),
}


def read_as(read, value):
    """A value in the type of a column: exactly, or the nearest where the column has fractions."""
    with np.errstate(over="ignore"):
        return value if read is int else read(value)


@pytest.mark.parametrize("sort", TYPES)
@given(data=st.data())
@settings(max_examples=40)
def test_columns_of_every_type_are_compared_as_plain_python_does(sort, data):
    kind, cell, read = TYPES[sort]
    cells = data.draw(st.lists(st.none() | cell, min_size=1, max_size=20))
    asked = st.integers(0, 14) if sort == "whole pairs" else ASKED[read]
    values = data.draw(st.lists(asked, min_size=1, max_size=14))
    test = data.draw(
        st.sampled_from(
            ["any", "not", "min", "max"] if not pa.types.is_nested(kind) and read is not str else ["any", "not"]
        )
    )
    frame = pd.DataFrame({"item_id": column(list(range(len(cells))), pa.int64()), "c": column(cells, kind)})
    filters = Filters(Catalog(frame))
    found = filters.mask(filters.parse({"c": {test: values if test in ("any", "not") else values[0]}})).tolist()
    wanted = [read_as(read, value) for value in values]
    there = [[] if one is None else one if isinstance(one, list) else [read_as(read, one)] for one in cells]
    expected = {
        "any": [any(one in wanted for one in mine) for mine in there],
        "not": [not any(one in wanted for one in mine) for mine in there],
        "min": [any(one >= wanted[0] for one in mine) for mine in there],
        "max": [any(one <= wanted[0] for one in mine) for mine in there],
    }
    assert found == expected[test]
