"""A cache of users' vectors for models that read the time of a request.

Such a model would have to encode a user for each request. But the age of an event changes little within a minute, and
a user often sends several requests in a row: for the pages of one list, or several lists on one page.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from cachetools import TTLCache
from jaxtyping import Float32, Int64


class UserVectorCache:
    """A cache of the vectors of recent users, with a TTL; safe to use from several threads.

    Args:
        most: Maximum number of users.
        seconds: Time to live of a vector.
        clock: Returns seconds; monotonic.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._known: TTLCache[int, tuple[Hashable, np.ndarray]] = TTLCache(most, seconds, clock)
        self._being_made: dict[int, object] = {}
        self._lock = threading.Lock()

    def of(
        self,
        user_rows: Int64[np.ndarray, " users"],
        pasts: Sequence[Hashable],
        make: Callable[[np.ndarray], np.ndarray],
    ) -> Float32[np.ndarray, "users width"]:
        """Return the users' vectors, from the cache or encoded now.

        Args:
            user_rows: The users.
            pasts: A key of each user's history; a cached vector with another key is not used.
            make: Encodes the users at the given positions of `user_rows`.
        """
        rows = user_rows.tolist()
        if not rows:
            return make(user_rows)
        with self._lock:
            found = [self._fresh(row, past) for row, past in zip(rows, pasts, strict=True)]
            missing = [place for place, vector in enumerate(found) if vector is None]
            making = object()
            self._being_made.update((rows[place], making) for place in missing)
        if not missing:
            return np.stack(found) if len(found) != 1 else found[0][None]  # type: ignore[arg-type, index]
        made = make(np.array(missing, dtype=np.int64))
        with self._lock:
            for place, vector in zip(missing, made, strict=True):
                found[place] = vector
                self._store(rows[place], pasts[place], vector, making)
        return np.stack(found)  # type: ignore[arg-type]

    def forget(self, user_row: int) -> None:
        """Remove a user; a vector that is being encoded at this moment is not cached, either."""
        with self._lock:
            self._known.pop(user_row, None)
            self._being_made.pop(user_row, None)

    def __len__(self) -> int:
        """Return the number of cached users."""
        return len(self._known)

    def _fresh(self, row: int, past: Hashable) -> np.ndarray | None:
        known_past, vector = self._known.get(row, (None, None))
        return vector if known_past == past else None

    def _store(self, row: int, past: Hashable, vector: np.ndarray, making: object) -> None:
        if self._being_made.get(row) is not making:
            return  # removed meanwhile, or encoded by another thread as well
        del self._being_made[row]
        self._known[row] = past, vector
