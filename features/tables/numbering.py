"""Numbers for values that come in blocks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

_SHARE_OF_RECENT = 8


class Numbering:
    """Numbers values from 0 in the order in which they first come.

    Adding to an index makes pandas hash all of it again. So new values go to a small index, which joins the large one
    once it has an eighth of its size: each value is hashed a few times, however many blocks there are.

    Args:
        values: Values that have come before, each once. None: none.
    """

    def __init__(self, values: Shaped[np.ndarray, "values"] | None = None) -> None:
        self._many = pd.Index(np.zeros(0, dtype=object) if values is None else values)
        self._recent: pd.Index | None = None

    @property
    def values(self) -> Shaped[np.ndarray, "values"]:
        """All values that have come, by their numbers."""
        found: np.ndarray = self._all().to_numpy()
        return found

    def number(self, block: Shaped[np.ndarray, "cells"]) -> Int[np.ndarray, "cells"]:
        """Return the number of each value of a block, those of new values too."""
        if not len(self._many):
            self._many = pd.Index(pd.unique(block), dtype=block.dtype)
        numbers: np.ndarray = self._many.get_indexer(pd.Index(block))
        rest = np.flatnonzero(numbers < 0)
        if len(rest):
            numbers[rest] = len(self._many) + self._number_recent(block[rest])
            if self._recent is not None and len(self._recent) * _SHARE_OF_RECENT > len(self._many):
                self._many, self._recent = self._all(), None
        return numbers

    def _number_recent(self, cells: Shaped[np.ndarray, "cells"]) -> Int[np.ndarray, "cells"]:
        if self._recent is None:
            self._recent = pd.Index(pd.unique(cells), dtype=cells.dtype)
        numbers: np.ndarray = self._recent.get_indexer(pd.Index(cells))
        is_new = numbers < 0
        if is_new.any():
            self._recent = self._recent.append(pd.Index(pd.unique(cells[is_new]), dtype=cells.dtype))
            numbers = self._recent.get_indexer(pd.Index(cells))
        return numbers

    def _all(self) -> pd.Index:
        whole: pd.Index = self._many if self._recent is None else self._many.append(self._recent)
        return whole
