"""The broken tables of `broken_tables.py` through the command line: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broken_tables import BROKEN, BrokenTables, write_run_toml, write_sound
from towers.cli.main import main

UNREADABLE = [
    case
    for case in BROKEN
    if re.search(
        "missing$|a folder|empty file|blank|header and|Latin|UTF-16|binary|gzip|twice$|many|few|quote", case.name
    )
    and "items" in case.match
    and not re.search("id|same", case.name)
]
"""Those whose items' table cannot even be read, so that `towers init` sees it too."""


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def assert_one_line(error: str, match: str) -> None:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(match, error)


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_training_on_a_broken_table_is_one_line_and_begins_nothing(
    case: BrokenTables, command, tmp_path, monkeypatch, capsys
):
    case.write(write_sound(tmp_path))
    run_toml = write_run_toml(tmp_path, case)
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    assert main([command, run_toml.name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert_one_line(said.err, case.match)
    assert files(tmp_path) == before


def test_there_are_tables_that_cannot_even_be_read():
    assert len(UNREADABLE) >= 8


@pytest.mark.parametrize("case", UNREADABLE, ids=lambda case: case.name)
def test_init_on_a_table_that_cannot_be_read_is_one_line_and_writes_nothing(
    case: BrokenTables, tmp_path, monkeypatch, capsys
):
    case.write(write_sound(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    items = str(case.settings.get("items", "items.csv"))
    assert main(["init", "--interactions", "interactions.csv", "--items", items]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert_one_line(said.err, case.match)
    assert files(tmp_path) == before


def test_it_is_the_same_in_a_process_of_its_own(tmp_path):
    case = next(case for case in BROKEN if case.name == "an item that is not in the catalogue")
    case.write(write_sound(tmp_path))
    write_run_toml(tmp_path, case)
    before = files(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "towers", "train", "run.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_one_line(ended.stderr, case.match)
    assert files(tmp_path) == before
