"""`towers` without the seconds that its libraries take to load: a host loads them once and forks for each command.

A test that runs forty commands as a person would spends most of its time on imports. The command still runs in a
process of its own, in its own folder, with its own environment and streams; it only starts loaded.

    python -m tests.warm host SOCKET             # loads the libraries, then serves until its standard input closes
    python -m tests.warm towers SOCKET WORDS...  # what a `towers WORDS...` would do, with its exit status
    python -m tests.warm kernel SOCKET FILE      # the Jupyter kernel of a connection file

A command that starts others, as `towers demo` does, has them start loaded, too.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OURS = ("features", "towers", "training", "serving")
LIBRARIES = (
    *("torch", "torchrec", "pandas", "pyarrow.parquet", "sklearn.metrics", "faiss", "implicit.als", "flask", "tqdm"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store"),
)
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SOCKET = "warm.socket"
PYTHON = "python"
"""Beside the socket: a Python that has `-P -m towers` start loaded."""
SECONDS_TO_LOAD = 120
STREAMS = 3


@contextmanager
def warm_towers(folder: Path) -> Iterator[Path]:
    """Yield a program `towers` that runs loaded commands while the block lasts."""
    from towers.process import prepared_environment

    address, program = folder / SOCKET, folder / "towers"
    loaded = f'exec {sys.executable} {__file__} towers {address} "$@"'
    _write_program(program, loaded)
    _write_program(
        folder / PYTHON, f'[ "$1 $2 $3" = "-P -m towers" ] && shift 3 && {loaded}\nexec {sys.executable} "$@"'
    )
    environment = {**prepared_environment(os.environ), **ONE_THREAD}
    command = [sys.executable, "-m", "tests.warm", "host", str(address)]
    host = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + SECONDS_TO_LOAD
        while not address.exists():
            assert host.poll() is None, "the libraries could not be loaded"
            assert time.monotonic() < deadline, "the libraries took too long to load"
            time.sleep(0.05)
        yield program
    finally:
        host.communicate(timeout=60)


def _write_program(path: Path, lines: str) -> None:
    path.write_text(f"#!/bin/bash\n{lines}\n", encoding="utf-8")
    path.chmod(0o755)


def host(address: str) -> None:
    """Load the libraries, then fork for each command that comes, until standard input closes."""
    from tests.stores import copy_new_stores, make_first_store
    from towers.warnings_filter import quiet_imports

    quiet_imports()
    for name in (*LIBRARIES, *_own_modules()):
        importlib.import_module(name)
    _find_packages()
    copy_new_stores()
    make_first_store()
    sys.executable = str(Path(address).with_name(PYTHON))
    assert threading.active_count() == 1, "a thread would not survive a fork"
    signal.signal(signal.SIGCHLD, _reap)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{address}.new")
    listener.listen()
    Path(f"{address}.new").rename(address)
    while True:
        connection, _ = listener.accept()
        with connection:
            content, streams, _, _ = socket.recv_fds(connection, 1 << 20, STREAMS)
            if os.fork() == 0:
                listener.close()
                _serve(connection, json.loads(content), streams)
            for stream in streams:
                os.close(stream)


def _find_packages() -> None:
    """Let MLflow look once for the package of each module, as it does for each model that is logged."""
    from mlflow.utils.requirements_utils import _check_requirement_satisfied

    _check_requirement_satisfied("mlflow")


def _own_modules() -> Iterator[str]:
    """Yield the names of our modules but those that are commands."""
    for package in OURS:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith(".__main__"):
                yield module.name


def _reap(*_: object) -> None:
    """Let go of whoever has served a command."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _serve(connection: socket.socket, told: dict[str, Any], streams: list[int]) -> None:
    """Fork the command, tell its number, wait for it and tell its status; never returns.

    A command whose `run` is killed is killed, too.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        connection.close()
        os._exit(_run(told, streams))
    connection.sendall(f"{child}\n".encode())
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:  # nothing comes by the connection but its end
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(BrokenPipeError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(told: dict[str, Any], streams: list[int]) -> int:
    """Become the command: its folder, its environment, its streams."""
    for stream, number in zip(streams, range(STREAMS), strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.argv = [told["program"], *told["words"]]
    by_line = 1 if "PYTHONUNBUFFERED" in os.environ else -1
    sys.stdout = open(1, "w", by_line, encoding="utf-8", closefd=False)  # noqa: SIM115 (for the life of the process)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    try:
        return PROGRAMS[told["program"]](told["words"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()


def _towers(words: list[str]) -> int:
    from towers.cli.main import main

    return main(words)


def _kernel(words: list[str]) -> int:
    from ipykernel.kernelapp import IPKernelApp

    del os.environ["JPY_PARENT_PID"]  # its parent is the host, and it would end without the one named there
    IPKernelApp.launch_instance(["-f", *words])
    return 0


PROGRAMS = {"towers": _towers, "kernel": _kernel}


def warm_kernels(program: Path) -> type[Any]:
    """Return the class of managers whose kernels start loaded.

    Args:
        program: What `warm_towers` yields.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = [sys.executable, __file__, "kernel", str(program.parent / SOCKET), "{connection_file}"]

    class WarmKernelManager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            encryption = {"supported_encryption": ["curve"]}  # as in the kernel's own; it warns without
            return KernelSpec(argv=command, display_name="warm", language="python", metadata=encryption)

    return WarmKernelManager


def run(program: str, address: str, words: list[str]) -> int:
    """Have a program run by the host, pass signals on to it, and return its exit status."""
    told = {"program": program, "words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(told).encode()], list(range(STREAMS)))
        with connection.makefile() as answers:
            child = int(answers.readline())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, frame: os.kill(child, number))
            status = int(answers.readline())
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    task, where, *rest = sys.argv[1:]
    sys.exit(host(where) if task == "host" else run(task, where, rest))
