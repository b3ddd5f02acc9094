"""Micro-batching: combines the searches, or encodings, of concurrent requests into one call.

There is no waiting time to fill a batch. A thread that finds no batch running starts one at once with all waiting
calls; calls that arrive meanwhile form the next batch. So without load the latency is unchanged, and batches grow with
the load.

It pays where a batch costs less than its parts: on a GPU; in brute-force search, which then reads the vectors once; in
the user tower, which spends most of its time on the overhead of small operations. It does not pay for an HNSW index,
which walks its graph for each query. `pays` measures it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float32

from features.sequences.ragged import Ragged
from serving import deadline
from serving.observability.timings import timed
from serving.search.index_config import TUNED_CUTOFF
from serving.search.results import AllowedItems, Hits
from serving.search.searcher import ItemSearch
from serving.search.vectors import ItemVectors

MicroBatching = Literal["auto", "on", "off"]
Question = TypeVar("Question")
Reply = TypeVar("Reply")

# A batch must take at most this share of the time of its parts.
_MAX_TIME_SHARE = 0.7


class _Call(Generic[Question, Reply]):
    """One thread's question, and its reply or error."""

    __slots__ = ("error", "kind", "leads", "question", "reply", "turn")

    def __init__(self, kind: Hashable, question: Question) -> None:
        self.kind = kind
        self.question = question
        self.reply: Reply | None = None
        self.error: BaseException | None = None
        self.leads = False
        self.turn = threading.Lock()
        self.turn.acquire()


class MicroBatcher(Generic[Question, Reply]):
    """Answers the questions of several threads together.

    Args:
        answer: Returns one reply for each of several questions of one kind.
        most: Maximum number of questions in one call.
    """

    def __init__(self, answer: Callable[[Sequence[Question]], Sequence[Reply]], most: int) -> None:
        self._answer = answer
        self._most = most
        self._waiting: list[_Call[Question, Reply]] = []
        self._has_leader = False
        self._changing = threading.Lock()

    def __call__(self, question: Question, kind: Hashable = None) -> Reply:
        """Return the reply to a question, which may be answered together with others of its kind."""
        mine: _Call[Question, Reply] = _Call(kind, question)
        with self._changing:
            self._waiting.append(mine)
            mine.leads = not self._has_leader
            self._has_leader = True
        if not mine.leads:
            self._wait(mine)  # until the reply is there, or this thread becomes the leader
        if mine.leads:
            self._lead(mine)
        if mine.error is not None:
            raise mine.error
        reply: Reply = mine.reply  # type: ignore[assignment]
        return reply

    def _wait(self, mine: _Call[Question, Reply]) -> None:
        seconds = deadline.left()
        if mine.turn.acquire(timeout=-1 if seconds is None else seconds):
            return
        with self._changing:
            # The current leader may have taken the question already; its reply is then discarded.
            self._waiting = [call for call in self._waiting if call is not mine]
        if mine.leads:
            self._hand_over()
        raise deadline.exceeded()

    def _lead(self, mine: _Call[Question, Reply]) -> None:
        batch = self._take(mine)
        try:
            with deadline.suspended():  # the deadline is this thread's, but other threads wait for the same call
                replies = self._answer([call.question for call in batch])
            for call, reply in zip(batch, replies, strict=True):
                call.reply = reply
        except BaseException as error:
            for call in batch:
                call.error = error
            raise
        finally:
            self._hand_over()
            for call in batch:
                call.turn.release()

    def _take(self, mine: _Call[Question, Reply]) -> list[_Call[Question, Reply]]:
        """Remove the caller's question and others of its kind, the oldest first, from the queue, and return them."""
        with self._changing:
            others = [call for call in self._waiting if call.kind == mine.kind and call is not mine]
            batch = [mine, *others[: self._most - 1]]
            taken = {id(call) for call in batch}
            self._waiting = [call for call in self._waiting if id(call) not in taken]
        return batch

    def _hand_over(self) -> None:
        """Make the thread that has waited longest the leader, if any waits."""
        with self._changing:
            self._has_leader = bool(self._waiting)
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].turn.release()


_OneQuery = tuple[np.ndarray, int, np.ndarray]
"""A user's vector `[1, dim]`, the number of items, and the rows that must not be found."""


class MicroBatchedSearch:
    """A searcher whose unfiltered searches for one user, made by several threads at once, become one search.

    Args:
        searcher: Does the searches.
        most: Number of searches that are combined at most.
    """

    def __init__(self, searcher: ItemSearch, most: int) -> None:
        self._searcher = searcher
        self._batcher: MicroBatcher[_OneQuery, Hits] = MicroBatcher(partial(_search_each, searcher), most)

    @property
    def is_exact(self) -> bool:
        """Whether results are exact, as with brute force."""
        return self._searcher.is_exact

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._searcher)

    def search(
        self,
        queries: Float32[np.ndarray, "users dim"],
        k: int,
        excluded: Ragged | None = None,
        allowed: AllowedItems | None = None,
        closed: Bool[np.ndarray, " items"] | None = None,
    ) -> Hits:
        """Return the searcher's results; see `Searcher.search`."""
        if len(queries) != 1 or allowed is not None or closed is not None:
            return self._searcher.search(queries, k, excluded, allowed, closed)
        deadline.check()
        with timed("search"):
            return self._batcher((queries, k, np.zeros(0, np.int64) if excluded is None else excluded.values), k)

    def confirms(self, query: Float32[np.ndarray, " dim"], rows: np.ndarray, least: np.float32) -> bool:
        """Return the searcher's result; see `ItemSearch.confirms`."""
        return self._searcher.confirms(query, rows, least)


def micro_batched(searcher: ItemSearch, vectors: ItemVectors, most: int, mode: MicroBatching) -> ItemSearch:
    """Return a searcher that combines concurrent searches where that pays, else the same searcher.

    Args:
        searcher: Does the searches.
        vectors: The items' vectors, some of which are the queries of trials.
        most: Maximum number of searches that are combined.
        mode: `auto`: if trials show that it pays.
    """
    nothing = np.zeros(0, np.int64)
    trial = [(vectors[np.array([row])], TUNED_CUTOFF, nothing) for row in range(min(most, len(searcher)))]
    is_enabled = is_wanted(mode, partial(_search_each, searcher), trial)
    return MicroBatchedSearch(searcher, most) if is_enabled else searcher


def _search_each(searcher: ItemSearch, queries: Sequence[_OneQuery]) -> list[Hits]:
    """Return the results of several queries for the same number of items."""
    vectors = np.concatenate([vector for vector, _, _ in queries])
    hits = searcher.search(vectors, queries[0][1], Ragged.of([excluded for _, _, excluded in queries]))
    return [Hits.join([hits.of(user)]) for user in range(len(queries))]


def is_wanted(
    batching: MicroBatching, answer: Callable[[Sequence[Question]], object], trial: Sequence[Question]
) -> bool:
    """Return whether to answer questions together.

    Args:
        batching: The operator's setting; `auto`: if trials show that it pays.
        answer: Answers questions.
        trial: Questions for the trials, as many as may arrive at once.
    """
    return batching == "on" or (batching == "auto" and len(trial) > 1 and pays(answer, trial))


def pays(answer: Callable[[Sequence[Question]], object], questions: Sequence[Question], repeats: int = 5) -> bool:
    """Return whether answering questions together takes clearly less time than one by one, by measuring both.

    Args:
        answer: Answers questions.
        questions: Questions for the trials, as many as may arrive at once.
        repeats: Number of measurements of each; the fastest counts, as other processes can only slow it.
    """
    answer(questions)
    together = min(_seconds(lambda: answer(questions)) for _ in range(repeats))
    one_by_one = min(_seconds(lambda: [answer([one]) for one in questions]) for _ in range(repeats))
    return together < _MAX_TIME_SHARE * one_by_one


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
