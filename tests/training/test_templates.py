"""What all pages of a training have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

import training

TEMPLATES = sorted((Path(training.__file__).parent / "templates").glob("*.html"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_wide_table_scrolls_and_not_the_page(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    tables = [number for number, line in enumerate(lines) if "<table" in line]
    assert all("scroll" in "".join(lines[number - 1 : number + 1]) for number in tables)
