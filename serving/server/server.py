"""The production server: `python -m serving.server.server` runs the workers, under granian or gunicorn.

`towers serve` becomes this process by `exec`, so that no heavy library is loaded before the workers are forked: FAISS
and torch each use OpenMP, whose threads do not survive a fork, and a search in a child of a parent that has used them
would hang. For the same reason, and because workers share the cores, each computes with one thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
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
from serving.server.instructions import INSTRUCTIONS_FILE, WorkerInstructions
from towers.process import garbage_collection_paused, own_python
from towers.warnings_filter import quiet_imports

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from flask import Flask

APP = "serving.server.server:create_worker_app"
APP_VARIABLE = "TOWERS_SERVE"
"""Environment variable with the path of the workers' instructions; see `WorkerInstructions`."""

MASTER_VARIABLE = "TOWERS_MASTER"
"""Environment variable with the process id of the master; a worker exits when the master does."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# Memory of a worker stays flat while it replaces its model and many threads take turns to answer. By default, what a
# thread has freed stays in an arena of its own (glibc), Arrow keeps what it has freed, and so does MKL for each thread.
_ALLOCATION = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "MKL_DISABLE_FAST_MM": "1"}
_SECONDS_TO_LOAD = 600
_SECONDS_TO_FINISH = 30
STARTED = "started"
"""Name of a file in the shared folder that exists once a worker has started."""

_SECONDS_TO_TRY_AGAIN = 5
_log = logging.getLogger(__name__)
_MEMORY = Path("/dev/shm")  # noqa: S108 (`mkdtemp` creates a folder there that other users cannot access)
_SHARED = "towers-server-"
_LOCK = "server"
_SECONDS_BETWEEN_CHECKS = 0.05
_PR_SET_PDEATHSIG = 1


def find_port(settings: ServingConfig) -> int:
    """Return the port to listen on, after checking that it is free.

    Raises:
        DataError: The port is in use, or this machine does not have the address.
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
            raise DataError(
                f"{where} is already in use; choose another with --port, or stop the process that uses it"
            ) from None
        raise DataError(f"cannot listen on {where} ({error.strerror}); choose another") from None


def address_of(settings: ServingConfig) -> str:
    """Return the URL of the service for a client on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 (nothing is bound)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def become_server(bundle: Path, settings: ServingConfig, alias: Alias | None = None, *, greeting: str = "") -> NoReturn:
    """Replace this process by the server.

    Args:
        bundle: The folder of a bundle, or a link to one; with an alias, the link that is kept in step with it.
        settings: The operator's settings.
        alias: The alias that the bundle follows. None: the bundle is a folder or a link.
        greeting: Printed once the server accepts connections.
    """
    file = os.memfd_create("towers-settings", 0)  # without MFD_CLOEXEC it stays open in the new program
    WorkerInstructions(bundle.absolute(), settings, None if alias is None else str(alias), greeting=greeting).write(
        file
    )
    os.lseek(file, 0, os.SEEK_SET)
    environment = {**_ALLOCATION, **without_settings(os.environ), **_ONE_THREAD}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, own_python("-m", "serving.server.server", str(file)), environment)


def create_worker_app() -> Flask:
    """Return the application of a worker, as the server's instructions describe it."""
    instructions = WorkerInstructions.read(Path(os.environ.pop(APP_VARIABLE)))
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]  # only the process that follows an alias needs the registry's password
    _end_with_master()
    logging.config.dictConfig(logs.configuration(instructions.settings.log_format))
    quiet_imports()
    with _stoppable():
        with garbage_collection_paused():
            from serving.http.app import create_app
        gc.freeze()  # what was imported stays, so that later collections need not look at it
        app = create_app(instructions.bundle, instructions.settings, instructions.shared, instructions.copies)
        assert instructions.shared is not None, "the instructions of a worker have a shared folder"
        (instructions.shared / STARTED).touch()
        return app


def _load() -> WSGIApplication:
    """Return a new application for a worker."""
    module, _, name = APP.partition(":")
    app: WSGIApplication = getattr(importlib.import_module(module), name)()
    return app


def _end_with_master() -> None:
    """Let the kernel kill this worker when its master exits for any reason; else the port would stay in use."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if str(os.getppid()) != os.environ.get(MASTER_VARIABLE, str(os.getppid())):
        os._exit(1)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGINT end this process at once while the block runs.

    While a worker loads, the handlers inherited from its server would only set a flag that is not checked yet, and the
    server would wait for the worker until its timeout.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(file: str) -> None:
    """Run the server until it is stopped by a signal.

    Args:
        file: The descriptor of an open file with `WorkerInstructions`.
    """
    instructions = WorkerInstructions.read(int(file))
    settings = instructions.settings
    logging.config.dictConfig(logs.configuration(settings.log_format))
    os.environ[MASTER_VARIABLE] = str(os.getpid())
    is_followed = instructions.alias is not None and settings.watch_seconds > 0
    # Copies of an index may be large, so they are on a disk; the kernel caches what is used of them in memory.
    on_disk = Path(tempfile.gettempdir())
    with _shared_folder(_memory()) as shared, _shared_folder(on_disk) as copies:
        path = _write_instructions(replace(instructions, shared=shared, copies=copies), shared)
        arguments = (instructions.greeting, settings, shared)
        Thread(target=_greet, args=arguments, name="towers-greeting", daemon=True).start()
        with followed(path) if is_followed else nullcontext():
            _run(settings, shared)


def _greet(greeting: str, settings: ServingConfig, shared: Path) -> None:
    """Print the greeting once a worker has started and the port accepts connections."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 (nothing is bound)
    while not (shared / STARTED).exists():
        time.sleep(_SECONDS_BETWEEN_CHECKS)
    while True:
        with suppress(OSError), socket.create_connection((host, settings.port), timeout=1):
            break
        time.sleep(_SECONDS_BETWEEN_CHECKS)
    print(greeting, flush=True)


def _run(settings: ServingConfig, shared: Path) -> None:
    """Run the workers until the server is stopped by a signal."""
    match settings.server:
        case "granian":
            _run_granian(settings, shared)
        case "gunicorn":
            _run_gunicorn(settings, shared)


def _write_instructions(instructions: WorkerInstructions, shared: Path) -> Path:
    """Write the workers' instructions to a file in the shared folder, and return its path."""
    path = shared / INSTRUCTIONS_FILE
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        instructions.write(file)
    finally:
        os.close(file)
    os.environ[APP_VARIABLE] = str(path)
    return path


def _memory() -> Path:
    """Return a folder in memory; without such a file system, one on a disk."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


@contextmanager
def _shared_folder(where: Path) -> Iterator[Path]:
    """Create a folder that the workers of this server share; remove it in the end.

    It is locked as long as this process or a worker runs, so folders left behind by a killed server can be recognised
    and removed.
    """
    for left in where.glob(f"{_SHARED}*"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=_SHARED, dir=where))
    maker = os.getpid()
    with (folder / "new").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new").rename(folder / _LOCK)  # renamed once locked, so that no other server takes it for left behind
        try:
            yield folder
        finally:
            # Gunicorn's forked workers run this, too.
            if os.getpid() == maker:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # in use, being created, or owned by another user


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
        # With HTTP/1 a connection has one request at a time, and with a thread for each connection, a request that
        # waits for its client does not delay others.
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
        # More connections than threads, as idle connections occupy no thread.
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
        """Gunicorn with these options; the application is created in each worker."""

        def load_config(self) -> None:
            """Apply the options."""
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            """Return the application, in the worker."""
            try:
                return _load()
            except Exception as error:
                if not (shared / STARTED).exists():
                    raise
                # Otherwise Gunicorn would stop the whole server, although other workers run.
                _log.error("a worker cannot start; it is retried: %s", error)
                time.sleep(_SECONDS_TO_TRY_AGAIN)
                sys.exit(1)

    Server().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
