"""How long a request may take: every loop of every stage calls `check`, wherever it is.

When the request of a thread has to be answered is noted by thread, as in `serving.stages`: the work need not know who
asked. Where no request is being answered (`towers index`, a file for everyone, a reload) nothing ends it.

Work inside one call to a library cannot be interrupted. `parts` cuts work on many rows into pieces that each take a
small part of the time that is left.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from serving.errors import DeadlineExceededError

# How long a part of a divided piece of work should take, and how much larger than the one before it may be.
_PART_SECONDS = 0.05
_MOST_GROWTH = 16


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
        raise DeadlineExceededError(_current.seconds)


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
        raise DeadlineExceededError(_current.seconds)
    try:
        yield
    finally:
        lock.release()


def parts(total: int, most: int | None = None) -> Iterator[slice]:
    """Yield consecutive parts of `total` rows, and check the deadline before each of them.

    How many rows make a short part depends on the work and on the machine, so it is measured: the first part is a
    single row, each further one about as many as take 50 ms. Without a deadline the parts are as large as `most`.

    Args:
        total: How many rows there are to work on.
        most: The largest part. None: all rows.
    """
    most = max(1, total if most is None else most)
    size = most if _current.ends == math.inf else 1
    begin = 0
    while begin < total:
        check()
        began = perf_counter()
        end = min(total, begin + size)
        yield slice(begin, end)
        if size < most:
            growth = min(_MOST_GROWTH, _PART_SECONDS / max(perf_counter() - began, 1e-9))
            size = max(1, min(most, int(size * growth)))
        begin = end
