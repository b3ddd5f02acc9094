"""API keys: which clients may read and which may write. `keys.toml` holds only hashes; a key is shown once, when made.

A key is 256 random bits, so it cannot be guessed and a plain SHA-256 is enough (a slow hash protects passwords, which
can be guessed). The file is read again when it changes: a key that is removed stops working within a second, in every
worker.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path
from wsgiref.types import WSGIEnvironment

from werkzeug.datastructures import Authorization, WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from features.errors import DataError
from serving.bounds import MAX_HEADER_CHARACTERS
from serving.http.key_file import RANKS, Key, Scope, key_digest, read_keys

_SECONDS_BETWEEN_CHECKS = 1.0
_CHALLENGES = (WWWAuthenticate("bearer", {"realm": "Two Towers"}), WWWAuthenticate("basic", {"realm": "Two Towers"}))
_log = logging.getLogger(__name__)

Guard = Callable[[WSGIEnvironment, Scope], None]
"""Takes a request and the scope that its route requires; raises an error if the request is rejected."""


class Keys:
    """The keys of a file, read again when the file changes.

    Args:
        path: The file.
        clock: Returns seconds.

    Raises:
        DataError: The file cannot be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._keys = read_keys(path)
        self._stamp = self._stamp_now()
        self._next_check = clock() + _SECONDS_BETWEEN_CHECKS

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret, None if there is none; all keys are compared, in constant time."""
        self._reload_if_changed()
        presented, found = key_digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, presented):
                found = key
        return found

    def _reload_if_changed(self) -> None:
        if self._clock() < self._next_check:
            return
        self._next_check = self._clock() + _SECONDS_BETWEEN_CHECKS
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        try:
            self._keys, self._stamp = read_keys(self._path), stamp
        except DataError as error:
            _log.error("the file of API keys changed and cannot be read; the keys read before stay valid: %s", error)

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def key_guard(keys: Keys, on_rejection: Callable[[WSGIEnvironment], None] = lambda environ: None) -> Guard:
    """Return a guard that rejects requests without an API key of the required scope.

    Args:
        keys: The accepted keys.
        on_rejection: Called with a request before it is rejected; may raise another error instead.
    """

    def check(environ: WSGIEnvironment, needed: Scope) -> None:
        if needed == "none":
            return
        key = _presented(keys, environ)
        if key is None:
            on_rejection(environ)
            raise Unauthorized(
                "expected an API key in the header `Authorization: Bearer <key>`", www_authenticate=_CHALLENGES
            )
        if RANKS[key.scope] < RANKS[needed]:
            on_rejection(environ)
            raise Forbidden(f"the API key {key.name!r} may only read; this request requires a key that may write")
        environ["towers.client"] = key.name

    return check


def _presented(keys: Keys, environ: WSGIEnvironment) -> Key | None:
    """Return the key of a request: its bearer token, or the password of basic authentication (browsers)."""
    header = environ.get("HTTP_AUTHORIZATION", "")
    given = Authorization.from_header(header) if len(header) <= MAX_HEADER_CHARACTERS else None
    if given is None:
        return None
    secret = given.token if given.type == "bearer" else given.password if given.type == "basic" else None
    return keys.find(secret) if secret else None
