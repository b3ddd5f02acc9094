"""API keys: who may ask, and who may write. `keys.toml` holds hashes only; a key itself is shown once, when made.

A key is 256 bits from the system's randomness, so there is nothing to guess and a plain SHA-256 is enough (a slow hash
protects passwords, which can be guessed). The file is looked at again whenever it changes: a key that is removed stops
working within a second, in every worker.
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

_SECONDS_BETWEEN_LOOKS = 1.0
_CHALLENGES = (WWWAuthenticate("bearer", {"realm": "Two Towers"}), WWWAuthenticate("basic", {"realm": "Two Towers"}))
_log = logging.getLogger(__name__)

Guard = Callable[[WSGIEnvironment, Scope], None]
"""Raises a problem where a request must not be answered, given the scope that it needs."""


class Keys:
    """The keys of a file as they are now.

    Args:
        path: The file.
        clock: Seconds.

    Raises:
        DataError: It cannot be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._keys = read_keys(path)
        self._stamp = self._stamp_now()
        self._next_look = clock() + _SECONDS_BETWEEN_LOOKS

    def find(self, secret: str) -> Key | None:
        """Return the key that this is; every one is compared, in constant time."""
        self._look_again()
        presented, found = key_digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, presented):
                found = key
        return found

    def _look_again(self) -> None:
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + _SECONDS_BETWEEN_LOOKS
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        try:
            self._keys, self._stamp = read_keys(self._path), stamp
        except DataError as error:
            _log.error("the keys stay as they were: %s", error)

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def key_guard(keys: Keys, on_refusal: Callable[[WSGIEnvironment], None] = lambda environ: None) -> Guard:
    """Return a guard that lets those pass only who present a key that is good for what they ask.

    Args:
        keys: The keys.
        on_refusal: Called with a request that is about to be refused; it may refuse it in its own way.
    """

    def check(environ: WSGIEnvironment, needed: Scope) -> None:
        if needed == "none":
            return
        key = _presented(keys, environ)
        if key is None:
            on_refusal(environ)
            raise Unauthorized("expected a key: `Authorization: Bearer <key>`", www_authenticate=_CHALLENGES)
        if RANKS[key.scope] < RANKS[needed]:
            on_refusal(environ)
            raise Forbidden(f"the key {key.name!r} may read only; this needs one that may write")
        environ["towers.client"] = key.name

    return check


def _presented(keys: Keys, environ: WSGIEnvironment) -> Key | None:
    """Return the key that came with a request: as a bearer's token, or as the password that a browser asks for."""
    header = environ.get("HTTP_AUTHORIZATION", "")
    given = Authorization.from_header(header) if len(header) <= MAX_HEADER_CHARACTERS else None
    if given is None:
        return None
    secret = given.token if given.type == "bearer" else given.password if given.type == "basic" else None
    return keys.find(secret) if secret else None
