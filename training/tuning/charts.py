"""Pictures of a tuning, as points and paths for the SVG of its page; the page needs no script and no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from training.tuning.space import Space
from training.tuning.study import TrialRecord

WIDTH, HEIGHT = 960, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 30, 30, 50


@dataclass(frozen=True)
class Mark:
    """A trial in a picture.

    Attributes:
        points: Where it is, or the path through all axes, as SVG writes points.
        state: `complete`, `pruned` or `running`.
        shade: 0 to 1: how good it is among the trials of the picture.
        title: What is shown when the pointer is on it.
    """

    points: str
    state: str
    shade: float
    title: str


@dataclass(frozen=True)
class Axis:
    """A vertical axis.

    Attributes:
        name: The setting.
        place: Where it is, from the left.
        labels: Texts and how far they are from the top.
    """

    name: str
    place: float
    labels: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Chart:
    """A picture: trials as marks, axes, and a line.

    Attributes:
        marks: The trials, the best last, so that it is on top.
        axes: The axes.
        line: Points of the best so far; "" in a picture without it.
    """

    marks: tuple[Mark, ...]
    axes: tuple[Axis, ...]
    line: str = ""
    width: int = WIDTH
    height: int = HEIGHT


def history(records: Sequence[TrialRecord]) -> Chart:
    """Return the result of each trial in the order of their beginning, and the best so far."""
    shown = [one for one in records if one.value is not None]
    values = [one.value or 0.0 for one in shown]
    low, high = _limits(values)
    step = (WIDTH - _LEFT - _RIGHT) / max(len(shown) - 1, 1)
    places = [(_LEFT + step * place, _height(value, low, high)) for place, value in enumerate(values)]
    marks = [_mark([place], one, low, high) for place, one in zip(places, shown, strict=True)]
    best, corners = -math.inf, []
    for (x, _), value, one in zip(places, values, shown, strict=True):
        if one.state == "complete" and value > best:
            corners += [(x, _height(best, low, high))] if best > -math.inf else []
            best = value
        if best > -math.inf:
            corners.append((x, _height(best, low, high)))
    return Chart(tuple(marks), (Axis("validation N@10", _LEFT, _ends(low, high)),), _points(corners))


def parallel_coordinates(records: Sequence[TrialRecord], space: Space) -> Chart:
    """Return a path for each trial through its values, one axis for each setting and the last for its result."""
    shown = sorted((one for one in records if one.value is not None), key=lambda one: one.value or 0.0)
    low, high = _limits([one.value or 0.0 for one in shown])
    step = (WIDTH - _LEFT - _RIGHT) / max(len(space), 1)
    axes = [
        Axis(key.rpartition(".")[2], _LEFT + step * place, _labels(values))
        for place, (key, values) in enumerate(space.items())
    ]
    axes.append(Axis("N@10", WIDTH - _RIGHT, _ends(low, high)))
    marks = []
    for one in shown:
        heights = [_place_on(values, one.params[key]) for key, values in space.items()]
        heights.append(_height(one.value or 0.0, low, high))
        marks.append(_mark([(axis.place, height) for axis, height in zip(axes, heights, strict=True)], one, low, high))
    return Chart(tuple(marks), tuple(axes))


def _mark(places: Sequence[tuple[float, float]], one: TrialRecord, low: float, high: float) -> Mark:
    assert one.value is not None
    title = f"trial {one.number}: N@10 {one.value:.4f} ({'run.toml' if one.is_default else one.state})\n"
    title += said_values(one.params)
    return Mark(_points(places), one.state, round((one.value - low) / (high - low), 2), title)


def said_values(params: Mapping[str, object]) -> str:
    """Return the values of a trial in a line."""
    return ", ".join(f"{key.rpartition('.')[2]} = {said_value(value)}" for key, value in params.items())


def said_value(value: object) -> str:
    """Return a value of a setting; of a number four digits.

    Example:
        >>> said_value(0.00213456), said_value(3), said_value("[1, 7]")
        ('0.002135', '3', '[1, 7]')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _height(value: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)


def _ends(low: float, high: float) -> tuple[tuple[str, float], ...]:
    return ((f"{high:.4g}", _height(high, low, high)), (f"{low:.4g}", _height(low, low, high)))


def _labels(values: BaseDistribution) -> tuple[tuple[str, float], ...]:
    if isinstance(values, CategoricalDistribution):
        return tuple((str(choice).strip('"'), _place_on(values, choice)) for choice in values.choices)
    assert isinstance(values, FloatDistribution | IntDistribution)
    return tuple((f"{value:.3g}", _place_on(values, value)) for value in (values.high, values.low))


def _place_on(values: BaseDistribution, value: object) -> float:
    if isinstance(values, CategoricalDistribution):
        return _height(list(values.choices).index(value), 0, max(len(values.choices) - 1, 1))  # type: ignore[arg-type]
    assert isinstance(values, FloatDistribution | IntDistribution)
    assert isinstance(value, int | float)
    if values.log:
        return _height(math.log(value), math.log(values.low), math.log(values.high))
    return _height(value, values.low, values.high)
