"""Granian with what it leaves to others: workers that are replaced as often as need be, and slow senders cut off."""

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

_SECONDS_TO_PROVE_ITSELF = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 16.0
_SECONDS_BETWEEN_LOOKS = 0.2
_log = logging.getLogger(__name__)


class Supervised(Granian):  # type: ignore[misc, valid-type]
    """Granian whose workers are replaced whenever they end, with growing pauses; its own loop gives up after two.

    Only where no worker has ever started is it no use to try again, and the server ends.

    Args:
        given: What Granian takes.
        started: A file that is there as soon as a worker was able to start.
        options: What Granian takes.
    """

    def __init__(self, *given: Any, started: Path, **options: Any) -> None:
        super().__init__(*given, **options)
        self._started = started
        self._pauses: dict[int, float] = {}
        self._due: dict[int, float] = {}

    def _serve_loop(self, spawn_target: Callable[..., None], target_loader: Callable[..., Any]) -> None:
        while not self.interrupt_signal:
            self.main_loop_interrupt.wait(_SECONDS_BETWEEN_LOOKS)
            self.main_loop_interrupt.clear()
            self.interrupt_children.clear()  # who ended is seen below
            if self.reload_signal:
                self._reload(spawn_target, target_loader)
            for place, worker in enumerate(self.wrks):
                if not worker.is_alive() and not self.interrupt_signal:
                    if worker.inner.exitcode and not self._started.exists():
                        self.interrupt_children.append(place)  # makes the exit status 1
                        return
                    self._replace(place, spawn_target, target_loader)

    def _spawn_worker(self, *given: Any, **options: Any) -> Any:
        worker = super()._spawn_worker(*given, **options)
        # Granian's own thread for each worker would reap it behind our back, and then it takes the dead for living.
        worker._watch = _do_nothing
        return worker

    def _replace(self, place: int, spawn_target: Callable[..., None], target_loader: Callable[..., Any]) -> None:
        """Start a worker in the place of one that ended, as soon as that is due."""
        now, ended = time.monotonic(), self.wrks[place]
        if place not in self._due:
            is_proven = now - ended.birth > _SECONDS_TO_PROVE_ITSELF
            pause = 0.0 if is_proven else self._pauses.get(place, 0.0)
            self._due[place] = now + pause
            self._pauses[place] = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            _log.error("worker %d ended (%s); another one starts in %g s", place + 1, _how(ended.inner.exitcode), pause)
        if now >= self._due[place]:
            del self._due[place]
            self.wrks[place] = self._spawn_worker(place, spawn_target, target_loader)
            self.wrks[place].start()


def _do_nothing() -> None:
    pass


def _how(exit_code: int | None) -> str:
    return f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit status {exit_code}"


def let_connections_end() -> None:
    """Let applications that this process runs under Granian end the connection of a request (`CONNECTION`).

    A read of a body under Granian blocks for as long as the client likes, and it hands applications neither the socket
    nor a deadline. What it does keep is what the answer is given to; and an answer that ends before it is complete
    ends its connection, and the read.
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
    """The parts of a body that has none."""

    def __next__(self) -> bytes:
        raise StopIteration

    def close(self) -> None:
        """Do nothing, as there is nothing to close."""
