"""Filters of a search as conditions on columns, from which masks are made, or which a search engine applies itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from features.errors import DataError

Test = Literal["any", "not", "min", "max"]


TESTS: tuple[Test, ...] = ("any", "not", "min", "max")


@dataclass(frozen=True, order=True)
class Condition:
    """A condition on one column.

    Attributes:
        column: Name of the column.
        test: `any`: the cell is one of the values; `not`: it is none of them; `min`, `max`: it is at least, or at most,
            the single value.
        values: Values in the type of the column.
    """

    column: str
    test: Test
    values: tuple[Any, ...]


Filter = tuple[Condition, ...]
"""Conditions that must all hold, sorted, so that equal filters are equal tuples."""


def both(one: Filter, other: Filter) -> Filter:
    """Return the conjunction of two filters."""
    return as_filter([*one, *other]) if one and other else one or other


def as_filter(conditions: Sequence[Condition]) -> Filter:
    """Return the conditions as a filter.

    Raises:
        DataError: The `min` of a column is above its `max`.
    """
    least = {one.column: one.values[0] for one in conditions if one.test == "min"}
    for one in conditions:
        if one.test == "max" and least.get(one.column, one.values[0]) > one.values[0]:
            raise DataError(f"{one.column}: expected min <= max, found min {least[one.column]} and max {one.values[0]}")
    return tuple(sorted(conditions, key=lambda one: (one.column, one.test)))
