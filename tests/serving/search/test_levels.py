"""One order of the items for each user and filter, whatever the kind of index: every answer is a cut of it."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from serving.search import faiss_index as index_module
from serving.search import partitions as partitions_module
from serving.search.faiss_index import ItemIndex
from serving.search.index_config import FIRST_LEVEL, INDEX_KINDS, standard
from serving.search.results import AllowedItems, merged
from tests.serving.vectors import clustered_vectors, ragged, some_allowed

ITEMS, USERS = 2000, 6
VECTORS, QUERIES = clustered_vectors(ITEMS), clustered_vectors(USERS, seed=1)
VECTORS[np.random.default_rng(0).integers(ITEMS, size=40)] = VECTORS[0]  # copies, whose scores are equal
WAYS = (*INDEX_KINDS, "hnsw, shortened", "ivf-pq, shortened")


@pytest.fixture(autouse=True)
def deep_levels(monkeypatch):
    """A small catalogue has levels as deep as a large one."""
    monkeypatch.setattr(index_module, "_COMPARED_FOR_EACH", 1)


@functools.cache
def built(way):
    """An index of a kind that misses much."""
    kind, _, is_shortened = way.partition(", ")
    plan = standard(kind, ITEMS, 16, prefixes=[8])
    little = {"nprobe": min(plan.nprobe, 3), "ef_search": min(plan.ef_search, 16), "oversampling": 1}
    if is_shortened:
        little |= {"prefix": 8}
    return ItemIndex.build(VECTORS, plan.model_copy(update=little))


FILTERS = {
    "all": None,
    "nearly all": some_allowed(ITEMS, 0.95),
    "half": some_allowed(ITEMS, 0.5),
    "a tenth": some_allowed(ITEMS, 0.1),
    "a place": AllowedItems(VECTORS @ VECTORS[7] > 0.2),
}


@functools.cache
def order_of(way, user, where):
    """The whole order of a user's items, asked for alone."""
    return built(way).search(QUERIES[user : user + 1], ITEMS, allowed=FILTERS[where]).of(0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", FILTERS)
def test_every_answer_is_a_cut_of_one_order(way, where, monkeypatch):
    """However many are asked for, whatever is excluded or closed, and whoever else asks at the same time."""
    monkeypatch.setattr(index_module, "_SCANNED_NUMBERS", 0)
    monkeypatch.setattr(partitions_module, "_FIRST_ROUND", 64)
    rng = np.random.default_rng(5)
    for size in (1, 3, 24):
        users = rng.integers(USERS, size=size)
        k = int(rng.choice([1, 10, 100, FIRST_LEVEL, 200, 700, 1500]))
        excluded = []
        for user in users.tolist():
            best = order_of(way, user, where)[0]
            excluded.append(np.concatenate([best[: rng.choice([0, 5, 150])], rng.integers(ITEMS, size=10)]))
        closed = rng.random(ITEMS) < 0.5 if rng.random() < 0.4 else None
        hits = built(way).search(QUERIES[users], k, ragged(excluded), FILTERS[where], closed)
        for place, user in enumerate(users.tolist()):
            rows, scores = order_of(way, user, where)
            kept = ~np.isin(rows, excluded[place]) & (True if closed is None else ~closed[rows])
            np.testing.assert_array_equal(hits.of(place)[0], rows[kept][:k])
            np.testing.assert_array_equal(hits.of(place)[1], scores[kept][:k])


@pytest.mark.parametrize("way", WAYS)
def test_an_order_holds_each_item_once_and_falls(way):
    for user in range(2):
        rows, scores = order_of(way, user, "all")
        assert np.array_equal(np.sort(rows), np.arange(ITEMS))
        assert (np.diff(scores) <= 0).all()
        if not built(way).is_exact:
            assert not np.array_equal(rows, built(way).scan(QUERIES[user : user + 1], ITEMS).rows), "it misses nothing"


def test_lists_are_merged_alike_however_far_they_go():
    rng = np.random.default_rng(3)
    for _ in range(200):
        lists = []
        rows = rng.permutation(60)
        for part in np.split(rows, np.sort(rng.integers(60, size=2))):
            scores = np.sort(rng.integers(4, size=len(part)).astype(np.float32))[::-1]
            lists.append((part, scores))
        whole = merged(lists)[0].tolist()
        for k in (1, 5, 20):
            assert merged([(rows[:k], scores[:k]) for rows, scores in lists])[0].tolist()[:k] == whole[:k]
            for rows, _ in lists:
                assert [row for row in whole if row in set(rows.tolist())] == rows.tolist()
