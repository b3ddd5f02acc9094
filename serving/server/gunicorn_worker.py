"""Gunicorn's threaded worker with a time limit for request headers, and connections closed outside the main thread.

Gunicorn reads the headers of a request in a thread without a time limit, and lets the main thread wait for the client
when a connection is closed, which blocks all others. It expects a proxy to protect it from slow clients.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any

from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from serving.http.bodies import SECONDS_FOR_HEADERS

_SECONDS_TO_LINGER = 1.0
_MAX_DRAINED_BYTES = 1 << 16
_SECONDS_BETWEEN_CHECKS = 0.25


class Worker(ThreadWorker):  # type: ignore[misc]
    """The threaded worker with deadlines for headers."""

    def init_process(self) -> None:
        """Start the thread that enforces the deadlines, and the worker."""
        self._header_deadlines: dict[Any, float] = {}
        threading.Thread(target=self._watch, name="towers-headers", daemon=True).start()
        super().init_process()

    def handle(self, conn: Any) -> Any:
        """Handle a connection, in a thread: its headers must arrive in time, and it is closed in this thread."""
        self._header_deadlines[conn.sock] = time.monotonic() + SECONDS_FOR_HEADERS
        try:
            goes_on = super().handle(conn)
        finally:
            self._header_deadlines.pop(conn.sock, None)
        if not (goes_on and self.alive):
            _linger(conn.sock)
        return goes_on

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request whose headers have arrived."""
        self._header_deadlines.pop(conn.sock, None)
        return super().handle_request(req, conn)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop accepting connections; before shutdown, connections already queued are accepted first."""
        super().set_accept_enabled(enabled)
        if not (enabled or self.alive):
            for listener in self.sockets:
                before = None
                while self.nr_conns != before:
                    before = self.nr_conns
                    self.accept(listener)
                listener.close()

    def _watch(self) -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_CHECKS)
            now = time.monotonic()
            for late in [sock for sock, deadline in self._header_deadlines.copy().items() if deadline <= now]:
                with suppress(OSError):
                    late.shutdown(socket.SHUT_RDWR)


def _linger(sock: socket.socket) -> None:
    """Shut down a connection and wait briefly for the client's end, so that closing it does not block later."""
    deadline, drained = time.monotonic() + _SECONDS_TO_LINGER, 0
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while drained < _MAX_DRAINED_BYTES and (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not (part := sock.recv(4096)):
                break
            drained += len(part)
        sock.shutdown(socket.SHUT_RD)
