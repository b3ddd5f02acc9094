"""How long a request may take: every loop of every stage calls `check`, wherever it is.

When the request of a thread has to be answered is noted by thread, as in `serving.observability.timings`: the work need
not know who asked. Where no request is being answered (`towers index`, a file for everyone, a reload) nothing ends it.

Work inside one call to a library cannot be interrupted, so `parts` cuts work on many rows into short pieces. How long
these are does not depend on the clock: the same request is computed in the same way each time.
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
"""How many multiplications a piece of work should have: about 50 ms of one core."""

_Row = TypeVar("_Row")


class _Current(threading.local):
    """When the request of this thread has to be answered, and how many seconds it had."""

    ends: float = math.inf
    seconds: float = math.inf


_current = _Current()


def start(seconds: float) -> None:
    """Let the work of this thread end after so many seconds, counted from now."""
    _current.seconds = seconds
    _current.ends = perf_counter() + seconds


def clear() -> None:
    """Let the work of this thread take as long as it takes."""
    _current.ends = _current.seconds = math.inf


def check() -> None:
    """Raise `DeadlineExceededError` if the time of this thread's request is over."""
    if perf_counter() > _current.ends:
        raise exceeded()


def exceeded() -> DeadlineExceededError:
    """Return the error that says that the time of this thread's request is over."""
    return DeadlineExceededError(_current.seconds)


def left() -> float | None:
    """Return how many seconds this thread's request still has, at least 0; None where there is no deadline."""
    return None if _current.ends == math.inf else max(0.0, _current.ends - perf_counter())


@contextmanager
def suspended() -> Iterator[None]:
    """Let the work inside take as long as it takes: what several requests share must not end with one of them."""
    before = _current.ends
    _current.ends = math.inf
    try:
        yield
    finally:
        _current.ends = before


@contextmanager
def held(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock, waited for no longer than the deadline allows.

    Raises:
        DeadlineExceededError: It was not free in time.
    """
    remaining = left()
    if not lock.acquire(timeout=-1 if remaining is None else remaining):
        raise exceeded()
    try:
        yield
    finally:
        lock.release()


def watched(rows: Iterable[_Row]) -> Iterator[_Row]:
    """Yield what there is, and check the deadline before each."""
    for row in rows:
        check()
        yield row


def parts(total: int, size: int, most: int | None = None) -> Iterator[slice]:
    """Yield consecutive parts of `total` rows, and check the deadline before each of them.

    Args:
        total: How many rows there are to work on.
        size: How many are in a part where there is a deadline.
        most: How many are in a part at most, with or without one. None: any number.
    """
    largest = max(1, total if most is None else min(total, most))
    step = largest if _current.ends == math.inf else max(1, min(largest, size))
    for begin in range(0, total, step):
        check()
        yield slice(begin, min(total, begin + step))
