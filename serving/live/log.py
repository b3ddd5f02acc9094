"""The log of live writes: what a record is, and what every log can do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson

from features.schema import ITEM_ID, USER_ID

RecordKind = Literal["item", "deletion", "event"]


MOST_AT_ONCE = 10_000
"""Records that a reader gets in one go."""


# Between two numbers of a double that counts seconds since 1970 lies less.
_A_MOMENT = 1e-5


_MOST_SECONDS = 2**53


_ID: tuple[type, ...] = (str, int)


_KINDS = ("item", "deletion", "event")


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Write:
    """What is to be remembered.

    Attributes:
        kind: `item`: put one, new or in the place of one; `deletion`: of an item; `event`: someone had something.
        body: `item_id`, with `cells` and perhaps the `vector` of an item (`serving.live.follower.vector_to_json`),
            `user_id` and `time` (Unix seconds) of an event.
        key: A second write with the same key is a repetition of the first and changes nothing. None: it is one of
            its own.
    """

    kind: RecordKind
    body: dict[str, Any]
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered.

    Attributes:
        position: Its place in the log; later ones are higher.
        received: When it came, in Unix seconds.
        kind: As in `Write`; `unreadable` where something else stands in the log.
        body: As in `Write`; of what is unreadable `reason`.
    """

    position: int
    received: float
    kind: RecordKind | Literal["unreadable"]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of writes.

    Attributes:
        position: The end of the log: whoever has read up to here has read them.
        num_repeated: How many of them were repetitions.
    """

    position: int
    num_repeated: int


@dataclass(frozen=True, slots=True)
class LogState:
    """What a log is at a moment.

    Attributes:
        log_id: Which log it is; a position means something only in its own.
        end: The last position; 0 where nothing was written yet.
        opening: Another value after it was lost and found again: what stood at a position then, another may now.
    """

    log_id: str
    end: int
    opening: object = None


class RisingClock:
    """Unix seconds that never fall, though the clock of the machine may be set back; safe to use from threads.

    What came later must not look older than what was there before: an index holds what was received until a moment, and
    a write that seems to be from before it would be taken for one that is in the index.
    """

    def __init__(self) -> None:
        self._latest = 0.0
        self._turn = threading.Lock()

    def now(self) -> float:
        """Return the time."""
        with self._turn:
            self._latest = max(self._latest, time.time())
            return self._latest

    def pass_over(self, moment: float) -> None:
        """Let the time be later than a moment from now on."""
        with self._turn:
            self._latest = max(self._latest, moment + _A_MOMENT)


class EventLog(Protocol):
    """A log, safe to use from several threads. A method raises `NotReady` when the log is out of reach."""

    clock: RisingClock
    """When writes are received."""

    def append(self, writes: Sequence[Write]) -> AppendResult:
        """Remember writes, all or none of them; on return they survive the end of the process and of the machine."""

    def since(self, position: int) -> list[Record]:
        """Return what stands after a position, in order, at most `MOST_AT_ONCE`."""

    def version(self) -> object:
        """Return something that is another value after anything was appended, or the log became another."""

    def state(self) -> LogState:
        """Return which log it is now, and its end."""

    def rename(self, log_id: str) -> None:
        """Give the log another id if it still has this one: it goes on otherwise than the log of this id did."""

    def close(self) -> None:
        """Let go of the log."""


def rows_of(writes: Sequence[Write], now: float) -> list[tuple[float, RecordKind, bytes, str | None]]:
    """Return writes as the columns of a log: `received`, `kind`, `body`, `key`."""
    return [(now, write.kind, orjson.dumps(write.body), write.key) for write in writes]


def records_of(rows: Iterable[Sequence[Any]]) -> list[Record]:
    """Return what the columns of a log say: `position`, `received`, `kind`, `body`."""
    return [_record(*row) for row in rows]


def readable(records: Iterable[Record]) -> list[Record]:
    """Return the records that say what their kind has to say; the others are left out, each with a line in the log."""
    found = []
    for record in records:
        reason = _fault(record)
        if reason is None:
            found.append(record)
        else:
            _log.error("record %s of the log of live writes is left out: %s", record.position, reason)
    return found


def _record(position: int, received: object, kind: Any, content: Any) -> Record:
    try:
        body = orjson.loads(content)
    except (orjson.JSONDecodeError, TypeError):
        body = None
    reason = None
    if kind not in _KINDS:
        reason = f"expected a kind of {', '.join(_KINDS)}, found {kind!r:.40}"
    elif not isinstance(received, float | int):
        reason = f"received: expected Unix seconds, found {received!r:.40}"
    elif not isinstance(body, dict):
        reason = "its body is no JSON object"
    if reason is None:
        return Record(position, float(received), kind, body)  # type: ignore[arg-type]
    return Record(position, 0.0, "unreadable", {"reason": reason})


def _fault(record: Record) -> str | None:
    """Return what is wrong with a record; None if nothing is."""
    body = record.body
    if record.kind == "unreadable":
        return str(body["reason"])
    needed = {ITEM_ID: _ID}
    if record.kind == "item":
        needed["cells"] = (dict,)
    elif record.kind == "event":
        needed |= {USER_ID: _ID, "time": (int,)}
    for name, kinds in needed.items():
        if type(body.get(name)) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            return f"{name}: expected {expected}, found {body.get(name)!r:.40}"
    if abs(body.get("time", 0)) > _MOST_SECONDS:
        return f"time: expected Unix seconds, found {body['time']}"
    return None


def not_before(rows: Sequence[tuple[Any, ...]], last: Any, clock: RisingClock) -> Sequence[tuple[Any, ...]]:
    """Return the rows of a log received no earlier than its last one, as another machine's clock may be behind."""
    if not isinstance(last, float | int) or not rows or last <= rows[0][0]:
        return rows
    clock.pass_over(last)
    return [(last, *row[1:]) for row in rows]
