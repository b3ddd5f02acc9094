"""A batch is divided among processes without overlap and without loss, whatever its sequences are."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.sequences.batches import SequenceBatch
from training.distributed.batch_division import divide_evenly, share_of
from training.loop.negatives import MaskedPairs, Targets

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def batch_of(lengths: list[int], seed: int) -> SequenceBatch:
    """A batch of sequences with random items and targets; each event is an item of its own."""
    rng = np.random.default_rng(seed)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    rows = torch.arange(int(offsets[-1]))
    is_target = torch.from_numpy(rng.random(len(rows)) < 0.7)
    return SequenceBatch(torch.arange(len(lengths)), offsets, rows, rows * 10, is_target, offsets, rows, rows + 1, None)


@settings(deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 6), seed=st.integers(0, 9))
def test_each_prediction_is_made_by_one_process_from_its_own_history(lengths: list[int], size: int, seed: int) -> None:
    targets = Targets.of(batch_of(lengths, seed))
    forbidden = MaskedPairs.of(targets, *targets.known)
    answered, users, weights, cells = [], [], 0.0, []
    for rank in range(size):
        share = share_of(targets, rank, size)
        batch, own = share.batch, targets.only(share.positives)
        assert len(own.rows) == len(share.places) == share.sizes[rank]
        assert torch.equal(batch.item_rows[share.places] + 1, own.rows)
        assert torch.equal(batch.times[share.places], own.places * 10)  # type: ignore[index]
        assert torch.equal(batch.known_rows, batch.item_rows)
        assert batch.offsets[0] == batch.known_offsets[0] == 0
        masked = forbidden.only(share.positives)
        cells += [
            masked.negatives[begin:end].tolist()
            for begin, end in zip(masked.starts[:-1].tolist(), masked.starts[1:].tolist(), strict=True)
        ]
        answered.append(own.rows)
        users += batch.users.tolist() if len(own.rows) else []
        weights += share.weight
    assert torch.equal(torch.cat(answered), targets.rows)
    assert len(users) == len(set(users))
    assert abs(weights - size) < 1e-9 or not len(targets.rows)
    whole = zip(forbidden.starts[:-1].tolist(), forbidden.starts[1:].tolist(), strict=True)
    assert cells == [forbidden.negatives[begin:end].tolist() for begin, end in whole]


@given(total=st.integers(0, 1000), size=st.integers(1, 16))
def test_things_are_divided_evenly(total: int, size: int) -> None:
    sizes = divide_evenly(total, size)
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1
