"""The `Recommender` of an application: opened, updated from the log of live writes, and replaced without a restart.

When a link points to a new bundle, or an index was written again, a thread verifies, loads, warms and updates it while
the old one still answers requests, and then swaps them between two requests. If the new one cannot be used, the old one
stays, and the log says why.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from features.errors import DataError, UnavailableError
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
_MAX_SECONDS_BETWEEN_TRIES = 60.0
_SECONDS_BETWEEN_CHECKS = 0.5
# After an attempt to read an unavailable log, the pause before the next is at most so many times its duration.
_PAUSE_FACTOR = 20
# How long a request waits for that attempt.
_SECONDS_TO_TRY = 0.5
_NUM_WARMED = 10
_log = logging.getLogger(__name__)


class RecommenderProvider:
    """The recommender of an application.

    Attributes:
        store: The log of live writes; None if the service accepts none.
    """

    def __init__(
        self,
        open_recommender: Callable[[], Recommender],
        on_open: Callable[[Recommender], None] = lambda recommender: None,
        store: EventLog | None = None,
        identify: Callable[[], object] = lambda: None,
        open_last: Callable[[], Recommender | None] = lambda: None,
    ) -> None:
        """Create a provider; the recommender is opened by the first `get`.

        Args:
            open_recommender: Opens the recommender; raises `BundleError` or `DataError` if that fails.
            on_open: Called with each recommender just before it is served.
            store: The log of live writes.
            identify: Returns a value that changes when there is a new bundle or index to open.
            open_last: Opens the bundle that any worker served last, if `open_recommender` fails; returns None if there
                is none. Raises the same errors.
        """
        self.store = store
        self._open = open_recommender
        self._on_open = on_open
        self._identify = identify
        self._open_last = open_last
        self._served: Callable[[bool], Recommender] | None = None
        self._identity: object = None
        self._next_try = 0.0
        self._last_error = ""
        self._opening = threading.Lock()

    def get(self, *, current: bool = False) -> Recommender:
        """Return the recommender with all live writes applied.

        Args:
            current: Whether all live writes must be included, as for checking another write. Otherwise, while the log
                cannot be read, the recommender of the last successful reading is returned.

        Raises:
            NotReady: The recommender cannot be opened (the log says why), or `current` and the log cannot be read.
        """
        # One request at a time tries to open it; the others do not wait for that.
        if self._served is None and self._opening.acquire(blocking=False):
            try:
                self._try_to_open()
            finally:
                self._opening.release()
        if self._served is None:
            raise NotReady("the model and its index are not loaded; see the server's log")
        return self._served(current)

    def watch(self, seconds: float) -> None:
        """Start a thread that checks for a new bundle or index every so many seconds, and reloads."""
        threading.Thread(target=self._watch, args=(seconds,), name="towers-watch", daemon=True).start()

    def reload(self) -> bool:
        """Replace the recommender if there is a new bundle or index; return whether the newest one is served."""
        identity = self._identify()
        if identity == self._identity:
            self._last_error = ""
            return True
        try:
            recommender = self._open()
            served = self._prepared(recommender)
            warm(served(False))
        except (BundleError, DataError, UnavailableError) as error:
            self._log_error(f"the new bundle or index cannot be used; still serving the previous one: {error}")
            return False
        self._on_open(recommender)
        self._served, self._identity, self._last_error = served, identity, ""
        release_memory()
        _log.warning("now serving model %s, index %s", recommender.model, recommender.index_version)
        return True

    def _log_error(self, message: str) -> None:
        """Log an error, unless it is the same as the last one."""
        if message != self._last_error:
            _log.error(message)
        self._last_error = message

    def _watch(self, seconds: float) -> None:
        step_back()  # requests have priority
        pause = 0.0
        while True:
            time.sleep(max(seconds, pause))
            try:
                is_newest = self._served is None or self.reload()
            except Exception as error:  # the thread must not end, or no new bundle would ever be loaded
                _log.error("reload failed; still serving the previous model and index", exc_info=error)
                is_newest = False
            pause = 0.0 if is_newest else min(max(seconds, 2 * pause), _MAX_SECONDS_BETWEEN_TRIES)

    def _try_to_open(self) -> None:
        if self._served is not None or time.monotonic() < self._next_try:
            return
        identity = self._identify()
        try:
            recommender = self._open()
            served = self._prepared(recommender)
        except (BundleError, DataError, UnavailableError) as error:
            if not self._try_to_reopen(error):
                self._next_try = time.monotonic() + _SECONDS_BETWEEN_TRIES
                self._log_error(f"not ready: {error}")
            return
        self._on_open(recommender)
        self._served, self._identity = served, identity

    def _try_to_reopen(self, why: Exception) -> bool:
        """Serve the bundle that was served last, until the intended one can be opened; return whether that works."""
        try:
            recommender = self._open_last()
            if recommender is None:
                return False
            served = self._prepared(recommender)
        except (BundleError, DataError, UnavailableError) as error:
            _log.error("the bundle that was served last cannot be opened: %s", error)
            return False
        _log.error("serving the previous bundle %s: %s", recommender.bundle.path, why)
        self._on_open(recommender)
        self._served = served
        return True

    def _prepared(self, recommender: Recommender) -> Callable[[bool], Recommender]:
        """Return the function that `get` calls: with a log, it applies new records first."""
        if self.store is None:
            return lambda current: recommender
        return _LiveOrStale(LiveRecommender(recommender, self.store))


class LastServed:
    """The bundle that the workers of a server served last, stored in a file in their shared folder.

    Args:
        folder: The shared folder. None: nothing is stored.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / "served"

    def note(self, bundle: Path) -> None:
        """Store the path of a bundle that is served from now on."""
        if self._file is not None:
            with (
                suppress(OSError),
                atomic_file(self._file) as file,
            ):  # if memory is full, the bundle is served all the same
                file.write_text(str(bundle.resolve()), encoding="utf-8")

    def bundle(self) -> Path | None:
        """Return the path of the bundle; None if none was served."""
        if self._file is None or not self._file.exists():
            return None
        return Path(self._file.read_text(encoding="utf-8"))


class _LiveOrStale:
    """A live recommender that falls back to its last state while its log cannot be read."""

    def __init__(self, live: LiveRecommender) -> None:
        self._live = live
        self._next_message = self._next_try = 0.0
        self._trying = threading.Lock()
        self._executor = ThreadPoolExecutor(1, "towers-live")

    def __call__(self, current: bool) -> Recommender:
        if not self._live.is_unavailable:
            return self._read(current)
        # Only one request at a time, now and then, tries to read the log; the others do not wait for it.
        if time.monotonic() < self._next_try or not self._trying.acquire(blocking=False):
            return self._last_read(current)
        try:
            # In another thread, as connecting to a database that hangs takes longer than a request may.
            return self._executor.submit(self._try, current).result(_SECONDS_TO_TRY)
        except TimeoutError:
            return self._last_read(current)

    def _try(self, current: bool) -> Recommender:
        try:
            return self._read(current)
        finally:
            self._trying.release()

    def _read(self, current: bool) -> Recommender:
        began = time.monotonic()
        try:
            return self._live.current()
        except NotReady as error:
            # A missing file fails at once and is tried again soon; a database that times out is tried less often.
            now = time.monotonic()
            self._next_try = now + min(_SECONDS_BETWEEN_CHECKS, _PAUSE_FACTOR * (now - began))
            if time.monotonic() >= self._next_message:
                self._next_message = time.monotonic() + _SECONDS_BETWEEN_TRIES
                _log.error("responses do not include the newest live writes: %s", error)
            return self._last_read(current)

    def _last_read(self, current: bool) -> Recommender:
        if current:  # the item that a write refers to may be among the missing records
            raise NotReady("the log of live writes cannot be read")
        return self._live.latest


def warm(recommender: Recommender) -> None:
    """Run each kind of request once, so that the first request of a client is not slower than later ones."""
    for user_id in recommender.state.users.ids[:1]:
        recommender.recommend(user_id, _NUM_WARMED)
    recommender.recommend(UserProfile(recommender.state.items.ids[:1]), _NUM_WARMED)
    recommender.popular(_NUM_WARMED)


def identity_of(path: Path) -> object:
    """Return a value that changes when the link points to another bundle, or the bundle or its index is rewritten."""
    folder = path.resolve()
    return folder, *(_stamp(folder / name) for name in (MANIFEST, f"{FOLDER}/{NAME}", f"{RANKER}/{RANKER_SEAL}"))


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
