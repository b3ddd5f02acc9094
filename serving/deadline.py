"""The deadline of a request: every long loop of every stage calls `check`, which raises once the deadline has passed.

The deadline is stored per thread, as in `serving.observability.timings`, so it need not be passed down the calls.
Outside of requests (`towers index`, `towers recommend`, a reload) there is no deadline.

A call to a library cannot be interrupted, so `parts` divides work on many rows into short pieces. Their size does not
depend on the clock, so the same request is always computed in the same way.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from serving.errors import DeadlineExceededError

PRODUCTS = 1 << 29
"""Number of multiplications in one piece of work: about 50 ms of one core."""

_Row = TypeVar("_Row")


class _Current(threading.local):
    """The deadline of this thread's request, on the clock of `perf_counter`, and its length in seconds."""

    ends: float = math.inf
    seconds: float = math.inf


_current = _Current()


def start(seconds: float) -> None:
    """Set the deadline of this thread to so many seconds from now."""
    _current.seconds = seconds
    _current.ends = perf_counter() + seconds


def clear() -> None:
    """Remove the deadline of this thread."""
    _current.ends = _current.seconds = math.inf


def check() -> None:
    """Raise `DeadlineExceededError` if the deadline of this thread has passed."""
    if perf_counter() > _current.ends:
        raise exceeded()


def exceeded() -> DeadlineExceededError:
    """Return the error for a request of this thread that exceeded its deadline."""
    return DeadlineExceededError(_current.seconds)


def left() -> float | None:
    """Return the seconds until the deadline of this thread, at least 0; None if there is no deadline."""
    return None if _current.ends == math.inf else max(0.0, _current.ends - perf_counter())


@contextmanager
def suspended() -> Iterator[None]:
    """Ignore the deadline inside the block: work that several requests share must not be aborted by one of them."""
    before = _current.ends
    _current.ends = math.inf
    try:
        yield
    finally:
        _current.ends = before


@contextmanager
def held(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock; waits for it until the deadline at most.

    Raises:
        DeadlineExceededError: The lock did not become free in time.
    """
    remaining = left()
    if not lock.acquire(timeout=-1 if remaining is None else remaining):
        raise exceeded()
    try:
        yield
    finally:
        lock.release()


def watched(rows: Iterable[_Row]) -> Iterator[_Row]:
    """Yield the elements, and check the deadline before each."""
    for row in rows:
        check()
        yield row


def parts(total: int, size: int, most: int | None = None) -> Iterator[slice]:
    """Yield slices that divide `total` rows into consecutive parts, and check the deadline before each.

    Args:
        total: Number of rows.
        size: Number of rows in a part if there is a deadline.
        most: Maximum number of rows in a part, with or without a deadline. None: no maximum.
    """
    largest = max(1, total if most is None else min(total, most))
    step = largest if _current.ends == math.inf else max(1, min(largest, size))
    for begin in range(0, total, step):
        check()
        yield slice(begin, min(total, begin + step))
