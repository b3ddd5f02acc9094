"""Limits of load: requests in progress per worker, and requests per second per client.

With an unbounded queue every request becomes late. So a worker answers `threads` requests at a time, queues some more,
and rejects the rest at once, which a load balancer takes as "try another". The servers cannot do that: granian's
`backpressure` and gunicorn's `worker_connections` bound connections, idle ones included, and leave the rest waiting in
the kernel, without a response.
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
_NUM_CLIENTS = 1 << 16


class ConcurrencyLimiter:
    """Bounds the requests that a worker has in progress.

    Args:
        threads: Requests that are answered at a time.
        queue_size: Further requests that may wait.
        on_change: Called with the number of requests in progress, queued ones included, whenever it changes.
        clock: Seconds.
    """

    def __init__(
        self,
        threads: int,
        queue_size: int,
        on_change: Callable[[int], None] = lambda in_progress: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = threads + queue_size
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(threads):
            self._free.put(None)
        self._on_change = on_change
        self._in_progress = 0
        self._clock = clock
        self._moved = clock()
        self._counting = threading.Lock()

    def take(self, seconds: float | None = None) -> bool:
        """Wait for a turn and return True; return False at once if the queue is full.

        Args:
            seconds: The longest wait; False is returned after it. None: however long.
        """
        with self._counting:
            if self._in_progress >= self._most:
                return False
            if not self._in_progress:
                self._moved = self._clock()
            self._in_progress += 1
            self._on_change(self._in_progress)
        try:
            self._free.get(timeout=seconds)
        except Empty:
            self._leave()
            return False
        return True

    def give_back(self) -> None:
        """End a turn."""
        self._free.put(None)
        self._leave()

    def _leave(self) -> None:
        """Count one request less."""
        with self._counting:
            self._in_progress -= 1
            self._moved = self._clock()
            self._on_change(self._in_progress)

    @property
    def in_progress(self) -> int:
        """Number of requests that are being answered or queued."""
        return self._in_progress

    def is_stuck(self) -> bool:
        """Return whether requests are in progress and none ended for a minute."""
        return self._in_progress > 0 and self._clock() - self._moved > _SECONDS_STUCK


class RateLimiter:
    """Requests per second and client, counted by all workers of a server together.

    A client may send `burst` requests at once and then `rate` a second, by the generic cell rate algorithm: of each
    client one time is kept, at which it will have its whole burst again. The times lie in a table of fixed size in
    shared memory, at the hash of the client with a secret key; two clients share a place with a chance of 1 in 65,536.

    Args:
        rate: Requests per second.
        burst: Requests that a client may send at once.
        folder: Where the workers of one server meet. None: this process is the only one.
        clock: Seconds that all workers agree on.
    """

    def __init__(
        self, rate: float, burst: int, folder: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = 1 / rate
        self._tolerance = (burst - 1) / rate
        self._clock = clock
        self._turn = threading.Lock()
        self._file = None if folder is None else _shared_file(folder / _RATES)
        num_bytes = _KEY_BYTES + 8 * _NUM_CLIENTS
        memory = mmap.mmap(-1 if self._file is None else self._file, num_bytes)
        if self._file is None:
            memory[:_KEY_BYTES] = secrets.token_bytes(_KEY_BYTES)
        else:
            weakref.finalize(self, os.close, self._file)
        self._key = bytes(memory[:_KEY_BYTES])
        self._moments = memoryview(memory)[_KEY_BYTES:].cast("d")

    def wait(self, client: str) -> float:
        """Count a request of a client and return 0; return the seconds to wait if it is one too many."""
        digest = blake2b(client.encode("utf-8", "surrogateescape"), digest_size=8, key=self._key).digest()
        place = int.from_bytes(digest) % _NUM_CLIENTS
        with self._turn:
            if self._file is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX, 8, _KEY_BYTES + 8 * place)
            try:
                return self._count(place)
            finally:
                if self._file is not None:
                    fcntl.lockf(self._file, fcntl.LOCK_UN, 8, _KEY_BYTES + 8 * place)

    def _count(self, place: int) -> float:
        now = self._clock()
        quiet_since = max(now, self._moments[place])
        early = quiet_since - self._tolerance - now
        if early > 0:
            return early
        self._moments[place] = quiet_since + self._interval
        return 0.0


def retry_after(seconds: float) -> int:
    """Return seconds to wait as the value of `Retry-After`: whole, at least one."""
    return max(1, math.ceil(seconds))


def _shared_file(path: Path) -> int:
    """Return the table of a folder, opened, made by whichever worker comes first."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.lockf(file, fcntl.LOCK_EX, _KEY_BYTES)
    if os.fstat(file).st_size == 0:
        os.ftruncate(file, _KEY_BYTES + 8 * _NUM_CLIENTS)
        os.pwrite(file, secrets.token_bytes(_KEY_BYTES), 0)
    fcntl.lockf(file, fcntl.LOCK_UN, _KEY_BYTES)
    return file
