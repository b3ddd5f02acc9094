"""Re-ranking: a second, closer look at the few items that retrieval found.

A retriever compares one vector with every item; a `Reranker` can afford more computation per item, because it scores a
`Shortlist` of 50 to 200. It has a `Deadline`; when that has passed, the retriever's order is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Int64

MOST_CHARACTERS = 2000
"""Maximum characters of a text that a re-ranker reads; no model reads as many tokens."""


@dataclass(frozen=True)
class Shortlist:
    """A user or query, and the candidates of the retriever.

    Attributes:
        user_vector: Their unit vector, `[width]`.
        history_rows: The history, oldest first, as rows of the catalogue; -1 for an item that is newer than the
            catalogue, `[events]`.
        history_vectors: The unit vectors of those, `[events, width]`.
        history_times: Times of these events, in Unix seconds, `[events]`; None if unknown.
        now: Time of the request, in Unix seconds; None if unknown.
        rows: The candidates, best first, as rows of the catalogue or -1, `[candidates]`.
        vectors: Their unit vectors, `[candidates, width]`.
        scores: The retriever's, falling, `[candidates]`.
        words: Text of the query; empty if the user has a history instead.
    """

    user_vector: Float32[np.ndarray, " width"]
    history_rows: Int64[np.ndarray, " events"]
    history_vectors: Float32[np.ndarray, "events width"]
    history_times: Int64[np.ndarray, " events"] | None
    now: int | None
    rows: Int64[np.ndarray, " candidates"]
    vectors: Float32[np.ndarray, "candidates width"]
    scores: Float32[np.ndarray, " candidates"]
    words: str = ""

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.rows)


class OutOfTimeError(Exception):
    """The deadline passed before there was an order."""


class Deadline:
    """A time limit.

    Args:
        seconds: Seconds from now. None: no limit.
        clock: Returns the time in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    def check(self, needed: float = 0.0) -> None:
        """Raise `OutOfTimeError` if fewer seconds are left than are needed."""
        if self._end is not None and self._clock() + needed > self._end:
            raise OutOfTimeError


class Reranker(Protocol):
    """A model that scores candidates; safe to use from several threads."""

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> Float32[np.ndarray, " candidates"]:
        """Return a score for each candidate, higher is better.

        Args:
            shortlist: The user and the candidates.
            deadline: Its `check()` raises the error below; call it between steps that take time.

        Raises:
            OutOfTimeError: The deadline has passed.
        """


def order_of(scores: Float32[np.ndarray, " candidates"]) -> Int64[np.ndarray, " candidates"]:
    """Return the places of the candidates, best first; equal ones stay in the retriever's order."""
    return np.argsort(-scores, kind="stable")
