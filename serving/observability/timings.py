"""How long each stage of a request took: `with timed("search"):` around the work, wherever it is.

What does the work need not know who asked, or whether anybody measures: the seconds are noted by thread, and whoever
handles requests takes them (`initialise_embeddings`, `spent`). Outside of a service they go unread.
"""

from __future__ import annotations

import threading
from time import perf_counter
from types import TracebackType
from typing import Literal, get_args

Stage = Literal["encode", "search", "rerank", "serialise"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class _Spent(threading.local):
    """The seconds of the request that this thread has in hand, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.running: set[str] = set()


_spent = _Spent()


def begin() -> None:
    """Forget what this thread did before: a new request is in hand."""
    _spent.seconds.clear()


def spent() -> dict[str, float]:
    """Return the seconds of each stage since `initialise_embeddings`; stages that did not occur are left out."""
    return _spent.seconds


class timed:  # noqa: N801 (read as a word: `with timed("search")`)
    """Adds the time of a block to a stage of the request that this thread has in hand; within itself, nothing."""

    __slots__ = ("_began", "_is_outermost", "_stage")

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __enter__(self) -> None:
        self._is_outermost = self._stage not in _spent.running
        _spent.running.add(self._stage)
        self._began = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_outermost:
            seconds = _spent.seconds
            seconds[self._stage] = seconds.get(self._stage, 0.0) + perf_counter() - self._began
            _spent.running.discard(self._stage)
