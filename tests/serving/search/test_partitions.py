from __future__ import annotations

import numpy as np
import pytest

from serving.search import partitions as partitions_module
from serving.search.faiss_index import kmeans
from serving.search.partitions import Partitions
from serving.search.results import AllowedItems
from tests.serving.vectors import by_hand, clustered_vectors, some_allowed, unit_vectors


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch):
    monkeypatch.setattr(partitions_module, "_FIRST_ROUND", 64)


@pytest.fixture(scope="module")
def space():
    vectors = clustered_vectors(6000)
    return vectors, kmeans(vectors, 128), clustered_vectors(30, seed=1)


def test_each_item_is_in_the_partition_whose_centre_is_nearest(space):
    vectors, partitions, _ = space
    assert partitions.centres.shape == (128, 16)
    np.testing.assert_allclose(np.linalg.norm(partitions.centres, axis=1), 1, atol=1e-5)
    chosen = (vectors * partitions.centres[partitions.of_item]).sum(axis=1)
    np.testing.assert_allclose(chosen, (vectors @ partitions.centres.T).max(axis=1), atol=1e-5)


def test_partitions_are_the_same_each_time_and_survive_saving(space, tmp_path):
    vectors, partitions, _ = space
    partitions.save(tmp_path / "partitions.safetensors")
    for again in (kmeans(vectors, 128), Partitions.load(tmp_path / "partitions.safetensors")):
        np.testing.assert_array_equal(again.of_item, partitions.of_item)
        np.testing.assert_array_equal(again.centres, partitions.centres)


@pytest.mark.parametrize("share", [0.1, 0.5, 1])
@pytest.mark.parametrize("needed", [5, 100])
def test_candidates_hold_nearly_all_of_the_best_of_a_clustered_catalogue_by_comparing_a_part(space, share, needed):
    vectors, partitions, queries = space
    allowed = some_allowed(6000, share)
    found = compared = 0
    for query in queries:
        rows, _, num_compared = partitions.candidates(vectors, query, needed, allowed)
        compared += num_compared
        assert allowed.mask[rows].all()
        assert len(np.unique(rows)) == len(rows) >= needed
        found += len(np.intersect1d(rows, by_hand(vectors, query, needed, allowed=allowed)))
    assert found / (needed * len(queries)) >= 0.98
    assert share < 0.5 or compared < 0.9 * len(allowed) * len(queries)


def test_where_vectors_have_no_clusters_all_is_compared_and_nothing_twice():
    vectors = unit_vectors(4000)
    partitions, allowed = kmeans(vectors, 64), some_allowed(4000, 0.5)
    for query in unit_vectors(20, seed=1):
        rows, _, num_compared = partitions.candidates(vectors, query, 20, allowed)
        assert num_compared <= len(allowed)
        assert len(np.intersect1d(rows, by_hand(vectors, query, 20, allowed=allowed))) >= 19


def test_a_search_that_does_not_pay_takes_few_rounds(monkeypatch):
    vectors = unit_vectors(40_000, width=32)
    partitions, allowed = kmeans(vectors, 256), some_allowed(40_000, 0.9)
    rounds, add = [], partitions_module._Best.add
    monkeypatch.setattr(partitions_module._Best, "add", lambda *given: (rounds.append(len(given[1])), add(*given))[1])
    *_, num_compared = partitions.candidates(vectors, unit_vectors(1, width=32, seed=1)[0], 100, allowed)
    assert num_compared == sum(rounds) == len(allowed)
    assert rounds[-1] > 0.4 * len(allowed)


def test_allowed_items_in_few_partitions_or_in_one_are_found(space):
    vectors, partitions, queries = space
    largest = np.bincount(partitions.of_item).argsort()[-2:]
    for chosen in (largest, largest[:1]):
        allowed = AllowedItems(np.isin(partitions.of_item, chosen))
        rows, *_ = partitions.candidates(vectors, queries[0], 10, allowed)
        assert set(by_hand(vectors, queries[0], 10, allowed=allowed)) <= set(rows.tolist())


def test_a_filter_is_divided_once_and_forgotten_with_it(space):
    _, partitions, _ = space
    allowed = some_allowed(6000, 0.2)
    first = partitions._arranged(allowed)
    assert partitions._arranged(allowed) is first
    known = len(partitions._known)
    del allowed, first
    assert len(partitions._known) == known - 1


def test_the_share_near_a_user_is_that_of_the_items_in_the_nearest_partitions(space, monkeypatch):
    monkeypatch.setattr(partitions_module, "_NEAR", 5)
    _, partitions, queries = space
    allowed = AllowedItems(partitions.of_item % 3 > 0)
    found = partitions.shares_near(queries, allowed)
    for user, query in enumerate(queries):
        nearest = np.argsort(-(partitions.centres @ query))[:5]
        assert found[user] == pytest.approx(allowed.mask[np.isin(partitions.of_item, nearest)].mean())
    assert found.min() < 0.4 < 0.8 < found.max()
    np.testing.assert_array_equal(partitions.shares_near(queries, AllowedItems(np.ones(6000, bool))), 1)


def test_more_partitions_than_there_are_cannot_be_near():
    vectors = unit_vectors(300)
    allowed = some_allowed(300, 0.5)
    assert kmeans(vectors, 4).shares_near(vectors[:2], allowed) == pytest.approx(allowed.share)
