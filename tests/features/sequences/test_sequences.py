"""Jagged sequences against plain Python lists, and in blocks and on disk against those that are at once in memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.sequences import sequences as sequences_module
from features.sequences.ragged import offsets_of, ragged_arange
from features.sequences.sequences import Queries, Sequences, SequencesOf
from features.sequences.split import leave_one_out

histories = st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=6)


def sequences_of(rows: list[list[int]]) -> Sequences:
    events = np.array([item for row in rows for item in row], dtype=np.int64)
    offsets = offsets_of(np.array([len(row) for row in rows]))
    return Sequences(np.arange(len(rows)), offsets, events, np.arange(len(events)), is_ordered=True)


def rows_of(sequences: Sequences) -> list[list[int]]:
    return [sequences.items_of(user).tolist() for user in range(len(sequences))]


@given(histories, st.data())
def test_take_returns_the_users_asked_for_in_that_order(rows: list[list[int]], data: st.DataObject) -> None:
    users = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = sequences_of(rows).take(np.array(users, dtype=np.int64))
    assert rows_of(taken) == [rows[user] for user in users]
    assert taken.user_ids.tolist() == users
    assert taken.times is not None
    assert len(taken.times) == taken.num_events


@given(histories, st.integers(1, 7))
def test_last_keeps_the_newest_events_of_each_user(rows: list[list[int]], length: int) -> None:
    assert rows_of(sequences_of(rows).last(length)) == [row[-length:] for row in rows]


@given(histories, st.data())
def test_keep_drops_events_and_no_user(rows: list[list[int]], data: st.DataObject) -> None:
    total = sum(map(len, rows))
    kept = data.draw(st.lists(st.booleans(), min_size=total, max_size=total))
    flags = iter(kept)
    expected = [[item for item in row if next(flags)] for row in rows]
    assert rows_of(sequences_of(rows).keep(np.array(kept, dtype=bool))) == expected


@given(histories)
def test_first_visits_are_those_whose_item_the_user_has_not_had_before(rows: list[list[int]]) -> None:
    expected = [item not in row[:place] for row in rows for place, item in enumerate(row)]
    assert sequences_of(rows).first_visits().tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=6))
def test_ragged_arange_counts_up_from_each_start(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = np.array([p[0] for p in pairs], int), np.array([p[1] for p in pairs], int)
    expected = [start + step for start, length in pairs for step in range(length)]
    assert ragged_arange(starts, lengths).tolist() == expected


def test_questions_are_taken_with_their_answers() -> None:
    questions = Queries(sequences_of([[1], [2, 3], []]), np.array([0, 1, 3, 4]), np.array([7, 8, 9, 6]), np.arange(3))
    taken = questions.take(np.array([2, 1]))
    assert taken.target_rows.tolist() == [6, 8, 9]
    assert taken.target_offsets.tolist() == [0, 1, 3]
    assert rows_of(taken.history) == [[], [2, 3]]
    assert taken.times is not None
    assert taken.times.tolist() == [2, 1]


def many(folder: Path | None = None, *, is_ordered: bool = True) -> Sequences:
    """Some users' events, on disk if there is a folder."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 40)
    offsets = offsets_of(lengths)
    item_rows, times = rng.integers(0, 25, offsets[-1]), rng.integers(1_600_000_000, 1_600_000_050, offsets[-1])
    times = times[np.lexsort((times, np.repeat(np.arange(40), lengths)))]
    sequences = Sequences(np.arange(40), offsets, item_rows, times, is_ordered)
    if folder is None:
        return sequences
    on_disk = SequencesOf(replace(sequences, folder=folder))
    on_disk.append(sequences)
    return on_disk.whole()


def assert_same(one: Sequences, other: Sequences) -> None:
    assert one.user_ids.tolist() == other.user_ids.tolist()
    assert one.offsets.tolist() == other.offsets.tolist()
    assert one.item_rows.tolist() == other.item_rows.tolist()
    assert one.times.tolist() == other.times.tolist()


@pytest.mark.parametrize("is_ordered", [True, False])
def test_what_is_made_in_blocks_and_on_disk_is_what_is_made_at_once(monkeypatch, tmp_path, is_ordered):
    whole = many(is_ordered=is_ordered)
    expected = [leave_one_out(whole, 25, test=test, seed=3) for test in (True, False)]
    counts, mixed = whole.item_counts(25), whole.shuffled(np.random.default_rng(5))
    doubled = whole.with_item_rows(lambda block: block.item_rows * 2)
    monkeypatch.setattr(sequences_module, "BLOCK_EVENTS", 10)
    for found in (whole, many(tmp_path / "prepared", is_ordered=is_ordered)):
        blocks = list(found.blocks())
        assert len(blocks) > 5
        assert sum(len(block) for block in blocks) == 40
        assert max(block.num_events for block in blocks) <= 10
        assert found.item_counts(25).tolist() == counts.tolist()
        assert_same(found.shuffled(np.random.default_rng(5)), mixed)
        assert_same(found.with_item_rows(lambda block: block.item_rows * 2), doubled)
        for one, test in zip(expected, (True, False), strict=True):
            split = leave_one_out(found, 25, test=test, seed=3)
            assert_same(split.train, one.train)
            assert split.candidates.tolist() == one.candidates.tolist()
            for queries, those in ((split.validation, one.validation), *([(split.test, one.test)] if test else [])):
                assert_same(queries.history, those.history)
                assert queries.target_offsets.tolist() == those.target_offsets.tolist()
                assert queries.target_rows.tolist() == those.target_rows.tolist()
                assert queries.times.tolist() == those.times.tolist()
    assert not list(tmp_path.iterdir()), "files on disk have no name and go with their arrays"
