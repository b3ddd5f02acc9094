"""The log of live writes: its records, and the interface that every log implements."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

import orjson

from features.ids import ITEM_ID, USER_ID

RecordKind = Literal["item", "deletion", "event"]

MOST_AT_ONCE = 1_000
"""Maximum number of records returned by one read, so that reading a long log again takes little memory at a time."""

# More than the distance of two adjacent doubles that count seconds since 1970.
_CLOCK_STEP = 1e-5
_MAX_SECONDS = 2**53
_ID: tuple[type, ...] = (str, int)
_KINDS = ("item", "deletion", "event")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Write:
    """A record to append.

    Attributes:
        kind: `item`: an item is added or replaced; `deletion`: an item is deleted; `event`: a user interacted with an
            item.
        body: `item_id`; of an item also `cells` and perhaps its `vector` (`serving.live.follower.vector_to_json`); of
            an event also `user_id` and `time` (Unix seconds).
        key: Idempotency key: a second write with the same key is ignored. None: the write is never ignored.
    """

    kind: RecordKind
    body: dict[str, Any]
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the log.

    Attributes:
        position: Position in the log; rises with each record.
        received: Time of arrival in Unix seconds.
        kind: As in `Write`; `unreadable` for a damaged record.
        body: As in `Write`; `reason` for a damaged record.
    """

    position: int
    received: float
    kind: RecordKind | Literal["unreadable"]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The result of an append.

    Attributes:
        position: Position of the last record of the log; the appended records are at or before it.
        num_repeated: Number of writes that were ignored because their key was already in the log.
    """

    position: int
    num_repeated: int


@dataclass(frozen=True, slots=True)
class LogState:
    """The identity and the length of a log.

    Attributes:
        log_id: Identity of the log; positions of different logs are not comparable.
        end: Position of the last record; 0 if there is none.
        opening: Changes when the log was reopened after it was lost: its records may then differ from before.
    """

    log_id: str
    end: int
    opening: object = None


class RisingClock:
    """A clock of Unix seconds that never goes back, even if the machine's clock does; safe to use from several threads.

    An index contains the events received up to a certain time. A later write must not get an earlier time, or it would
    be considered to be in the index.
    """

    def __init__(self) -> None:
        self._latest = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the time in Unix seconds."""
        with self._lock:
            self._latest = max(self._latest, time.time())
            return self._latest

    def pass_over(self, moment: float) -> None:
        """Let all later times be greater than `moment`, in Unix seconds."""
        with self._lock:
            self._latest = max(self._latest, moment + _CLOCK_STEP)


class EventLog(Protocol):
    """A log; safe to use from several threads. Every method raises `NotReady` while the log is not accessible."""

    clock: RisingClock
    """Gives writes their time of arrival."""

    def append(self, writes: Sequence[Write]) -> AppendResult:
        """Append writes, all or none; on return they are stored durably."""

    def read_after(self, position: int) -> list[Record]:
        """Return the records after a position, in order, at most `MOST_AT_ONCE`."""

    def change_token(self) -> object:
        """Return a value that changes when anything was appended, or the log was replaced; takes microseconds."""

    def state(self) -> LogState:
        """Return the identity and the length of the log."""

    def rename(self, log_id: str) -> None:
        """Give the log a new id if it has this one: its further records differ from those read before."""

    def close(self) -> None:
        """Close the log; it cannot be used any more."""


def rows_of(writes: Sequence[Write], now: float) -> list[tuple[float, RecordKind, bytes, str | None]]:
    """Return writes as the columns of a log: `received`, `kind`, `body`, `key`."""
    return [(now, write.kind, orjson.dumps(write.body), write.key) for write in writes]


def records_of(rows: Iterable[Sequence[Any]]) -> list[Record]:
    """Return rows with the columns `position`, `received`, `kind` and `body` as records."""
    return [_record(*row) for row in rows]


def readable(records: Iterable[Record]) -> list[Record]:
    """Return the valid records; the others are skipped, and an error is logged for each, or for each run of them."""
    found: list[Record] = []
    for reason, run in groupby(records, key=_fault):
        alike = list(run)
        if reason is None:
            found += alike
            continue
        first, last = alike[0].position, alike[-1].position
        which = f"record {first}" if first == last else f"records {first} to {last}"
        _log.error("%s of the log of live writes: invalid and skipped: %s", which, reason)
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
        reason = "its body is not a JSON object"
    if reason is None:
        return Record(position, float(received), kind, body)  # type: ignore[arg-type]
    return unreadable(position, reason)


def unreadable(position: int, reason: str) -> Record:
    """Return what stands for a record that cannot be read; `readable` logs the reason and skips it."""
    return Record(position, 0.0, "unreadable", {"reason": reason})


def _fault(record: Record) -> str | None:
    """Return why a record is invalid; None if it is valid."""
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
    if abs(body.get("time", 0)) > _MAX_SECONDS:
        return f"time: expected Unix seconds, found {body['time']}"
    return None


def not_before(rows: Sequence[tuple[Any, ...]], last: Any, clock: RisingClock) -> Sequence[tuple[Any, ...]]:
    """Return rows with times of arrival no earlier than the log's last one, as another machine's clock may be behind.

    Args:
        rows: As `rows_of` returns them.
        last: The time of arrival of the last record. None: the log is empty.
        clock: Set to a later time if necessary.
    """
    if not isinstance(last, float | int) or not rows or last <= rows[0][0]:
        return rows
    clock.pass_over(last)
    return [(last, *row[1:]) for row in rows]
