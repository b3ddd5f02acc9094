"""What must hold of the items of a search, column by column: a mask is made of it, or a search engine filters by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from features.errors import DataError

Test = Literal["any", "not", "min", "max"]


TESTS: tuple[Test, ...] = ("any", "not", "min", "max")


@dataclass(frozen=True, order=True)
class Condition:
    """What must hold for one column.

    Attributes:
        column: The column.
        test: Whether the cell must be `any` of the values, must `not` be, or must be at least or at most one.
        values: In the type of the column.
    """

    column: str
    test: Test
    values: tuple[Any, ...]


Filter = tuple[Condition, ...]
"""Conditions that must all hold, sorted; the same conditions are the same filter."""


def both(one: Filter, other: Filter) -> Filter:
    """Return the filter that lets through what fits both."""
    return as_filter([*one, *other]) if one and other else one or other


def as_filter(conditions: Sequence[Condition]) -> Filter:
    """Return the conditions in order.

    Raises:
        DataError: A range ends before it begins.
    """
    least = {one.column: one.values[0] for one in conditions if one.test == "min"}
    for one in conditions:
        if one.test == "max" and least.get(one.column, one.values[0]) > one.values[0]:
            raise DataError(
                f"{one.column}: expected min up to max, found min {least[one.column]} above max {one.values[0]}"
            )
    return tuple(sorted(conditions, key=lambda one: (one.column, one.test)))
