"""Granian with two additions: workers are restarted without a limit, and slow request bodies are cut off."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIApplication

from granian import Granian
from granian.server import mp

from serving.http.bodies import CONNECTION

_SECONDS_UNTIL_STABLE = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 16.0
_SECONDS_BETWEEN_CHECKS = 0.2
_log = logging.getLogger(__name__)


class Supervised(Granian):  # type: ignore[misc, valid-type]
    """Granian that restarts workers whenever they exit, with growing pauses; Granian itself gives up after two.

    If a worker fails before any worker has ever started, the server exits instead.

    Args:
        arguments: Positional arguments of Granian.
        started: A file that exists once a worker has started.
        options: Keyword arguments of Granian.
    """

    def __init__(self, *arguments: Any, started: Path, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._started = started
        self._pauses: dict[int, float] = {}
        self._due: dict[int, float] = {}

    def _serve_loop(self, spawn_target: Callable[..., None], target_loader: Callable[..., Any]) -> None:
        while not self.interrupt_signal:
            self.main_loop_interrupt.wait(_SECONDS_BETWEEN_CHECKS)
            self.main_loop_interrupt.clear()
            self.interrupt_children.clear()  # exited workers are detected below
            if self.reload_signal:
                self._reload(spawn_target, target_loader)
            for place, worker in enumerate(self.wrks):
                if not worker.is_alive() and not self.interrupt_signal:
                    if worker.inner.exitcode and not self._started.exists():
                        self.interrupt_children.append(place)  # makes the exit status 1
                        return
                    self._replace(place, spawn_target, target_loader)

    def _spawn_worker(self, *arguments: Any, **options: Any) -> Any:
        worker = super()._spawn_worker(*arguments, **options)
        # Granian's own watcher thread would reap an exited worker first, and `is_alive` would then stay true.
        worker._watch = _do_nothing
        return worker

    def _replace(self, place: int, spawn_target: Callable[..., None], target_loader: Callable[..., Any]) -> None:
        """Restart a worker that exited, once its pause is over."""
        now, ended = time.monotonic(), self.wrks[place]
        if place not in self._due:
            was_stable = now - ended.birth > _SECONDS_UNTIL_STABLE
            pause = 0.0 if was_stable else self._pauses.get(place, 0.0)
            self._due[place] = now + pause
            self._pauses[place] = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            reason = _exit_reason(ended.inner.exitcode)
            _log.error("worker %d exited (%s); it is restarted in %g s", place + 1, reason, pause)
        if now >= self._due[place]:
            del self._due[place]
            self.wrks[place] = self._spawn_worker(place, spawn_target, target_loader)
            self.wrks[place].start()


def _do_nothing() -> None:
    pass


def _exit_reason(exit_code: int | None) -> str:
    return f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit status {exit_code}"


def let_connections_end() -> None:
    """Let applications that this process runs under Granian close the connection of a request (`CONNECTION`).

    Under Granian, reading a body blocks without a time limit, and the application has no access to the socket. But it
    can respond early: a response that ends before its announced length closes the connection, and ends the read.
    """
    wrapped = mp._wsgi_call_wrap  # type: ignore[attr-defined]

    def wrap(app: WSGIApplication, *options: Any) -> Callable[[Any, dict[str, Any]], Any]:
        run = wrapped(app, *options)

        def run_with_connection(protocol: Any, scope: dict[str, Any]) -> Any:
            scope[CONNECTION] = partial(_end_connection, protocol)
            return run(protocol, scope)

        return run_with_connection

    mp._wsgi_call_wrap = wrap  # type: ignore[attr-defined, assignment]


def _end_connection(protocol: Any, status: int) -> None:
    protocol.response_iter(status, [("Content-Length", "1"), ("Connection", "close")], _Nothing())


class _Nothing:
    """The iterator of an empty body."""

    def __next__(self) -> bytes:
        raise StopIteration

    def close(self) -> None:
        """Do nothing; Granian calls it."""
