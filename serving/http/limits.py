"""The concurrency limit of a worker, and the rate limit of a client.

With an unbounded queue, under overload every request exceeds its deadline. So a worker answers `threads` requests at a
time, queues `queue_size` more, and rejects further ones at once, so that a load balancer can try another server. The
settings of the WSGI servers cannot do that: granian's `backpressure` and gunicorn's `worker_connections` limit
connections, idle ones included, and leave further ones waiting in the kernel without a response.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from queue import Empty, SimpleQueue

_SECONDS_STUCK = 60.0
_RATES = "rates"
_KEY_BYTES = 16
_NUM_SLOTS = 1 << 16


class ConcurrencyLimiter:
    """Limits the requests in progress of this worker, queued ones included.

    Args:
        threads: Number of requests answered at a time.
        queue_size: Number of further requests that may queue.
        on_change: Called with the number of requests in progress whenever it changes.
        clock: Returns seconds.
    """

    def __init__(
        self,
        threads: int,
        queue_size: int,
        on_change: Callable[[int], None] = lambda in_progress: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_in_progress = threads + queue_size
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(threads):
            self._free.put(None)
        self._on_change = on_change
        self._in_progress = 0
        self._clock = clock
        self._last_progress = clock()
        self._counting = threading.Lock()

    def take(self, seconds: float | None = None) -> bool:
        """Wait until the request may be processed and return True; return False at once if the queue is full.

        Args:
            seconds: Maximum wait in seconds, after which False is returned. None: no maximum.
        """
        with self._counting:
            if self._in_progress >= self._max_in_progress:
                return False
            if not self._in_progress:
                self._last_progress = self._clock()
            self._in_progress += 1
            self._on_change(self._in_progress)
        try:
            self._free.get(timeout=seconds)
        except Empty:
            self._leave()
            return False
        return True

    def give_back(self) -> None:
        """Note that a request for which `take` returned True is completed."""
        self._free.put(None)
        self._leave()

    def _leave(self) -> None:

        with self._counting:
            self._in_progress -= 1
            self._last_progress = self._clock()
            self._on_change(self._in_progress)

    @property
    def in_progress(self) -> int:
        """Number of requests being answered or queued."""
        return self._in_progress

    def is_stuck(self) -> bool:
        """Return whether there are requests in progress and none has been completed for a minute."""
        return self._in_progress > 0 and self._clock() - self._last_progress > _SECONDS_STUCK


class RateLimiter:
    """Limits the requests per second of each client, counted by all workers of a server together.

    Implements the generic cell rate algorithm: a client may send `burst` requests at once and then `rate` requests per
    second. One number is stored per client, its theoretical arrival time: when its allowance will be full again. These
    times are in a table of fixed size in shared memory, in the slot given by a keyed hash of the client. Two given
    clients share a slot, and so an allowance, with probability 1 / 65,536.

    Args:
        rate: Requests per second.
        burst: Requests at once after a pause.
        folder: A folder that the workers of one server share. None: this process is the only one.
        clock: Returns seconds; the same in all workers.
    """

    def __init__(
        self, rate: float, burst: int, folder: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = 1 / rate
        self._tolerance = (burst - 1) / rate
        self._clock = clock
        self._lock = threading.Lock()
        self._file = None if folder is None else _shared_file(folder / _RATES)
        num_bytes = _KEY_BYTES + 8 * _NUM_SLOTS
        memory = mmap.mmap(-1 if self._file is None else self._file, num_bytes)
        if self._file is None:
            memory[:_KEY_BYTES] = secrets.token_bytes(_KEY_BYTES)
        else:
            weakref.finalize(self, os.close, self._file)
        self._key = bytes(memory[:_KEY_BYTES])
        self._arrival_times = memoryview(memory)[_KEY_BYTES:].cast("d")

    def wait(self, client: str) -> float:
        """Count a request of a client and return 0; if it exceeds the limit, return the seconds to wait instead."""
        digest = blake2b(client.encode("utf-8", "surrogateescape"), digest_size=8, key=self._key).digest()
        slot = int.from_bytes(digest) % _NUM_SLOTS
        with self._lock:
            if self._file is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX, 8, _KEY_BYTES + 8 * slot)
            try:
                return self._count(slot)
            finally:
                if self._file is not None:
                    fcntl.lockf(self._file, fcntl.LOCK_UN, 8, _KEY_BYTES + 8 * slot)

    def _count(self, slot: int) -> float:
        now = self._clock()
        arrival = max(now, self._arrival_times[slot])
        too_early = arrival - self._tolerance - now
        if too_early > 0:
            return too_early
        self._arrival_times[slot] = arrival + self._interval
        return 0.0


def retry_after(seconds: float) -> int:
    """Return a time to wait as the value of `Retry-After`: whole seconds, rounded up, at least 1."""
    return max(1, math.ceil(seconds))


def _shared_file(path: Path) -> int:
    """Return a descriptor of the table, which the first worker creates."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.lockf(file, fcntl.LOCK_EX, _KEY_BYTES)
    if os.fstat(file).st_size == 0:
        os.ftruncate(file, _KEY_BYTES + 8 * _NUM_SLOTS)
        os.pwrite(file, secrets.token_bytes(_KEY_BYTES), 0)
    fcntl.lockf(file, fcntl.LOCK_UN, _KEY_BYTES)
    return file
