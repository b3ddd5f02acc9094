"""A service under live writes: hot swaps that nobody notices. kills.py does the same under `kill -9`.

    python tests/benchmarks/live.py swaps [--swaps 1000] [--writes 100000] [--workers 2] [--clients 4]

It runs `towers serve` as it is, with real models that were not trained, and ends with status 1 if a bar is missed.

Clients write (events, items put, changed and deleted) and after each write ask, over new connections, so that
any worker may answer, while `runs/production` goes to and fro between two bundles, each time until every worker has
gone over. An answer is wrong if it is not from the log position of the client's last write or a later one, if an item
is in it that the user had or that was deleted, if it is not full, or not in order. A part of the answers is afterwards
compared with what a recommender of the same model answers at the same position of the log, and the last ones with those
of an index made anew from tables that the log was folded into.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from features.files import move_link
from features.tables.tables import read_tables
from serving.jobs.build_index import build_index
from serving.live.compaction import compact
from serving.live.follower import LiveRecommender
from serving.live.log import LogState, Record, Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend.recommender import Recommender
from serving.snapshot.snapshot import Snapshot
from tests import running
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from towers.bundle.bundle import ModelBundle

K = 10
_SECONDS_TO_ANSWER = 60
_OWN_ITEMS = 40
_SHARE_COMPARED = 0.02
_NEAR = 2e-5
_WORDS = "red green blue small large wooden steel lamp chair table cup bowl".split()  # noqa: SIM905
_NOT_ANSWERED = (OSError, http.client.HTTPException)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


@dataclass
class Tally:
    """What clients did and found, of all of them.

    Attributes:
        num_writes: Writes that were acknowledged.
        num_answers: Answers that were looked at.
        acknowledged: Each of them, as it was sent: method, path, body; and as it was answered.
        refused: Writes that got 503 and were sent again.
        unanswered: Requests that got no answer at all.
        failed: Answers with an unexpected status.
        wrong: Answers that say what is not so.
        sampled: Answers to be compared: model, position of the log, user, and items with scores.
    """

    num_writes: int = 0
    num_answers: int = 0
    acknowledged: list[tuple[str, str, Any, dict[str, Any]]] = field(default_factory=list)
    refused: int = 0
    unanswered: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sampled: list[tuple[str, int, int, list[tuple[str, float]]]] = field(default_factory=list)


class Service:
    """`towers serve`, started again whenever it ends."""

    def __init__(self, folder: Path, workers: int, server: str, live: str = "live.db") -> None:
        self.port = running.free_port()
        self._words = ["serve", "runs/production", "--port", str(self.port), "--workers", str(workers)]
        self._words += ["--server", server, "--live", live]
        self._folder = folder
        self._is_wanted = True
        self.num_exchanged = 0
        self.said: list[str] = []
        self.process = self._started()
        threading.Thread(target=self._keep_up, daemon=True).start()

    @property
    def workers(self) -> list[psutil.Process]:
        """The workers that run."""
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and content of an answer, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SECONDS_TO_ANSWER)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, headers, json.loads(answer.read())
        finally:
            connection.close()

    def answers(self) -> bool:
        """Return whether it recommends anything."""
        try:
            return self.ask("GET", "/recommendations/1001")[0] == 200
        except _NOT_ANSWERED:
            return False

    def wait(self) -> float:
        """Return the seconds until it answers."""
        started = time.monotonic()
        while not self.answers():
            if time.monotonic() - started > running.SECONDS:
                raise SystemExit("the service does not answer:\n" + "".join(self.said[-30:]))
            time.sleep(0.02)
        return time.monotonic() - started

    def stop(self) -> None:
        """End it."""
        self._is_wanted = False
        self.process.terminate()
        self.process.wait(timeout=60)

    def _started(self) -> subprocess.Popen[str]:
        process = running.start(self._folder, *self._words, TOWERS_WATCH_SECONDS="0.05")
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _keep_up(self) -> None:
        while self._is_wanted:
            self.process.wait()
            if self._is_wanted:
                self.process = self._started()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.said.append(line)
            self.num_exchanged += "now serving" in line


class Client(threading.Thread):
    """Someone who writes about people and items of his own, and asks after each write."""

    def __init__(
        self,
        service: Service,
        tally: Tally,
        number: int,
        enough: Callable[[], bool],
        *,
        patient: bool,
        may_be_old: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take what to ask.

        Args:
            service: The service.
            tally: Where what is found is noted.
            number: Which of the clients this is.
            enough: Whether to end.
            patient: Whether what was not acknowledged is sent again, after pauses that double up to half a second.
            may_be_old: Whether answers may be without the newest writes at present.
        """
        super().__init__(daemon=True)
        self._may_be_old = may_be_old
        self._service = service
        self._tally = tally
        self._name = f"c{number}"
        self._enough = enough
        self._patient = patient
        self._random = random.Random(number)
        self._users = list(range(10_000 + 100 * number, 10_030 + 100 * number))
        self._had: dict[int, set[str]] = {user: set() for user in self._users}
        self._own: set[str] = set()
        self._position = 0
        self._num_events = 0

    def run(self) -> None:
        """Write and ask until there is enough."""
        try:
            self._write_and_ask()
        except Exception as error:
            self._tally.failed.append(f"the client itself: {error!r}")

    def _write_and_ask(self) -> None:
        while not self._enough():
            chance = self._random.random()
            if chance < 0.7:
                self._have_something()
            elif chance < 0.9 or not self._own:
                self._put()
            else:
                self._delete()

    def check_everyone(self) -> None:
        """Ask for each of the users once more."""
        for user in self._users:
            self._ask_for(user)

    def _have_something(self) -> None:
        user = self._random.choice(self._users)
        item = self._random.choice(sorted(self._own)) if self._own and self._random.random() < 0.3 else None
        # Not more than some, so that everybody always has enough left to be recommended.
        item = item or f"p{self._random.randrange(60)}"
        self._num_events += 1
        key = f"{self._name}-{self._num_events}"
        event = {"user_id": user, "item_id": item, "event_id": key}
        if self._write("POST", "/events", {"events": [event]}, (200,)):
            self._had[user].add(item)
        self._ask_for(user)

    def _put(self) -> None:
        item = f"{self._name}-{self._random.randrange(_OWN_ITEMS)}"
        title = " ".join(self._random.choices(_WORDS, k=3))
        cells = {"title": title, "price": round(self._random.uniform(1, 100), 2), "tags": "|".join(title.split()[:2])}
        if self._write("PUT", f"/items/{item}", cells, (200, 201)):
            self._own.add(item)
            status, headers, _ = self._ask("GET", f"/items/{item}/similar?k={K}")
            if status:
                self._expect(status == 200, f"{item} was put, and is not there: {status} {headers}")

    def _delete(self) -> None:
        item = self._random.choice(sorted(self._own))
        # Sent again after a kill, a deletion may find that it was done.
        if self._write("DELETE", f"/items/{item}", None, (200, 404) if self._patient else (200,)):
            self._own.discard(item)
            status, headers, _ = self._ask("GET", f"/items/{item}/similar?k={K}")
            if status:
                self._expect(status == 404, f"{item} was deleted, and is there: {status} {headers}")

    def _ask_for(self, user: int) -> None:
        status, headers, content = self._ask("GET", f"/recommendations/{user}?k={K}")
        if not status:
            return
        if status != 200:
            self._tally.failed.append(f"GET {user}: {status} {content}")
            return
        items = [(item["item_id"], item["score"]) for item in content["items"]]
        ids, scores = [item_id for item_id, _ in items], [score for _, score in items]
        position = int(headers["towers-live"])
        said = f"{user}: {headers} {content}"
        self._expect(position >= self._position, f"position {position} after {self._position}: {said}")
        self._expect(content["model"] == headers["towers-model"], f"two models: {said}")
        self._expect(len(ids) == K == len(set(ids)), f"not {K} different items: {said}")
        self._expect(scores == sorted(scores, reverse=True), f"not in order: {said}")
        self._expect(not self._had[user] & set(ids), f"had {self._had[user] & set(ids)}: {said}")
        gone = {item for item in ids if item.startswith(f"{self._name}-")} - self._own
        self._expect(not gone, f"deleted {gone}: {said}")
        if self._random.random() < _SHARE_COMPARED:
            self._tally.sampled.append((headers["towers-model"], position, user, items))

    def _expect(self, right: bool, otherwise: str) -> None:
        self._tally.num_answers += 1
        if not right and not self._may_be_old():
            self._tally.wrong.append(otherwise)

    def _write(self, method: str, path: str, body: Any, expected: tuple[int, ...]) -> bool:
        """Return whether a write was acknowledged; one without an answer is sent again where that is part of it."""
        pause = _FIRST_PAUSE
        while True:
            status, _, content = self._ask(method, path, body)
            if status in expected:
                self._tally.num_writes += 1
                if status != 404:
                    self._tally.acknowledged.append((method, path, body, content))
                self._position = max(self._position, content.get("position", 0))
                return True
            if status and not (self._patient and status == 503):
                self._tally.failed.append(f"{method} {path}: {status} {content}")
                return False
            if not self._patient:
                return False
            self._tally.refused += status == 503
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        try:
            return self._service.ask(method, path, body)
        except _NOT_ANSWERED as error:
            self._tally.unanswered.append(f"{method} {path}: {error!r}")
            return 0, {}, None


class Until:
    """A log as it was at a position."""

    def __init__(self, store: SqliteLog) -> None:
        self._store = store
        self.clock = store.clock
        self.position = 0

    def append(self, writes: list[Write]) -> Any:
        """Refuse to write."""
        raise AssertionError("it is only read")

    def state(self) -> LogState:
        """Return which log it is, and where it ends."""
        return replace(self._store.state(), end=self.position)

    def rename(self, log_id: str) -> None:
        """Refuse to write."""
        raise AssertionError("it is only read")

    def read_after(self, position: int) -> list[Record]:
        """Return what stands after a position, up to that of the log."""
        return [record for record in self._store.read_after(position) if record.position <= self.position]

    def change_token(self) -> object:
        """Return the position."""
        return self.position

    def close(self) -> None:
        """Do nothing."""


def make_runs(folder: Path) -> dict[str, Path]:
    """Write tables and two bundles with indexes, `runs/production` the first of them; return the bundles by version."""
    write_shop(folder / "data")
    bundles = {}
    for seed, name in enumerate(("one", "two")):
        write_untrained(folder / "runs" / name, folder / "data", SETTINGS, seed)
        bundle = ModelBundle.open(folder / "runs" / name)
        build_index(bundle, {})
        bundles[bundle.version] = bundle.path
    move_link(folder / "runs" / "production", folder / "runs" / "one")
    return bundles


@contextmanager
def served(folder: Path, given: argparse.Namespace, live: str = "live.db") -> Iterator[Service]:
    """Run the service while the block runs."""
    service = Service(folder, given.workers, given.server, live)
    try:
        service.wait()
        yield service
    finally:
        service.stop()


def swaps(folder: Path, given: argparse.Namespace) -> list[str]:
    """Exchange the bundle again and again under writes; return what went wrong."""
    bundles, tally, done = make_runs(folder), Tally(), threading.Event()
    paths = list(bundles.values())
    with served(folder, given) as service:
        started = time.monotonic()
        enough = lambda: done.is_set() and tally.num_writes >= given.writes  # noqa: E731
        clients = [Client(service, tally, number, enough, patient=False) for number in range(given.clients)]
        for client in clients:
            client.start()
        for number in range(given.swaps):
            _swap(service, folder, paths[(number + 1) % 2], given.workers)
            _say(f"\r{number + 1:,} swaps, {tally.num_writes:,} writes, {len(tally.wrong)} wrong answers ")
        done.set()
        for client in clients:
            client.join()
        seconds = time.monotonic() - started
        wrong = [*tally.wrong, *_compared(folder, bundles, tally), *_compared_anew(folder, bundles, service)]
    _say("\n")
    print(
        f"{given.swaps:,} swaps by each of {given.workers} workers and {tally.num_writes:,} live writes in "
        f"{seconds:,.0f} s: {tally.num_answers:,} checks of answers, {len(tally.sampled):,} answers compared at their "
        f"position of the log; {len(tally.failed) + len(tally.unanswered)} failed, {len(wrong)} wrong"
    )
    return [*tally.failed, *tally.unanswered, *wrong]


def _swap(service: Service, folder: Path, target: Path, num_workers: int) -> None:
    """Move the link, and wait until every worker went over."""
    expected = service.num_exchanged + num_workers
    move_link(folder / "runs" / "production", target)
    deadline = time.monotonic() + _SECONDS_TO_ANSWER
    while service.num_exchanged < expected:
        if time.monotonic() > deadline:
            raise SystemExit("not every worker went over:\n" + "".join(service.said[-30:]))
        time.sleep(0.005)


def _compared(folder: Path, bundles: dict[str, Path], tally: Tally) -> list[str]:
    """Return what of the sampled answers is not what a recommender of the same model and position answers."""
    wrong, store = [], SqliteLog(folder / "live.db")
    for model, path in bundles.items():
        until = Until(store)
        live = LiveRecommender(Recommender.open(path), until)
        for _, position, user, items in sorted(one for one in tally.sampled if one[0] == model):
            until.position = position
            expected = [(item.item_id, item.score) for item in live.current().recommend(user, K).items]
            if not _is_alike(items, expected):
                wrong.append(f"{model} at {position} for {user}: found {items}, expected {expected}")
    store.close()
    return wrong


def _compared_anew(folder: Path, bundles: dict[str, Path], service: Service) -> list[str]:
    """Return what of the service's answers is not what an index made anew with the whole log in it answers."""
    wrong, store = [], SqliteLog(folder / "live.db")
    model = service.ask("GET", "/readyz")[1]["towers-model"]
    bundle = ModelBundle.open(bundles[model])
    tables, _ = compact(read_tables(bundle.config.features, bundle.tables_folder), store, bundle.spellings)
    anew = Recommender(bundle, Snapshot.build(bundle, tables))
    for user in anew.state.users.ids:
        content = service.ask("GET", f"/recommendations/{user}?k={K}")[2]
        items = [(item["item_id"], item["score"]) for item in content["items"]]
        expected = [(item.item_id, item.score) for item in anew.recommend(user, K).items]
        if content["model"] != model or not _is_alike(items, expected):
            wrong.append(f"at the end for {user}: found {items}, expected {expected} from an index made anew")
    store.close()
    return wrong


def _is_alike(items: list[tuple[Any, float]], expected: list[tuple[Any, float]]) -> bool:
    """Return whether two answers have the same scores, and the same items wherever scores are not all but the same."""
    scores, wanted = np.array([score for _, score in items]), np.array([score for _, score in expected])
    if scores.shape != wanted.shape or not np.allclose(scores, wanted, atol=_NEAR):
        return False
    last = wanted[-1] if len(wanted) else 0.0
    sure = {item for item, score in expected if score > last + 2 * _NEAR}
    return sure <= {item for item, _ in items}


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("swaps",))
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--writes", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--server", choices=("granian", "gunicorn"), default="granian")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="live-") as folder:
        bad = swaps(Path(folder), given)
    for line in bad[:20]:
        print(line)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
