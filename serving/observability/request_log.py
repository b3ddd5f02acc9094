"""The request log: a sample of the answered requests, one line of JSON each, for `towers drift`.

A thread of each worker writes, so that no request waits for a disk. All workers append to one file, each line with one
write: on a local file system such lines never mix. A full file is renamed by one of them, and the others notice.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import hmac
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from queue import Full, Queue
from stat import S_ISREG
from typing import Literal

import orjson
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from features.errors import DataError

OUTCOMES = ("written", "failed", "dropped")
"""What became of a line: written; lost because the file could not be written; lost because too many were waiting."""
MOST_ITEMS = 100
"""Number of items of an answer that are logged; `returned` counts all."""
KEY_CHARACTERS = 16
"""Minimum length of the key of the hashes."""

_MOST_WAITING = 1_000
_SECONDS_TO_FINISH = 2.0
_HASH_DIGITS = 32
_log = logging.getLogger(__name__)


@with_config(ConfigDict(allow_inf_nan=False))
class LoggedAnswer(TypedDict):
    """One answer of a request: the items for one user, one item or one text.

    `user` is None of similar items and of searches. Users by id have `user_hash`, if there is a key, and `history` if
    they are known; described ones have `history`, `unknown_items` (places in the history) and `attributes` (number of
    unknown values or words by column). `scores` are the best, the median and the worst; None without items.
    """

    user: Literal["known", "unknown", "described"] | None
    user_hash: str | None
    history: int | None
    unknown_items: int
    attributes: dict[str, int]
    fallback: str | None
    reranked: bool | None
    returned: int
    scores: tuple[float, float, float] | None
    items: list[int | str]


@with_config(ConfigDict(allow_inf_nan=False))
class LoggedRequest(TypedDict):
    """A line of the log; `time` is that of the answer in Unix seconds, and `filters` are names of columns."""

    time: float
    route: str
    model: str
    index: str
    k: int
    offset: int
    filters: list[str]
    milliseconds: float
    answers: list[LoggedAnswer]


class RequestedItems(TypedDict):
    """What a request asked for, as in `LoggedRequest`."""

    k: int
    offset: int
    filters: list[str]


class _Sampled(threading.local):
    """The answers of this thread's request; None: it is not sampled."""

    answers: list[LoggedAnswer] | None = None
    wanted: RequestedItems | None = None


class RequestLog:
    """Logs a share of the requests; safe to use from several threads. Nothing here fails or delays a request.

    Args:
        file: The file, which other workers may append to as well.
        share: Share of the requests that are logged, above 0 to 1.
        key: Key of the hash that stands for a user's id. None: ids are left out.
        on_line: Called with what became of each line, one of `OUTCOMES`.
    """

    def __init__(self, file: RotatedFile, share: float, key: str | None, on_line: Callable[[str], None]) -> None:
        self._file = file
        self._share = share
        self._key = key
        self._on_line = on_line
        self._sampled = _Sampled()
        self._waiting: Queue[LoggedRequest | None] = Queue(_MOST_WAITING)
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None
        self._num_lost = 0

    def begin(self) -> None:
        """Decide whether this thread's new request is logged."""
        # S311: chance for a sample, not for a secret.
        self._sampled.answers = [] if random.random() < self._share else None  # noqa: S311
        self._sampled.wanted = None

    @property
    def is_sampled(self) -> bool:
        """Whether this thread's request is logged."""
        return self._sampled.answers is not None

    def note(self, wanted: RequestedItems, answer: LoggedAnswer) -> None:
        """Add an answer to the line of this thread's request, which must be sampled."""
        assert self._sampled.answers is not None, "only sampled requests are noted"
        self._sampled.wanted = wanted
        self._sampled.answers.append(answer)

    def end(self, route: str, status: int, seconds: float, model: str, index: str) -> None:
        """Log this thread's request, if it is sampled and was answered with items.

        Args:
            route: The path of its route.
            status: HTTP status of the response; only requests with 200 are logged.
            seconds: Duration of the request.
            model: Version of the model.
            index: Version of the index.
        """
        answers, wanted = self._sampled.answers, self._sampled.wanted
        self._sampled.answers = None
        if not answers or wanted is None or status != 200:
            return
        self._start()
        line = LoggedRequest(
            time=round(time.time(), 3),
            route=route,
            model=model,
            index=index,
            **wanted,
            milliseconds=round(seconds * 1000, 3),
            answers=answers,
        )
        try:
            self._waiting.put_nowait(line)
        except Full:
            self._on_line("dropped")

    def user_hash(self, user_id: int | str) -> str | None:
        """Return what stands for a user's id; None without a key."""
        return None if self._key is None else user_hash(self._key, user_id)

    def close(self) -> None:
        """Write the lines that are waiting, for some seconds at most; further requests are logged again."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            try:
                self._waiting.put(None, timeout=_SECONDS_TO_FINISH)
            except Full:
                return
            writer.join(_SECONDS_TO_FINISH)

    def _start(self) -> None:
        """Start the thread that writes, at the first line: a thread would not survive the fork of a worker."""
        if self._writer is None:
            with self._lock:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write, name="towers-request-log", daemon=True)
                    self._writer.start()
                    atexit.register(self.close)

    def _write(self) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                self._file.append(orjson.dumps(line) + b"\n")
            except (OSError, TypeError) as error:  # orjson's errors are TypeErrors
                self._note_loss(error)
            else:
                self._note_success()
        self._file.close()

    def _note_loss(self, error: Exception) -> None:
        self._on_line("failed")
        if not self._num_lost:
            _log.warning("request log %s: not written (%s); lines are lost until it can be", self._file.path, error)
        self._num_lost += 1

    def _note_success(self) -> None:
        self._on_line("written")
        if self._num_lost:
            _log.warning("request log %s: written again; %d lines were lost", self._file.path, self._num_lost)
            self._num_lost = 0


class RotatedFile:
    """A file that several processes append lines to; a full one is renamed to `FILE.1`, that to `FILE.2`, and so on.

    Args:
        path: The file.
        max_bytes: Size from which a new file is begun; a line that is longer has a file of its own.
        num_files: Number of files that are kept, at least 2.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, max_bytes: int, num_files: int) -> None:
        self.path = path.absolute()
        self._max_bytes = max_bytes
        self._num_files = num_files
        self._descriptor: int | None = None
        self._is_torn = False

    def append(self, line: bytes) -> None:
        """Append a line, which ends with a line break; to be called from one thread only.

        Raises:
            OSError: The line could not be written, or not all of it.
        """
        descriptor = self._current()
        size = os.fstat(descriptor).st_size
        if size and size + len(line) > self._max_bytes:
            self._rotate(len(line))
            descriptor = self._current()
        # A line of which the disk took a part must not spoil the next one.
        content = b"\n" + line if self._is_torn else line
        written = os.write(descriptor, content)
        self._is_torn = written < len(content)
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def check(self) -> None:
        """Check that the file can be written, and create it if there is none.

        Raises:
            DataError: It cannot; names the cause.
        """
        try:
            if self.path.exists() and not S_ISREG(self.path.stat().st_mode):
                raise DataError(f"request_log: {self.path} is not a file; name one that can be written")
            self._current()
            self.close()
        except OSError as error:
            raise DataError(
                f"request_log: {self.path} cannot be written ({error.strerror}); make its folder writable, or name "
                "another file"
            ) from None

    def _current(self) -> int:
        """Return a descriptor of the file that has the path now: another worker, or an operator, may have moved it."""
        if self._descriptor is not None:
            if _is_same(self._descriptor, self.path):
                return self._descriptor
            self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self.path, flags, 0o640)
        return self._descriptor

    def _rotate(self, num_bytes: int) -> None:
        """Rename the files, unless another worker does or has done so."""
        with self._numbered("lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            try:
                size = self.path.stat().st_size
            except FileNotFoundError:  # another worker has just renamed it; the next line begins a new one
                return
            if size + num_bytes <= self._max_bytes:
                return
            num_renamed = next(number for number in count() if not self._numbered(number + 1).exists())
            for number in range(num_renamed, 0, -1):
                # More than are kept may lie there since the setting was lowered.
                if number >= self._num_files - 1:
                    self._numbered(number).unlink()
                else:
                    self._numbered(number).replace(self._numbered(number + 1))
            self.path.replace(self._numbered(1))

    def _numbered(self, number: int | str) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def user_hash(key: str, user_id: int | str) -> str:
    """Return what stands for a user's id in the log: the first 128 bits of HMAC-SHA-256, in hexadecimal.

    Args:
        key: The setting `request_log_key`.
        user_id: The id as in the tables.
    """
    return hmac.new(key.encode(), str(user_id).encode(), hashlib.sha256).hexdigest()[:_HASH_DIGITS]


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
