"""Where the marks of a chart are, for the templates that draw it as inline SVG.

Places are percentages of the width or the height, so that a chart fits a phone and a sheet of paper without scaling
its text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

MOST_POINTS = 300
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """An axis with round ticks.

    Attributes:
        low: Value at the beginning.
        high: Value at the end.
        ticks: Values that are written, ascending.
        decimals: Decimals of a written tick.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    decimals: int

    @classmethod
    def over(cls, values: Iterable[float], *, ticks: int = 4, whole: bool = False) -> Scale:
        """Return an axis on which all finite values have a place.

        Args:
            values: The values; without any the axis is from 0 to 1.
            ticks: About how many ticks.
            whole: Whether only whole numbers are written.

        Example:
            >>> scale = Scale.over([0.03, 0.11])
            >>> scale.ticks, scale.at(0.11), scale.label(0.1)
            ((0.02, 0.04, 0.06, 0.08, 0.1, 0.12), 90.0, '0.10')
        """
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        least, most = min(finite), max(finite)
        if least == most:
            least, most = least - (abs(least) or 1) / 2, most + (abs(most) or 1) / 2
        wanted = max((most - least) / ticks, 1.0 if whole else 0.0)
        power = 10.0 ** math.floor(math.log10(wanted))
        step = next(one * power for one in _STEPS if one * power >= wanted - 1e-12 and not (whole and one * power % 1))
        first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
        marks = tuple(round(place * step, 12) for place in range(first, last + 1))
        decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (round(step / power, 3) == 2.5))
        return cls(marks[0], marks[-1], marks, decimals)

    def at(self, value: float) -> float:
        """Return the place of a value, in percent from the beginning of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def label(self, tick: float) -> str:
        """Return a tick as it is written."""
        return f"{tick:,.{self.decimals}f}"


@dataclass(frozen=True)
class Line:
    """A polyline.

    Attributes:
        name: What it shows.
        points: Places from the left and from the top, in percent.
    """

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def segments(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """The pieces between two points; SVG takes percentages for these and not for a polyline."""
        return list(pairwise(self.points))


def line(name: str, points: Iterable[tuple[float, float]], across: Scale, up: Scale) -> Line:
    """Return a line through points, of very many through some of them, the last one included.

    Args:
        name: What it shows.
        points: Pairs of values.
        across: The axis of the first ones.
        up: The axis of the second ones.
    """
    known = [(x, y) for x, y in points if math.isfinite(y)]
    stride = math.ceil(len(known) / MOST_POINTS) or 1
    kept = known[::-1][::stride][::-1]
    return Line(name, tuple((across.at(x), round(100 - up.at(y), 2)) for x, y in kept))
