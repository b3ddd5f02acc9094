"""What the attacks on a running service share: bundles with a column of each kind, a server under watch, raw HTTP.

Used by fuzz.py, kills.py and soak.py. The models are real and were not trained.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from features.files import move_link
from serving.jobs.build_index import build_index
from tests import running
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from tests.serving.recommend.test_reranking import add_ranker
from towers.bundle.bundle import ModelBundle

ITEMS = [f"p{number}" for number in range(120)]
USERS = list(range(1000, 1090))
VECTOR_SIZE = 6

_OF_ITEMS = {
    **SETTINGS["features"]["item"],
    "since": {"kind": "time"},
    "picture": {"kind": "vector"},
    "brand": {"kind": "category"},
}
RICH = {
    **SETTINGS,
    "features": {**SETTINGS["features"], "items": "products.parquet", "item": _OF_ITEMS},
}
"""Settings that read a column of each kind: id, text, number, categories, time, vector, category."""
TIMED = {
    "features": {**RICH["features"], "context": {"time": {"kind": "time"}}},
    "towers": {**RICH["towers"], "time_bias": True},
}
"""The same, whose answers depend on the time of the request."""


def write_rich_shop(folder: Path) -> None:
    """Write the tables of `RICH`."""
    write_shop(folder)
    rng = np.random.default_rng(6)
    products = pd.read_csv(folder / "products.csv")
    products["since"] = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 700, len(products)), unit="D")
    products["picture"] = rng.normal(size=(len(products), VECTOR_SIZE)).astype(np.float32).tolist()
    products["brand"] = rng.choice(["Acme", "Brenko", "Orvia"], size=len(products))
    products["stock"] = rng.integers(0, 50, size=len(products))
    products.to_parquet(folder / "products.parquet", index=False)


def make_bundles(folder: Path) -> list[Path]:
    """Write tables and two bundles with indexes, `runs/production` the first of them; return the bundles.

    The first has a learned ranker, the second reads the time of the request.
    """
    write_rich_shop(folder / "data")
    paths = [folder / "runs" / "ranked", folder / "runs" / "timed"]
    for seed, (path, settings) in enumerate(zip(paths, (RICH, TIMED), strict=True)):
        write_untrained(path, folder / "data", settings, seed)
        if path.name == "ranked":
            add_ranker(path)
        build_index(ModelBundle.open(path), {})
    move_link(folder / "runs" / "production", paths[0])
    return paths


def make_keys(folder: Path) -> dict[str, str]:
    """Write `keys.toml` with a key that may read and one that may write; return the keys by what they may do."""
    from serving.http.key_file import add_key

    return {name: add_key(folder / "keys.toml", name, name) for name in ("read", "write")}  # type: ignore[arg-type]


class Server:
    """`towers serve`, its workers and its log under watch.

    Args:
        folder: Where it runs; the log is written to `server.log` there.
        settings: `TOWERS_<KEY>` by key, in lower case.
        bundle: What it serves, relative to the folder.
        cores: The processors that it may use. None: all.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], bundle: str = "runs/production", cores: set[int] | None = None
    ) -> None:
        self.folder = folder
        self.port = int(settings.get("port", running.free_port()))
        self.num_workers = int(settings.get("workers", 1))
        self.log = folder / "server.log"
        self._bundle = bundle
        self._cores = cores
        self._settings = {f"TOWERS_{key.upper()}": str(value) for key, value in settings.items()}
        self.process = self._started()

    @property
    def workers(self) -> list[psutil.Process]:
        """The workers that run."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return []

    def wait(self, seconds: float = running.SECONDS, key: str | None = None) -> float:
        """Return the seconds until every worker is ready.

        Raises:
            SystemExit: They are not ready in time.
        """
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            with suppress(OSError, ValueError, KeyError):
                answer = ask(self.port, "GET", "/readyz", key=key, seconds=5)
                if answer.status == 200 and json.loads(answer.body)["workers"]["ready"] >= self.num_workers:
                    return time.monotonic() - started
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise SystemExit(f"the service is not ready:\n{self.log.read_text(errors='replace')[-3000:]}")

    def restart(self) -> None:
        """Start it again, after it ended."""
        self.process.wait(timeout=60)
        self.process = self._started()

    def stop(self) -> int:
        """End it, and return its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -signal.SIGKILL

    def _started(self) -> subprocess.Popen[bytes]:
        # Without what the tests say to malloc: memory is measured here, and must be as it is in production.
        own = {name: value for name, value in running.environment().items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-m", "towers", "serve", self._bundle, "--port", str(self.port)]
        if self._cores is not None:
            command = ["taskset", "-c", ",".join(map(str, sorted(self._cores))), *command]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env={**own, **self._settings}, stdout=log, stderr=subprocess.STDOUT
            )


@contextmanager
def serving(
    folder: Path, settings: dict[str, Any], bundle: str = "runs/production", cores: set[int] | None = None
) -> Iterator[Server]:
    """Run a server while the block runs."""
    server = Server(folder, settings, bundle, cores)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@dataclass
class Memory:
    """The resident memory of each worker over time, sampled by a thread.

    Attributes:
        samples: Of each process: seconds since the start and bytes.
        changes: Seconds at which the set of workers changed, and how.
    """

    server: Server
    every: float = 1.0
    samples: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    changes: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._known = {worker.pid for worker in self.server.workers}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample, and end."""
        self._ended.set()
        self._thread.join()
        self._sample()

    def growth(self, warm_up: float) -> dict[int, float]:
        """Return by how much each worker grew since the warm-up: the mean of the last tenth over that after it.

        The mean, because memory follows what is served: with bundles of two sizes in turns a median is that of one.

        Args:
            warm_up: Seconds that do not count.
        """
        end = max((samples[-1][0] for samples in self.samples.values()), default=0.0)
        part = max((end - warm_up) / 10, 2 * self.every)
        found = {}
        for pid, samples in self.samples.items():
            first = [rss for at, rss in samples if warm_up <= at <= warm_up + part]
            last = [rss for at, rss in samples if at >= end - part]
            if first and last:
                found[pid] = float(np.mean(last) / np.mean(first) - 1)
        return found

    def curve(self, points: int = 12) -> list[str]:
        """Return a line for each worker: megabytes at equal distances of time."""
        lines = []
        for pid, samples in self.samples.items():
            chosen = [samples[place] for place in np.linspace(0, len(samples) - 1, points).astype(int)]
            lines.append(f"  pid {pid}: " + " ".join(f"{rss / 2**20:.0f}" for _, rss in chosen) + " MiB")
        return lines

    def _watch(self) -> None:
        while not self._ended.wait(self.every):
            self._sample()

    def _sample(self) -> None:
        at = time.monotonic() - self._started
        there = set()
        for worker in self.server.workers:
            with suppress(psutil.NoSuchProcess):
                self.samples.setdefault(worker.pid, []).append((at, worker.memory_info().rss))
                there.add(worker.pid)
        if there != self._known:
            self.changes.append((at, f"workers {sorted(self._known)} became {sorted(there)}"))
            self._known = there


@dataclass(frozen=True)
class Answer:
    """An HTTP answer as it came.

    Attributes:
        status: 0 where there was none.
        headers: With names in lower case.
        body: What came.
        seconds: From the first byte sent to the last received.
        end: `whole`, `closed` (the connection ended before), `silent` (nothing more came in time).
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    end: str


def request_bytes(
    method: str, target: str, body: Any = None, key: str | None = None, headers: dict[str, str] | None = None
) -> bytes:
    """Return a request as it goes over the wire; a body that is not bytes becomes JSON."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


def ask(
    port: int, method: str, target: str, body: Any = None, *, key: str | None = None, seconds: float = 60.0
) -> Answer:
    """Return the answer to one request, over a connection of its own.

    Raises:
        OSError: There was none.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        answer = exchange(connection, request_bytes(method, target, body, key), seconds)
    if answer.end != "whole":
        raise OSError(f"{method} {target}: the connection was {answer.end}")
    return answer


def exchange(connection: socket.socket, wire: bytes, seconds: float, *, is_head: bool = False) -> Answer:
    """Send bytes and return the first answer that is not an interim one."""
    began = time.monotonic()
    with suppress(OSError):  # whoever refuses early may close early; what it said can still be read
        connection.settimeout(seconds)
        connection.sendall(wire)
    return Reader(connection).read(began, seconds, is_head=is_head)


class Reader:
    """Answers from a connection, one after another."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._left = b""

    def read(self, began: float, seconds: float, *, is_head: bool = False) -> Answer:
        """Return the next answer.

        Args:
            began: When the request was sent, of `time.monotonic`.
            seconds: How long from then it may take.
            is_head: Whether the request was HEAD, whose answer has no body.
        """
        while True:
            head, end = self._until(b"\r\n\r\n", began + seconds)
            if end != "whole":
                return Answer(0, {}, head, time.monotonic() - began, end)
            status, headers = _parsed(head)
            if status >= 200:
                break
        body, end = self._body(status, headers, began + seconds, is_head=is_head)
        return Answer(status, headers, body, time.monotonic() - began, end)

    def _body(self, status: int, headers: dict[str, str], deadline: float, *, is_head: bool) -> tuple[bytes, str]:
        if is_head or status in (204, 304):
            return b"", "whole"
        if "content-length" in headers:
            return self._exactly(int(headers["content-length"]), deadline)
        if headers.get("transfer-encoding") == "chunked":
            return self._chunks(deadline)
        body = b""
        while (part := self._receive(deadline)) and isinstance(part, bytes):
            body += part
        whole, self._left = self._left + body, b""
        return whole, "silent" if part is None else "whole"

    def _chunks(self, deadline: float) -> tuple[bytes, str]:
        body = b""
        while True:
            line, end = self._until(b"\r\n", deadline)
            if end != "whole":
                return body, end
            size = int(line.split(b";")[0], 16)
            part, end = self._exactly(size + 2, deadline)
            if end != "whole":
                return body, end
            if not size:
                return body, "whole"
            body += part[:-2]

    def _exactly(self, size: int, deadline: float) -> tuple[bytes, str]:
        while len(self._left) < size:
            part = self._receive(deadline)
            if not part:
                return self._left, "silent" if part is None else "closed"
            self._left += part
        found, self._left = self._left[:size], self._left[size:]
        return found, "whole"

    def _until(self, mark: bytes, deadline: float) -> tuple[bytes, str]:
        while mark not in self._left:
            part = self._receive(deadline)
            if not part:
                return self._left, "silent" if part is None else "closed"
            self._left += part
        found, _, self._left = self._left.partition(mark)
        return found, "whole"

    def _receive(self, deadline: float) -> bytes | None:
        """Return what comes; nothing where the connection ended, None where the time did."""
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        try:
            self._connection.settimeout(left)
            return self._connection.recv(1 << 16)
        except TimeoutError:
            return None
        except OSError:
            return b""


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.split(b"\r\n")
    found = re.match(rb"HTTP/1\.[01] ([0-9]{3})", first)
    status = int(found[1]) if found else 999
    pairs = (line.partition(b":") for line in lines)
    return status, {name.strip().lower().decode("latin-1"): value.strip().decode("latin-1") for name, _, value in pairs}


def traces_in(log: str) -> list[str]:
    """Return the stack traces of a log, each once: in lines of JSON, or as text."""
    found: dict[str, None] = {}
    for line in log.splitlines():
        if '"exception"' in line or line.startswith(("Traceback", "thread '")) or "panicked at" in line:
            with suppress(ValueError, KeyError, TypeError):
                line = str(json.loads(line)["exception"])
            found[line] = None
    return list(found)


def end_in_order() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that what it started is stopped."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def pin(cores: set[int] | None) -> None:
    """Let this process use some processors only."""
    if cores:
        os.sched_setaffinity(0, cores)


def say(text: str) -> None:
    """Show how far it is, on stderr."""
    sys.stderr.write(text)
    sys.stderr.flush()


def verdict(checks: dict[str, tuple[bool, str]]) -> int:
    """Print a line for each check, and return the exit status: 1 where one failed."""
    width = max(map(len, checks))
    for name, (is_right, found) in checks.items():
        print(f"{'ok    ' if is_right else 'FAILED'}  {name:{width}}  {found}")
    return 0 if all(is_right for is_right, _ in checks.values()) else 1


def every(seconds: float, ended: threading.Event, act: Callable[[], object]) -> threading.Thread:
    """Call something every so many seconds, in a thread, until the event is set."""

    def repeat() -> None:
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    return thread


def new_name(prefix: str) -> str:
    """Return a name that nothing has yet."""
    return f"{prefix}-{secrets.token_hex(4)}"
