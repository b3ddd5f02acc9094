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


def test_tables_are_read_as_one_and_a_file_in_both_once(tmp_path: Path) -> None:
    old, today = write(tmp_path / "z" / "old.parquet", 1, 2), write(tmp_path / "a" / "today.parquet", 3)
    linked = linked_table([old, today], tmp_path / "inputs")
    assert read_frame(linked)["number"].tolist() == [1, 2, 3]
    assert linked_table([old, today], tmp_path / "inputs") == linked
    tomorrow = write(tmp_path / "tomorrow.parquet", 4)
    again = linked_table([linked, today, tomorrow], tmp_path / "inputs")
    assert again != linked
    assert read_frame(again)["number"].tolist() == [1, 2, 3, 4]
    assert all(path.readlink().parent != linked for path in again.iterdir())  # links to files, not to links
    write(old, 7)
    assert read_frame(again)["number"].tolist() == [7, 3, 4]


def test_what_the_names_of_folders_say_of_rows_stays(tmp_path: Path) -> None:
    write(tmp_path / "events" / "country=de%20at" / "part.parquet", 1)
    today = tmp_path / "more"
    write(today / "country=__HIVE_DEFAULT_PARTITION__" / "part.parquet", 2)
    frame = read_frame(linked_table([tmp_path / "events", today], tmp_path / "inputs"))
    country = frame.set_index("number")["country"]
    assert country[1] == "de at"
    assert pd.isna(country[2])


def test_the_files_that_are_linked_keep_their_permissions(tmp_path: Path) -> None:
    old, today = write(tmp_path / "old.parquet", 1), write(tmp_path / "today.parquet", 2)
    old.chmod(0o400)
    linked_table([old, today], tmp_path / "inputs")
    assert old.stat().st_mode & 0o777 == 0o400


def test_tables_of_two_kinds_are_refused(tmp_path: Path) -> None:
    old, today = write(tmp_path / "old.parquet", 1), tmp_path / "today.csv"
    today.write_text("number\n2\n")
    with pytest.raises(DataError, match=r"today\.csv: CSV, and .*old\.parquet is Parquet; save it as the other"):
        linked_table([old, today], tmp_path / "inputs")
