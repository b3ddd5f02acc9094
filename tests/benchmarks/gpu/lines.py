"""A line of the report, and the comparisons that make one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Verdict = Literal["agrees", "DIFFERS", "measured", "skipped", "FAILED"]
BAD: tuple[Verdict, ...] = ("DIFFERS", "FAILED")


@dataclass(frozen=True)
class Line:
    """One finding of a step.

    Attributes:
        what: What was compared or measured.
        verdict: `measured` where there is nothing to agree with.
        value: The figure. None: there is none.
        unit: Of the figure and the bound; "" for shares and counts.
        bound: The largest difference, the smallest share, or the rate that follows from the sizes. None: none.
        note: What the bound follows from, or why a step was skipped or failed.
        step: Its name, set when it is reported.
    """

    what: str
    verdict: Verdict
    value: float | None = None
    unit: str = ""
    bound: float | None = None
    note: str = ""
    step: str = ""

    def of(self, step: str) -> Line:
        """Return the line as one of a step."""
        return replace(self, step=step)

    def __str__(self) -> str:
        """Return the line for a terminal: step, what, figure, bound, verdict."""
        figure, bound = (said(number, self.unit) for number in (self.value, self.bound))
        text = f"{self.step:14}{self.what:68}{figure:>20}{bound:>20}  {self.verdict}"
        return f"{text}  ({self.note})" if self.note else text


def said(number: float | None, unit: str = "") -> str:
    """Return a figure for people, "-" for none.

    Example:
        >>> said(1234567.0, "users/s"), said(0.0000123), said(None)
        ('1,234,567 users/s', '1.23e-05', '-')
    """
    if number is None:
        return "-"
    text = f"{number:,.0f}" if abs(number) >= 1000 or number == int(number) else f"{number:.3g}"
    return f"{text} {unit}".rstrip()


def difference(what: str, found: Any, expected: Any, most: float, *, relative: bool = False, note: str = "") -> Line:
    """Compare numbers: the largest difference, or the largest in relation to the expected number.

    Other shapes, and what is no number on either side, differ.
    """
    one, other = (np.asarray(numbers, dtype=np.float64) for numbers in (found, expected))
    if one.shape != other.shape:
        return Line(what, "DIFFERS", bound=most, note=f"shape {one.shape}, expected {other.shape}")
    gaps = np.abs(one - other)
    if relative:
        gaps = gaps / np.maximum(np.abs(other), np.finfo(np.float64).tiny)
    largest = float(gaps.max(initial=0.0))
    return Line(what, "agrees" if largest <= most else "DIFFERS", largest, bound=most, note=note)


def same(what: str, found: Sequence[Any], expected: Sequence[Any], *, note: str = "") -> Line:
    """Compare one thing after the other: the share of those that are equal, which has to be 1."""
    pairs = list(zip(found, expected, strict=False))
    equal = sum(bool(one == other) for one, other in pairs) / max(len(found), len(expected), 1)
    is_same = equal == 1 if expected else not found
    return Line(what, "agrees" if is_same else "DIFFERS", equal, bound=1.0, note=note)


def at_least(what: str, value: float, least: float, *, note: str = "") -> Line:
    """Compare a number with the least that it may be."""
    return Line(what, "agrees" if value >= least else "DIFFERS", value, bound=least, note=note)


def measured(what: str, value: float, unit: str = "", bound: float | None = None, *, note: str = "") -> Line:
    """Return a figure that nothing has to agree with, and how much of its bound it reaches."""
    if bound:
        note = f"{value / bound:.2%} of the bound{'; ' + note if note else ''}"
    return Line(what, "measured", value, unit, bound, note)
