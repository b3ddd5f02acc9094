"""Several tables as one folder of links."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from features.errors import DataError
from features.tables.linked_table import linked_table
from features.tables.table_files import read_frame


def write(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"number": numbers}).to_parquet(path)
    return path


def linked(base: Path, added: Path, folder: Path) -> Path:
    with linked_table(base, added, folder) as path:
        return path


def test_tables_are_read_as_one_and_a_file_in_both_once(tmp_path: Path) -> None:
    old, today = write(tmp_path / "z" / "old.parquet", 1, 2), write(tmp_path / "a" / "today.parquet", 3)
    inputs = tmp_path / "inputs"
    both = linked(old, today, inputs)
    assert read_frame(both)["number"].tolist() == [1, 2, 3]
    stored = sorted(inputs.rglob("*.parquet"))
    assert linked(old, today, inputs) == both
    assert linked(both, today, inputs).parent.parent == inputs
    assert read_frame(linked(both, today, inputs))["number"].tolist() == [1, 2, 3]
    assert read_frame(linked(old, old, inputs))["number"].tolist() == [1, 2]
    assert {one.resolve() for one in inputs.rglob("*.parquet")} == {one.resolve() for one in stored}
    write(old, 7)
    assert read_frame(both)["number"].tolist() == [7, 3]


def test_a_file_of_the_same_name_the_next_day_is_added_to_the_one_before(tmp_path: Path) -> None:
    table, today = write(tmp_path / "old.parquet", 0), tmp_path / "today.parquet"
    for day in range(1, 5):
        table = linked(table, write(today, day), tmp_path / "inputs")
        assert read_frame(table)["number"].tolist() == list(range(day + 1))
        assert not any(link.resolve().is_symlink() for link in table.iterdir())
    today.unlink()
    assert read_frame(table)["number"].tolist() == [0, 1, 2, 3, 4]


def test_a_file_that_is_gone_is_an_error_and_not_a_shorter_table(tmp_path: Path) -> None:
    old, today = write(tmp_path / "old.parquet", 1), write(tmp_path / "today.parquet", 2)
    both = linked(old, today, tmp_path / "inputs")
    old.unlink()
    with pytest.raises(DataError, match=r"00000-old\.parquet: a link to \S+old\.parquet, which is not there"):
        read_frame(both)


def test_an_error_names_the_files_that_were_given_and_leaves_nothing(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    old, today = write(tmp_path / "old.parquet", 1), write(tmp_path / "today.parquet", 2)
    kept = linked(old, today, inputs)
    other = tmp_path / "other.parquet"
    pd.DataFrame({"word": ["a"]}).to_parquet(other)
    before = sorted(inputs.rglob("*"))
    with pytest.raises(DataError) as error, linked_table(kept, other, inputs) as both:
        read_frame(both)
    assert str(error.value).startswith(f"{other}: ")
    assert "inputs" not in str(error.value)
    assert sorted(inputs.rglob("*")) == before


def test_what_the_names_of_folders_say_of_rows_stays(tmp_path: Path) -> None:
    write(tmp_path / "events" / "country=de%20at" / "part.parquet", 1)
    today = tmp_path / "more"
    write(today / "country=__HIVE_DEFAULT_PARTITION__" / "part.parquet", 2)
    frame = read_frame(linked(tmp_path / "events", today, tmp_path / "inputs"))
    country = frame.set_index("number")["country"]
    assert country[1] == "de at"
    assert pd.isna(country[2])


def test_the_files_that_are_linked_keep_their_permissions(tmp_path: Path) -> None:
    old, today = write(tmp_path / "old.parquet", 1), write(tmp_path / "today.parquet", 2)
    old.chmod(0o400)
    linked(old, today, tmp_path / "inputs")
    assert old.stat().st_mode & 0o777 == 0o400


def test_tables_of_two_kinds_are_refused(tmp_path: Path) -> None:
    old, today = write(tmp_path / "old.parquet", 1), tmp_path / "today.csv"
    today.write_text("number\n2\n")
    with pytest.raises(DataError, match=r"today\.csv: CSV, and .*old\.parquet is Parquet; save it as the other"):
        linked(old, today, tmp_path / "inputs")
