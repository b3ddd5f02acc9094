from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from towers.item_map import FILE, ItemMap


def clustered(number, seed=0):
    """Unit vectors around four directions, and the direction of each."""
    rng = np.random.default_rng(seed)
    centres, which = np.eye(8)[:4], np.arange(number) % 4
    vectors = centres[which] + 0.1 * rng.normal(size=(number, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), which


@pytest.mark.parametrize("number", [60, 240, 300], ids=["components", "t-SNE", "more than are shown"])
def test_similar_items_are_near(number, monkeypatch):
    monkeypatch.setattr("towers.item_map.MAX_SHOWN", 240)
    monkeypatch.setattr("towers.item_map.MIN_TSNE", 200)
    vectors, which = clustered(number)
    made = ItemMap.of(vectors, np.arange(number)[::-1].copy())
    assert made.shown.tolist() == [*range(min(number, 240))]
    assert made.positions.min() >= 0
    assert made.positions.max() <= 1
    gaps = np.linalg.norm(made.positions[:, None] - made.positions[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (which[gaps.argmin(axis=1)] == which).mean() > 0.95


def test_the_same_vectors_make_the_same_map(monkeypatch):
    monkeypatch.setattr("towers.item_map.MIN_TSNE", 200)
    vectors = clustered(210)[0]
    one, other = (ItemMap.of(vectors, np.ones(210, np.int64)) for _ in range(2))
    assert (one.positions == other.positions).all()


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_few_items_have_places_too(number):
    made = ItemMap.of(clustered(number)[0], np.zeros(number, np.int64))
    assert made.positions.shape == (number, 2)
    assert np.isfinite(made.positions).all()


def test_a_map_is_read_as_it_was_written(tmp_path):
    made = ItemMap.of(clustered(20)[0], np.ones(20, np.int64))
    made.save(tmp_path)
    read = ItemMap.load(tmp_path / FILE, 20)
    assert (read.positions == made.positions).all()
    assert (read.shown == made.shown).all()


@pytest.mark.parametrize(
    ("positions", "shown", "message"),
    [
        (np.zeros((3, 2), np.float32), np.arange(2), "3, 2"),
        (np.full((2, 2), np.nan, np.float32), np.arange(2), "2, 2"),
        (np.zeros((2, 2), np.float32), np.array([0, 2]), "row 2 of 2"),
        (np.zeros((2, 2), np.float32), np.array([-1, 0]), "row 0 of 2"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path, positions, shown, message):
    save_file({"positions": positions, "shown": shown}, tmp_path / FILE)
    with pytest.raises(ValueError, match=message):
        ItemMap.load(tmp_path / FILE, 2)
