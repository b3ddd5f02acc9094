"""The production server: `python -m serving.server.server` runs the workers, under granian or gunicorn.

`towers serve` becomes this process (it executes it in its own place), so that nothing heavy is loaded before the
workers are forked: FAISS and torch each bring an OpenMP whose threads do not survive a fork, and a search in a child
of a warm parent hangs for ever. For the same reason, and because workers share the cores, each has one thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import logging
import logging.config
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn

from features.errors import DataError
from serving.config import ServingConfig, without_settings
from serving.deploy.mlflow_registry import Alias, followed
from serving.http.bodies import SECONDS_FOR_HEADERS
from serving.observability import logs
from serving.server.told import INSTRUCTIONS_FILE, WorkerInstructions
from towers.process import own_python
from towers.warnings_filter import quiet_imports

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from flask import Flask

APP = "serving.server.server:create_worker_app"
APP_VARIABLE = "TOWERS_SERVE"
"""Tells the workers which file says what to serve; see `WorkerInstructions`."""

MASTER_VARIABLE = "TOWERS_MASTER"
"""Tells the workers which process must live for them to."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_SECONDS_TO_LOAD = 600
_SECONDS_TO_FINISH = 30
STARTED = "started"
"""File in the folder where the workers meet: there as soon as one of them was able to start."""

_SECONDS_TO_TRY_AGAIN = 5
_log = logging.getLogger(__name__)
_MEMORY = Path("/dev/shm")  # noqa: S108 (`mkdtemp` makes a folder there that nobody else can enter)
_SHARED = "towers-server-"
_LOCK = "server"
_SECONDS_BETWEEN_LOOKS = 0.05
_PR_SET_PDEATHSIG = 1


def find_port(settings: ServingConfig) -> int:
    """Return the port to listen at, after seeing that it is free.

    Raises:
        DataError: It is taken, or this machine has no such address.
    """
    where = f"port {settings.port} of {settings.host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise DataError(f"host {settings.host!r}: {error.strerror}; use 127.0.0.1, or 0.0.0.0 for all") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DataError(f"{where} is already in use; choose another with --port, or stop what uses it") from None
        raise DataError(f"{where} cannot be listened at ({error.strerror}); choose another") from None


def address_of(settings: ServingConfig) -> str:
    """Return the address of the service as a browser takes it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 (nothing is bound)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def become_server(bundle: Path, settings: ServingConfig, alias: Alias | None = None, *, greeting: str = "") -> NoReturn:
    """Turn this process into the server of `bundle`, the link that is kept where `alias` points to.

    Args:
        bundle: What to serve.
        settings: What the operator decides.
        alias: The alias that the bundle follows. None: it is a folder or a link.
        greeting: What is said on the terminal once the port listens.
    """
    file = os.memfd_create("towers-settings", 0)  # without a flag it stays open when this process becomes another
    WorkerInstructions(bundle.absolute(), settings, None if alias is None else str(alias), greeting=greeting).write(
        file
    )
    os.lseek(file, 0, os.SEEK_SET)
    environment = {**without_settings(os.environ), **_ONE_THREAD}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, own_python("-m", "serving.server.server", str(file)), environment)


def create_worker_app() -> Flask:
    """Return the application that the server describes: what `towers serve` lets its workers run."""
    told = WorkerInstructions.read(Path(os.environ.pop(APP_VARIABLE)))
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]  # the registry's password is for the process that follows an alias
    _end_with_master()
    logging.config.dictConfig(logs.configuration(told.settings.log_format))
    quiet_imports()
    with _stoppable():
        from serving.http.app import create_app

        app = create_app(told.bundle, told.settings, told.shared, told.copies)
        assert told.shared is not None, "a worker is told where the workers meet"
        (told.shared / STARTED).touch()
        return app


def _load() -> WSGIApplication:
    """Return the application that the workers run, made anew."""
    module, _, name = APP.partition(":")
    app: WSGIApplication = getattr(importlib.import_module(module), name)()
    return app


def _end_with_master() -> None:
    """Let this worker end when its master does, however that happens: a new master could not have its port else."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if str(os.getppid()) != os.environ.get(MASTER_VARIABLE, str(os.getppid())):
        os._exit(1)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let a signal end this process at once.

    While a worker loads, the handlers it inherited from its server only make a note that nobody reads, and the server
    would wait for it until its patience ends.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(file: str) -> None:
    """Run the server that an open file describes, until it is told to stop.

    Args:
        file: The descriptor.
    """
    told = WorkerInstructions.read(int(file))
    settings = told.settings
    logging.config.dictConfig(logs.configuration(settings.log_format))
    os.environ[MASTER_VARIABLE] = str(os.getpid())
    is_followed = told.alias is not None and settings.watch_seconds > 0
    # Copies of an index may be large: they lie on a disk, and the kernel keeps in memory what is used of them.
    on_disk = Path(tempfile.gettempdir())
    with _shared_folder(_memory()) as shared, _shared_folder(on_disk) as copies:
        path = _tell(replace(told, shared=shared, copies=copies), shared)
        Thread(target=_greet, args=(told.greeting, settings, shared), name="towers-greeting", daemon=True).start()
        with followed(path) if is_followed else nullcontext():
            _run(settings, shared)


def _greet(greeting: str, settings: ServingConfig, shared: Path) -> None:
    """Say what to try as soon as a worker has started and the port takes connections."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 (nothing is bound)
    while not (shared / STARTED).exists():
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    while True:
        with suppress(OSError), socket.create_connection((host, settings.port), timeout=1):
            break
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    print(greeting, flush=True)


def _run(settings: ServingConfig, shared: Path) -> None:
    """Run the workers until the server is told to stop."""
    match settings.server:
        case "granian":
            _run_granian(settings, shared)
        case "gunicorn":
            _run_gunicorn(settings, shared)


def _tell(told: WorkerInstructions, shared: Path) -> Path:
    """Write what the workers are told into a file in their folder, and return its path."""
    path = shared / INSTRUCTIONS_FILE
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        told.write(file)
    finally:
        os.close(file)
    os.environ[APP_VARIABLE] = str(path)
    return path


def _memory() -> Path:
    """Return a folder in memory; where there is no such file system, one on a disk."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


@contextmanager
def _shared_folder(where: Path) -> Iterator[Path]:
    """Make a folder for the workers of this server; remove it in the end.

    It is locked as long as this process or a worker lives, so that what a server left behind that was killed is known.
    """
    for left in where.glob(f"{_SHARED}*"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=_SHARED, dir=where))
    maker = os.getpid()
    with (folder / "new").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new").rename(folder / _LOCK)  # only now, or another server would take it for one left behind
        try:
            yield folder
        finally:
            # Gunicorn's workers leave by this way, too.
            if os.getpid() == maker:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # in use, just being made, or another user's


def _run_granian(settings: ServingConfig, shared: Path) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.log import LogLevels

    from serving.server.granian_server import Supervised, let_connections_end

    def load() -> WSGIApplication:
        let_connections_end()
        return _load()

    Supervised(
        APP,
        started=shared / STARTED,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.WSGI,
        # One connection, one request at a time: with a thread for each connection, none that waits for its client
        # keeps another from being answered.
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=1000 * SECONDS_FOR_HEADERS),
        backpressure=settings.connections,
        blocking_threads=settings.connections,
        workers=settings.workers,
        websockets=False,
        log_level=LogLevels.warning,
        log_dictconfig=logs.configuration(settings.log_format),
        workers_kill_timeout=_SECONDS_TO_FINISH,
    ).serve(target_loader=load, wrap_loader=False)


def _run_gunicorn(settings: ServingConfig, shared: Path) -> None:
    from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

    options = {
        "bind": f"{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}",
        "workers": settings.workers,
        "threads": settings.connections,
        # What is beyond the threads is for idle connections, which take none.
        "worker_connections": 2 * settings.connections,
        "worker_class": "serving.server.gunicorn_worker.Worker",
        "preload_app": False,
        "control_socket_disable": True,
        "loglevel": "warning",
        "logconfig_dict": logs.configuration(settings.log_format),
        "timeout": _SECONDS_TO_LOAD,
        "graceful_timeout": _SECONDS_TO_FINISH,
    }

    class Server(BaseApplication):  # type: ignore[misc]
        """Gunicorn with our settings; the application is made in each worker."""

        def load_config(self) -> None:
            """Take the settings."""
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            """Return the application, in the worker."""
            try:
                return _load()
            except Exception as error:
                if not (shared / STARTED).exists():
                    raise
                # Gunicorn would end the whole server, though the other workers answer.
                _log.error("a worker cannot start; another one tries: %s", error)
                time.sleep(_SECONDS_TO_TRY_AGAIN)
                sys.exit(1)

    Server().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
