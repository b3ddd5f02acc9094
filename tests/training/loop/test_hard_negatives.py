"""Hard negatives against a search of the obvious kind, one user at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.sequences.batches import SequenceBatch
from training.loop import hard_negatives as mining
from training.loop.hard_negatives import _nearest, mining_notes, pool_size


def batch_of(histories: list[list[int]]) -> SequenceBatch:
    offsets = torch.tensor([0, *np.cumsum([len(rows) for rows in histories]).tolist()])
    rows = torch.tensor([row for rows in histories for row in rows])
    return SequenceBatch(
        users=torch.arange(len(histories)),
        offsets=offsets,
        item_rows=rows,
        times=None,
        is_target=torch.ones(len(rows), dtype=torch.bool),
        known_offsets=offsets,
        known_rows=rows,
    )


def slowly(
    scores: np.ndarray, history: list[int], pool: list[int], per_user: int, skip: int, below: float | None
) -> list[int]:
    """In the words of the docstring: of the pool, not known, not too near, hardest first, without the first few."""
    own = scores[history[-1]]
    limit = np.inf if below is None else own - (1 - below) * abs(own)
    order = [row for row in np.argsort(-scores).tolist() if row in pool and row not in history and scores[row] <= limit]
    return (order[skip : skip + per_user] + [-1] * per_user)[:per_user]


@given(
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=6), min_size=1, max_size=6),
    st.integers(1, 14),
    st.integers(0, 4),
    st.sampled_from([None, 0.5, 0.95, 1.0]),
    st.integers(1, 60),
    st.integers(0, 99),
    st.sets(st.integers(0, 11), min_size=1).map(sorted) | st.just(list(range(12))),
)
def test_the_hardest_items_are_those_of_a_slow_search(
    histories: list[list[int]],
    per_user: int,
    skip: int,
    below: float | None,
    cells: int,
    seed: int,
    searched: list[int],
) -> None:
    pool = torch.tensor(searched)
    generator = torch.Generator().manual_seed(seed)
    states, vectors = torch.randn(len(histories), 3, generator=generator), torch.randn(12, 3, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "BLOCK_CELLS", cells)
        found = _nearest(states, vectors, batch_of(histories), pool, per_user, skip, below)
    scores = (states @ vectors.T).numpy()
    expected = [slowly(scores[user], rows, searched, per_user, skip, below) for user, rows in enumerate(histories)]
    assert found.tolist() == expected


def test_a_copy_of_the_positive_does_not_come_first() -> None:
    # The user's newest item is 2; item 3 is the same to the last bit. With the filter it counts as liked.
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.8, 0.6]])
    states = torch.tensor([[0.8, 0.6]])
    assert _nearest(states, vectors, batch_of([[0, 2]]), torch.arange(4), 2, 0, None).tolist() == [[3, 1]]
    assert _nearest(states, vectors, batch_of([[0, 2]]), torch.arange(4), 2, 0, 0.98).tolist() == [[1, -1]]


def test_no_more_pairs_are_scored_than_allowed_whatever_the_number_of_users_and_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pool_size(50_000, 400_000) == 400_000, "what is small enough is searched as a whole"
    assert mining_notes(50_000, 400_000) == []
    for num_users, num_items in ((60_000, 400_000), (1_000_000, 1_000_000), (2_000_000, 10**8)):
        assert num_users * pool_size(num_users, num_items) <= mining.MOST_PAIRS
    assert pool_size(10**8, 10**8) == mining.LEAST_POOL, "then it grows with the users alone"
    monkeypatch.setattr(mining, "MOST_PAIRS", 120)
    monkeypatch.setattr(mining, "LEAST_POOL", 3)
    assert pool_size(10, 1_000) == 12
    (note,) = mining_notes(10, 1_000)
    assert "of the 10 users are mined from 12 of the 1,000 items" in note
