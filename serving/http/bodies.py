"""Request bodies, read completely before a request counts against the concurrency limit; bounded in size, time, memory.

Reading a WSGI stream blocks until the client has sent more, so a slow client occupies a thread, and would occupy one
of the few places of the concurrency limit with it. If a body does not arrive in time, its connection is closed: nothing
else wakes the thread that reads it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any
from wsgiref.types import InputStream, WSGIEnvironment

from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge, RequestTimeout, ServiceUnavailable

CONNECTION = "towers.connection"
"""Key of the WSGI environment for a function that closes the connection after answering with a given status, if the
server provides one. Gunicorn and Werkzeug provide the socket instead."""

SECONDS_FOR_HEADERS = 30
"""How long a connection may stay open until the headers of a request have arrived completely, in seconds."""

_SOCKETS = ("gunicorn.socket", "werkzeug.socket")
_CHUNK_BYTES = 1 << 16
_MAX_SHARED_BYTES = 1 << 26
_MAX_DRAINED_BYTES = 1 << 24
_SECONDS_TO_DRAIN = 1.0
_SECONDS_BETWEEN_CHECKS = 0.25
_SECONDS_TO_RETRY = 1


class Bodies:
    """The request bodies that a worker is receiving.

    Args:
        max_bytes: Maximum size of a body.
        seconds: Maximum time from the request's headers to the last byte of its body.
        clock: Returns seconds.

    Attributes:
        receiving: The bodies being received.
        lock: Guards `receiving` and the shared memory budget.
    """

    def __init__(self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self.receiving: set[_Reception] = set()
        self.lock = threading.Lock()
        self._watching: threading.Thread | None = None
        self._clock = clock
        self._left = max(_MAX_SHARED_BYTES, 4 * max_bytes)

    def receive(self, environ: WSGIEnvironment) -> None:
        """Read the body of a request completely, and replace the request's stream by it.

        Raises:
            RequestEntityTooLarge: The body has more than `max_bytes`.
            RequestTimeout: The body did not arrive in time.
            BadRequest: The connection closed before the end of the body, or Content-Length is not a number.
            ServiceUnavailable: Other large bodies being received use all the memory reserved for bodies.
        """
        length = _declared_length(environ)
        if length is not None and length > self._max_bytes:
            self._drain(environ)
            raise RequestEntityTooLarge(f"expected a body of at most {self._max_bytes} bytes, found {length}")
        with self._within(self._seconds, environ, RequestTimeout.code) as reception:
            body = self._read(environ["wsgi.input"], self._max_bytes + 1 if length is None else length)
        if reception.is_late:
            raise RequestTimeout(f"the request body did not arrive within {self._seconds:g} seconds")
        if body is None or (length is not None and len(body) < length):
            raise BadRequest("the request body is shorter than announced; the connection closed before its end")
        if len(body) > self._max_bytes:
            self._drain(environ)
            raise RequestEntityTooLarge(f"expected a body of at most {self._max_bytes} bytes, found more")
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["wsgi.input"] = BytesIO(body)

    def _read(self, stream: InputStream, wanted: int) -> bytes | None:
        """Return up to `wanted` bytes of a body; None if the server reports that the connection broke.

        Memory beyond the first chunk is counted against the budget that all bodies share.
        """
        parts: list[bytes] = []
        held = 0
        try:
            while wanted > 0 and (part := stream.read(min(wanted, _CHUNK_BYTES))):
                parts.append(part)
                wanted -= len(part)
                if wanted > 0:
                    held += self._share(min(wanted, _CHUNK_BYTES))
        except HTTPException:
            raise
        except Exception:  # each server raises its own type of error for a broken connection
            return None
        finally:
            if held:
                self._share(-held)
        return b"".join(parts)

    def _share(self, num_bytes: int) -> int:
        """Reserve memory from the shared budget, or release it if negative; return the argument.

        Raises:
            ServiceUnavailable: The budget is used up.
        """
        with self.lock:
            if num_bytes > self._left:
                raise ServiceUnavailable(
                    "too many large request bodies are being received; try again", retry_after=_SECONDS_TO_RETRY
                )
            self._left -= num_bytes
        return num_bytes

    def _drain(self, environ: WSGIEnvironment) -> None:
        """Read and discard some of a body that is too large; else the client would see a broken pipe, not the response.

        A client that waits for "100 Continue" sends nothing before it has the response.
        """
        if environ.get("HTTP_EXPECT"):
            return
        left = _MAX_DRAINED_BYTES
        with self._within(_SECONDS_TO_DRAIN, environ, RequestEntityTooLarge.code), suppress(Exception):
            while left > 0 and (part := environ["wsgi.input"].read(_CHUNK_BYTES)):
                left -= len(part)

    def _within(self, seconds: float, environ: WSGIEnvironment, status: int) -> _Reception:
        """Return a context manager that closes the connection, after answering `status`, if it lasts too long."""
        if self._watching is None:
            with self.lock:
                if self._watching is None:
                    self._watching = threading.Thread(target=self._watch, name="towers-bodies", daemon=True)
                    self._watching.start()
        return _Reception(self, self._clock() + seconds, environ, status)

    def _watch(self) -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_CHECKS)
            if self.receiving:
                self.end_late()

    def end_late(self) -> None:
        """Close the connections whose bodies are past their deadlines."""
        with self.lock:  # a body that is completed at this moment must not be cut off
            now = self._clock()
            for reception in [reception for reception in self.receiving if reception.deadline <= now]:
                self.receiving.discard(reception)
                reception.is_late = True
                _end_connection(reception.environ, reception.status)


class _Reception:
    """A body while it is being received, as a context manager.

    Attributes:
        deadline: Time by which the body has to be complete, in seconds of the clock.
        environ: The request.
        status: The HTTP status with which the connection is closed otherwise.
        is_late: Whether the deadline passed.
    """

    __slots__ = ("_all", "deadline", "environ", "is_late", "status")

    def __init__(self, everything: Bodies, deadline: float, environ: WSGIEnvironment, status: int) -> None:
        self._all = everything
        self.deadline, self.environ, self.status = deadline, environ, status
        self.is_late = False

    def __enter__(self) -> _Reception:
        with self._all.lock:
            self._all.receiving.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        with self._all.lock:
            self._all.receiving.discard(self)


def has_body(environ: WSGIEnvironment) -> bool:
    """Return whether a request has a body."""
    return environ.get("CONTENT_LENGTH", "") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ


def _declared_length(environ: WSGIEnvironment) -> int | None:
    """Return the Content-Length of a request; None with chunked transfer encoding."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    declared = environ["CONTENT_LENGTH"]
    if not (declared.isascii() and declared.isdecimal() and len(declared) < 20):
        raise BadRequest(f"expected a number of bytes in Content-Length, found {declared[:40]!r}")
    return int(declared)


def _end_connection(environ: WSGIEnvironment, status: int) -> None:
    """Close the connection of a request, if the server allows it, to wake the thread that reads its body."""
    end: Callable[[int], Any] | None = environ.get(CONNECTION)
    if end is not None:
        end(status)
    for name in _SOCKETS:
        if name in environ:
            with suppress(OSError):
                environ[name].shutdown(socket.SHUT_RD)  # the response can still be sent
