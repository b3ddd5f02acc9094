"""Attacks a running service with requests that are valid, nearly valid, greedy and broken, and checks every answer.

    python tests/benchmarks/fuzz.py [--minutes 30] [--seed 0] [--schemathesis]
    python tests/benchmarks/fuzz.py --replay FAILURES

It makes bundles with a column of each kind (one with a learned ranker, one that reads the time of the request), starts
`towers serve` with two workers, keys, a rate limit and live writes (SQLite), and sends requests from several clients.
They are made from the service's own OpenAPI document: valid ones, writes included, so that the state moves; ones with
something nasty in a parameter, the path, a header or the body; ones that ask for as much as the limits allow; and bytes
that are not HTTP. Meanwhile connections that send nothing more are held open, and the served bundle is exchanged and
indexed anew every so often. The same seed makes the same requests.

It fails, with status 1, where an answer is 500 or holds a stack trace, the log has a stack trace, a worker ended, an
answer took more than 3 s or was cut off, `/healthz` was slow, an error was no problem of RFC 9457, something was
answered without the key for it, or a worker's memory grew by more than 5 % after the warm-up (a tenth of the time).

Failing requests are written to a file, a line of JSON each, and `--replay` sends those again to a new service.
`--schemathesis` lets schemathesis ask the same service afterwards, for a fifth of the time.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.files import move_link
from tests import running
from tests.benchmarks.fuzz_requests import PROBES, Maker, Message, broken
from tests.benchmarks.harness import (
    Answer,
    Memory,
    Reader,
    Server,
    ask,
    end_in_order,
    every,
    make_bundles,
    make_keys,
    say,
    serving,
    traces_in,
    verdict,
)

SECONDS = 3.0
"""The bar: how long an answer may take."""
HEALTHZ_SECONDS = 1.0
"""How long `/healthz` may take, whatever else is asked."""
GROWTH = 0.05
"""The bar: by how much a worker's memory may grow after the warm-up."""
WARM_UP = 0.1
"""Share of the time that is warm-up."""

_SETTINGS = {
    "workers": 2,
    "api_keys_file": "keys.toml",
    "rate": 1_000_000,
    "burst": 1_000_000,
    "live": "live.db",
    "watch_seconds": 0.5,
}
_SECONDS_UNTIL_CLOSED = 0.5
_LURKERS = 16
_MOST_SHOWN = 20
_NEEDS_WRITE = ("PUT", "DELETE", "PATCH")
_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection"
)
_BEFORE_US = (414, 431)
"""Statuses of what the HTTP server refuses before the application is asked: too long an address, too many headers."""
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Found:
    """What was sent and what went wrong, of all clients.

    Attributes:
        counts: Answers by kind of request and status; 0 where a broken request got none.
        failures: A line for each request that failed a check: check, and what was found.
        probes: Seconds that `/healthz` took.
        slowest: Seconds of the slowest answer.
    """

    path: Path
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    slowest: float = 0.0
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, check: str, said: str, wire: bytes = b"", **about: Any) -> None:
        """Note a failure, and write the request to the file."""
        with self._turn:
            self.failures.append((check, said))
            if wire:
                line = {"check": check, "found": said, **about, "wire": base64.b64encode(wire).decode()}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def num(self, check: str) -> int:
        """Return how many failed a check."""
        return sum(failed == check for failed, _ in self.failures)


class Client(threading.Thread):
    """Sends requests and checks the answers until the event is set."""

    def __init__(
        self,
        server: Server,
        keys: dict[str, str],
        document: Any,
        seed: int,
        number: int,
        found: Found,
        ended: threading.Event,
    ) -> None:
        super().__init__(daemon=True)
        self._server, self._keys, self._found, self._ended = server, keys, found, ended
        self._chance = random.Random(seed * 1000 + number)
        self._maker = Maker(document, self._chance)
        self._number = number
        self._connection: socket.socket | None = None
        self._reader: Reader | None = None
        self.num_sent = 0

    def run(self) -> None:
        """Send until it is enough."""
        while not self._ended.is_set():
            self.num_sent += 1
            try:
                self._send_one()
            except Exception as error:
                self._found.fail("the fuzzer itself", f"client {self._number}, request {self.num_sent}: {error!r}")
        self._close()

    def _send_one(self) -> None:
        message = self._maker.make()
        wire = message.wire()
        if message.kind == "wire":
            self._send_broken(broken(wire, self._chance), message)
            return
        if self._chance.random() < 0.03:
            self._send_in_a_row(message)
            return
        answer = self._exchange(message, wire)
        self._check(message, wire, answer)

    def _exchange(self, message: Message, wire: bytes) -> Answer:
        """Return the answer, over the connection that is open, or over a new one where that was closed meanwhile."""
        is_old = self._connection is not None
        if not message.is_framed:
            return self._exchange_alone(message, wire)
        answer = self._try(message, wire)
        if is_old and answer.end == "closed" and not answer.status and not answer.body:
            answer = self._try(message, wire)
        return answer

    def _try(self, message: Message, wire: bytes) -> Answer:
        if self._connection is None:
            self._connection = self._connect()
            self._reader = Reader(self._connection)
        assert self._reader is not None
        began = time.monotonic()
        with contextlib.suppress(OSError):
            self._connection.settimeout(SECONDS)
            self._connection.sendall(self._with_key(wire, message.role))
        answer = self._reader.read(began, SECONDS + 5, is_head=message.method == "HEAD")
        if answer.end != "whole" or answer.headers.get("connection") == "close" or self._chance.random() < 0.02:
            self._close()
        return answer

    def _exchange_alone(self, message: Message, wire: bytes) -> Answer:
        with self._connect() as connection:
            began = time.monotonic()
            with contextlib.suppress(OSError):
                connection.settimeout(SECONDS)
                connection.sendall(self._with_key(wire, message.role))
            reader = Reader(connection)
            answer = reader.read(began, _SECONDS_UNTIL_CLOSED, is_head=message.method == "HEAD")
            if answer.end == "silent":  # it may be waiting for more
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                answer = reader.read(began, SECONDS + 5, is_head=message.method == "HEAD")
            return answer

    def _send_broken(self, wire: bytes, message: Message) -> None:
        answer = self._exchange_alone(message, wire)
        self._check(message, wire, answer)

    def _send_in_a_row(self, first: Message) -> None:
        """Send several requests before the first answer is there."""
        messages = [first, *(self._maker.valid() for _ in range(self._chance.choice((1, 3))))]
        # What is not framed would end the row.
        messages = [message for message in messages if message.is_framed and message.method not in ("HEAD", "CONNECT")]
        wire = b"".join(self._with_key(message.wire(), message.role) for message in messages)
        with self._connect() as connection:
            reader, began = Reader(connection), time.monotonic()
            with contextlib.suppress(OSError):
                connection.settimeout(SECONDS)
                connection.sendall(wire)
            for message in messages:
                answer = reader.read(began, SECONDS * len(messages) + 5)
                if answer.headers.get("connection") == "close" or answer.status in (400, 413):
                    self._check(message, message.wire(), answer, is_row=True)
                    return
                self._check(message, message.wire(), answer, is_row=True)

    def _check(self, message: Message, wire: bytes, answer: Answer, *, is_row: bool = False) -> None:
        kind = message.kind if message.is_framed else "wire"
        self._found.counts[kind, answer.status] += 1
        self._found.slowest = max(self._found.slowest, answer.seconds)
        for check, said in problems(message, answer, is_row=is_row):
            about = {"client": self._number, "request": self.num_sent, "role": message.role, "kind": message.kind}
            beginning = f"{message.method:.20} {message.target():.150}"
            self._found.fail(
                check, f"{beginning}: {said}", wire, status=answer.status, framed=message.is_framed, **about
            )

    def _with_key(self, wire: bytes, role: str) -> bytes:
        return wire.replace(b"{key}", self._keys.get(role, "tt_" + "x" * 43).encode(), 1)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._server.port), timeout=SECONDS)
        # Reset at the end: closed connections in their thousands would wait for a minute and use up the ports.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._reader = None


def problems(message: Message, answer: Answer, *, is_row: bool = False) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with an answer: the check that failed, and what was found."""
    status, body = answer.status, answer.body
    if status >= 500 and status != 503:
        yield "no 500", f"{status} {body[:300]!r}"
    if b"Traceback (most recent" in body or b'.py", line ' in body:
        yield "no stack trace", f"in the answer {status}: {body[:300]!r}"
    if answer.seconds > SECONDS * (4 if is_row else 1):
        yield "answers within 3 s", f"{status} after {answer.seconds:.1f} s, {answer.end}"
    elif message.is_framed and answer.end != "whole":
        yield "whole answers", f"the connection was {answer.end} after {answer.seconds:.2f} s; status {status}"
    if not status or answer.end != "whole":
        return
    if message.is_framed and message.kind != "wire":
        yield from _problems_of_shape(message, answer)
    if message.role in ("none", "wrong") and message.is_framed and 200 <= status < 300:
        is_open = message.path.rstrip("/") in PROBES or "Authorization" in dict(message.headers)
        if not is_open:
            yield "keys", f"{status} with the key {message.role!r}"
    if message.role == "read" and status in (200, 201) and message.is_framed:
        is_write = message.method in _NEEDS_WRITE or (message.method == "POST" and message.path.startswith("/events"))
        if is_write:
            yield "keys", f"{status} to a write with a key that may only read"


def _problems_of_shape(message: Message, answer: Answer) -> Iterator[tuple[str, str]]:
    status, body = answer.status, answer.body
    if status >= 400 and status not in _BEFORE_US and message.method != "HEAD":
        try:
            content = json.loads(body)
            is_problem = content["status"] == status and {"type", "title", "detail", "code", "errors"} <= content.keys()
        except (ValueError, KeyError, TypeError, AttributeError):
            is_problem = False
        media = answer.headers.get("content-type", "")
        is_page = media.startswith("text/html") and body.rstrip().endswith(b"</html>")
        shows_mistakes = message.method == "GET" and message.path.partition("?")[0] == "/"
        if not (is_problem and media == "application/problem+json") and not (is_page and shows_mistakes):
            yield "errors are problems", f"{status} {answer.headers.get('content-type')} {body[:200]!r}"
    if 200 <= status < 300 and answer.headers.get("content-type") == "application/json" and message.method != "HEAD":
        try:
            json.loads(body)
        except ValueError:
            yield "answers are JSON", f"{body[:200]!r}"


class Lurkers(threading.Thread):
    """Holds connections open that began a request and send a byte now and then."""

    def __init__(self, port: int, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._ended = port, ended

    def run(self) -> None:
        """Hold them until the event is set."""
        chance, held = random.Random(1), []
        headers = b"Host: a\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
        beginnings = (
            b"GET /recommendations/1001 HT",
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ",
            b"POST /recommendations HTTP/1.1\r\n" + headers + b"{",
            b"POST /events HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
            b"",
        )
        while not self._ended.wait(0.5):
            while len(held) < _LURKERS:
                with contextlib.suppress(OSError):
                    connection = socket.create_connection(("127.0.0.1", self._port), timeout=SECONDS)
                    connection.sendall(chance.choice(beginnings))
                    held.append(connection)
            for connection in list(held):
                try:
                    connection.sendall(b"a")
                except OSError:
                    held.remove(connection)
            if chance.random() < 0.2:
                held.pop(0).close()
        for connection in held:
            connection.close()


class Swaps:
    """Exchanges what is served: between the bundles, and for an index that is made anew with the log in it."""

    def __init__(self, server: Server, bundles: list[Path], found: Found) -> None:
        self._server, self._bundles, self._found = server, bundles, found
        self.num = 0

    def __call__(self) -> None:
        """Exchange it once."""
        self.num += 1
        folder = self._server.folder
        if self.num % 3 == 0:
            bundle = self._bundles[(self.num // 3) % 2]
            done = running.towers(folder, "index", str(bundle), "--live", "live.db")
            if done.returncode:
                self._found.fail("the fuzzer itself", f"towers index: {done.stdout} {done.stderr}")
        move_link(folder / "runs" / "production", self._bundles[self.num % 2])


def fuzz(given: argparse.Namespace, folder: Path) -> int:
    """Attack a service, print what was found, and return the exit status."""
    bundles, keys = make_bundles(folder), make_keys(folder)
    found, ended = Found(given.failures), threading.Event()
    found.path.unlink(missing_ok=True)
    with serving(folder, {**_SETTINGS, "server": given.server}) as server:
        document = json.loads(ask(server.port, "GET", "/openapi.json", key=keys["read"]).body)
        pids, began = {worker.pid for worker in server.workers}, time.monotonic()
        seconds = given.minutes * 60
        memory = Memory(server, every=max(0.2, min(2.0, seconds / 200)))
        swaps = Swaps(server, bundles, found)
        clients = [Client(server, keys, document, given.seed, number, found, ended) for number in range(given.clients)]
        threads = [*clients, Lurkers(server.port, ended)]
        for thread in threads:
            thread.start()
        threads += [every(0.25, ended, lambda: _probe(server, found)), every(given.swap_seconds, ended, swaps)]
        while (passed := time.monotonic() - began) < seconds:
            time.sleep(min(1.0, seconds - passed + 0.01))
            say(f"\r{passed:.0f} s, {sum(found.counts.values()):,} requests, {len(found.failures)} failures ")
        ended.set()
        for thread in threads:
            thread.join(timeout=120)
        say("\n")
        memory.stop()
        left = {worker.pid for worker in server.workers}
        said_by_schemathesis = _schemathesis(server, keys, seconds / 5, found.path) if given.schemathesis else None
        status = server.stop()
    for said in traces_in(server.log.read_text(encoding="utf-8", errors="replace")):
        found.fail("no stack trace", f"in the log: {said[-700:]}")
    checks = _checks(found, memory, seconds)
    checks["no worker lost"] = (
        pids == left and not memory.changes,
        f"{sorted(pids)} at first, {sorted(left)} in the end",
    )
    checks["ends when it is told to"] = (status == 0, f"status {status}")
    if said_by_schemathesis is not None:
        checks["schemathesis"] = said_by_schemathesis
    _print_table(found, swaps, time.monotonic() - began)
    print("memory of each worker over time:", *memory.curve(), sep="\n")
    for check, said in found.failures[:_MOST_SHOWN]:
        print(f"{check}: {said}")
    result = verdict(checks)
    if result:
        kept = found.path.with_suffix(".server.log")
        shutil.copyfile(server.log, kept)
        print(f"failing requests: {found.path}; the server's log: {kept}")
    return result


def _checks(found: Found, memory: Memory, seconds: float) -> dict[str, tuple[bool, str]]:
    names = (
        "no 500",
        "no stack trace",
        "answers within 3 s",
        "whole answers",
        "errors are problems",
        "answers are JSON",
        "keys",
    )
    checks = {name: (not found.num(name), f"{found.num(name)} failed") for name in (*names, "the fuzzer itself")}
    checks["answers within 3 s"] = (checks["answers within 3 s"][0], f"the slowest took {found.slowest:.2f} s")
    slowest = max(found.probes, default=float("inf"))
    said = f"{len(found.probes)} times, the slowest took {slowest:.3f} s; {found.num('healthz')} failed"
    checks["/healthz is fast"] = (slowest <= HEALTHZ_SECONDS and not found.num("healthz"), said)
    growth = memory.growth(WARM_UP * seconds)
    said = ", ".join(f"{grown:+.1%}" for grown in growth.values())
    checks["memory is flat"] = (bool(growth) and max(growth.values()) <= GROWTH, f"{said} since the warm-up")
    return checks


def _probe(server: Server, found: Found) -> None:
    began = time.monotonic()
    try:
        answer = ask(server.port, "GET", "/healthz", seconds=SECONDS)
        if answer.status != 200:
            found.fail("healthz", f"/healthz: {answer.status} {answer.body!r}")
    except OSError as error:
        found.fail("healthz", f"/healthz: {error!r}")
    found.probes.append(time.monotonic() - began)


def _print_table(found: Found, swaps: Swaps, seconds: float) -> None:
    total = sum(found.counts.values())
    print(
        f"{total:,} requests in {seconds:,.0f} s, {total / seconds:,.0f} a second; "
        f"{swaps.num} exchanges of what is served"
    )
    statuses = sorted({status for _, status in found.counts})
    print(f"{'':8}" + "".join(f"{status or 'none':>9}" for status in statuses))
    for kind in sorted({kind for kind, _ in found.counts}):
        print(f"{kind:8}" + "".join(f"{found.counts[kind, status]:9,}" for status in statuses))


def _schemathesis(server: Server, keys: dict[str, str], seconds: float, failures: Path) -> tuple[bool, str]:
    """Let schemathesis ask the service, and return whether it found nothing, and what it said in the end.

    All that it said is written beside the failures.
    """
    address = f"http://127.0.0.1:{server.port}"
    # Its own Python, because the command is beside it only where the environment is active.
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--checks", _CHECKS]
    command += ["--header", f"Authorization: Bearer {keys['write']}", "--max-time", str(max(5, round(seconds)))]
    command += ["--phases", "examples,coverage,fuzzing", "--seed", "0", "--no-color", "--continue-on-failure"]
    command += ["--max-response-time", str(SECONDS), "--suppress-health-check", "all", "--warnings", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=server.folder)
    if done.returncode:
        kept = failures.with_suffix(".schemathesis.log")
        kept.write_text(done.stdout + done.stderr, encoding="utf-8")
        print(f"what schemathesis said: {kept}")
    lines = [line.strip(" =") for line in done.stdout.splitlines() if line.strip(" =")]
    return done.returncode == 0, f"status {done.returncode}: {lines[-1] if lines else done.stderr[-200:]}"


def replay(given: argparse.Namespace, folder: Path) -> int:
    """Send requests that failed again, and print what comes now; return 1 where one fails still."""
    make_bundles(folder)
    keys, bad = make_keys(folder), 0
    lines = [json.loads(line) for line in given.replay.read_text(encoding="utf-8").splitlines()]
    with serving(folder, {**_SETTINGS, "server": given.server}) as server:
        client = Client(
            server, keys, {"components": {"schemas": {}}, "paths": {}}, 0, 0, Found(given.failures), threading.Event()
        )
        for line in lines:
            wire = base64.b64decode(line["wire"])
            first = wire.split(b"\r\n")[0].decode("latin-1").split(" ")
            message = Message(
                first[0],
                first[1] if len(first) > 1 else "",
                role=line["role"],
                kind=line["kind"],
                is_framed=line["framed"],
            )
            answer = client._exchange(message, wire)
            said = list(problems(message, answer))
            bad += bool(said)
            print(f"{line['check']}: {wire[:100]!r}: {answer.status} {answer.end} {answer.seconds:.2f} s {said}")
    traces = traces_in(server.log.read_text(encoding="utf-8", errors="replace"))
    print(*traces, sep="\n")
    print(f"{len(lines)} requests sent again, {bad} fail still, {len(traces)} stack traces in the log")
    return 1 if bad or traces else 0


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="how long to attack (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="decides the requests (default: 0)")
    parser.add_argument("--clients", type=int, default=8, help="connections that send at the same time (default: 8)")
    parser.add_argument(
        "--swap-seconds", type=float, default=20, help="between two exchanges of the bundle (default: 20)"
    )
    parser.add_argument("--server", choices=("granian", "gunicorn"), default="granian")
    parser.add_argument(
        "--schemathesis", action="store_true", help="let schemathesis ask afterwards, for a fifth of the time"
    )
    parser.add_argument(
        "--failures",
        type=Path,
        default=Path(tempfile.gettempdir()) / "fuzz-failures.jsonl",
        help="where failing requests are written (default: %(default)s)",
    )
    parser.add_argument("--replay", type=Path, metavar="FAILURES", help="send the requests of such a file again")
    given = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return replay(given, Path(folder)) if given.replay else fuzz(given, Path(folder))


if __name__ == "__main__":
    raise SystemExit(main())
