"""Maps external ids to rows and back, without changing an id's type.

Ids are integers or text. A path has only text (`/recommendations/42`), JSON has both, and a table has one type: `IdMap`
finds the row of an id in any of these forms. In responses, ids that JavaScript would round are text: it has no exact
integers beyond 2^53, and would read 9007199254740993 as another id.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from features.ids import MAX_ID_CHARACTERS

ExternalId = int | str
LARGEST_EXACT = 2**53 - 1
"""The largest integer that JavaScript, and other readers of JSON that use doubles, do not round."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,14})\.0*")


class Rows(Protocol):
    """A lookup of rows by id."""

    def get(self, external_id: ExternalId, /) -> int | None:
        """Return the row of an id, given in the type of the map; None if there is no such id."""


def fits_json(number: Any) -> bool:
    """Return whether every reader of JSON reads this integer exactly."""
    return bool(-LARGEST_EXACT <= number <= LARGEST_EXACT)


class IdMap:
    """The rows of a list of distinct ids.

    Attributes:
        is_integer: Whether the ids are integers; else they are text.
        is_wide: Whether some id does not fit into a JSON number, so that responses have all of them as text.
        is_json_safe: Whether `to_json` returns every id of the map unchanged, and need not be called.
        ids: The ids by row.

    Example:
        >>> users = IdMap(np.array([7, 42]))
        >>> users.row("42"), users.row(42), users.row("042"), users.row("Ann")
        (1, 1, None, None)
    """

    def __init__(self, ids: np.ndarray) -> None:
        self.is_integer = bool(np.issubdtype(ids.dtype, np.integer))
        self.ids: list[ExternalId] = ids.tolist()
        self.is_wide = self.is_integer and bool(len(ids)) and not (fits_json(ids.min()) and fits_json(ids.max()))
        self.is_json_safe = not self.is_wide
        rows = {external_id: row for row, external_id in enumerate(self.ids)}
        assert len(rows) == len(self.ids), f"{len(self.ids) - len(rows)} ids occur twice"
        self._rows: Rows = rows

    def with_lookup(self, ids: list[ExternalId], rows: Rows) -> IdMap:
        """Return a map of ids of the same type with other ids and another lookup.

        Args:
            ids: The ids by row; several rows may have the same id, of which `rows` returns the live one.
            rows: The lookup of rows by id.
        """
        other = copy.copy(self)
        other.ids, other._rows = ids, rows
        other.is_json_safe = not self.is_integer
        return other

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self.ids)

    def row(self, external_id: ExternalId) -> int | None:
        """Return the row of an id, given as a number or as text; None if there is no such id."""
        return self._rows.get(self.parse(external_id))

    def rows(self, external_ids: Iterable[ExternalId]) -> tuple[list[int], list[ExternalId]]:
        """Return the rows of the known ids, in order, and the ids that are unknown, each once."""
        found: list[int] = []
        unknown: dict[ExternalId, None] = {}
        for external_id in external_ids:
            row = self.row(external_id)
            if row is None:
                unknown[external_id] = None
            else:
                found.append(row)
        return found, list(unknown)

    def places(self, external_ids: Sequence[ExternalId]) -> np.ndarray:
        """Return the row of each id, in order, -1 for unknown ids, `[ids]`."""
        parsed = [one if type(one) is int and self.is_integer else self.parse(one) for one in external_ids]
        found = map(self._rows.get, parsed)
        return np.array([-1 if row is None else row for row in found], dtype=np.int64)

    def parse(self, external_id: ExternalId) -> ExternalId:
        """Return an id in the type of this map if possible, else unchanged.

        "42" is the number 42, and so is "42.0", as programs write integers of a column with empty cells; tables are
        read in the same way. "042" and "4.2" are not integer ids.
        """
        if not self.is_integer:
            return str(external_id)
        if not isinstance(external_id, str):
            return external_id
        if _INTEGER.fullmatch(external_id):
            return int(external_id)
        match = _WHOLE.fullmatch(external_id)
        return int(match[1]) if match else external_id

    def to_json(self, external_id: ExternalId) -> ExternalId:
        """Return an id for a response: as text if this map has ids that JSON readers round, or if this id is one.

        Example:
            >>> IdMap(np.array([7, 42])).to_json(42), IdMap(np.array([7, 2**53])).to_json(7)
            (42, '7')
        """
        if type(external_id) is int and (self.is_wide or not -LARGEST_EXACT <= external_id <= LARGEST_EXACT):
            return str(external_id)
        return external_id

    def fits(self, external_id: ExternalId) -> bool:
        """Return whether an id, as `parse` returned it, has the type and length of this map's ids."""
        if self.is_integer:
            return isinstance(external_id, int) and -(2**63) <= external_id < 2**63
        if not isinstance(external_id, str) or not 0 < len(external_id) <= MAX_ID_CHARACTERS:
            return False
        return external_id == external_id.strip()

    def to_array(self, external_ids: Iterable[Any]) -> np.ndarray:
        """Return ids as an array of this map's type: int64, or object of str."""
        return np.array(list(external_ids), dtype=np.int64 if self.is_integer else object)
