"""Jagged sequences against plain Python lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.sequences.ragged import offsets_of, ragged_arange
from features.sequences.sequences import Queries, Sequences

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
