"""Which events are new since a training, against a list of all those that were trained on."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.sequences.trained_events import TrainedEvents

# Of each user: how many seconds after the one before each event is, and how many events were trained on.
histories = st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=8), st.integers(0, 8)), min_size=1, max_size=8)


def sequences_of(times: list[list[int]], *, timed: bool, first_user: int = 0) -> Sequences:
    events = np.array([time for own in times for time in own], dtype=np.int64)
    ids = np.array([f"user {first_user + place}" for place in range(len(times))], dtype=object)
    offsets = offsets_of(np.array([len(own) for own in times]))
    return Sequences(ids, offsets, np.zeros(len(events), np.int64), events if timed else None, is_ordered=timed)


@given(histories, st.booleans())
def test_all_but_what_was_trained_on_is_new(given_histories: list[tuple[list[int], int]], timed: bool) -> None:
    times = [np.cumsum(steps, dtype=np.int64).tolist() for steps, _ in given_histories]
    trained = [min(number, len(own)) for (_, number), own in zip(given_histories, times, strict=True)]
    earlier = sequences_of([own[:number] for own, number in zip(times, trained, strict=True)], timed=timed)
    whole = sequences_of([*times, [1, 2]], timed=timed)
    kept = TrainedEvents.of(earlier)
    again = TrainedEvents.from_arrays(kept.to_arrays())
    expected = [place >= number for own, number in zip(times, trained, strict=True) for place in range(len(own))]
    assert again.are_new(whole).tolist() == [*expected, True, True]  # the last user was not there


def test_events_that_left_the_table_do_not_make_others_new() -> None:
    trained = TrainedEvents.of(sequences_of([[1, 2, 3, 3]], timed=True))
    assert trained.are_new(sequences_of([[3, 3, 3, 4]], timed=True)).tolist() == [False, False, True, True]


def test_times_that_go_back_are_those_reached_so_far() -> None:
    trained = TrainedEvents.of(sequences_of([[5, 2]], timed=True))  # ordered by a position
    assert trained.are_new(sequences_of([[5, 2, 3, 6]], timed=True)).tolist() == [False, False, True, True]
