"""What was known of the items at a moment."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.sequences.sequences import UNKNOWN_TIME, Sequences
from features.sequences.split import cold_items, held_out_users, leave_one_out, time_split
from features.sequences.timeline import Timeline

moments = st.one_of(st.integers(0, 20), st.just(UNKNOWN_TIME))


@given(
    st.lists(st.tuples(moments, st.integers(0, 3)), max_size=12),
    st.lists(moments, min_size=1, max_size=6),
    st.sampled_from([1.0, 4.0, math.inf]),
)
def test_counts_are_those_of_the_window_that_ends_at_the_moment(
    events: list[tuple[int, int]], asked: list[int], seconds: float
):
    times, rows = (np.array([event[place] for event in events], dtype=np.int64) for place in (0, 1))
    timeline = Timeline.of(Sequences(np.arange(1), np.array([0, len(events)]), rows, times, is_ordered=True))
    expected = [
        [
            sum(row == item and moment - seconds <= time < moment and time >= 0 for time, row in events)
            for item in range(4)
        ]
        for moment in asked
    ]
    assert timeline.counts(np.array(asked), seconds, num_items=4).tolist() == expected


def test_a_split_does_not_know_what_was_taken_out_of_it():
    rng = np.random.default_rng(0)
    lengths = np.full(40, 12)
    events = Sequences(
        np.arange(40), np.append(0, lengths.cumsum()), rng.integers(0, 30, 480), rng.integers(0, 10**6, 480), True
    )
    events.times.reshape(40, 12).sort(axis=1)
    assert len(leave_one_out(events, 30).timeline.times) == len(time_split(events, 30).timeline.times) == 480
    users = held_out_users(events, 30)
    assert len(users.timeline.times) == users.train.num_events < 480
    cold = cold_items(events, 30)
    assert not np.isin(cold.timeline.item_rows, [*cold.test.target_rows, *cold.validation.target_rows]).any()
