"""Random tables as the benchmark of the same name has them: a few cases, so that each change meets some."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.benchmarks.random_tables import check
from tests.random_tables import Case, cases

FEW = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No bars of progress."""
    monkeypatch.setitem(os.environ, "TQDM_DISABLE", "1")


@settings(FEW, max_examples=8)
@given(cases())
def test_every_cell_is_read_as_it_was_meant_or_named(tmp_path_factory, case: Case):
    folder = tmp_path_factory.mktemp("case")
    check(case, folder, whole_way=False)
    shutil.rmtree(folder)


@settings(FEW, max_examples=1)
@given(cases())
def test_what_init_is_content_with_goes_the_whole_way(tmp_path_factory, case: Case):
    folder = tmp_path_factory.mktemp("case")
    check(case, folder)
    shutil.rmtree(folder)
