"""The bodies of requests, received whole before a request takes its turn: bounded in size, in time and in memory.

A server hands an application a stream whose reads block until the client has sent more, so a client that sends slowly
holds a thread, and would hold a turn with it. A body that is not there in time is cut off by ending its connection,
which is the only thing that wakes the thread that reads it.
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
"""Where a request's environment has a function that ends its connection with the status of an answer, if the server
gives one. Gunicorn and Werkzeug give the socket instead."""

SECONDS_FOR_HEADERS = 30
"""How long a connection may stay without the whole headers of a request, idle or slow."""

_SOCKETS = ("gunicorn.socket", "werkzeug.socket")
_PART = 1 << 16
_MOST_SHARED = 1 << 26
_MOST_DRAINED = 1 << 24
_SECONDS_TO_DRAIN = 1.0
_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_TO_RETRY = 1


class Bodies:
    """The bodies that a worker is receiving.

    Args:
        max_bytes: The largest body that is read.
        seconds: How long a body may take, from its request's headers to its last byte.
        clock: Seconds.

    Attributes:
        receiving: Those that are on their way.
        lock: Held to change them.
    """

    def __init__(self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self.receiving: set[_Reception] = set()
        self.lock = threading.Lock()
        self._watching: threading.Thread | None = None
        self._clock = clock
        self._left = max(_MOST_SHARED, 4 * max_bytes)

    def receive(self, environ: WSGIEnvironment) -> None:
        """Put the body of a request, whole and in memory, in the place of the stream that it comes by.

        Raises:
            RequestEntityTooLarge: It has more than `max_bytes`.
            RequestTimeout: It did not come in time.
            BadRequest: It broke off, or its length is no number.
            ServiceUnavailable: Other large bodies, which are being received, use up the memory for such.
        """
        length = _declared_length(environ)
        if length is not None and length > self._max_bytes:
            self._drain(environ)
            raise RequestEntityTooLarge(f"expected a body of at most {self._max_bytes} bytes, found {length}")
        with self._within(self._seconds, environ, RequestTimeout.code) as reception:
            body = self._read(environ["wsgi.input"], self._max_bytes + 1 if length is None else length)
        if reception.is_late:
            raise RequestTimeout(f"the body did not come within {self._seconds:g} seconds")
        if body is None or (length is not None and len(body) < length):
            raise BadRequest("the body broke off")
        if len(body) > self._max_bytes:
            self._drain(environ)
            raise RequestEntityTooLarge(f"expected a body of at most {self._max_bytes} bytes, found more")
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["wsgi.input"] = BytesIO(body)

    def _read(self, stream: InputStream, wanted: int) -> bytes | None:
        """Return so many bytes of a body, or all that it has; None where it broke off and the server says so.

        What goes beyond the first part is counted against the memory that all bodies share.
        """
        parts: list[bytes] = []
        held = 0
        try:
            while wanted > 0 and (part := stream.read(min(wanted, _PART))):
                parts.append(part)
                wanted -= len(part)
                if wanted > 0:
                    held += self._share(min(wanted, _PART))
        except HTTPException:
            raise
        except Exception:  # each server has errors of its own for this
            return None
        finally:
            if held:
                self._share(-held)
        return b"".join(parts)

    def _share(self, num_bytes: int) -> int:
        """Take memory of that which all bodies share, or give it back; return how much.

        Raises:
            ServiceUnavailable: There is not so much left.
        """
        with self.lock:
            if num_bytes > self._left:
                raise ServiceUnavailable("too many bodies are being received", retry_after=_SECONDS_TO_RETRY)
            self._left -= num_bytes
        return num_bytes

    def _drain(self, environ: WSGIEnvironment) -> None:
        """Read some more of a body that is too large, or its sender would see a broken pipe and not the answer.

        A client that waits for "100 Continue" sends nothing before it has the answer.
        """
        if environ.get("HTTP_EXPECT"):
            return
        left = _MOST_DRAINED
        with self._within(_SECONDS_TO_DRAIN, environ, RequestEntityTooLarge.code), suppress(Exception):
            while left > 0 and (part := environ["wsgi.input"].read(_PART)):
                left -= len(part)

    def _within(self, seconds: float, environ: WSGIEnvironment, status: int) -> _Reception:
        """End a request's connection, with the status of an answer, where a block takes too long."""
        if self._watching is None:
            with self.lock:
                if self._watching is None:
                    self._watching = threading.Thread(target=self._watch, name="towers-bodies", daemon=True)
                    self._watching.start()
        return _Reception(self, self._clock() + seconds, environ, status)

    def _watch(self) -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            if self.receiving:
                self.end_late()

    def end_late(self) -> None:
        """End the connections of those whose time is up."""
        with self.lock:  # with it, as a body that came just in time must not be cut off
            now = self._clock()
            for reception in [reception for reception in self.receiving if reception.deadline <= now]:
                self.receiving.discard(reception)
                reception.is_late = True
                _end_connection(reception.environ, reception.status)


class _Reception:
    """A body that is being received: while the block runs that reads it.

    Attributes:
        deadline: When it has to be there, in seconds.
        environ: The request.
        status: What the client is told if it is not.
        is_late: Whether it was not there.
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
    """Return whether a request comes with a body."""
    return environ.get("CONTENT_LENGTH", "") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ


def _declared_length(environ: WSGIEnvironment) -> int | None:
    """Return how many bytes a body is said to have; None where that is to be seen."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    said = environ["CONTENT_LENGTH"]
    if not (said.isascii() and said.isdecimal() and len(said) < 20):
        raise BadRequest(f"expected a number of bytes in Content-Length, found {said[:40]!r}")
    return int(said)


def _end_connection(environ: WSGIEnvironment, status: int) -> None:
    """Wake the thread that reads the body of a request by ending the connection, as far as that is possible."""
    end: Callable[[int], Any] | None = environ.get(CONNECTION)
    if end is not None:
        end(status)
    for name in _SOCKETS:
        if name in environ:
            with suppress(OSError):
                environ[name].shutdown(socket.SHUT_RD)  # it can still be answered
