from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.search import brute_force as exact_module
from serving.search import top_scores as top_module
from serving.search.brute_force import BruteForce
from serving.search.results import AllowedItems, ExcludedPairs
from serving.search.top_scores import scores_of, top_scores
from tests.serving.vectors import by_hand, ragged, some_allowed, unit_vectors

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def answers(vectors, queries, k, excluded=None, allowed=None, device="cpu"):
    barred = ExcludedPairs.of(ragged(excluded) if excluded else None, len(queries), len(vectors), allowed)
    available = len(vectors) if allowed is None else len(allowed)
    needed = np.minimum(k, available - barred.counts)
    found = BruteForce(vectors, device).best(queries, np.arange(len(queries)), needed, barred, allowed)
    return [rows.tolist() for rows, _ in found]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_items=st.integers(1, 120), k=st.integers(0, 150), num_users=st.integers(0, 5))
def test_finds_exactly_the_best_of_what_is_allowed_and_not_excluded(data, num_items, k, num_users):
    vectors = unit_vectors(num_items, width=4, seed=num_items)
    queries = unit_vectors(5, width=4, seed=7)[:num_users]
    excluded = [data.draw(st.lists(st.integers(0, num_items - 1), max_size=150)) for _ in range(num_users)]
    allowed = AllowedItems(np.array(data.draw(st.lists(st.booleans(), min_size=num_items, max_size=num_items))))
    expected = [by_hand(vectors, queries[user], k, excluded[user], allowed) for user in range(num_users)]
    assert answers(vectors, queries, k, excluded, allowed) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.7, 1])
def test_blocks_of_users_and_items_change_nothing(monkeypatch, share, device):
    vectors, queries = unit_vectors(700), unit_vectors(23, seed=1)
    allowed = some_allowed(700, share)
    excluded = [np.arange(user * 20) for user in range(23)]
    whole = answers(vectors, queries, 12, excluded, allowed, device)
    monkeypatch.setattr(exact_module, "_CELLS", 500)
    monkeypatch.setattr(exact_module, "_MOST_USERS", 5)
    assert answers(vectors, queries, 12, excluded, allowed, device) == whole
    assert whole == [by_hand(vectors, queries[user], 12, excluded[user], allowed) for user in range(23)]


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_copies_of_an_item_come_in_the_order_of_their_rows_however_many(share):
    vectors, query = unit_vectors(2000, width=64), unit_vectors(1, width=64, seed=1)
    allowed = some_allowed(2000, share)
    copies = allowed.rows[::2]
    vectors[copies] = query[0]
    assert answers(vectors, query, 30, None, allowed) == [copies[:30].tolist()]


def test_nothing_allowed_finds_nothing():
    assert answers(unit_vectors(50), unit_vectors(3, seed=1), 5, None, AllowedItems(np.zeros(50, bool))) == [[], [], []]


def test_memory_does_not_grow_with_users_and_items(monkeypatch):
    shapes = []

    def recording(queries, items, *rest):
        shapes.append((len(queries), len(items)))
        return top_scores(queries, items, *rest)

    monkeypatch.setattr(exact_module, "top_scores", recording)
    monkeypatch.setattr(exact_module, "_CELLS", 10_000)
    answers(unit_vectors(30_000, width=4), unit_vectors(50, width=4, seed=1), 10)
    assert max(users * items for users, items in shapes) <= 10_000


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(1, 700),
    count=st.integers(1, 30),
    num_queries=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_highest_scores_are_those_of_all_scores_whatever_tiles_and_groups(num_items, count, num_queries, seed):
    rng = np.random.default_rng(seed)
    # Of few different numbers, so that there are ties.
    queries, items = (
        torch.from_numpy(rng.integers(-2, 3, size=(rows, 3)).astype(np.float32)) for rows in (num_queries, num_items)
    )
    count = min(count, num_items)
    closed = torch.from_numpy(rng.random(num_items) < 0.3) if seed % 2 else None
    barred = None
    if num_queries and seed % 3:
        barred = tuple(torch.from_numpy(rng.integers(0, most, size=40)) for most in (num_queries, num_items))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_module, "_GROUP", 4)
        patch.setattr(top_module, "_TILE_CELLS", 50)
        highest, places = top_scores(queries, items, count, closed, barred)
    every = scores_of(queries, items, closed, barred)
    assert highest.tolist() == every.sort(dim=1, descending=True).values[:, :count].tolist()
    assert every.gather(1, places).tolist() == highest.tolist()
    assert all(len(set(row)) == count for row in places.tolist())
