"""Which of the items that were shown were chosen, and the uncertainty of shares."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from jaxtyping import Bool

_Z = 1.959963984540054
"""Quantile of the normal distribution for intervals of 95 %."""


def wilson_interval(hits: int, number: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's score, which holds for small numbers and shares, too.

    Wilson, E. B. (1927): Probable inference, the law of succession, and statistical inference.

    Example:
        >>> [round(end, 4) for end in wilson_interval(2, 10)]
        [0.0567, 0.5098]
    """
    share, spread = hits / number, _Z * _Z / number
    middle = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / number + spread / (4 * number))
    # The share is within its interval also where that is rounded: at 0 and at 1.
    return max(0.0, min(share, (middle - half) / (1 + spread))), min(1.0, max(share, (middle + half) / (1 + spread)))


def chosen(shown: pd.DataFrame, events: pd.DataFrame, window_seconds: float) -> Bool[np.ndarray, " shown"]:
    """Return which of the shown items their user then chose.

    An event counts for the last time that its item was shown to its user before, at most a window ago; so several
    events, or an item on several pages, do not count twice.

    Args:
        shown: Columns `time`, `user_hash`, `item_id`.
        events: The same columns; `time` in whole seconds.
        window_seconds: How long after it was shown an item may be chosen.
    """
    keys = ["user_hash", "item_id"]
    # Events have whole seconds: one in the second of the answer is taken to come after it.
    types = {"time": np.int64, **dict.fromkeys(keys, str)}
    places = shown[["time", *keys]].assign(place=np.arange(len(shown))).astype(types)
    found = pd.merge_asof(
        events.astype(types).sort_values("time", kind="stable"),
        places.sort_values("time", kind="stable"),
        on="time",
        by=keys,
        tolerance=int(window_seconds),
    )
    is_chosen = np.zeros(len(shown), dtype=bool)
    is_chosen[found["place"].dropna().to_numpy(np.int64)] = True
    return is_chosen
