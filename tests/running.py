"""`towers` as a person runs it: processes of their own, in a folder of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from features.shop import generate_shop, write_shop

SECONDS = 240
"""How long anything here may take on a machine that is busy."""


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of ours, with one thread, so that tests share a machine well."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TOWERS_", "MLFLOW_"))}
    return {**own, "OMP_NUM_THREADS": "1", **settings}


def postgres_program(name: str) -> str:
    """Return where a program of PostgreSQL is, "" if it is not installed; Debian does not put it on the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return str(versions[-1]) if versions else shutil.which(name) or ""


def start(folder: Path, *words: str, program: Path | None = None, **settings: str) -> subprocess.Popen[str]:
    """Start `towers` with these words; what it says to stdout and stderr can be read from its `stdout`.

    `program` is another `towers` than `python -m towers`: one that starts loaded, as of `tests.warm`. Requests to a
    service have a minute, as in the process of the tests.
    """
    return subprocess.Popen(
        [*command_of(program), *words],
        cwd=folder,
        env=environment(**{"PYTHONUNBUFFERED": "1", "TOWERS_TIMEOUT_SECONDS": "60", **settings}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def towers(folder: Path, *words: str, program: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `towers` with these words to its end; `program` as for `start`."""
    return subprocess.run(
        [*command_of(program), *words],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def command_of(program: Path | None) -> list[str]:
    return [sys.executable, "-m", "towers"] if program is None else [str(program)]


def write_small_shop(folder: Path, users: int = 300, items: int = 200, interactions: int = 6_000) -> None:
    """Write the tables of a shop that is learned from in seconds."""
    write_shop(generate_shop(0, users, items, interactions), folder)


def quicker(run_toml: Path, **values: int) -> None:
    """Give settings that `init` wrote other values: fewer epochs, narrower towers."""
    text = run_toml.read_text(encoding="utf-8")
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name} = \d+", f"{name} = {value}", text)
        assert count == 1, f"{name} is not once in {run_toml}"
    run_toml.write_text(text, encoding="utf-8")


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(folder: Path, bundle: str = "runs/latest") -> Iterator[str]:
    """Serve a bundle while the block runs, and yield the address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    process = start(folder, "serve", bundle, "--port", str(port))
    try:
        wait_until_ready(process, address)
        yield address
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said


def wait_until_ready(process: subprocess.Popen[str], address: str) -> None:
    """Return as soon as the service answers."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ask(f"{address}/readyz")
            return
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the service is not ready: {process.communicate()[0]}")


def ask(url: str, body: Any = None) -> Any:
    """Return what a service answers to GET, or to POST where there is a body."""
    content = None if body is None else json.dumps(body).encode()
    request = Request(url, content, {"Content-Type": "application/json"} if content else {})
    with build_opener(ProxyHandler({})).open(request, timeout=30) as response:
        return json.load(response)
