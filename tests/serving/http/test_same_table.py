"""The same table by every way in gives the same vectors, to the bit; all combinations: benchmarks/same_table.py."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.same_table import NUM_ITEMS, SPELLINGS, WAYS, Shop

TRAINED = ("csv of pandas", "texts in parquet")


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("same"), TRAINED)


@pytest.mark.parametrize("name", WAYS)
def test_a_table_by_another_way_gives_the_same_vectors(same, name):
    assert len(np.unique(same.expected[0], axis=0)) == NUM_ITEMS
    for trained in TRAINED:
        same.check_table(trained, name)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_attributes_over_http_give_the_same_vectors(same, spelling):
    for trained in TRAINED:
        same.check_attributes(trained, spelling)


@pytest.mark.parametrize("place", range(len(WAYS)))
def test_live_items_give_the_same_vectors(same, place):
    same.check_live(TRAINED[place % 2], list(WAYS)[place], list(SPELLINGS)[place % len(SPELLINGS)])
