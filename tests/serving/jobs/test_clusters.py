"""The catalogue in groups of its own, named by words that tell them apart."""

from __future__ import annotations

import numpy as np
import pytest

from serving.jobs.clusters import Clusters, make_clusters, typical_words
from tests.serving.vectors import clustered_vectors


def test_planted_clusters_are_found_the_largest_first():
    rng = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)[:4]
    planted = np.repeat(np.arange(4), [400, 300, 200, 100])
    vectors = centres[planted] + 0.1 * rng.normal(size=(1000, 8)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    clusters = make_clusters(vectors, 4)
    assert clusters.of_item.tolist() == planted.tolist()
    means = np.stack([vectors[planted == cluster].mean(axis=0) for cluster in range(4)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(clusters.scores, (vectors * means[planted]).sum(axis=1), atol=0.01)


def test_the_number_of_clusters_suits_the_catalogue_unless_it_is_given():
    assert make_clusters(clustered_vectors(900)).num_clusters == 15  # half of the root of 900
    assert make_clusters(clustered_vectors(900), 7).num_clusters == 7
    assert make_clusters(clustered_vectors(1)).num_clusters == 1
    one, other = (make_clusters(clustered_vectors(900), 7).of_item.tolist() for _ in range(2))
    assert one == other


def test_copies_fill_fewer_clusters_and_none_is_empty():
    vectors = np.repeat(clustered_vectors(3), 20, axis=0)
    clusters = make_clusters(vectors, 10)
    assert np.bincount(clusters.of_item, minlength=clusters.num_clusters).min() > 0


def test_the_nearest_items_of_a_cluster_come_first():
    clusters = Clusters(np.array([0, 0, 1, 0]), np.array([0.5, 0.9, 1.0, 0.7], np.float32), 2)
    assert clusters.nearest(0, 2).tolist() == [1, 3]
    assert clusters.nearest(1, 2).tolist() == [2]


def two_clusters(sizes):
    of_item = np.repeat(np.arange(len(sizes)), sizes)
    return Clusters(of_item, np.ones(len(of_item), np.float32), len(sizes))


def test_typical_words_by_hand():
    # The mean size is 2. Shares in the first cluster and items with the word: the 1 and 4: ln(1 + 2/4) = 0.41;
    # red 1 and 3: ln(1 + 2/3) = 0.51; hat 1 and 2: ln(2) = 0.69; old 0.5 and 1: 0.5 ln(3) = 0.55.
    texts = ["the red hat", "the old red hat hat hat 1999", "the red shoe", "the shoe"]
    words = typical_words(two_clusters([2, 2]), texts, most=4)
    assert words[0] == ["hat", "old", "red", "the"]
    # shoe 1 and 2: 0.69; the 0.41; red 0.5 * 0.51 = 0.26
    assert words[1] == ["shoe", "the", "red"]


def test_words_of_every_script_count_and_numbers_do_not():
    words = typical_words(two_clusters([1, 1]), ["Käse 2024 チーズ", "сыр x"], most=3)
    assert sorted(words[0]) == sorted(["käse", "チーズ"])
    assert words[1] == ["сыр"]


@pytest.mark.parametrize("texts", [["", ""], ["1 2", "3"]])
def test_without_words_there_are_no_names(texts):
    assert typical_words(two_clusters([1, 1]), texts) == [[], []]
