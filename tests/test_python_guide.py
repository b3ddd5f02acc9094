"""The Python blocks of `docs/guides/python.md` run, one after the other, in a folder with the shop's tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import towers
from tests.running import write_small_shop

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "python.md"
LONGEST = 30
"""Lines of an example of a part of one's own."""


@pytest.mark.slow
def test_the_blocks_of_the_page_run_and_are_short(tmp_path, monkeypatch):
    write_small_shop(tmp_path / "data" / "shop")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"))
    namespace = {}
    try:
        for block in blocks:
            assert len(block.splitlines()) <= LONGEST
            exec(compile(block, PAGE.name, "exec"), namespace)
    finally:
        towers.LOSSES.pop("hinge", None)
        towers.HISTORY_ENCODERS.pop("gru", None)
    assert namespace["again"].version == namespace["model"].version
    assert b'"items"' in namespace["answer"]
    assert len(namespace["everyone"]) == 300 * 100
