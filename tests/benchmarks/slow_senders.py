"""How long a customer waits while many others send slowly: half headers, slow bodies, bodies that are refused.

    python tests/benchmarks/slow_senders.py [--server granian gunicorn] [--only KIND ...] [--senders 200] [--seconds 60]

The service is `towers serve` with one worker and its defaults, over a small bundle that was not trained. Beside it run
senders of one kind, each of which opens a connection, sends the beginning of a request and then a few bytes a second,
and begins again when its connection ends. A customer asks once a second for a known user and for a described one, and
an operator for the three probes; each asks on a new connection. Bar: every answer is 200 and takes less than a second.

    head        half of the headers, and then one header after the other
    body        a body of 100 kB, three bytes at a time
    chunked     a body without a length, a chunk of three bytes at a time
    get         a GET with such a body
    refused     a body of 1 GB, which is refused for its length
    unknown     a body to a path that does not exist
    no_key      a body without a key, where keys are asked for and requests are counted (401, then 429)
    idle        a request that is answered, and then nothing
    pipelined   a hundred requests at once, of which only the first answers are read
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

BAR_SECONDS = 1.0
SECONDS_OF_PATIENCE = 15
HEAD = b"Host: here\r\nContent-Type: application/json\r\n"
USER, JSON = "/recommendations/1001?k=10", {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Kind:
    """A way to be slow: how a connection begins, and what it sends from then on, once a second."""

    first: bytes
    then: bytes
    keys: bool = False


def _body(line: bytes, length: bytes = b"Content-Length: 100000") -> bytes:
    return line + b" HTTP/1.1\r\n" + HEAD + length + b"\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
KINDS = {
    "head": Kind(b"GET /recommendations/1001 HTTP/1.1\r\n" + HEAD, b"X-More: 1\r\n"),
    "body": Kind(_body(b"POST /recommendations") + b'{"a', b"   "),
    "chunked": Kind(_body(b"POST /recommendations", CHUNKED) + b"3\r\n   \r\n", b"3\r\n   \r\n"),
    "get": Kind(_body(b"GET /recommendations/1001", CHUNKED) + b"3\r\n   \r\n", b"3\r\n   \r\n"),
    "refused": Kind(_body(b"POST /recommendations", b"Content-Length: 1000000000") + b"   ", b"   "),
    "unknown": Kind(_body(b"POST /nothing/here") + b"   ", b"   "),
    "no_key": Kind(_body(b"POST /recommendations") + b"   ", b"   ", keys=True),
    "idle": Kind(b"GET /recommendations/1001 HTTP/1.1\r\n" + HEAD + b"\r\n", b""),
    "pipelined": Kind((b"GET /recommendations/1001 HTTP/1.1\r\n" + HEAD + b"\r\n") * 100, b""),
}


def send_slowly(kind: Kind, port: int, senders: int, seconds: float) -> None:
    """Be all those senders, for a while."""
    asyncio.run(_send_slowly(kind, port, senders, time.monotonic() + seconds))


async def _send_slowly(kind: Kind, port: int, senders: int, until: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(until - time.monotonic()):
            await asyncio.gather(*(_sender(kind, port, turn / senders) for turn in range(senders)))


async def _sender(kind: Kind, port: int, pause: float) -> None:
    await asyncio.sleep(pause)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(kind.first)
                while not (writer.is_closing() or reader.at_eof()):
                    await asyncio.sleep(1)
                    writer.write(kind.then)
                    await writer.drain()
            finally:
                writer.close()
        await asyncio.sleep(0.1)


@dataclass
class Answers:
    """What those who ask properly got."""

    slowest: dict[str, float] = field(default_factory=dict)
    count: int = 0
    wrong: list[str] = field(default_factory=list)

    def ask(self, name: str, port: int, method: str, path: str, body: str | None, headers: dict[str, str]) -> None:
        """Ask once and note how that went."""
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_OF_PATIENCE)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            response.read()
            status = str(response.status)
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
        finally:
            connection.close()
        seconds = time.monotonic() - began
        self.count += 1
        self.slowest[name] = max(self.slowest.get(name, 0.0), seconds)
        if status != "200":
            self.wrong.append(f"{name} {status}")
        elif seconds >= BAR_SECONDS:
            self.wrong.append(f"{name} {seconds:.1f} s")


def ask_every_second(port: int, key: dict[str, str], seconds: float) -> Answers:
    """Be a customer and an operator for a while, each kind of request in a thread of its own."""
    body = json.dumps({"history": ["p1", "p2"], "k": 10})
    asked: dict[str, tuple[str, str, str | None, dict[str, str]]] = {
        "known": ("GET", USER, None, key),
        "described": ("POST", "/recommendations", body, JSON | key),
        **{path[1:]: ("GET", path, None, key) for path in ("/healthz", "/readyz", "/metrics")},
    }
    answers, until = Answers(), time.monotonic() + seconds

    def ask(name: str) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            answers.ask(name, port, *asked[name])
            time.sleep(max(0.0, 1 - (time.monotonic() - began)))

    threads = [threading.Thread(target=ask, args=(name,)) for name in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@contextmanager
def serving(folder: Path, server: str, key_file: Path | None) -> Iterator[int]:
    """Run `towers serve` over the bundle of a folder while the block runs, and yield the port."""
    from tests.running import environment, free_port

    port = free_port()
    keys = {} if key_file is None else {"TOWERS_API_KEYS_FILE": str(key_file), "TOWERS_RATE": "5"}
    process = subprocess.Popen(
        [sys.executable, "-m", "towers", "serve", "runs/model", "--port", str(port), "--server", server],
        cwd=folder,
        env=environment(**keys),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
    listener.start()
    try:
        deadline = time.monotonic() + 300
        while not _is_ready(port):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"the service does not start: {''.join(said)}")
            time.sleep(0.2)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            print("  the service did not end within 45 s of SIGTERM")
        listener.join(5)
        if any("Traceback" in line for line in said):
            print("  the log has a traceback:", *said[:40], sep="\n    ")


def _is_ready(port: int) -> bool:
    answers = Answers()
    answers.ask("readyz", port, "GET", "/readyz", None, {})
    return not answers.wrong


def measure(folder: Path, server: str, kind: Kind, senders: int, seconds: float) -> Answers:
    """Return what customers and operators got beside the senders."""
    from serving.http.key_file import add_key

    key, key_file = {}, None
    if kind.keys:
        key_file = folder / f"{server}.keys.toml"
        key = {"Authorization": f"Bearer {add_key(key_file, 'customer', 'read')}"}
    with serving(folder, server, key_file) as port:
        apart = multiprocessing.get_context("spawn").Process(
            target=send_slowly, args=(kind, port, senders, seconds + 3), daemon=True
        )
        apart.start()
        try:
            time.sleep(3)
            return ask_every_second(port, key, seconds)
        finally:
            apart.terminate()
            apart.join()


def make_bundle(folder: Path) -> None:
    """Write a small bundle with its index."""
    from serving.deploy.prepare import ensure_index
    from tests.serving.conftest import SETTINGS, write_shop, write_untrained

    write_shop(folder / "data")
    write_untrained(folder / "runs" / "model", folder / "data", SETTINGS)
    ensure_index(folder / "runs" / "model")


def report(rows: Sequence[tuple[str, str, Answers]], say: Callable[[str], None] = print) -> bool:
    """Show the slowest answer of each kind and return whether all were within the bar."""
    names = ["known", "described", "healthz", "readyz", "metrics"]
    say(f"{'server':9} {'senders':10} {'requests':>8} {'not right':>9} " + " ".join(f"{name:>10}" for name in names))
    for server, kind, answers in rows:
        slowest = " ".join(f"{answers.slowest.get(name, 0.0) * 1000:7.0f} ms" for name in names)
        say(f"{server:9} {kind:10} {answers.count:8} {len(answers.wrong):9} {slowest}")
    return not any(answers.wrong for *_, answers in rows)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", nargs="+", default=["granian", "gunicorn"])
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--senders", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        make_bundle(Path(temporary))
        for server in given.server:
            for name in given.only:
                answers = measure(Path(temporary), server, KINDS[name], given.senders, given.seconds)
                rows.append((server, name, answers))
                print(f"{server} {name}: {answers.wrong[:5] or 'all right'}", flush=True)
    if not report(rows):
        raise SystemExit(f"not every answer was 200 within {BAR_SECONDS} s")


if __name__ == "__main__":
    main()
