"""Gunicorn's threaded worker with what it leaves to proxies: senders of half a request hold neither it nor its threads.

Gunicorn reads the headers of a request in a thread, for as long as the client likes, and lingers over connections that
it closes in the thread that everything else waits for.
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
_MOST_DRAINED = 1 << 16
_SECONDS_BETWEEN_LOOKS = 0.25


class Worker(ThreadWorker):  # type: ignore[misc]
    """The worker."""

    def init_process(self) -> None:
        """Begin to work."""
        self._heading: dict[Any, float] = {}
        threading.Thread(target=self._watch, name="towers-headers", daemon=True).start()
        super().init_process()

    def handle(self, conn: Any) -> Any:
        """Handle a request, in a thread; its headers have to be there in time, and its end is waited for here."""
        self._heading[conn.sock] = time.monotonic() + SECONDS_FOR_HEADERS
        try:
            goes_on = super().handle(conn)
        finally:
            self._heading.pop(conn.sock, None)
        if not (goes_on and self.alive):
            _linger(conn.sock)
        return goes_on

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request whose headers are there."""
        self._heading.pop(conn.sock, None)
        return super().handle_request(req, conn)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop to accept connections; before the end, those that wait already are accepted."""
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
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            now = time.monotonic()
            for late in [sock for sock, deadline in self._heading.copy().items() if deadline <= now]:
                with suppress(OSError):
                    late.shutdown(socket.SHUT_RDWR)


def _linger(sock: socket.socket) -> None:
    """Wait a little until the client has seen the end of a connection, so that closing it does not have to."""
    deadline, drained = time.monotonic() + _SECONDS_TO_LINGER, 0
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while drained < _MOST_DRAINED and (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not (part := sock.recv(4096)):
                break
            drained += len(part)
        sock.shutdown(socket.SHUT_RD)
