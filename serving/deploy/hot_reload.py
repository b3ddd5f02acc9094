"""The `Recommender` of an application: opened, kept up with the log of live writes, and replaced without a restart.

A new bundle or index, whether a link moved to it or it was written again, is verified, loaded, warmed and brought up to
date by a thread while the old one goes on answering; from one request to the next it then takes its place. One that
cannot be used is left alone, the old one goes on, and the log says why.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from features.errors import DataError
from features.files import atomic_file
from serving.errors import NotReady
from serving.live.follower import LiveRecommender
from serving.live.log import EventLog
from serving.recommend.recommender import Recommender
from serving.recommend.request import UserProfile
from serving.snapshot.manifest import NAME
from serving.snapshot.snapshot import FOLDER
from towers.bundle.manifest import MANIFEST, BundleError
from towers.process import release_memory, step_back
from towers.rerankers.manifest import FOLDER as RANKER
from towers.rerankers.manifest import NAME as RANKER_SEAL

_SECONDS_BETWEEN_TRIES = 5.0
_MOST_SECONDS_BETWEEN_TRIES = 60.0
_SECONDS_BETWEEN_LOOKS = 0.5
# How many times as long as a look at a log that is away took there is none after it.
_LOOK_SHARE = 20
_NUM_WARMED = 10
_log = logging.getLogger(__name__)


class RecommenderProvider:
    """The recommender of an application.

    Attributes:
        store: The log of live writes; None where there is none, and nothing can be written.
    """

    def __init__(
        self,
        open_recommender: Callable[[], Recommender],
        on_open: Callable[[Recommender], None] = lambda recommender: None,
        store: EventLog | None = None,
        identify: Callable[[], object] = lambda: None,
        open_last: Callable[[], Recommender | None] = lambda: None,
    ) -> None:
        """Take what opens the recommender; nothing is opened before it is asked for.

        Args:
            open_recommender: Opens it; it raises `BundleError` or `DataError` where that cannot be.
            on_open: Called with each that is served from then on.
            store: The log of live writes.
            identify: Returns something that is another value as soon as there is another bundle or index to open.
            open_last: Opens what was served last, by any worker, where `open_recommender` cannot open what is meant to
                be served; None: nothing was. It raises the same errors.
        """
        self.store = store
        self._open = open_recommender
        self._on_open = on_open
        self._identify = identify
        self._open_last = open_last
        self._served: Callable[[bool], Recommender] | None = None
        self._identity: object = None
        self._next_try = 0.0
        self._said = ""
        self._turn = threading.Lock()

    def get(self, *, current: bool = False) -> Recommender:
        """Return the recommender, with every live write in it.

        Args:
            current: Whether none may be missing, as where a further write is checked. If not, the recommender as of the
                last reading goes on while the log cannot be read.

        Raises:
            NotReady: It cannot be opened at present (the log says why), or `current` and live writes cannot be read.
        """
        # One request at a time tries to open it; the others need not wait for that.
        if self._served is None and self._turn.acquire(blocking=False):
            try:
                self._try_to_open()
            finally:
                self._turn.release()
        if self._served is None:
            raise NotReady("the model and its index are not loaded; the server's log says why")
        return self._served(current)

    def watch(self, seconds: float) -> None:
        """Exchange the recommender whenever there is another, from a thread that looks every so many seconds."""
        threading.Thread(target=self._watch, args=(seconds,), name="towers-watch", daemon=True).start()

    def exchange(self) -> bool:
        """Exchange the recommender if there is another; return whether what is served is the newest there is."""
        identity = self._identify()
        if identity == self._identity:
            self._said = ""
            return True
        try:
            recommender = self._open()
            served = self._prepared(recommender)
            warm(served(False))
        except (BundleError, DataError) as error:
            self._say(f"not exchanged, what was served goes on: {error}")
            return False
        self._served, self._identity, self._said = served, identity, ""
        self._on_open(recommender)
        release_memory()
        _log.warning("now serving model %s, index %s", recommender.model, recommender.index_version)
        return True

    def _say(self, what: str) -> None:
        """Log what is wrong, once as long as it is the same."""
        if what != self._said:
            _log.error(what)
        self._said = what

    def _watch(self, seconds: float) -> None:
        step_back()  # requests come first
        patience = 0.0
        while True:
            time.sleep(max(seconds, patience))
            try:
                is_newest = self._served is None or self.exchange()
            except Exception as error:  # a thread that ended would never look again
                _log.error("not exchanged, what was served goes on", exc_info=error)
                is_newest = False
            patience = 0.0 if is_newest else min(max(seconds, 2 * patience), _MOST_SECONDS_BETWEEN_TRIES)

    def _try_to_open(self) -> None:
        if self._served is not None or time.monotonic() < self._next_try:
            return
        identity = self._identify()
        try:
            recommender = self._open()
            served = self._prepared(recommender)
        except (BundleError, DataError) as error:
            if not self._try_to_reopen(error):
                self._next_try = time.monotonic() + _SECONDS_BETWEEN_TRIES
                self._say(f"not ready: {error}")
            return
        self._served, self._identity = served, identity
        self._on_open(recommender)

    def _try_to_reopen(self, why: Exception) -> bool:
        """Serve what was served last, until what is meant to be served can be; return whether there is something."""
        try:
            recommender = self._open_last()
            if recommender is None:
                return False
            self._served = self._prepared(recommender)
        except (BundleError, DataError) as error:
            _log.error("what was served last cannot be opened: %s", error)
            return False
        _log.error("serving %s, which was served last: %s", recommender.bundle.path, why)
        self._on_open(recommender)
        return True

    def _prepared(self, recommender: Recommender) -> Callable[[bool], Recommender]:
        """Return what is to be served, ready to answer."""
        if self.store is None:
            return lambda current: recommender
        return _LiveOrStale(LiveRecommender(recommender, self.store))


class LastServed:
    """The bundle that the workers of a server served last, remembered where they meet.

    Args:
        folder: Where they meet. None: nothing is remembered.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / "served"

    def note(self, bundle: Path) -> None:
        """Remember a bundle that was opened and is served from now on."""
        if self._file is not None:
            with suppress(OSError), atomic_file(self._file) as file:  # a full memory is no reason not to serve
                file.write_text(str(bundle.resolve()), encoding="utf-8")

    def bundle(self) -> Path | None:
        """Return the bundle; None where none was served."""
        if self._file is None or not self._file.exists():
            return None
        return Path(self._file.read_text(encoding="utf-8"))


class _LiveOrStale:
    """A live recommender that goes on with what it knows where its log is out of reach."""

    def __init__(self, live: LiveRecommender) -> None:
        self._live = live
        self._next_word = self._next_look = 0.0
        self._is_away = False
        self._looking = threading.Lock()

    def __call__(self, current: bool) -> Recommender:
        if not self._is_away:
            return self._read(current)
        # Not with each request, and one at a time: one that waits for the log must not keep the others waiting.
        if time.monotonic() < self._next_look or not self._looking.acquire(blocking=False):
            return self._last_read(current)
        try:
            return self._read(current)
        finally:
            self._looking.release()

    def _read(self, current: bool) -> Recommender:
        began = time.monotonic()
        try:
            recommender = self._live.current()
            self._is_away = False
            return recommender
        except NotReady as error:
            # A file that is gone is asked for at once; a server that lets callers wait, only now and then.
            now = time.monotonic()
            self._next_look = now + min(_SECONDS_BETWEEN_LOOKS, _LOOK_SHARE * (now - began))
            self._is_away = True
            if time.monotonic() >= self._next_word:
                self._next_word = time.monotonic() + _SECONDS_BETWEEN_TRIES
                _log.error("answers are without the newest live writes: %s", error)
            return self._last_read(current)

    def _last_read(self, current: bool) -> Recommender:
        if current:  # what is missing may be the very item that a write is about
            raise NotReady("the log of live writes cannot be read")
        return self._live.latest


def warm(recommender: Recommender) -> None:
    """Let a recommender answer once as it will have to, so that its first caller need not wait longer than others."""
    for user_id in recommender.state.users.ids[:1]:
        recommender.recommend(user_id, _NUM_WARMED)
    recommender.recommend(UserProfile(recommender.state.items.ids[:1]), _NUM_WARMED)
    recommender.popular(_NUM_WARMED)


def identity_of(path: Path) -> object:
    """Return something that is another value after a link was moved, or a bundle or its index written anew."""
    folder = path.resolve()
    return folder, *(_stamp(folder / name) for name in (MANIFEST, f"{FOLDER}/{NAME}", f"{RANKER}/{RANKER_SEAL}"))


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
