"""`Model.serve`: a bundle over HTTP from Python, by `towers serve` in a process of its own.

The command becomes the server, so that it cannot run in the process of a notebook. What it prints is printed here.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from features.errors import DataError
from serving.config import ENVIRONMENT_PREFIX, ServingConfig
from serving.server.server import address_of, find_port
from towers.process import own_python

_GREETING = "Serving "
_ERROR = "error: "
_SECONDS_TO_STOP = 30


@contextmanager
def served(bundle: Path, settings: ServingConfig) -> Iterator[Service]:
    """Serve a bundle while the block runs.

    Args:
        bundle: The folder of the bundle.
        settings: The settings; with port 0 a free one is chosen.

    Raises:
        DataError: The service does not start.
    """
    settings = settings.model_copy(update={"port": find_port(settings)})
    output = _Output()
    process = subprocess.Popen(
        own_python("-m", "towers", "serve", str(bundle)),
        env={**os.environ, **_as_environment(settings)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,  # Ctrl-C comes here, and ends the block
    )
    assert process.stdout is not None, "it is a pipe"
    with process.stdout as stream:
        try:
            output.relay(stream)
            output.is_settled.wait()
            if not output.is_ready:
                process.wait(_SECONDS_TO_STOP)
                raise DataError(
                    output.last.removeprefix(_ERROR) or f"towers serve ended with status {process.returncode}"
                )
            yield Service(address_of(settings), process)
        finally:
            _stop(process)
            output.join()


class Service:
    """A running service.

    Attributes:
        address: Its address, such as `http://127.0.0.1:8000`.
    """

    def __init__(self, address: str, process: subprocess.Popen[str]) -> None:
        self.address = address
        self._process = process

    def wait(self) -> int:
        """Wait until the service ends, and return its exit status."""
        return self._process.wait()

    def __repr__(self) -> str:
        """Return the address."""
        return f"<Service {self.address}>"


class _Output:
    """What a process prints, line by line, in a thread: printed here as well.

    Attributes:
        is_settled: Set once the service has said that it is ready, or has ended.
        is_ready: Whether it is ready.
        last: The newest line.
    """

    def __init__(self) -> None:
        self.is_settled = threading.Event()
        self.is_ready = False
        self.last = ""
        self._thread: threading.Thread | None = None

    def relay(self, stream: Iterable[str]) -> None:
        """Print the lines of a stream, in a thread."""
        self._thread = threading.Thread(target=self._relay, args=(stream,), name="towers-service", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the stream has ended."""
        if self._thread is not None:
            self._thread.join(_SECONDS_TO_STOP)

    def _relay(self, stream: Iterable[str]) -> None:
        for line in stream:
            self.last = line.rstrip("\n")
            if not self.last.startswith(_ERROR):  # an error is raised
                print(self.last, flush=True)
            if self.last.startswith(_GREETING):
                self.is_ready = True
                self.is_settled.set()
        self.is_settled.set()


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _as_environment(settings: ServingConfig) -> Mapping[str, str]:
    """Return settings as the variables that `towers serve` reads; those with their defaults are left out."""
    given = settings.model_dump(exclude_unset=True)
    return {f"{ENVIRONMENT_PREFIX}{name.upper()}": _text(value) for name, value in given.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
