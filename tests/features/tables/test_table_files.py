"""Cells as people's programs write them: each is read as it was meant, noted, or refused with its place."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.config import FeaturesConfig, FeatureSettings
from features.errors import DataError
from features.inference.inference import Files as Where
from features.inference.inference import Inference, infer_features, looks_like_code, render_run_toml
from features.tables.table_files import read_blocks, read_table
from features.tables.tables import Tables, read_frame, read_tables
from features.values.cells import MAX_CELL_CHARACTERS
from features.values.distinct import MISSING_WORDS
from features.values.readings import reading_from_json, reading_to_json


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if re.search(r'[,;\n"]', cell) else cell


def write(folder, cells: list[str], separator: str = ",", end: str = "") -> None:
    (folder / "i.csv").write_text("user_id,item_id\n" + "".join(f"u,{row}\n" for row in range(len(cells))))
    lines = [f"{row}{separator}{quoted(cell)}\n" for row, cell in enumerate(cells)]
    (folder / "items.csv").write_text(f"item_id{separator}x\n{''.join(lines)}{end}", encoding="utf-8")


def read(folder, cells: list[str], kind: str, separator: str = ",", readings: Any = None, **settings) -> Tables:
    write(folder, cells, separator)
    features = {"x": FeatureSettings(kind=kind, **settings)}
    config = FeaturesConfig(interactions="i.csv", items="items.csv", item=features)
    return read_tables(config, folder, readings)


def cells_of(tables: Tables) -> list[Any]:
    return [None if cell is pd.NA or cell is pd.NaT else cell for cell in tables.catalog.frame["x"].tolist()]


def proposed(folder, cells: list[str], separator: str = ",") -> Inference:
    write(folder, cells, separator)
    return infer_features(read_frame(folder / "i.csv"), read_table(folder / "items.csv", looks_like_code).frame)


TWO = [["Comedy", "Drama"], ["Drama"], None]


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        (["['Comedy', 'Drama']", "['Drama']", ""], "categories", TWO),
        (['["Comedy", "Drama"]', '["Drama"]', "NULL"], "categories", TWO),
        (["{Comedy,Drama}", '{"Drama"}', ""], "categories", TWO),
        (["['Comedy' 'Drama']", "['Drama']", ""], "categories", TWO),
        (["['Comedy'\n 'Drama']", "['Drama']", ""], "categories", TWO),
        (["[Comedy, Drama]", "[Drama]", ""], "categories", TWO),
        (["('Comedy', 'Drama')", "('Drama',)", ""], "categories", TWO),
        (
            ["[{'id': 35, 'name': 'Comedy'}, {'id': 18, 'name': 'Drama'}]", "[{'id': 18, 'name': 'Drama'}]", ""],
            "categories",
            TWO,
        ),
        (['[{"id": 35, "name": "Comedy, too"}]', "[]"], "categories", [["Comedy, too"], []]),
        (["['Rock, Pop', \"Children's\"]"], "categories", [["Rock, Pop", "Children's"]]),
        (["[18, 35]", "[35]"], "categories", [[18, 35], [35]]),
        (["[0.12, -0.3]", "[1, 2.5]"], "vector", [[0.12, -0.3], [1.0, 2.5]]),
        (["[0.12 -0.3]", "[ 1.   2.5]"], "vector", [[0.12, -0.3], [1.0, 2.5]]),
        (["{0.12,-0.3}", "{1.0,2.5}"], "vector", [[0.12, -0.3], [1.0, 2.5]]),
    ],
)
def test_lists_that_programs_write_as_text_are_lists(cells, kind, expected, tmp_path):
    tables = read(tmp_path, cells, kind)
    assert cells_of(tables) == expected
    assert any("lists as" in note for note in tables.notes)
    choice = proposed(tmp_path, cells * 3).item[0]
    assert choice.settings is not None, choice.reason
    assert (choice.settings.kind, choice.settings.separator) == (kind, None)


def test_text_that_only_begins_in_brackets_is_no_list(tmp_path):
    assert cells_of(read(tmp_path, ["[REC]", "Alien", "Up"], "categories")) == ["[REC]", "Alien", "Up"]


@pytest.mark.parametrize(
    ("cells", "separator", "expected"),
    [
        (["$1,477.20", "$3.00", "$-5"], ",", [1477.2, 3.0, -5.0]),
        (["49,24", "1,5", ""], ",", [49.24, 1.5, None]),
        (["19,99", "5,00"], ";", [19.99, 5.0]),
        (["49%", "5 %"], ",", [49.0, 5.0]),
        (["3,5 kg", "2 kg", "12,25 kg"], ",", [3.5, 2.0, 12.25]),
        (["1.234,50 €", "7 €"], ";", [1234.5, 7.0]),
        (["1 234,5", "7"], ";", [1234.5, 7.0]),
        (["1'234.50", "12.00"], ",", [1234.5, 12.0]),
        (["1,234,567", "1,000"], ",", [1234567.0, 1000.0]),
        (["($5.00)", "$3"], ",", [-5.0, 3.0]),
        (["1.5", "-", "n/a", "2.5"], ",", [1.5, None, None, 2.5]),
    ],
)
def test_numbers_that_are_text_are_read_by_the_column(cells, separator, expected, tmp_path):
    assert cells_of(read(tmp_path, cells, "number", separator)) == expected


def test_what_was_taken_off_numbers_is_counted(tmp_path):
    tables = read(tmp_path, ["3,5 kg", "2 kg", "4"], "number")
    assert tables.notes == (
        "items.csv: column 'x': 2 numbers read without the 'kg' at them",
        "items.csv: column 'x': numbers such as '3,5 kg' read with a decimal comma",
    )


@pytest.mark.parametrize(
    ("cells", "kind", "match"),
    [
        (["1,234", "12"], "number", r"line 2: '1,234' may be 1234 or 1\.234, and no other.*set decimal = "),
        (["$5", "€6"], "number", r"line 3: expected numbers of one unit, '\$'.*found '€6' \(1 such row\); write"),
        (["5%", "0.5"], "number", r"line 3: expected numbers with '%' as in other cells, found '0\.5'"),
        (["5", "on request", "6"], "number", r"line 3: expected a number, found 'on request' \(1 such row\)"),
        (["a", "b"], "number", r"line 2: expected a number, found 'a' \(2 such rows\); correct the cells"),
        (["99999999999999999999", "2"], "number", r"line 2: expected numbers from -1e\+15 to 1e\+15, found 1e\+20"),
        (["[0.1]", "[0.1, 0.2]", "[0.5]"], "vector", r"line 3: expected vectors of one length \(1 as .*found 2"),
        (["[0.1, 0.5]", "[0.1, NaN]"], "vector", r"line 3: expected a vector of numbers .* found no number in it"),
        (["[0.1, 1e30]"], "vector", r"line 2: expected a vector of numbers .* found 1e\+30 in it"),
        (["[0.1 ... 0.2]", "[0.1 0.3]"], "vector", r"line 2: expected a list as in other cells .*found '\[0\.1 \.\.\."),
        (["a", "b"], "vector", r"line 2: expected a list, found 'a'"),
        (["['a']", "['b'", "['c']"] * 9, "categories", None),
        (["['a']"] * 19 + ["['b'"], "categories", r"line 21: expected a list as in other cells \(\['a'\]\), found"),
        (["01/02/2023", "03/04/2023"], "time", r"line 2: '01/02/2023' may be 2023-02-01 or 2023-01-02.*time_format"),
        (["1700000000", "1700000001000"], "time", r"line 2: expected Unix time in milliseconds, found 1700000000, wh"),
        (["2023-01-01", "soon"], "time", r"line 3: expected a date such as .* found 'soon' \(1 such row\)"),
        (["14.11.23"], "time", r"line 2: expected .* found '14\.11\.23' .*time_format"),
        (
            ["a" * (MAX_CELL_CHARACTERS + 1)],
            "text",
            r"column 'x', line 2: expected at most 65,536 characters in a cell",
        ),
        (
            ["a" * 140_000 + '"'],
            "text",
            r"column 'x', line 2: expected at most 65,536 characters in a cell, found 140,",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_with_place_and_remedy(cells, kind, match, tmp_path):
    if match is None:  # too few are lists for the others to be mistakes
        assert cells_of(read(tmp_path, cells, kind)) == cells
        return
    with pytest.raises(DataError, match=match) as caught:
        read(tmp_path, cells, kind)
    assert str(caught.value).startswith(f"{tmp_path / 'items.csv'}: column 'x', line ")
    assert "\n" not in str(caught.value)


def moment(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC).replace(tzinfo=None)


WRITTEN: dict[str, Callable[[dt.datetime], str]] = {
    "iso": lambda when: when.isoformat(),
    "bigquery": lambda when: when.strftime("%Y-%m-%d %H:%M:%S UTC"),
    "slashes": lambda when: when.strftime("%Y/%m/%d %H:%M:%S"),
    "dmy": lambda when: when.strftime("%d.%m.%Y %H:%M:%S"),
    "dmy/": lambda when: when.strftime("%d/%m/%Y %H:%M:%S"),
    "mdy": lambda when: when.strftime("%m/%d/%Y %I:%M:%S %p"),
    "digits": lambda when: when.strftime("%Y%m%d%H%M%S"),
    "seconds": lambda when: f"{int(when.replace(tzinfo=dt.UTC).timestamp())}",
    "milliseconds": lambda when: f"{int(when.replace(tzinfo=dt.UTC).timestamp())}000",
    "microseconds": lambda when: f"{int(when.replace(tzinfo=dt.UTC).timestamp())}000000",
    "nanoseconds": lambda when: f"{int(when.replace(tzinfo=dt.UTC).timestamp())}000000000",
    "excel": lambda when: repr((when - moment(1899, 12, 30)) / dt.timedelta(days=1)),
}


@pytest.mark.parametrize("style", WRITTEN)
def test_a_time_is_the_same_however_it_is_written_and_in_every_table(style, tmp_path):
    whens = [moment(2023, 11, 14, 22, 13, 20), moment(2021, 3, 4, 5, 6, 7)]
    cells = [WRITTEN[style](when) for when in whens]
    seconds = [int(when.replace(tzinfo=dt.UTC).timestamp()) for when in whens]
    tables = read(tmp_path, cells, "time")
    moments = [cell if isinstance(cell, int) else int(cell.timestamp()) for cell in cells_of(tables)]
    assert moments == seconds
    text = "user_id,item_id,date\n" + "".join(f"u,{row},{cell}\n" for row, cell in enumerate(cells))
    (tmp_path / "i.csv").write_text(text)
    inference = infer_features(read_frame(tmp_path / "i.csv"))
    assert inference.column("timestamp") == "date"
    assert inference.time_format == {"dmy": "dmy", "dmy/": "dmy", "mdy": "mdy"}.get(style)
    config = FeaturesConfig.model_validate({"interactions": "i.csv", "columns": {"timestamp": "date"}})
    assert sorted(read_tables(config, tmp_path).interactions.frame["timestamp"].tolist()) == sorted(seconds)


def test_init_says_which_column_looked_like_a_time_and_why_it_was_not_taken(tmp_path):
    (tmp_path / "i.csv").write_text("user_id,item_id,date\nu,1,02/03/2024\nu,2,04/05/2024\n")
    inference = infer_features(read_frame(tmp_path / "i.csv"))
    assert inference.column("timestamp") is None
    assert "date not taken for the time: '02/03/2024' may be 2024-03-02 or 2024-02-03" in inference.warnings[0]
    assert inference.warnings[0].endswith("say --time-column date and --time-format dmy or mdy")
    written = render_run_toml(inference, Where(tmp_path / "i.csv"), tmp_path)
    assert "# timestamp = \"date\"  # not taken: '02/03/2024' may be" in written


@pytest.mark.parametrize("pattern", ["%d.%m.%y", "dmy"])
def test_a_time_format_may_be_said(pattern, tmp_path):
    year = "24" if "%" in pattern else "2024"
    assert [str(cell)[:10] for cell in cells_of(read(tmp_path, [f"02.03.{year}"], "time", time_format=pattern))] == [
        "2024-03-02"
    ]
    with pytest.raises(DataError, match=r"time_format '%Q' is no pattern of dates"):
        read(tmp_path, ["02.03.24"], "time", time_format="%Q")


def test_nan_in_parquet_is_missing_as_a_null_is(tmp_path):
    rows = list(range(60))
    odd = [float("nan") if row % 2 else row * 1.5 for row in rows]
    pq.write_table(
        pa.table({"item_id": rows, "size": odd, "half": pa.array(odd, pa.float32())}), tmp_path / "t.parquet"
    )
    frame = read_frame(tmp_path / "t.parquet")
    assert frame["size"].isna().tolist() == frame["half"].isna().tolist() == [row % 2 == 1 for row in rows]
    events = pa.table({"user_id": rows, "item_id": rows}).to_pandas(types_mapper=pd.ArrowDtype)
    assert [choice.is_warning for choice in infer_features(events, frame).item] == [False, False]


def test_booleans_and_quoted_words_and_the_spelling_of_codes(tmp_path):
    (tmp_path / "t.csv").write_text(
        'a,b,version,price,gone\ntrue,"NA",1.10,1.10,"NULL"\nFalse,NA,1.1,1.1,5\n,None,1.1,1.5,6\n,,1.1,1.5,7\n'
    )
    table = read_table(tmp_path / "t.csv", looks_like_code)
    assert str(table.frame["a"].dtype) == "bool[pyarrow]"
    assert table.frame["b"].fillna("?").tolist() == ["NA", "?", "?", "?"]
    assert table.frame["version"].tolist() == ["1.10", "1.1", "1.1", "1.1"]
    assert table.frame["price"].tolist() == [1.1, 1.1, 1.5, 1.5]
    assert table.frame["gone"].fillna(0).tolist() == [0, 5, 6, 7]
    assert table.notes == (
        "t.csv: column 'b': 2 cells such as NA (line 3) read as empty; put it in quotes where it is a value",
    )
    assert cells_of(read(tmp_path, ["1.10", "1.1"], "category")) == ["1.10", "1.1"]


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("196,242,3,881250949\n186,302,3,891717742\n", True),
        ("ann,lamp,2024-01-01\nbob,lamp,2024-01-02\n", True),
        ("ann;19.99\nbob;35.00\n", True),
        ("item,2023,2024\nx,1,2\n", False),
        ("item,2024-01-01,2024-02-01\nx,1,2\n", False),
        ("item,10000,10001,10002\nx,10000,20000,30000\n", False),
    ],
)
def test_a_file_without_a_header_says_so(text, is_refused, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    if not is_refused:
        assert len(read_frame(tmp_path / "t.csv")) == 1
        return
    with pytest.raises(DataError, match=r"t\.csv: the first line holds data, such as .*put a line of names before it"):
        read_frame(tmp_path / "t.csv")


def test_rows_without_an_id_are_left_out_when_asked_and_init_asks(tmp_path):
    (tmp_path / "i.csv").write_text("user_id,item_id\nann,1\n,2\n ,1\nbob,9\n")
    (tmp_path / "items.csv").write_text("item_id,title\n1,One thing\n,Nothing\n2,Two things\n")
    settings = {"interactions": "i.csv", "items": "items.csv", "unknown_items": "drop"}
    with pytest.raises(DataError, match=r"line 3: no id \(2 of 4 rows.*set `missing_ids = \"drop\"`"):
        read_tables(FeaturesConfig.model_validate(settings), tmp_path)
    tables = read_tables(FeaturesConfig.model_validate({**settings, "missing_ids": "drop"}), tmp_path)
    assert tables.interactions.frame["user_id"].tolist() == ["ann"]
    assert tables.catalog.item_ids.tolist() == [1, 2]
    assert tables.notes == (
        "i.csv: 2 rows without an id in 'user_id' left out",
        "items.csv: 1 row without an id in 'item_id' left out",
        "1 interaction of items that are not in the catalogue left out",
    )
    with pytest.raises(DataError, match=r"column 'item_id', line 5: 1 interaction with 1 item that are not in"):
        read_tables(
            FeaturesConfig.model_validate({**settings, "missing_ids": "drop", "unknown_items": "error"}), tmp_path
        )
    inference = infer_features(read_frame(tmp_path / "i.csv"), read_frame(tmp_path / "items.csv"))
    assert inference.missing_ids == (
        "2 rows of the interactions without an id left out",
        "1 row of the items without an id left out",
    )
    written = render_run_toml(inference, Where(tmp_path / "i.csv", tmp_path / "items.csv"), tmp_path)
    assert 'missing_ids = "drop"' in written


@pytest.mark.parametrize(
    ("today", "tomorrow", "kind"),
    [
        (["19,99 €", "5,00 €"], ["1,234 €", "7 €"], "number"),
        (["14/11/2023", "01/02/2023"], ["01/02/2023", "03/04/2023"], "time"),
        (["1700000000000"], ["1000"], "time"),
        (["{a,b}", "{c}"], ["{}", "{1,2}"], "categories"),
        (["[1, 2.5]"], ["[3, 4]"], "vector"),
        (["[{'id': 1, 'name': 'a'}]"], ["[]"], "categories"),
    ],
)
def test_what_was_decided_of_a_column_holds_for_the_file_of_tomorrow(today, tomorrow, kind, tmp_path):
    both = cells_of(read(tmp_path, [*today, *tomorrow], kind))
    decided = read(tmp_path, today, kind).readings
    kept = {
        table: {name: reading_from_json(json.loads(json.dumps(reading_to_json(one)))) for name, one in columns.items()}
        for table, columns in decided.items()
    }
    assert kept == decided
    after = cells_of(read(tmp_path, tomorrow, kind, readings=kept))
    assert [str(cell) for cell in after] == [str(cell) for cell in both[len(today) :]]


# Whatever is in a column, each cell arrives as it was meant, or is refused by name.

JUNK = ("soon", "[", "1,2,3,4", "\U0001f600", "12e", "{'a': 1}", "--5", "$", "%", "1.2.3", "0x1F", "e5", ".", "[[1]]")
EMPTY = ("", "NA", "NULL", "null", "n/a", "-")


def decimals(point: str, unit: str) -> st.SearchStrategy[tuple[str, Any]]:
    numbers = st.decimals(-99_999, 99_999, allow_nan=False, allow_infinity=False, places=2)
    return numbers.map(lambda number: (f"{number}".replace(".", point) + unit, float(number)))


def lists(written: Callable[[list[str]], str]) -> st.SearchStrategy[tuple[str, Any]]:
    words = (
        st.text("abcdé ü", min_size=1, max_size=6).map(str.strip).filter(lambda word: word.lower() not in MISSING_WORDS)
    )
    return st.lists(words, max_size=4).map(lambda values: (written(values), values))


def moments(style: str) -> st.SearchStrategy[tuple[str, Any]]:
    whens = st.datetimes(moment(1981, 1, 1), moment(2030, 1, 1)).map(lambda when: when.replace(microsecond=0))
    return whens.map(lambda when: (WRITTEN[style](when), when))


COLUMNS: dict[tuple[str, str], st.SearchStrategy[tuple[str, Any]]] = {
    ("number", "point"): decimals(".", ""),
    ("number", "comma"): decimals(",", ""),
    ("number", "euro"): decimals(",", " €"),
    ("number", "percent"): decimals(".", "%"),
    ("categories", "python"): lists(str),
    ("categories", "json"): lists(json.dumps),
    ("categories", "postgresql"): lists(lambda values: "{" + ",".join(f'"{value}"' for value in values) + "}"),
    **{("time", style): moments(style) for style in WRITTEN},
}


@st.composite
def columns(draw: st.DrawFn) -> tuple[str, list[tuple[str, Any]], list[int]]:
    """A kind, cells with what each means (None: empty), and the rows that mean nothing."""
    kind, style = draw(st.sampled_from(sorted(COLUMNS)))
    cells = draw(st.lists(COLUMNS[kind, style], min_size=12, max_size=14))
    for row in draw(st.sets(st.integers(0, len(cells) - 1), max_size=1)):
        cells[row] = (draw(st.sampled_from(EMPTY)), None)
    junk = sorted(draw(st.sets(st.integers(0, len(cells) - 1), max_size=1)))
    for row in junk:
        cells[row] = (draw(st.sampled_from(JUNK)), ...)
    return kind, cells, junk


@settings(max_examples=100)
@given(column=columns())
def test_every_cell_arrives_as_it_was_meant_or_is_refused_by_name(column, tmp_path_factory):
    kind, cells, junk = column
    folder = tmp_path_factory.getbasetemp()
    try:
        tables = read(folder, [cell for cell, _ in cells], kind)
    except DataError as error:
        said = str(error)
        assert "\n" not in said
        assert "; " in said
        line = re.search(rf"^{re.escape(str(folder / 'items.csv'))}: column 'x', line (\d+): ", said)
        assert line, said
        is_open = re.search(r" may be .* no other cell decides it|expected Unix time in|with '%' as in other", said)
        assert is_open or int(line[1]) - 2 in junk, said
        return
    for row, ((_, meant), cell) in enumerate(zip(cells, cells_of(tables), strict=True)):
        if row in junk:
            assert cells[row][0] in ("[[1]]", "{'a': 1}", "[") or kind == "categories", (cells[row], cell)
        elif isinstance(meant, dt.datetime) and isinstance(cell, int | float):
            assert cell == meant.replace(tzinfo=dt.UTC).timestamp()
        elif meant is None and kind == "categories" and not isinstance(cell, list):
            assert cell in (None, cells[row][0])
        else:
            assert cell == meant, (row, cells[row], cell)


def test_a_file_that_is_read_in_blocks_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("features.tables.table_files.BLOCK_ROWS", rows := 20_000)
    monkeypatch.setattr("features.tables.table_files._BUFFER_BYTES", 1 << 16)
    numbers = pa.table({"user_id": np.random.default_rng(0).integers(0, 2**62, 30 * rows)})
    for row_group in (rows, 30 * rows):
        pq.write_table(numbers, tmp_path / "long.parquet", row_group_size=row_group)
        before = pa.total_allocated_bytes()
        taken = [pa.total_allocated_bytes() - before for _ in read_blocks(tmp_path / "long.parquet", {"user_id"}, [])]
        assert len(taken) == 30
        assert max(taken) < 0.6 * numbers.nbytes
