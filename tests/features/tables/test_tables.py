from __future__ import annotations

import gzip
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.config import ColumnSettings, FeaturesConfig
from features.errors import DataError
from features.tables.tables import Catalog, read_frame, read_tables

EVENTS = "user_id,item_id\n"


def config(**changes) -> FeaturesConfig:
    columns = ColumnSettings(**changes.pop("columns", {}))
    return FeaturesConfig(**{"interactions": "i.csv", "columns": columns, **changes})


def read(folder, text: str, **changes):
    (folder / "i.csv").write_text(text, encoding="utf-8")
    return read_tables(config(**changes), folder)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_in_the_header(separator, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(separator.join(["a", '"b, c; d"', "e"]) + "\n" + separator.join(["1", "x", "2.5"]) + "\n")
    frame = read_frame(path)
    assert list(frame.columns) == ["a", "b, c; d", "e"]
    assert frame.iloc[0].tolist() == [1, "x", 2.5]


def test_cells_become_numbers_only_when_that_loses_nothing(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("zip,count,price,day,word,gap\n02460,1,1.50,2024-01-31,1,\n12345,2,3,2024-02-01,b,7\n")
    frame = read_frame(path)
    assert frame["zip"].tolist() == ["02460", "12345"]
    assert [str(frame[name].dtype) for name in ("zip", "count", "price", "day", "word", "gap")] == [
        "large_string[pyarrow]",
        "int64[pyarrow]",
        "double[pyarrow]",
        "timestamp[us][pyarrow]",
        "large_string[pyarrow]",
        "int64[pyarrow]",
    ]
    assert frame["gap"].isna().tolist() == [True, False]


def test_codes_that_look_like_numbers_stay_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("hash,number,long\n12e4,1.2e4,123456789012345678901\n99,1e+20,1\n")
    frame = read_frame(path)
    assert frame["hash"].tolist() == ["12e4", "99"]
    assert frame["number"].tolist() == [1.2e4, 1e20]
    assert frame["long"].tolist() == ["123456789012345678901", "1"]


def test_quoted_cells_may_hold_separators_newlines_and_quotes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('id,text\n1,"a, b\nsecond ""line"""\n2,plain\n')
    assert read_frame(path)["text"].tolist() == ['a, b\nsecond "line"', "plain"]


def test_a_byte_order_mark_old_line_ends_and_gzip_are_read(tmp_path):
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + b"a\tb\r\n1\tx\r\n"))
    frame = read_frame(path)
    assert frame.to_dict("list") == {"a": [1], "b": ["x"]}
    (tmp_path / "mac.csv").write_bytes(b"a,b\r1,x\r2,y\r")
    assert read_frame(tmp_path / "mac.csv")["b"].tolist() == ["x", "y"]


def test_parquet_dictionaries_and_the_pandas_index_are_made_plain(tmp_path):
    frame = pd.DataFrame({"a": pd.Categorical(["x", "y"]), "b": [None, None]}, index=[5, 9])
    frame.to_parquet(tmp_path / "t.parquet")
    read = read_frame(tmp_path / "t.parquet")
    assert list(read.columns) == ["a", "b"]
    assert str(read["a"].dtype) == str(read["b"].dtype) == "large_string[pyarrow]"


def test_parquet_decimals_stay_exact_and_bytes_become_text_if_they_can(tmp_path):
    ids = pa.array([9007199254740993, 2]).cast(pa.decimal128(38, 0))
    prices = pa.array([1.5, 2.0]).cast(pa.decimal128(5, 2))
    table = pa.table({"id": ids, "price": prices, "name": [b"a", b"b"], "image": [b"\xff\x00", b"a"]})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    frame = read_frame(tmp_path / "t.parquet")
    assert frame["id"].tolist() == [9007199254740993, 2]
    assert frame["price"].tolist() == [1.5, 2.0]
    assert frame["name"].tolist() == ["a", "b"]
    assert str(frame["image"].dtype) == "binary[pyarrow]"


def test_events_are_sorted_by_user_then_time_and_ties_keep_the_order_of_the_file(tmp_path):
    text = "user_id,item_id,timestamp\n2,30,5\n1,11,9\n1,10,3\n1,13,9\n1,12,9\n"
    tables = read(tmp_path, text, columns={"timestamp": "timestamp"})
    assert tables.interactions.is_ordered
    sequences = tables.interactions.sequences(tables.catalog)
    assert sequences.user_ids.tolist() == [1, 2]
    assert sequences.offsets.tolist() == [0, 4, 5]
    assert tables.catalog.item_ids[sequences.item_rows].tolist() == [10, 11, 13, 12, 30]
    assert sequences.times is not None
    assert sequences.times.tolist() == [3, 9, 9, 9, 5]


def test_position_orders_before_time_and_rows_without_one_are_left_out(tmp_path):
    text = "user_id,item_id,timestamp,position\na,x,100,1\na,y,200,0\na,z,300,\n"
    tables = read(tmp_path, text, columns={"timestamp": "timestamp", "position": "position"})
    assert tables.interactions.frame["item_id"].tolist() == ["y", "x"]
    assert tables.notes == ("1 interaction without a position left out",)


def test_events_within_one_second_keep_their_finer_order(tmp_path):
    text = "user_id,item_id,timestamp\na,x,1700000000900\na,y,1700000000100\na,z,1700000000500\n"
    tables = read(tmp_path, text, columns={"timestamp": "timestamp"})
    assert tables.interactions.frame["item_id"].tolist() == ["y", "z", "x"]
    assert tables.interactions.frame["timestamp"].tolist() == [1700000000] * 3
    assert tables.notes == ("i.csv: column 'timestamp': times read as milliseconds",)


def test_missing_times_come_from_the_neighbours_when_positions_give_the_order(tmp_path):
    text = "user_id,item_id,timestamp,position\na,x,,0\na,y,200,1\na,z,,2\nb,x,,0\nb,y,,1\nc,x,400,0\n"
    tables = read(tmp_path, text, columns={"timestamp": "timestamp", "position": "position"})
    # a: 200 from the event after, 200, 200 from the event before; b has none, so the median of 200, 200, 200 and 400.
    assert tables.interactions.frame["timestamp"].tolist() == [200, 200, 200, 200, 200, 400]
    assert tables.notes == (
        "2 missing times taken from the neighbouring interaction",
        "2 interactions of users without any time given the median time",
    )


def test_without_positions_events_without_a_time_are_left_out(tmp_path):
    text = "user_id,item_id,timestamp\na,x,\na,y,200\n"
    tables = read(tmp_path, text, columns={"timestamp": "timestamp"})
    assert len(tables.interactions) == 1
    assert tables.notes == ("1 interaction without a time left out",)


def test_exact_repeats_are_merged_and_repeats_at_other_times_stay(tmp_path):
    text = "user_id,item_id,timestamp\na,x,1\na,x,1\na,x,2\nb,x,1\n"
    tables = read(tmp_path, text, columns={"timestamp": "timestamp"})
    assert tables.interactions.frame["timestamp"].tolist() == [1, 2, 1]
    assert tables.notes == ("1 duplicate interaction merged",)


def test_without_times_repeats_of_an_item_are_merged_and_the_order_means_nothing(tmp_path):
    tables = read(tmp_path, EVENTS + "b,x\na,y\na,x\na,y\n")
    assert not tables.interactions.is_ordered
    assert tables.interactions.frame.to_numpy().tolist() == [["a", "y"], ["a", "x"], ["b", "x"]]
    assert tables.interactions.sequences(tables.catalog).times is None


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        (["2024-01-01", "2024-01-01T00:00:10"], [1704067200, 1704067210]),
        (["2024-01-01 01:00:00+01:00", "2024-01-01T00:00:10Z"], [1704067200, 1704067210]),
        (["1704067200", "1704067210.9"], [1704067200, 1704067210]),
        (["1704067200000", "1704067210500"], [1704067200, 1704067210]),
        (["1704067200000000", "1704067210500000"], [1704067200, 1704067210]),
        (["1.7040672e9", "1704067210"], [1704067200, 1704067210]),
    ],
)
def test_dates_and_unix_times_of_any_unit_become_seconds(cells, seconds, tmp_path):
    text = "user_id,item_id,timestamp\n" + "".join(f"a,{item},{cell}\n" for item, cell in enumerate(cells))
    assert read(tmp_path, text, columns={"timestamp": "timestamp"}).interactions.frame["timestamp"].tolist() == seconds


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us", "Europe/Rome"), pa.timestamp("ns"), pa.date32()]
)
def test_parquet_times_of_any_type_become_seconds(kind, tmp_path):
    day = pa.array([1704067200], pa.timestamp("s")).cast(pa.timestamp("s") if pa.types.is_date(kind) else kind)
    table = pa.table({"user_id": [1], "item_id": [2], "timestamp": day.cast(kind)})
    pa.parquet.write_table(table, tmp_path / "i.parquet")
    tables = read_tables(config(interactions="i.parquet", columns={"timestamp": "timestamp"}), tmp_path)
    assert tables.interactions.frame["timestamp"].tolist() == [1704067200]


def test_a_clock_that_is_a_few_hours_ahead_is_forgiven(tmp_path):
    text = f"user_id,item_id,timestamp\na,x,{int(time.time()) + 3600}\n"
    assert len(read(tmp_path, text, columns={"timestamp": "timestamp"}).interactions) == 1


def test_low_ratings_are_left_out(tmp_path):
    text = "user_id,item_id,rating\na,x,5\na,y,2\na,z,\nb,x,4\n"
    tables = read(tmp_path, text, columns={"rating": "rating"}, min_rating=4.0)
    assert tables.interactions.frame["rating"].tolist() == [5.0, 4.0]
    assert tables.notes == ("2 interactions rated below 4 left out",)
    assert tables.catalog.item_ids.tolist() == ["x"]


def test_unknown_items_are_left_out_when_asked(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\nx,Ex\ny,\n")
    tables = read(tmp_path, EVENTS + "a,x\na,q\nb,y\n", items="items.csv", unknown_items="drop")
    assert tables.notes == ("1 interaction of items that are not in the catalogue left out",)
    assert tables.catalog.titles("title") == ["Ex", "y"]
    assert tables.catalog.titles(None) == ["x", "y"]


def test_numbers_and_the_text_of_numbers_are_one_type(tmp_path):
    pd.DataFrame({"item_id": ["1", "2"], "title": ["a", "b"]}).to_parquet(tmp_path / "items.parquet")
    tables = read(tmp_path, EVENTS + "7,2\n", items="items.parquet")
    assert tables.catalog.item_ids.tolist() == [1, 2]
    pd.DataFrame({"item_id": ["1", "2", "B3"], "title": ["a", "b", "c"]}).to_parquet(tmp_path / "items.parquet")
    tables = read(tmp_path, EVENTS + "7,2\n", items="items.parquet")
    assert tables.catalog.item_ids.tolist() == ["1", "2", "B3"]
    assert tables.interactions.frame.iloc[0].tolist() == [7, "2"]


def test_ids_of_text_stay_text_and_keep_their_zeros(tmp_path):
    tables = read(tmp_path, EVENTS + "007,x\n08,x\n")
    assert tables.interactions.frame["user_id"].tolist() == ["007", "08"]
    assert str(tables.interactions.frame["user_id"].dtype) == "string[pyarrow]"


def test_fractions_that_are_whole_and_blanks_around_ids_are_repaired_and_counted(tmp_path):
    tables = read(tmp_path, EVENTS + "1.0, x\n2.0,x \n3.0,x\n")
    assert tables.interactions.frame["user_id"].tolist() == [1, 2, 3]
    assert tables.catalog.item_ids.tolist() == ["x"]
    assert tables.notes == (
        "i.csv: ids in 'user_id' written as fractions (such as 1.0) read as whole",
        "i.csv: blanks around 2 ids in 'item_id' removed",
    )
    assert read(tmp_path, EVENTS + " 1,5\n2, 5\n").interactions.frame["item_id"].tolist() == [5, 5]


def test_an_id_that_nobody_could_ask_for_is_an_error_with_its_row(tmp_path):
    (tmp_path / "items.csv").write_text(f"item_id\na\n{'b' * 512}\n{'c' * 513}\n")
    with pytest.raises(DataError, match=r"items.csv.*line 4.*at most 512 characters, found one of 513 \(1 such row\)"):
        read_tables(FeaturesConfig(items="items.csv"), tmp_path)


def test_identical_rows_of_the_catalogue_are_merged(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\nx,Ex\ny,Why\nx,Ex\n")
    tables = read(tmp_path, EVENTS + "a,x\n", items="items.csv")
    assert len(tables.catalog) == 2
    assert tables.notes == ("items.csv: 1 repeated row merged",)


def test_the_id_may_have_another_name_in_each_table(tmp_path):
    (tmp_path / "items.csv").write_text("title,id\nEx,x\n")
    (tmp_path / "users.csv").write_text("city,uid\nOslo,a\n")
    names = {"user_id": "who", "item_id": "sku", "items_item_id": "id", "users_user_id": "uid"}
    tables = read(tmp_path, "who,sku\na,x\nb,x\n", items="items.csv", users="users.csv", columns=names)
    assert list(tables.catalog.frame.columns) == ["item_id", "title"]
    assert tables.users is not None
    assert list(tables.users.frame.columns) == ["user_id", "city"]
    assert tables.users.rows_of(["b", "a"]).tolist() == [-1, 0]


def test_users_without_a_row_and_items_without_interactions_are_fine(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\nx,Ex\nnew,New\n")
    (tmp_path / "users.csv").write_text("user_id,city\na,Oslo\nnobody,Rome\n")
    tables = read(tmp_path, EVENTS + "a,x\nb,x\n", items="items.csv", users="users.csv")
    assert len(tables.catalog) == 2
    assert tables.catalog.rows_of(["new", "x", "gone"]).tolist() == [1, 0, -1]
    assert tables.catalog.rows_of(np.array([], dtype=object)).tolist() == []


def test_a_missing_column_without_anything_alike_is_still_explained(tmp_path):
    with pytest.raises(DataError, match=r"no column 'item_id'; it has user_id, z; set `item_id = \"\.\.\.\"`"):
        read(tmp_path, "user_id,z\n1,2\n")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 9)), min_size=1, max_size=40))
def test_every_distinct_event_survives_in_order(events, tmp_path):
    text = "user_id,item_id,timestamp\n" + "".join(f"{user},{item},{when}\n" for user, item, when in events)
    tables = read(tmp_path, text, columns={"timestamp": "timestamp"})
    distinct = list(dict.fromkeys(events))
    expected = sorted(distinct, key=lambda event: (event[0], event[2]))
    assert [tuple(row) for row in tables.interactions.frame.to_numpy().tolist()] == expected
    sequences = tables.interactions.sequences(tables.catalog)
    assert tables.catalog.item_ids[sequences.item_rows].tolist() == [event[1] for event in expected]
    assert np.repeat(sequences.user_ids, sequences.lengths).tolist() == [event[0] for event in expected]


@given(ids=st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_rows_of_finds_every_id_and_nothing_else(ids):
    catalog = Catalog(pd.DataFrame({"item_id": pd.Series(ids, dtype=pd.ArrowDtype(pa.string()))}))
    assert catalog.rows_of(ids).tolist() == list(range(len(ids)))
    assert catalog.rows_of(["".join(ids) + "?"]).tolist() == [-1]
