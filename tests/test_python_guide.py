"""The program of `docs/guides/python.md` runs, in a folder with the shop's tables; each part of one's own is short."""

from __future__ import annotations

from functools import partial, partialmethod

import pytest

import towers
from tests.documentation.pages import PYTHON_GUIDE, Page
from tests.running import write_small_shop

MOST_LINES = 30
"""Of a part of one's own."""


@pytest.mark.slow
def test_the_blocks_of_the_page_run_and_are_short(tmp_path, monkeypatch, capfd):
    write_small_shop(tmp_path / "data" / "shop", 150, 100, 1_500)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # Nobody reads the reports: the baselines need not be tuned.
    monkeypatch.setattr(towers, "train", partial(towers.train, baseline_minutes=0))
    monkeypatch.setattr(towers.Model, "evaluate", partialmethod(towers.Model.evaluate, baseline_minutes=0))
    namespace = {}
    try:
        for block in Page(PYTHON_GUIDE).blocks:
            assert block.language == "python"
            if block.not_run:
                continue
            assert len(block.text.splitlines()) <= MOST_LINES
            exec(compile(block.text, PYTHON_GUIDE.name, "exec"), namespace)
    finally:
        towers.LOSSES.pop("hinge", None)
        towers.HISTORY_ENCODERS.pop("gru", None)
    assert namespace["again"].version == namespace["model"].version
    assert b'"items"' in namespace["answer"]
    assert namespace["everyone"]["user_id"].nunique() == 150
    assert "Warning" not in capfd.readouterr().err
