"""Each change of later tables ends as columns.md says; by all operations: benchmarks/changed_tables.py."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from features.errors import DataError
from serving.jobs.build_index import build_index
from serving.jobs.recommend_all import Wanted, recommend_all
from tests.benchmarks.changed_tables import CHANGES, COLOURS, NUM_USERS, Shop, documented, make_tables


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("changed"))


def test_the_document_names_every_change_and_no_other():
    assert list(documented()) == list(CHANGES)
    assert len(CHANGES) > 50


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_ends_as_the_document_says(shop, change, tmp_path):
    shop.check(change, tmp_path, shop.read)


@pytest.mark.parametrize("change", ["a column is renamed", "a decimal comma", "rows in another order"])
def test_the_index_and_the_recommendations_do_as_well(shop, change, tmp_path):
    shop.check(change, tmp_path, shop.make_all)


def test_a_collapse_leaves_the_index_and_can_be_accepted(shop, tmp_path, capsys):
    bundle = shutil.copytree(shop.bundle.path, tmp_path / "bundle", ignore=shutil.ignore_patterns("index"))
    build_index(shop.bundle, {}, precomputed=0)
    sealed = (shop.bundle.path / "index" / "manifest.json").read_bytes()
    tables, output = make_tables(), tmp_path / "candidates.parquet"
    brands, colours = tables.items["brand"].str.upper(), tables.items["colour"].map(COLOURS)
    tables.items = tables.items.assign(brand=brands, colour=colours)
    try:
        tables.write(shop.bundle.tables_folder)
        wanted = r"'brand': 0% .*'BRAND A'.* \(and 1 more such column\); .* `towers index .* --accept-changed"
        with pytest.raises(DataError, match=wanted):
            build_index(shop.bundle, {}, precomputed=0)
        assert (shop.bundle.path / "index" / "manifest.json").read_bytes() == sealed
        with pytest.raises(DataError, match=wanted):
            recommend_all(bundle, output, Wanted(3))
        assert not output.exists()
        recommend_all(bundle, output, Wanted(3), accept_changed_columns=True)
    finally:
        make_tables().write(shop.bundle.tables_folder)
    assert capsys.readouterr().out.count("0% of the values are known to the model, 100% in training") == 2
    assert len(pd.read_parquet(output)) == 3 * NUM_USERS
