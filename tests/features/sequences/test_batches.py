"""Batches: every target once per epoch, the same batch whenever it is asked for again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.sequences import batches as batches_module
from features.sequences import sequences as sequences_module
from features.sequences.batches import SequenceBatch, TrainingBatches
from features.sequences.ragged import offsets_of
from features.sequences.seen_items import EXCLUDE, SeenItems
from features.sequences.sequences import Sequences, SequencesOf

rows = st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=10)


def batches_of(
    histories: list[list[int]], history: int = 5, ordered: bool = True, recommend_seen: bool = False, size: int = 16
) -> TrainingBatches:
    events = np.array([item for row in histories for item in row], dtype=np.int64)
    offsets = offsets_of(np.array([len(row) for row in histories]))
    sequences = Sequences(np.arange(len(histories)), offsets, events, np.arange(len(events)), is_ordered=ordered)
    return TrainingBatches(sequences, history=history, batch_size=size, seen_items=SeenItems.of(recommend_seen), seed=3)


def users_of(batch: SequenceBatch) -> list[tuple[int, list[int], list[bool], list[int]]]:
    cuts, known = batch.offsets.tolist(), batch.known_offsets.tolist()
    return [
        (
            user,
            batch.item_rows[cuts[place] : cuts[place + 1]].tolist(),
            batch.is_target[cuts[place] : cuts[place + 1]].tolist(),
            batch.known_rows[known[place] : known[place + 1]].tolist(),
        )
        for place, user in enumerate(batch.users.tolist())
    ]


@given(rows, st.integers(1, 6), st.booleans())
def test_an_epoch_holds_every_user_once_with_his_newest_events(
    histories: list[list[int]], history: int, recommend_seen: bool
) -> None:
    batches = batches_of(histories, history, recommend_seen=recommend_seen)
    seen = {}
    for batch in batches.epoch(0):
        for user, items, targets, known in users_of(batch):
            seen[user] = items
            whole = histories[user]
            assert known == whole
            assert items == whole[-(history + 1) :]
            new = [recommend_seen or item not in whole[:place] for place, item in enumerate(whole)][-len(items) :]
            if len(whole) > history + 1:
                new[0] = False  # what came before it is not read, so it cannot be predicted as a first event
            assert targets == new
    assert sorted(seen) == [user for user, whole in enumerate(histories) if whole]


@given(rows, st.data())
def test_an_epoch_goes_on_from_any_batch_as_if_it_had_not_stopped(
    histories: list[list[int]], data: st.DataObject
) -> None:
    batches = batches_of(histories)
    whole = list(batches.epoch(4))
    start = data.draw(st.integers(0, len(whole)))
    rest = list(batches_of(histories).epoch(4, start))
    assert len(rest) == len(whole) - start
    assert batches.num_batches(4) == len(whole)
    for early, late in zip(whole[start:], rest, strict=True):
        assert torch.equal(early.item_rows, late.item_rows)
        assert torch.equal(early.users, late.users)


@given(rows)
def test_batches_are_as_full_as_allowed_and_no_fuller(histories: list[list[int]]) -> None:
    for batch in batches_of(histories, size=8).epoch(0):
        assert len(batch.item_rows) <= 8 or len(batch.users) == 1


def test_what_is_yet_to_come_is_drawn_from_the_targets_that_are_left() -> None:
    histories = [[0, 1, 0, 2, 3, 4], [7, 7, 8]]
    events = np.concatenate(histories)
    times = np.arange(100, 109)
    sequences = Sequences(np.arange(2), offsets_of(np.array([6, 3])), events, times, is_ordered=True)
    batches = TrainingBatches(sequences, history=5, batch_size=16, seen_items=EXCLUDE, seed=0, targets="future")
    seen: dict[tuple[int, int], set[int]] = {}
    for epoch in range(60):
        (batch,) = batches.epoch(epoch)
        assert batch.answer_rows is not None
        assert batch.request_times is not None
        assert np.array_equal(events[batch.request_times - 100], batch.answer_rows)
        assert (batch.request_times >= batch.times).all()
        cuts = batch.offsets.tolist()
        for place, user in enumerate(batch.users.tolist()):
            here = slice(cuts[place], cuts[place + 1])
            for event, (is_target, answer) in enumerate(
                zip(batch.is_target[here], batch.answer_rows[here], strict=True)
            ):
                if is_target:
                    seen.setdefault((user, event), set()).add(int(answer))
    assert seen == {
        (0, 0): {0, 1, 2, 3, 4},
        (0, 1): {1, 2, 3, 4},
        (0, 3): {2, 3, 4},
        (0, 4): {3, 4},
        (0, 5): {4},
        (1, 0): {7, 8},
        (1, 2): {8},
    }
    (again,) = batches.epoch(59)
    assert torch.equal(batch.answer_rows, again.answer_rows)


def test_of_shuffled_data_the_first_part_is_shown_and_the_rest_predicted() -> None:
    lengths = [10, 1, 3]
    sequences = Sequences(np.arange(3), offsets_of(np.array(lengths)), np.arange(14), None, is_ordered=False)
    batches = TrainingBatches(sequences, history=50, batch_size=99, seen_items=EXCLUDE, seed=0, history_fraction=0.5)
    for epoch in range(3):
        (batch,) = batches.epoch(epoch)
        counts = {
            user: batch.is_target[start:end].tolist()
            for user, start, end in zip(
                batch.users.tolist(), batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True
            )
        }
        assert counts == {0: [False] * 5 + [True] * 5, 1: [True], 2: [False, True, True]}


def test_data_without_an_order_is_shuffled_anew_in_each_epoch_and_loses_nothing() -> None:
    histories = [list(range(8)), list(range(8))]
    batches = batches_of(histories, history=20, ordered=False)
    first, second = ([items for batch in batches.epoch(e) for _, items, _, _ in users_of(batch)] for e in (0, 1))
    assert first != second
    assert all(sorted(items) == list(range(8)) for items in first + second)
    assert first[0] != first[1]


def test_epochs_deal_users_in_different_orders() -> None:
    histories = [[user] for user in range(10)]
    orders = [[u for batch in batches_of(histories).epoch(e) for u in batch.users.tolist()] for e in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("is_ordered", [True, False])
def test_very_many_events_are_dealt_part_by_part_from_disk_as_from_memory(monkeypatch, tmp_path, is_ordered):
    monkeypatch.setattr(batches_module, "POOL_EVENTS", 40)
    monkeypatch.setattr(batches_module, "POOL_PARTS", 4)
    monkeypatch.setattr(sequences_module, "BLOCK_EVENTS", 30)
    lengths = np.random.default_rng(0).integers(0, 7, 120)
    offsets = offsets_of(lengths)
    rows = np.random.default_rng(1).integers(0, 50, offsets[-1])
    in_memory = Sequences(np.arange(120), offsets, rows, np.arange(len(rows)), is_ordered)
    spooled = SequencesOf(replace(in_memory, folder=tmp_path / "prepared"))
    spooled.append(in_memory)
    kinds = [
        TrainingBatches(one, history=5, batch_size=16, seen_items=EXCLUDE, seed=3)
        for one in (in_memory, spooled.whole())
    ]
    for epoch in (0, 1):
        batches, others = ([*map(users_of, kind.epoch(epoch))] for kind in kinds)
        assert batches == others
        assert len(batches) == kinds[0].num_batches(epoch)
        assert [*map(users_of, kinds[1].epoch(epoch, 7))] == batches[7:]
        dealt = [user for batch in batches for user, *_ in batch]
        assert sorted(dealt) == np.flatnonzero(lengths).tolist(), "every user once"
        # What is dealt together comes from four parts of ten events at most.
        pool = {int(offsets[user]) // 10 for user in dealt[:10]}
        assert len(pool) <= 5
        assert dealt != sorted(dealt)
    assert [*map(users_of, kinds[0].epoch(0))] != [*map(users_of, kinds[0].epoch(1))]
