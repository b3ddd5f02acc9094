"""Axes of charts: every value has a place on them, and the ticks are round and apart."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.charts import MOST_POINTS, Scale, line

FINITE = st.floats(-1e9, 1e9, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(st.lists(FINITE, max_size=20), st.booleans())
def test_every_value_is_on_the_axis_and_every_tick_reads_differently(values: list[float], whole: bool):
    scale = Scale.over([*values, float("nan")], whole=whole)
    assert all(-0.01 <= scale.at(value) <= 100.01 for value in values)
    assert 2 <= len(scale.ticks) <= 8
    labels = [scale.label(tick) for tick in scale.ticks]
    assert len(set(labels)) == len(labels)
    if whole:
        assert all(float(tick).is_integer() for tick in scale.ticks)


def test_a_long_line_is_thinned_and_keeps_its_end():
    across, up = Scale.over([0, 10_000]), Scale.over([0, 1])
    drawn = line("loss", [(step, 1 - step / 10_000) for step in range(10_001)], across, up)
    assert len(drawn.points) <= MOST_POINTS
    assert drawn.points[-1] == (100.0, 100.0)
    assert np.all(np.diff([x for x, _ in drawn.points]) > 0)
    assert len(drawn.segments) == len(drawn.points) - 1
