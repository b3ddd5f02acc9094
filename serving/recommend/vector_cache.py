"""Users' vectors that are made when they are asked for, remembered for a while.

A model that looks at the clock makes a user's vector anew for each request. How long ago something was changes little
within a minute, and many requests come from the same user soon after each other: pages of one list, or several lists on
one page.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from cachetools import TTLCache
from jaxtyping import Float32, Int64


class UserVectorCache:
    """The vectors of the users who asked last, each for so many seconds; safe to use from several threads.

    Args:
        most: How many users are remembered.
        seconds: How long.
        clock: Seconds, which never go back.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._known: TTLCache[int, tuple[Hashable, np.ndarray]] = TTLCache(most, seconds, clock)
        self._being_made: dict[int, object] = {}
        self._turn = threading.Lock()

    def of(
        self,
        user_rows: Int64[np.ndarray, " users"],
        pasts: Sequence[Hashable],
        make: Callable[[np.ndarray], np.ndarray],
    ) -> Float32[np.ndarray, "users width"]:
        """Return the users' vectors, those that are not remembered made now.

        Args:
            user_rows: The users.
            pasts: What each did, in any form; a vector made of another past is not remembered.
            make: Returns the vectors of the users at the given places of `user_rows`.
        """
        rows = user_rows.tolist()
        if not rows:
            return make(user_rows)
        with self._turn:
            found = [self._fresh(row, past) for row, past in zip(rows, pasts, strict=True)]
            missing = [place for place, vector in enumerate(found) if vector is None]
            making = object()
            self._being_made.update((rows[place], making) for place in missing)
        if not missing:
            return np.stack(found) if len(found) != 1 else found[0][None]  # type: ignore[arg-type, index]
        made = make(np.array(missing, dtype=np.int64))
        with self._turn:
            for place, vector in zip(missing, made, strict=True):
                found[place] = vector
                self._remember(rows[place], pasts[place], vector, making)
        return np.stack(found)  # type: ignore[arg-type]

    def forget(self, user_row: int) -> None:
        """Forget a user; a vector that is being made at this moment is not kept, either."""
        with self._turn:
            self._known.pop(user_row, None)
            self._being_made.pop(user_row, None)

    def __len__(self) -> int:
        """Return how many users are remembered."""
        return len(self._known)

    def _fresh(self, row: int, past: Hashable) -> np.ndarray | None:
        known_past, vector = self._known.get(row, (None, None))
        return vector if known_past == past else None

    def _remember(self, row: int, past: Hashable, vector: np.ndarray, making: object) -> None:
        if self._being_made.get(row) is not making:
            return  # forgotten meanwhile, or made by another thread as well
        del self._being_made[row]
        self._known[row] = past, vector
