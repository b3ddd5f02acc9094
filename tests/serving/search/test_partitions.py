from __future__ import annotations

import numpy as np
import pytest

from serving.search import partitions as regions_module
from serving.search.faiss_index import kmeans
from serving.search.partitions import Partitions
from serving.search.results import AllowedItems
from tests.serving.vectors import by_hand, clustered_vectors, some_allowed, unit_vectors


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch):
    monkeypatch.setattr(regions_module, "_FIRST_ROUND", 64)


@pytest.fixture(scope="module")
def space():
    vectors = clustered_vectors(6000)
    return vectors, kmeans(vectors, 128), clustered_vectors(30, seed=1)


def test_each_item_is_in_the_region_whose_centre_is_nearest(space):
    vectors, regions, _ = space
    assert regions.centres.shape == (128, 16)
    np.testing.assert_allclose(np.linalg.norm(regions.centres, axis=1), 1, atol=1e-5)
    chosen = (vectors * regions.centres[regions.of_item]).sum(axis=1)
    np.testing.assert_allclose(chosen, (vectors @ regions.centres.T).max(axis=1), atol=1e-5)


def test_regions_are_the_same_each_time_and_survive_saving(space, tmp_path):
    vectors, regions, _ = space
    regions.save(tmp_path / "regions.safetensors")
    for again in (kmeans(vectors, 128), Partitions.load(tmp_path / "regions.safetensors")):
        np.testing.assert_array_equal(again.of_item, regions.of_item)
        np.testing.assert_array_equal(again.centres, regions.centres)


@pytest.mark.parametrize("share", [0.1, 0.5, 1])
@pytest.mark.parametrize("needed", [5, 100])
def test_candidates_hold_nearly_all_of_the_best_of_a_clustered_catalogue_by_comparing_a_part(space, share, needed):
    vectors, regions, queries = space
    allowed = some_allowed(6000, share)
    found = compared = 0
    for query in queries:
        rows, _, num_compared = regions.candidates(vectors, query, needed, allowed)
        compared += num_compared
        assert allowed.mask[rows].all()
        assert len(np.unique(rows)) == len(rows) >= needed
        found += len(np.intersect1d(rows, by_hand(vectors, query, needed, allowed=allowed)))
    assert found / (needed * len(queries)) >= 0.98
    assert share < 0.5 or compared < 0.9 * len(allowed) * len(queries)


def test_where_vectors_have_no_clusters_all_is_compared_and_nothing_twice():
    vectors = unit_vectors(4000)
    regions, allowed = kmeans(vectors, 64), some_allowed(4000, 0.5)
    for query in unit_vectors(20, seed=1):
        rows, _, num_compared = regions.candidates(vectors, query, 20, allowed)
        assert num_compared <= len(allowed)
        assert len(np.intersect1d(rows, by_hand(vectors, query, 20, allowed=allowed))) >= 19


def test_a_search_that_does_not_pay_takes_few_rounds(monkeypatch):
    vectors = unit_vectors(40_000, width=32)
    regions, allowed = kmeans(vectors, 256), some_allowed(40_000, 0.9)
    rounds, add = [], regions_module._Best.add
    monkeypatch.setattr(regions_module._Best, "add", lambda *given: (rounds.append(len(given[1])), add(*given))[1])
    *_, num_compared = regions.candidates(vectors, unit_vectors(1, width=32, seed=1)[0], 100, allowed)
    assert num_compared == sum(rounds) == len(allowed)
    assert rounds[-1] > 0.4 * len(allowed)


def test_allowed_items_in_few_regions_or_in_one_are_found(space):
    vectors, regions, queries = space
    largest = np.bincount(regions.of_item).argsort()[-2:]
    for chosen in (largest, largest[:1]):
        allowed = AllowedItems(np.isin(regions.of_item, chosen))
        rows, *_ = regions.candidates(vectors, queries[0], 10, allowed)
        assert set(by_hand(vectors, queries[0], 10, allowed=allowed)) <= set(rows.tolist())


def test_a_filter_is_divided_once_and_forgotten_with_it(space):
    _, regions, _ = space
    allowed = some_allowed(6000, 0.2)
    first = regions._arranged(allowed)
    assert regions._arranged(allowed) is first
    known = len(regions._known)
    del allowed, first
    assert len(regions._known) == known - 1


def test_the_share_near_a_user_is_that_of_the_items_in_the_nearest_regions(space, monkeypatch):
    monkeypatch.setattr(regions_module, "_NEAR", 5)
    _, regions, queries = space
    allowed = AllowedItems(regions.of_item % 3 > 0)
    found = regions.shares_near(queries, allowed)
    for user, query in enumerate(queries):
        nearest = np.argsort(-(regions.centres @ query))[:5]
        assert found[user] == pytest.approx(allowed.mask[np.isin(regions.of_item, nearest)].mean())
    assert found.min() < 0.4 < 0.8 < found.max()
    np.testing.assert_array_equal(regions.shares_near(queries, AllowedItems(np.ones(6000, bool))), 1)


def test_more_regions_than_there_are_cannot_be_near():
    vectors = unit_vectors(300)
    allowed = some_allowed(300, 0.5)
    assert kmeans(vectors, 4).shares_near(vectors[:2], allowed) == pytest.approx(allowed.share)
