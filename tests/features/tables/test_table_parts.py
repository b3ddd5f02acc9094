"""Several files as one table: folders as Spark writes them, and patterns."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.config import FeaturesConfig, FeatureSettings
from features.errors import DataError
from features.files import sha256
from features.tables import table_parts
from features.tables.table_files import place, read_blocks, read_table
from features.tables.table_parts import table_digest, table_exists
from features.tables.tables import data_digests, read_tables, unchanged_tables

ROWS = pd.DataFrame(
    {
        "user_id": ["u1", "u2", "u3", "u1", "u2", "u3"],
        "item_id": [1, 2, 3, 4, 5, 6],
        "price": ["1.5", "NA", "", "2", "3", "4"],
        "when": ["2024-01-01", "2024-01-02", "", "2024-01-04", "2024-01-05", "2024-01-06"],
    }
)
CUTS = st.lists(st.integers(0, len(ROWS)), max_size=4).map(lambda cuts: [0, *sorted(cuts), len(ROWS)])


def write(folder: Path, cuts: list[int], kind: str) -> None:
    """Write the rows in parts, as Spark does, with what else it leaves there."""
    folder.mkdir()
    for number, (start, end) in enumerate(pairwise(cuts)):
        path = folder / f"part-{number:05d}.{kind}"
        part = ROWS[start:end]
        if kind == "csv":
            part.to_csv(path, index=False)
        else:
            pq.write_table(pa.Table.from_pandas(part.replace({"": None, "NA": None}), preserve_index=False), path)
    (folder / "_SUCCESS").touch()
    (folder / f".part-00000.{kind}.crc").write_bytes(b"crc")
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / f"part-9.{kind}").write_bytes(b"half")


@given(CUTS, st.sampled_from(["csv", "parquet"]))
@settings(max_examples=25, deadline=None)
def test_parts_are_read_as_the_one_file_that_they_are(tmp_path_factory, cuts, kind):
    base = tmp_path_factory.mktemp("parts")
    write(base / "many", cuts, kind)
    write(base / "one", [0, len(ROWS)], kind)
    whole = read_table(base / "one" / f"part-00000.{kind}").frame
    for path in (base / "many", base / "many" / f"part-*.{kind}", base / "m*"):
        pd.testing.assert_frame_equal(read_table(path).frame, whole)
    places = [place(base / "many", row) for row in range(len(ROWS))]
    parts = [number for number, (start, end) in enumerate(pairwise(cuts)) for _ in range(start, end)]
    if len(cuts) > 2:
        assert [said.split(",")[0] for said in places] == [f"part-{number:05d}.{kind}" for number in parts]
    shutil.rmtree(base)


def test_tables_in_parts_are_read_by_everything_that_names_a_table(tmp_path):
    write(tmp_path / "events", [0, 2, 6], "csv")
    write(tmp_path / "items", [0, 3, 6], "parquet")
    config = FeaturesConfig(
        interactions="events/part-*.csv", items="items", item={"price": FeatureSettings(kind="number")}
    )
    tables = read_tables(config, tmp_path)
    assert (len(tables.interactions), len(tables.catalog)) == (6, 6)
    assert tables.notes[0].startswith("part-*.csv: column 'price': 1 cell such as NA (part-00000.csv, line 3) read as")
    before = data_digests(config, tmp_path)
    (tmp_path / "events" / "_SUCCESS").write_text("again")
    assert data_digests(config, tmp_path) == before
    (tmp_path / "events" / "part-00001.csv").write_text("user_id,item_id,price,when\nu1,1,2,\n")
    changed = data_digests(config, tmp_path)
    assert changed["interactions"] != before["interactions"]
    assert changed["items"] == before["items"]


def test_an_error_in_a_part_names_the_part_and_its_line(tmp_path):
    write(tmp_path / "items", [0, 3, 6], "csv")
    path = tmp_path / "items" / "part-00001.csv"
    path.write_text(path.read_text().replace("2024-01-05", "tomorrow"))
    config = FeaturesConfig(items="items", item={"when": FeatureSettings(kind="time")})
    with pytest.raises(DataError, match=r"items: column 'when', part-00001\.csv, line 3: .*'tomorrow'"):
        read_tables(config, tmp_path)


def test_names_of_folders_are_columns_as_hive_has_them(tmp_path):
    for name in ("country=de", "country=fr%2Fch", "country=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / "t" / name).mkdir(parents=True)
        (tmp_path / "t" / name / "part-0.csv").write_text("item_id,price\n1,2.5\n2,3\n")
    frame = read_table(tmp_path / "t").frame
    assert frame["country"].dropna().tolist() == ["de", "de", "fr/ch", "fr/ch"]
    assert frame["country"].isna().sum() == 2
    assert read_table(tmp_path / "t" / "country=d*").frame["country"].tolist() == ["de", "de"]


def csv(*lines: str):
    return lambda path: path.write_text("\n".join(lines) + "\n")


def parquet(**columns):
    return lambda path: pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("files", "named", "match"),
    [
        ({"a.csv": csv("x,y", "1,2"), "b.csv": csv("x", "1")}, "", r"b\.csv: lacks the column 'y' of a\.csv; files of"),
        ({"a.csv": csv("x", "1"), "b.csv": csv("x,y", "1,2")}, "", r"b\.csv: has a column 'y' which a\.csv has not"),
        ({"a.csv": csv("x", "1"), "b.csv": csv("x", '"1')}, "", r"b\.csv: a quote opened on line 2 is never closed"),
        ({"a.parquet": parquet(x=[1]), "b.parquet": parquet(x=["a"])}, "", r"b\.parquet: column 'x' is of type .*str"),
        ({"a.parquet": parquet(x=[1]), "b.csv": csv("x", "1")}, "", r"files of two kinds \(a\.parquet, b\.csv\); name"),
        ({"a.csv": csv("x", "1"), "b.md": csv("# Tea")}, "", r"holds tables \(a\.csv\) and documents \(b\.md\); say"),
        ({"a.csv": csv("x", "1"), "b.json": csv("{}")}, "*", r"b\.json: expected a file ending in .*; name a pattern"),
        ({"a.csv": csv("x", "1")}, "b*", r"b\*: no CSV or Parquet file there; name a file, a folder of such files"),
        ({"a.csv": csv("x"), "b.csv": csv("x")}, "", r"no rows below the column names"),
        ({"c=1/a.csv": csv("x", "1"), "b.csv": csv("x", "1")}, "", r"c=1/a\.csv lies in other folders .* \(c\); name"),
    ],
)
def test_files_that_are_no_table_together_are_refused(files, named, match, tmp_path):
    for name, make in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make(tmp_path / name)
    with pytest.raises(DataError, match=match):
        read_table(tmp_path / named)


def test_parquet_types_that_fit_together_become_one(tmp_path):
    parquet(x=pa.array([1], pa.int32()), y=pa.nulls(1))(tmp_path / "a.parquet")
    parquet(x=pa.array([2**40]), y=pa.array(["a"]))(tmp_path / "b.parquet")
    parquet(x=pa.array([1.5]), y=pa.array(["b"], pa.dictionary(pa.int8(), pa.string())))(tmp_path / "c.parquet")
    frame = read_table(tmp_path).frame
    assert frame["x"].tolist() == [1.0, 2.0**40, 1.5]
    assert frame["y"].dropna().tolist() == ["a", "b"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    csv("x", "1")(tmp_path / "a[1].csv")
    assert read_table(tmp_path / "a[1].csv").frame["x"].tolist() == [1]
    assert table_exists(tmp_path / "a*.csv")
    assert not table_exists(tmp_path / "b*.csv")
    assert len({table_digest(tmp_path / "a[1].csv"), table_digest(tmp_path / "a*.csv")}) == 2


def test_a_misspelt_table_is_answered_with_the_file_that_is_there(tmp_path: Path):
    (tmp_path / "interactions.csv").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(DataError, match=r"interaction.csv: no such file; .*; did you mean 'interactions.csv'\?"):
        read_table(tmp_path / "interaction.csv")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_part_that_is_removed_while_the_table_is_read_is_named(tmp_path, ending):
    for name in ("a", "b"):
        frame = pd.DataFrame({"user_id": [1], "item_id": [2]})
        frame.to_csv(tmp_path / f"{name}.csv", index=False) if ending == "csv" else frame.to_parquet(
            tmp_path / f"{name}.parquet"
        )
    blocks = read_blocks(tmp_path, {"user_id"}, [])
    next(blocks)
    (tmp_path / f"b.{ending}").unlink()
    with pytest.raises(DataError, match=rf"b\.{ending}: removed while the table was read; put it back"):
        list(blocks)


@pytest.mark.parametrize("prepare", [False, True])
def test_a_part_of_no_bytes_is_left_out_with_a_note(tmp_path, prepare):
    (tmp_path / "a.csv").write_text("user_id,item_id\n1,2\n")
    (tmp_path / "b.csv").touch()
    notes = []
    if prepare:
        list(read_blocks(tmp_path, {"user_id"}, notes))
    else:
        notes.extend(read_table(tmp_path).notes)
    assert notes == [f"{tmp_path.name}: 1 file of 0 bytes left out, such as b.csv"]


def test_a_table_that_changes_while_it_is_read_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id\n1,2\n")
    os.utime(tmp_path / "a.csv", (1, 1))  # a second write in the same instant could not be told from the first
    config = FeaturesConfig(interactions="a.csv")
    with pytest.raises(DataError, match=r"a\.csv: changed while it was read"), unchanged_tables(config, tmp_path):
        (tmp_path / "a.csv").write_text("user_id,item_id\n1,3\n")


@pytest.mark.parametrize("name", ["a.csv", ".", "*.csv"])
def test_a_table_that_stays_the_same_is_hashed_once(tmp_path, monkeypatch, name):
    (tmp_path / "a.csv").write_text("user_id,item_id\n1,2\n")
    hashed = []
    monkeypatch.setattr(table_parts, "digest_of", lambda path: hashed.append(path.name) or sha256(path))
    with unchanged_tables(FeaturesConfig(interactions=name), tmp_path) as digests:
        read_table(tmp_path / "a.csv")
    assert hashed == ["a.csv"]
    with unchanged_tables(FeaturesConfig(interactions=name), tmp_path) as again:
        os.utime(tmp_path / "a.csv", (1, 1))  # the same content
    assert again == digests
    assert hashed == ["a.csv"] * 3


def test_a_document_that_changes_while_it_is_read_is_noticed(tmp_path):
    (tmp_path / "a.md").write_text("one")
    os.utime(tmp_path / "a.md", (1, 1))
    config = FeaturesConfig(items=str(tmp_path))
    with pytest.raises(DataError, match="changed while it was read"), unchanged_tables(config, tmp_path):
        (tmp_path / "a.md").write_text("two")
