"""Work of several threads done together: one search or one encoding for the requests that are in hand at a moment.

Nobody waits for others to come. Whoever finds nobody at work begins at once with all that is there; what comes in the
meantime is the next batch. So a quiet service answers as fast as without, and the busier it is, the larger the batches.

It pays where a batch costs less than its parts: on a GPU; where every item is compared, because the vectors are then
read once for all; in the user tower, most of whose time goes into calling many small operations. It does not pay where
an index walks from item to item for each user. `pays` measures that.
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
from serving.search.searcher import ItemSearch, ItemVectors

MicroBatching = Literal["auto", "on", "off"]
Question = TypeVar("Question")
Reply = TypeVar("Reply")

_WORTH = 0.7


class _Call(Generic[Question, Reply]):
    """One thread's question, and what becomes of it."""

    __slots__ = ("asked", "error", "kind", "leads", "reply", "turn")

    def __init__(self, kind: Hashable, asked: Question) -> None:
        self.kind = kind
        self.asked = asked
        self.reply: Reply | None = None
        self.error: BaseException | None = None
        self.leads = False
        self.turn = threading.Lock()
        self.turn.acquire()


class MicroBatcher(Generic[Question, Reply]):
    """Answers the questions of several threads together.

    Args:
        answer: Answers questions of one kind, one reply for each.
        most: How many at once.
    """

    def __init__(self, answer: Callable[[Sequence[Question]], Sequence[Reply]], most: int) -> None:
        self._answer = answer
        self._most = most
        self._waiting: list[_Call[Question, Reply]] = []
        self._someone_leads = False
        self._changing = threading.Lock()

    def __call__(self, asked: Question, kind: Hashable = None) -> Reply:
        """Return the reply to a question, which may be answered together with others of its kind."""
        mine: _Call[Question, Reply] = _Call(kind, asked)
        with self._changing:
            self._waiting.append(mine)
            mine.leads = not self._someone_leads
            self._someone_leads = True
        if not mine.leads:
            self._wait(mine)  # until the reply is there, or it falls to this thread to answer
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
            # Whoever leads now may have taken the question; then nobody reads the reply.
            self._waiting = [call for call in self._waiting if call is not mine]
        if mine.leads:
            self._hand_over()
        raise deadline.exceeded()

    def _lead(self, mine: _Call[Question, Reply]) -> None:
        batch = self._take(mine)
        try:
            with deadline.suspended():  # of this thread alone, and others wait for the same answer
                replies = self._answer([call.asked for call in batch])
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
        """Return the caller's question and others of its kind, the oldest first; they wait no longer."""
        with self._changing:
            others = [call for call in self._waiting if call.kind == mine.kind and call is not mine]
            batch = [mine, *others[: self._most - 1]]
            taken = {id(call) for call in batch}
            self._waiting = [call for call in self._waiting if id(call) not in taken]
        return batch

    def _hand_over(self) -> None:
        """Let the one who has waited longest lead, if anybody waits."""
        with self._changing:
            self._someone_leads = bool(self._waiting)
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
        """Whether results are those of comparing every item."""
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
        """Return what the searcher finds."""
        if len(queries) != 1 or allowed is not None or closed is not None:
            return self._searcher.search(queries, k, excluded, allowed, closed)
        deadline.check()
        with timed("search"):
            return self._batcher((queries, k, np.zeros(0, np.int64) if excluded is None else excluded.values), k)

    def confirms(self, query: Float32[np.ndarray, " dim"], rows: np.ndarray, least: np.float32) -> bool:
        """Return what the searcher says."""
        return self._searcher.confirms(query, rows, least)


def micro_batched(searcher: ItemSearch, vectors: ItemVectors, most: int, mode: MicroBatching) -> ItemSearch:
    """Return a searcher that combines concurrent searches where that pays, else the same searcher.

    Args:
        searcher: Does the searches.
        vectors: The items' vectors, of which some are the queries of trials.
        most: Number of searches that are combined at most.
        mode: `auto`: if trials say that it pays.
    """
    nothing = np.zeros(0, np.int64)
    trial = [(vectors[np.array([row])], TUNED_CUTOFF, nothing) for row in range(min(most, len(searcher)))]
    wanted = is_wanted(mode, partial(_search_each, searcher), trial)
    return MicroBatchedSearch(searcher, most) if wanted else searcher


def _search_each(searcher: ItemSearch, queries: Sequence[_OneQuery]) -> list[Hits]:
    """Return the results of several users, all of whom want the same number of items."""
    vectors = np.concatenate([vector for vector, _, _ in queries])
    hits = searcher.search(vectors, queries[0][1], Ragged.of([excluded for _, _, excluded in queries]))
    return [Hits.join([hits.of(user)]) for user in range(len(queries))]


def is_wanted(
    batching: MicroBatching, answer: Callable[[Sequence[Question]], object], trial: Sequence[Question]
) -> bool:
    """Return whether questions are to be answered together.

    Args:
        batching: What the operator says; `auto`: if it pays.
        answer: Answers questions.
        trial: A few, as many as may come at once.
    """
    return batching == "on" or (batching == "auto" and len(trial) > 1 and pays(answer, trial))


def pays(answer: Callable[[Sequence[Question]], object], questions: Sequence[Question], repeats: int = 5) -> bool:
    """Return whether questions are answered together in clearly less time than one by one, by trying both.

    Args:
        answer: Answers questions.
        questions: A few, as many as may come at once.
        repeats: How often each is tried; the fastest counts, as a disturbance only ever slows.
    """
    answer(questions)
    together = min(_seconds(lambda: answer(questions)) for _ in range(repeats))
    one_by_one = min(_seconds(lambda: [answer([one]) for one in questions]) for _ in range(repeats))
    return together < _WORTH * one_by_one


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
