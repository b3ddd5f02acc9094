"""Filters of a search as conditions on columns, from which masks are made, or which a search engine applies itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool

from features.errors import DataError

Mask = Bool[np.ndarray, " items"]


class Comparable(Protocol):
    """A column of the items that can be compared with values; all but `any_of` only where it has an order."""

    def any_of(self, values: Sequence[Any]) -> Mask:
        """Return which items have one of the values."""

    def at_least(self, value: Any) -> Mask:
        """Return which items have the value or a higher one."""

    def at_most(self, value: Any) -> Mask:
        """Return which items have the value or a lower one."""


@dataclass(frozen=True)
class Operator:
    """A way to compare a column with values.

    Attributes:
        mask: Returns which items fit, from the column and the values.
        says: What holds of the column of these items, for documentation.
        takes_list: Whether several values may be given.
        needs_order: Whether the column must hold numbers or times.
    """

    mask: Callable[[Comparable, Sequence[Any]], Mask]
    says: str
    takes_list: bool = False
    needs_order: bool = False


DEFAULT_OPERATOR = "any"
"""The operator where a request names none: `category=shoes`."""
OPERATORS = {
    DEFAULT_OPERATOR: Operator(lambda column, values: column.any_of(values), "is one of these", takes_list=True),
    "not": Operator(lambda column, values: ~column.any_of(values), "is none of these", takes_list=True),
    "min": Operator(lambda column, values: column.at_least(values[0]), "is at least this", needs_order=True),
    "max": Operator(lambda column, values: column.at_most(values[0]), "is at most this", needs_order=True),
}
"""By name: the ending of a query parameter after `_` (`price_min=10`), and a key in a body (`{"min": 10}`)."""


@dataclass(frozen=True, order=True)
class Condition:
    """A condition on one column.

    Attributes:
        column: Name of the column.
        operator: How the column is compared with the values: a name in `OPERATORS`.
        values: Values in the type of the column.
    """

    column: str
    operator: str
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
    least = {one.column: one.values[0] for one in conditions if one.operator == "min"}
    for one in conditions:
        if one.operator == "max" and least.get(one.column, one.values[0]) > one.values[0]:
            raise DataError(f"{one.column}: expected min <= max, found min {least[one.column]} and max {one.values[0]}")
    return tuple(sorted(conditions, key=lambda one: (one.column, one.operator)))
