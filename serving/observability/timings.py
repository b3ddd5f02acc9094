"""Measures the duration of each stage of a request: `with timed("search"):` around the work, wherever it is.

Durations are stored per thread, so they need not be passed through the calls; the middleware resets and reads them
(`begin`, `spent`). Outside of the service nothing reads them.
"""

from __future__ import annotations

import threading
from time import perf_counter
from types import TracebackType
from typing import Literal, get_args

Stage = Literal["encode", "search", "rerank", "serialise"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class _Spent(threading.local):
    """Seconds of this thread's current request, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}
        self.running: set[str] = set()


_spent = _Spent()


def begin() -> None:
    """Reset the durations of this thread at the start of a request."""
    _spent.seconds.clear()


def spent() -> dict[Stage, float]:
    """Return the seconds of each stage since `begin`; stages that did not occur are left out."""
    return _spent.seconds


class timed:  # noqa: N801 (read as a word: `with timed("search")`)
    """Adds the duration of a block to a stage of this thread's request; nested blocks of one stage count once."""

    __slots__ = ("_began", "_is_outermost", "_stage")

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __enter__(self) -> None:
        running = _spent.running
        self._is_outermost = self._stage not in running
        running.add(self._stage)
        self._began = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_outermost:
            seconds = _spent.seconds
            seconds[self._stage] = seconds.get(self._stage, 0.0) + perf_counter() - self._began
            _spent.running.discard(self._stage)
