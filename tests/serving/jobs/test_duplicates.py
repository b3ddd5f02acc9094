"""What is alike is found, by comparing far less than every pair, and told once; copies by the thousand do no harm."""

from __future__ import annotations

import numpy as np
import pytest

from features.errors import DataError
from serving.jobs import duplicates
from serving.jobs.duplicates import Duplicates, find_duplicates
from serving.search.faiss_index import kmeans
from tests.serving.vectors import clustered_vectors, unit_vectors


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def with_near_copies(count, width=16, share=0.2, seed=0):
    """Clustered vectors, some of which are near-copies of others: their cosines lie about 0.93 to 1."""
    rng = np.random.default_rng(seed)
    vectors = clustered_vectors(count, width, seed)
    copies = rng.permutation(count)[: int(share * count)]
    noise = rng.normal(size=(len(copies), width)) * rng.uniform(0, 0.4, size=(len(copies), 1)) / np.sqrt(width)
    vectors[copies] = unit(vectors[rng.integers(count, size=len(copies))] + noise)
    return vectors


def pairs_by_hand(vectors, threshold):
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    rows, others = np.nonzero(np.triu(scores >= threshold, 1))
    return dict(zip(zip(rows.tolist(), others.tolist(), strict=True), scores[rows, others], strict=True))


def pairs_of(found: Duplicates):
    return dict(zip(zip(found.rows.tolist(), found.others.tolist(), strict=True), found.scores, strict=True))


def groups_by_hand(pairs, count):
    """Groups by passing the smallest row on until nothing changes."""
    group = list(range(count))
    changed = True
    while changed:
        changed = False
        for one, other in pairs:
            least = min(group[one], group[other])
            changed |= group[one] != group[other]
            group[one] = group[other] = least
    return {frozenset(row for row in range(count) if group[row] == least) for least in group if group.count(least) > 1}


@pytest.fixture
def partitions_for_few(monkeypatch):
    """Do not compare every pair, although there are few items."""
    monkeypatch.setattr(duplicates, "_COMPARED_ALL", 100)


def test_every_pair_of_few_items_is_found_with_its_score():
    vectors = with_near_copies(1500)
    found = find_duplicates(vectors, 0.95)
    expected = pairs_by_hand(vectors, 0.95)
    assert len(expected) > 100
    assert pairs_of(found).keys() == expected.keys()
    np.testing.assert_allclose([pairs_of(found)[pair] for pair in expected], list(expected.values()), atol=1e-6)
    assert found.recall == 1.0
    assert (found.rows < found.others).all()


def test_groups_are_what_pairs_connect_the_largest_first():
    vectors = with_near_copies(400, seed=3)
    found = find_duplicates(vectors, 0.93)
    groups = [frozenset(np.flatnonzero(found.group_of == group).tolist()) for group in range(found.num_groups)]
    assert set(groups) == groups_by_hand(pairs_by_hand(vectors, 0.93), 400)
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
    assert found.num_grouped == sum(map(len, groups))


@pytest.mark.parametrize("threshold", [0.9, 0.95, 0.99])
def test_partitions_find_nearly_every_pair_and_say_how_many(partitions_for_few, threshold):
    vectors = with_near_copies(6000, width=24, seed=1)
    found = find_duplicates(vectors, threshold)
    expected = pairs_by_hand(vectors, threshold)
    share = len(pairs_of(found).keys() & expected.keys()) / len(expected)
    assert share >= 0.95
    assert pairs_of(found).keys() <= expected.keys()
    assert found.recall == pytest.approx(share, abs=0.03)


def test_partitions_compare_far_less_than_every_pair(partitions_for_few, monkeypatch):
    vectors = with_near_copies(8000, width=24, seed=2)
    compared = []
    among = duplicates._Search._among

    def counting(self, members, visitors):
        compared.append(len(members) * (len(members) + len(visitors)))
        return among(self, members, visitors)

    monkeypatch.setattr(duplicates._Search, "_among", counting)
    find_duplicates(vectors, 0.95)
    assert sum(compared) < 0.2 * 8000**2


def test_partitions_that_are_known_are_used(partitions_for_few, monkeypatch):
    vectors = with_near_copies(3000)
    partitions = kmeans(vectors, 32)
    anew = pairs_of(find_duplicates(vectors, 0.95, kmeans(vectors, 32)))
    monkeypatch.setattr(duplicates, "kmeans", None)
    assert pairs_of(find_duplicates(vectors, 0.95, partitions)).keys() == anew.keys()


def test_without_structure_there_is_nothing_to_find_and_nothing_to_measure(partitions_for_few):
    vectors = unit_vectors(2000, width=32)
    found = find_duplicates(vectors, 0.95)
    assert len(found.rows) == 0
    assert found.num_groups == found.num_grouped == 0
    assert found.recall is None
    # The nearest other item of half of them, by hand.
    scores = vectors @ vectors.T - 2 * np.eye(2000, dtype=np.float32)
    np.testing.assert_allclose(np.median(found.nearest), np.median(scores.max(axis=1)), atol=1e-5)


def test_copies_are_told_once_each_beside_the_first():
    vectors = unit_vectors(50)
    vectors[[7, 11, 40]] = vectors[3]
    vectors[20] = unit(vectors[3:4] + np.float32(1e-7))[0]  # as another batch might have computed it
    found = find_duplicates(vectors, 0.99)
    assert pairs_of(found).keys() == {(3, 7), (3, 11), (3, 20), (3, 40)}
    assert np.flatnonzero(found.group_of == 0).tolist() == [3, 7, 11, 20, 40]


def test_a_catalogue_of_copies_is_one_group_in_no_time():
    vectors = np.tile(unit_vectors(2), (30_000, 1))
    found = find_duplicates(vectors, 0.95)
    assert np.bincount(found.group_of).tolist() == [30_000, 30_000]
    assert len(found.rows) == 60_000 - 2


def test_a_threshold_that_takes_nearly_everything_is_refused(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 1000)
    with pytest.raises(
        DataError, match=r"at most 1,000 pairs of similar items, found more with a threshold of 0\.01; raise"
    ):
        find_duplicates(clustered_vectors(500), 0.01)


def test_the_same_vectors_give_the_same_groups(partitions_for_few):
    vectors = with_near_copies(3000, seed=5)
    one, other = (find_duplicates(vectors, 0.95) for _ in range(2))
    assert pairs_of(one) == pairs_of(other)
    assert one.group_of.tolist() == other.group_of.tolist()


def test_one_item_is_alone():
    found = find_duplicates(unit_vectors(1), 0.9)
    assert found.group_of.tolist() == [-1]
    assert len(found.rows) == 0


def test_progress_ends_at_all_partitions(partitions_for_few):
    steps = []
    find_duplicates(with_near_copies(1000), 0.95, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] == len(steps)
