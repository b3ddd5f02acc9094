"""Incremental training predicts each new event once per epoch, and of the old ones those of some users."""

from __future__ import annotations

import numpy as np
import pytest

from features.sequences.batches import TrainingBatches
from features.sequences.ragged import offsets_of
from features.sequences.replay import Replay
from features.sequences.seen_items import EXCLUDE, REPEAT, SeenItems
from features.sequences.sequences import Sequences
from training.loop.negatives import target_shares

NUM_ITEMS = 40


@pytest.fixture
def sequences() -> Sequences:
    """Two hundred users with 1 to 12 events; items repeat, and an event has the number of its place as time."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 13, 200)
    rows = rng.integers(0, NUM_ITEMS, lengths.sum())
    return Sequences(np.arange(200), offsets_of(lengths), rows, np.arange(len(rows)), is_ordered=True)


@pytest.fixture
def is_new(sequences: Sequences) -> np.ndarray:
    """The last two events of every fifth user."""
    from_end = np.repeat(sequences.offsets[1:], sequences.lengths) - np.arange(sequences.num_events)
    return (from_end <= 2) & (sequences.event_users % 5 == 0)


def batches_of(sequences: Sequences, replay: Replay, seen_items: SeenItems, history: int = 6) -> TrainingBatches:
    return TrainingBatches(sequences, history=history, batch_size=32, seen_items=seen_items, seed=0, replay=replay)


@pytest.mark.parametrize("seen_items", [EXCLUDE, REPEAT], ids=["new items", "repeats"])
def test_each_new_event_is_predicted_and_no_batch_is_without_a_target(sequences, is_new, seen_items) -> None:
    plain = TrainingBatches(sequences, history=6, batch_size=32, seen_items=seen_items, seed=0)
    possible = {int(time) for batch in plain.epoch(0) for time in batch.times[batch.is_target]}
    batches = batches_of(sequences, Replay.of(is_new, 2.0), seen_items)
    for epoch in range(3):
        drawn = list(batches.epoch(epoch))
        assert len(drawn) == batches.num_batches(epoch)
        assert all(bool(batch.is_target.any()) for batch in drawn)
        targets = [int(time) for batch in drawn for time in batch.times[batch.is_target]]
        assert len(targets) == len(set(targets))
        assert set(np.flatnonzero(is_new).tolist()) & possible <= set(targets) <= possible
        old_users = sequences.event_users[sorted(set(targets) - set(np.flatnonzero(is_new).tolist()))]
        for user in np.unique(old_users):  # of a user who is drawn, all
            own = range(sequences.offsets[user], sequences.offsets[user + 1])
            assert set(own) & possible <= set(targets)


def test_about_as_many_old_events_are_replayed_as_wanted(sequences, is_new) -> None:
    batches = batches_of(sequences, Replay.of(is_new, 3.0), REPEAT, history=20)
    old = [
        sum(not is_new[time] for batch in batches.epoch(epoch) for time in batch.times[batch.is_target].tolist())
        for epoch in range(30)
    ]
    assert np.mean(old) == pytest.approx(3 * is_new.sum(), rel=0.1)
    assert len(set(old)) > 1, "each epoch draws anew"
    assert not any(
        (~is_new)[batch.times[batch.is_target].numpy()].any()
        for batch in batches_of(sequences, Replay.of(is_new, 0.0), REPEAT).epoch(0)
    )


def test_the_expected_share_of_each_item_is_that_of_many_epochs(sequences, is_new) -> None:
    batches = batches_of(sequences, Replay.of(is_new, 3.0), EXCLUDE)
    counts = np.zeros(NUM_ITEMS)
    for epoch in range(60):
        for batch in batches.epoch(epoch):
            counts += np.bincount(batch.item_rows[batch.is_target].numpy(), minlength=NUM_ITEMS)
    expected = target_shares(batches, NUM_ITEMS).numpy()
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.01)


def test_without_an_order_all_items_of_a_user_with_new_ones_are_predicted(sequences, is_new) -> None:
    unordered = Sequences(sequences.user_ids, sequences.offsets, sequences.item_rows, sequences.times, is_ordered=False)
    batches = batches_of(unordered, Replay.of(is_new, 0.0), REPEAT, history=20)
    users = sorted(int(user) for batch in batches.epoch(0) for user in batch.users)
    assert users == list(range(0, 200, 5))
    assert all(bool(batch.is_target.all()) for batch in batches.epoch(0))
