"""Recent popularity is what an obvious loop counts, and never knows what comes later."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.sequences.ragged import offsets_of
from features.sequences.sequences import UNKNOWN_TIME, Sequences
from features.sequences.timeline import Timeline
from features.sequences.trend import STEPS, ItemTrend

DAY = 86_400
NUM_ITEMS = 4
HALF_LIVES = (0.5, 3.0)

events = st.lists(st.tuples(st.integers(0, NUM_ITEMS - 1), st.integers(0, 20 * DAY)), min_size=1, max_size=40)


def timeline_of(rows: list[int], times: list[int]) -> Timeline:
    sequences = Sequences(
        np.array([1]), offsets_of(np.array([len(rows)])), np.array(rows, int), np.array(times, int), is_ordered=True
    )
    timeline = Timeline.of(sequences)
    assert timeline is not None
    return timeline


def counted(rows: list[int], times: list[int], moment: int, levels: np.ndarray) -> np.ndarray:
    """The numbers at a moment, from the definition."""
    numbers = np.zeros((len(HALF_LIVES), NUM_ITEMS))
    for place, half_life in enumerate(HALF_LIVES):
        counts = np.zeros(NUM_ITEMS)
        for row, time in zip(rows, times, strict=True):
            if time < moment:
                counts[row] += 0.5 ** ((moment - time) / (half_life * DAY))
        if counts.sum():
            scaled = counts * levels[place] / counts.sum()
            numbers[place] = [math.log1p(count) / math.log1p(levels[place]) for count in scaled]
    return numbers


@given(events, st.lists(st.integers(-DAY, 25 * DAY), min_size=1, max_size=6, unique=True))
def test_numbers_are_those_of_an_obvious_loop(events: list[tuple[int, int]], moments: list[int]) -> None:
    rows, times = map(list, zip(*events, strict=True))
    trend = ItemTrend(timeline_of(rows, times), NUM_ITEMS, HALF_LIVES)
    asked = np.sort(np.array(moments))
    numbers = trend.numbers(asked)
    assert numbers.shape == (len(HALF_LIVES), len(asked), NUM_ITEMS)
    for place, moment in enumerate(asked.tolist()):
        expected = counted(rows, times, moment, trend.levels)
        assert np.abs(numbers[:, place] / STEPS - expected).max() <= 0.501 / STEPS, "rounded to the nearest step"
    some = np.array([2, 0])
    assert np.array_equal(trend.numbers(asked, some), numbers[:, :, some])


@given(events, events, st.integers(0, 20 * DAY))
def test_nothing_that_is_not_before_a_request_changes_its_numbers(
    before: list[tuple[int, int]], after: list[tuple[int, int]], request: int
) -> None:
    """Events at the very second of the request are not before it either."""
    levels = np.array([7.0, 30.0])

    def numbers(later: list[tuple[int, int]]) -> np.ndarray:
        rows, times = zip(*[(row, time - 20 * DAY + request - 1) for row, time in before], *later, strict=True)
        trend = ItemTrend(timeline_of(list(rows), list(times)), NUM_ITEMS, HALF_LIVES, levels)
        return trend.numbers(trend.moments(np.array([request])))

    later = [(row, request + time) for row, time in after]
    assert np.array_equal(numbers([]), numbers(later))
    assert np.array_equal(numbers(later[:1]), numbers(later[1:]))


def test_numbers_do_not_depend_on_how_much_traffic_there_is_nor_on_how_long_ago_it_was() -> None:
    rows, times = [0, 0, 1, 2, 2, 2], [0, DAY, DAY, DAY, 2 * DAY, 2 * DAY]
    levels = np.array([5.0, 20.0])
    once = ItemTrend(timeline_of(rows, times), NUM_ITEMS, HALF_LIVES, levels)
    thrice = ItemTrend(timeline_of(rows * 3, times * 3), NUM_ITEMS, HALF_LIVES, levels)
    assert once.end == 2 * DAY + 1
    at_end = once.numbers(np.array([once.end]))
    assert np.array_equal(at_end, thrice.numbers(np.array([once.end])))
    assert np.array_equal(at_end, once.numbers(np.array([900 * DAY])))
    assert at_end[0, 0, 2] > at_end[0, 0, 0] > at_end[0, 0, 3] == 0


def test_a_request_gets_the_numbers_of_the_last_moment_of_the_grid() -> None:
    trend = ItemTrend(timeline_of([0, 1], [0, DAY]), NUM_ITEMS, (1.0, 7.0))
    assert trend.step == DAY // 8
    asked = np.array([0, trend.step - 1, trend.step, UNKNOWN_TIME])
    moments = trend.moments(asked)
    assert moments[:3].tolist() == [0, 0, trend.step]
    assert not trend.numbers(moments[3:]).any(), "at an unknown time nothing is known"


def test_events_without_a_time_do_not_count_and_there_may_be_none() -> None:
    timeline = timeline_of([0, 1, 1], [DAY, UNKNOWN_TIME, UNKNOWN_TIME])
    numbers = ItemTrend(timeline, NUM_ITEMS, HALF_LIVES).numbers(np.array([2 * DAY]))
    assert (numbers[:, 0] > 0).tolist() == [[True, False, False, False]] * 2
    empty = ItemTrend(timeline_of([0, 1], [UNKNOWN_TIME] * 2), NUM_ITEMS, HALF_LIVES)
    assert empty.end == 0
    assert not empty.numbers(np.array([2 * DAY])).any()
