"""Holds a service at half of its highest rate for an hour, with live writes and an exchange of the bundle each minute.

    python tests/benchmarks/soak.py [--minutes 60] [--cpus 0] [--csv soak.csv] [--picture soak.png]

It makes a shop (5,000 users, 4,000 items) and two bundles with indexes and starts `towers serve` with live writes
(SQLite). First it finds the highest rate that the service sustains: every connection sends its next request as soon as
it has its answer (a closed loop). Then requests come at random moments at half of that rate, whether or not earlier
ones have been answered (an open loop); an answer's time counts from the moment at which its request was due. The mix:
recommendations for known users, for users who are described, with filters, similar items, searches, events, items put.

Every 10 s it records the rate, failures, median and p99 of the time to an answer, and the resident memory of each
worker, in a CSV file and as a picture. It ends with status 1 if a request failed, the p99 of the last quarter of the
time is more than 1.5 times that of the second, or the memory of a worker grew by more than 5 % after the first tenth.

`--cpus 0` keeps the service and this program on these processors, so that other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import selectors
import shutil
import socket
import sys
import tempfile
import threading
import time
import tomllib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from features.files import move_link
from serving.jobs.build_index import build_index
from tests import running
from tests.benchmarks.harness import Memory, Server, end_in_order, every, pin, request_bytes, say, serving, verdict
from tests.serving.conftest import write_untrained
from towers.bundle.bundle import ModelBundle

SECONDS_OF_A_ROW = 10.0
"""How much time a row of the CSV is about."""
GROWTH = 0.05
"""The bar: by how much a worker's memory may grow after the first tenth of the time."""
P99_RATIO = 1.5
"""The bar: p99 of the last quarter over that of the second."""

SHARES = {"known": 50, "described": 20, "filtered": 8, "similar": 10, "search": 9, "event": 2, "item": 1}
"""Requests of each kind, of a hundred."""
_NUM_REQUESTS = 4000
_OWN_ITEMS = 50
_EVENT_IDS = 500
_SECONDS_TO_ANSWER = 10.0
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3})")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")


@dataclass
class Record:
    """What came of requests.

    Attributes:
        due: When each was due, in seconds since the start.
        seconds: From then to its answer.
        failures: What each failed request was, and when.
    """

    due: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("f"))
    failures: list[tuple[float, str]] = field(default_factory=list)


class _Connection:
    """A connection that is kept open, with one request on it at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.kind, self.wire, self.due, self.sent = "", b"", 0.0, 0.0
        self.ends = False
        self._is_used = False
        self._got = b""
        self.socket = self._opened()

    def send(self, kind: str, wire: bytes, due: float, now: float) -> None:
        """Send a request."""
        self.kind, self.wire, self.due, self.sent, self._got = kind, wire, due, now, b""
        self.socket.setblocking(True)
        self.socket.sendall(wire)
        self.socket.setblocking(False)

    def receive(self) -> int | None:
        """Return the status of the answer as soon as it is whole, None before that.

        Raises:
            ConnectionError: The service closed the connection.
        """
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionError("the connection was closed")
        self._got += part
        head, separator, body = self._got.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if separator else None
        if length is None or len(body) < int(length[1]):
            return None
        status = _STATUS.match(head)
        self._is_used = True
        self.ends = b"\r\nconnection: close" in head.lower()
        return int(status[1]) if status else 0

    @property
    def body(self) -> bytes:
        """What the last answer says, as far as it was received."""
        return self._got.partition(b"\r\n\r\n")[2]

    @property
    def may_have_been_idle(self) -> bool:
        """Whether the service may have closed it for being idle before the request came, so that it is sent again."""
        return self._is_used and not self._got

    def reopen(self) -> None:
        """Open it again."""
        with suppress(OSError):
            self.socket.close()
        self.ends = self._is_used = False
        self.socket = self._opened()

    def _opened(self) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self._port), timeout=_SECONDS_TO_ANSWER)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened


class Load:
    """Sends requests and times the answers, in one thread.

    Args:
        port: Of the service.
        requests: What is sent, drawn at random: kind and bytes.
        num_connections: How many requests may be on their way at a time.
        seed: Decides the draws.
    """

    def __init__(self, port: int, requests: Sequence[tuple[str, bytes]], num_connections: int, seed: int = 0) -> None:
        self._requests = requests
        self._chance = random.Random(seed)
        self._connections = [_Connection(port) for _ in range(num_connections)]

    def run(self, seconds: float, rate: float | None, each: Callable[[float], object] = lambda passed: None) -> Record:
        """Send for some seconds.

        Args:
            seconds: How long.
            rate: Requests a second, at random moments. None: as many as are answered.
            each: Called about once a second with the seconds that have passed.
        """
        record, idle, waiting = Record(), deque(self._connections), deque[float]()
        selector = selectors.EpollSelector()
        busy: set[_Connection] = set()
        began = time.perf_counter()
        next_due, next_call = 0.0, 1.0
        while (now := time.perf_counter() - began) < seconds or (busy and now < seconds + _SECONDS_TO_ANSWER):
            if now < seconds:
                next_due = self._come_due(waiting, next_due, now, rate, len(idle))
            while waiting and idle:
                self._send(idle.popleft(), waiting.popleft(), now, busy, selector, record, idle)
            pause = 0.05 if rate is None or now >= seconds else max(0.0, min(0.05, next_due - now))
            for key, _ in selector.select(pause if busy else 0) if busy else ():
                self._receive(key.data, time.perf_counter() - began, busy, selector, record, idle)
            if not busy and pause:
                time.sleep(pause)
            if now >= next_call:
                next_call += 1.0
                each(now)
                self._give_up(busy, now, selector, record, idle)
        for connection in busy:
            record.failures.append((now, f"{connection.kind}: no answer in {_SECONDS_TO_ANSWER} s"))
        selector.close()
        return record

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.socket.close()

    def _come_due(self, waiting: deque[float], next_due: float, now: float, rate: float | None, num_idle: int) -> float:
        if rate is None:
            waiting.extend([now] * (num_idle - len(waiting)))
            return now
        while next_due <= now:
            waiting.append(next_due)
            next_due += self._chance.expovariate(rate)
        return next_due

    def _send(
        self,
        connection: _Connection,
        due: float,
        now: float,
        busy: set[_Connection],
        selector: selectors.BaseSelector,
        record: Record,
        idle: deque[_Connection],
    ) -> None:
        kind, wire = self._chance.choice(self._requests)
        try:
            connection.send(kind, wire, due, now)
        except OSError as error:
            record.failures.append((due, f"{kind}: not sent: {error}"))
            connection.reopen()
            idle.append(connection)
            return
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        busy.add(connection)

    def _receive(
        self,
        connection: _Connection,
        now: float,
        busy: set[_Connection],
        selector: selectors.BaseSelector,
        record: Record,
        idle: deque[_Connection],
    ) -> None:
        try:
            status = connection.receive()
        except OSError as error:
            selector.unregister(connection.socket)
            if connection.may_have_been_idle:
                connection.reopen()
                connection.send(connection.kind, connection.wire, connection.due, now)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                return
            status = 0
            record.failures.append((connection.due, f"{connection.kind}: {error}"))
        else:
            if status is None:
                return
            selector.unregister(connection.socket)
        busy.discard(connection)
        if status in (200, 201):
            record.due.append(connection.due)
            record.seconds.append(now - connection.due)
        elif status:
            record.failures.append(
                (connection.due, f"{connection.kind}: {status} to {connection.wire[:120]!r}: {connection.body[:300]!r}")
            )
        if connection.ends or not status:
            connection.reopen()
        idle.append(connection)

    def _give_up(
        self,
        busy: set[_Connection],
        now: float,
        selector: selectors.BaseSelector,
        record: Record,
        idle: deque[_Connection],
    ) -> None:
        for connection in [one for one in busy if now - one.sent > _SECONDS_TO_ANSWER]:
            record.failures.append((connection.due, f"{connection.kind}: no answer in {_SECONDS_TO_ANSWER} s"))
            selector.unregister(connection.socket)
            busy.discard(connection)
            connection.reopen()
            idle.append(connection)


def make_shop(folder: Path, num_users: int, num_items: int) -> list[Path]:
    """Write a shop and two bundles of it with indexes, `runs/production` the first of them; return the bundles."""
    running.write_small_shop(folder / "data", num_users, num_items, 20 * num_users)
    words = [f"--{name}=data/{name}.parquet" for name in ("interactions", "items", "users")]
    done = running.towers(folder, "init", *words)
    if done.returncode:
        raise SystemExit(f"towers init: {done.stdout}{done.stderr}")
    proposed = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    settings = {"features": proposed["features"], "towers": proposed["towers"]}
    paths = []
    for seed, name in enumerate(("one", "two")):
        write_untrained(folder / "runs" / name, folder, settings, seed)
        build_index(ModelBundle.open(folder / "runs" / name), {})
        paths.append(folder / "runs" / name)
    move_link(folder / "runs" / "production", paths[0])
    return paths


def make_requests(folder: Path, seed: int = 0) -> list[tuple[str, bytes]]:
    """Return requests of each kind, in the shares of `SHARES`."""
    chance = random.Random(seed)
    items = pd.read_parquet(folder / "data" / "items.parquet")
    users = pd.read_parquet(folder / "data" / "users.parquet")["user_id"].tolist()
    ids, titles, brands = (items[name].tolist() for name in ("item_id", "title", "brand"))
    kinds = chance.choices(list(SHARES), list(SHARES.values()), k=_NUM_REQUESTS)
    return [(kind, _request(kind, chance, users, ids, titles, brands)) for kind in kinds]


def _request(
    kind: str, chance: random.Random, users: list[int], ids: list[str], titles: list[str], brands: list[str]
) -> bytes:
    user = f"/recommendations/{chance.choice(users)}?k=10"
    match kind:
        case "described":
            return request_bytes("POST", "/recommendations", {"history": chance.choices(ids, k=20), "k": 10})
        case "filtered":
            brand = json.dumps(chance.choice(brands))
            where = f'{{"brand":{{"not":[{brand}]}},"price":{{"min":{chance.randrange(20)}}}}}'
            return request_bytes("POST", "/recommendations", f'{{"users":[{user[17:-5]}],"filter":{where}}}'.encode())
        case "similar":
            return request_bytes("GET", f"/items/{chance.choice(ids)}/similar?k=10")
        case "search":
            words = re.findall("[A-Za-z]+", str(chance.choice(titles)))[:3] or ["lamp"]
            return request_bytes("GET", f"/search?k=10&q={'+'.join(words)}")
        case "event":
            event = {"user_id": chance.choice(users[:200]), "item_id": chance.choice(ids)}
            return request_bytes(
                "POST", "/events", {"events": [{**event, "event_id": f"e{chance.randrange(_EVENT_IDS)}"}]}
            )
        case "item":
            cells = {"title": chance.choice(titles), "price": round(chance.uniform(1, 99), 2)}
            return request_bytes("PUT", f"/items/own-{chance.randrange(_OWN_ITEMS)}", cells)
    return request_bytes("GET", user)


def highest_rate(load: Load, seconds: float) -> float:
    """Return the answers a second of a closed loop: the median of three rounds, after one that does not count."""
    rates = []
    for number in range(4):
        record = load.run(seconds, None)
        if record.failures:
            raise SystemExit(f"requests failed while the highest rate was looked for: {record.failures[:5]}")
        rates.append(len(record.seconds) / seconds)
        say(f"\rround {number}: {rates[-1]:,.0f} answers a second ")
    say("\n")
    return float(np.median(rates[1:]))


def rows_of(record: Record, memory: Memory, seconds: float) -> Iterator[dict[str, float]]:
    """Yield a row for each 10 s: when, rate, failures, median and p99 in milliseconds, memory of each worker in MiB."""
    due, took = np.array(record.due), np.array(record.seconds) * 1000
    failed = np.array([at for at, _ in record.failures])
    for begin in np.arange(0, seconds, SECONDS_OF_A_ROW):
        end = min(begin + SECONDS_OF_A_ROW, seconds)
        mine = took[(due >= begin) & (due < end)]
        row = {
            "seconds": float(end),
            "rate": round(len(mine) / (end - begin), 1),
            "failures": int(((failed >= begin) & (failed < end)).sum()),
            "p50_ms": round(float(np.median(mine)), 3) if len(mine) else float("nan"),
            "p99_ms": round(float(np.quantile(mine, 0.99)), 3) if len(mine) else float("nan"),
        }
        for number, samples in enumerate(memory.samples.values()):
            until = [rss for at, rss in samples if at <= end]
            row[f"worker_{number}_mib"] = round(until[-1] / 2**20, 1) if until else float("nan")
        yield row


def p99_of(record: Record, begin: float, end: float) -> float:
    """Return the p99 of what was due in a span of time, in milliseconds."""
    due, took = np.array(record.due), np.array(record.seconds)
    return float(np.quantile(took[(due >= begin) & (due < end)], 0.99) * 1000)


def draw(rows: list[dict[str, float]], path: Path, title: str) -> None:
    """Draw memory and time to an answer over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    minutes = [row["seconds"] / 60 for row in rows]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    for name in [name for name in rows[0] if name.endswith("_mib")]:
        above.plot(minutes, [row[name] for row in rows], label=name.removesuffix("_mib").replace("_", " "))
    above.set(ylabel="resident memory, MiB", title=title)
    above.set_ylim(bottom=0)
    above.legend()
    for name in ("p99_ms", "p50_ms"):
        below.plot(minutes, [row[name] for row in rows], label=name.removesuffix("_ms"))
    below.set(xlabel="minutes", ylabel="time to an answer, ms")
    below.set_ylim(bottom=0)
    below.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def soak(given: argparse.Namespace, folder: Path) -> int:
    """Hold the service, print and save what was found, and return the exit status."""
    cores = {int(core) for core in given.cpus.split(",")} if given.cpus else None
    pin(cores)
    bundles = make_shop(folder, given.users, given.items)
    requests = make_requests(folder)
    seconds, ended, num_swaps = given.minutes * 60, threading.Event(), 0

    def swap() -> None:
        nonlocal num_swaps
        num_swaps += 1
        move_link(folder / "runs" / "production", bundles[num_swaps % 2])

    settings = {"workers": given.workers, "server": given.server, "live": "live.db", "watch_seconds": 1}
    with serving(folder, settings, cores=cores) as server:
        load = Load(server.port, requests, given.connections)
        highest = highest_rate(load, min(15.0, seconds / 10))
        rate = given.rate or highest * given.share
        print(f"highest rate {highest:,.0f} a second; held at {rate:,.0f} a second for {given.minutes:g} minutes")
        memory = Memory(server, every=min(2.0, seconds / 100))
        swapping = every(given.swap_seconds, ended, swap)
        record = load.run(seconds, rate, lambda passed: say(f"\r{passed:,.0f} s ") if int(passed) % 5 == 0 else None)
        ended.set()
        swapping.join()
        memory.stop()
        load.close()
        num_seen = _num_swaps_seen(server)
        status = server.stop()
    say("\n")
    rows = list(rows_of(record, memory, seconds))
    _write(rows, given.csv)
    draw(
        rows,
        given.picture,
        f"{rate:,.0f} requests a second, half of the highest rate; {num_swaps} exchanges of the bundle",
    )
    print(f"{given.csv} and {given.picture} written: {len(rows)} rows")
    print("memory of each worker over time:", *memory.curve(), sep="\n")
    for what, count in Counter(said.split(" to ")[0] for _, said in record.failures).most_common(10):
        print(f"failed {count} times: {what}")
    for at, said in record.failures[:5]:
        print(f"  at {at:.1f} s: {said}")
    checks = _checks(record, memory, seconds, rate)
    checks["exchanges of the bundle"] = (
        num_swaps == 0 or num_seen >= num_swaps * given.workers - given.workers,
        f"{num_swaps} times, {num_seen} by {given.workers} workers",
    )
    checks["no worker lost"] = (not memory.changes and status == 0, f"{memory.changes or 'none'}; status {status}")
    result = verdict(checks)
    if result:
        kept = given.csv.with_suffix(".server.log")
        shutil.copyfile(server.log, kept)
        print(f"the server's log: {kept}")
    return result


def _checks(record: Record, memory: Memory, seconds: float, rate: float) -> dict[str, tuple[bool, str]]:
    second, last = (p99_of(record, part * seconds / 4, (part + 1) * seconds / 4) for part in (1, 3))
    growth = memory.growth(0.1 * seconds)
    said = ", ".join(f"{grown:+.1%}" for grown in growth.values())
    reached = len(record.seconds) / seconds
    return {
        "no request failed": (not record.failures, f"{len(record.failures)} of {len(record.seconds):,}"),
        "the rate was held": (reached > 0.95 * rate, f"{reached:,.0f} of {rate:,.0f} a second"),
        "p99 stays": (
            last <= P99_RATIO * second,
            f"second quarter {second:.2f} ms, last {last:.2f} ms, ratio {last / second:.2f} (bar {P99_RATIO})",
        ),
        "memory is flat": (bool(growth) and max(growth.values()) <= GROWTH, f"{said} (bar {GROWTH:.0%})"),
    }


def _num_swaps_seen(server: Server) -> int:
    return server.log.read_text(encoding="utf-8", errors="replace").count("now serving model")


def _write(rows: list[dict[str, float]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long the rate is held (default: 60)")
    parser.add_argument("--cpus", default="", help="processors for service and client, such as 0 or 0,1 (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="of the service (default: 2)")
    parser.add_argument("--connections", type=int, default=32, help="requests on their way at a time (default: 32)")
    parser.add_argument("--share", type=float, default=0.5, help="of the highest rate that is held (default: 0.5)")
    parser.add_argument("--rate", type=float, help="hold this rate instead")
    parser.add_argument("--swap-seconds", type=float, default=60, help="between two exchanges (default: 60)")
    parser.add_argument("--users", type=int, default=5000, help="of the shop (default: 5000)")
    parser.add_argument("--items", type=int, default=4000, help="of the shop (default: 4000)")
    parser.add_argument("--server", choices=("granian", "gunicorn"), default="granian")
    parser.add_argument("--csv", type=Path, default=Path("soak.csv"), help="where the rows go (default: %(default)s)")
    parser.add_argument(
        "--picture", type=Path, default=Path("soak.png"), help="where the picture goes (default: %(default)s)"
    )
    given = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return soak(given, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
