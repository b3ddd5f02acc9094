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
from typing import Generic, Literal, TypeVar

from serving import deadline

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
