"""What becomes of acknowledged writes where processes are killed, the disk fills up, or the database goes away.

    python tests/benchmarks/kills.py [--kills 50] [--full 10] [--away 10] [--workers 2] [--clients 4] [--server granian]

While several clients write (events, items put, changed and deleted) and ask after each write, and send again what was
not acknowledged, three trials do harm to `towers serve`:

    kills   `kill -9` of a worker and of the master in turn; the master is started again at once, as an init system does
    full    the disk with the log (SQLite) has no byte left for some seconds: a tmpfs where that can be mounted (by
            root), else a limit on the size of files
    away    the database with the log (PostgreSQL, started here) is stopped for some seconds (SIGSTOP), killed with
            `kill -9` and started again, or restarted; it needs PostgreSQL's programs (apt-get install postgresql) and
            psycopg

Each must show: every acknowledged write is in the log, once, at the position that was acknowledged; no answer is wrong;
nothing fails but with 503; the service recommends and takes writes again within 5 s after the harm; and while there is
harm, recommendations are answered within 3 s. It ends with status 1 where one does not. `--away 0` leaves a trial out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests import running
from tests.benchmarks.harness import ask, end_in_order, say
from tests.benchmarks.live import Client, Service, Tally, make_runs, served
from tests.running import postgres_program

SECONDS_BACK = 5.0
"""The bar: how soon the service recommends and takes writes again."""
SECONDS_TO_ANSWER = 3.0
"""The bar: how long a recommendation may take while there is harm."""

_DISK_BYTES = 64 << 20
_PATIENCE = 60.0
_Rows = Mapping[int, tuple[str, dict[str, Any], str | None]]


@dataclass
class Trial:
    """What one trial found.

    Attributes:
        tally: What the clients did and found.
        back: Seconds until the service was back, by what was done to it.
        during: Seconds that recommendations took while there was harm, and how they ended.
        bad: What went wrong, a line each.
    """

    tally: Tally = field(default_factory=Tally)
    back: dict[str, list[float]] = field(default_factory=dict)
    during: list[tuple[float, str]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    is_harmed: threading.Event = field(default_factory=threading.Event)

    def report(self, name: str, rows: _Rows) -> list[str]:
        """Print the figures, and return what went wrong."""
        tally = self.tally
        lost = _lost(rows, tally)
        for what, times in self.back.items():
            said = f"back in {np.median(times):.2f} s (median), {max(times):.2f} s at most"
            print(f"{name}: {what}: {len(times)} times, {said}")
            self.bad += [
                f"{what}: back after {one:.2f} s, expected {SECONDS_BACK} at most"
                for one in times
                if one > SECONDS_BACK
            ]
        if self.during:
            slowest = max(seconds for seconds, _ in self.during)
            ends = sorted({end for _, end in self.during})
            counts = ", ".join(f"{end}: {sum(end == one for _, one in self.during)}" for end in ends)
            print(f"{name}: asked meanwhile: {counts}; the slowest took {slowest:.2f} s")
            if slowest > SECONDS_TO_ANSWER:
                self.bad.append(
                    f"a recommendation took {slowest:.1f} s meanwhile, expected {SECONDS_TO_ANSWER} at most"
                )
            self.bad += [f"asked meanwhile: {end}" for end in ends if end != "200"]
        print(
            f"{name}: {tally.num_writes:,} writes acknowledged, {len(lost)} of them lost, doubled or elsewhere; "
            f"{tally.num_answers:,} checks of answers, {len(tally.wrong)} wrong, {len(tally.failed)} failed; "
            f"{tally.refused} writes refused with 503, {len(tally.unanswered)} requests without an answer"
        )
        if self.during and not tally.refused:
            self.bad.append("no write was refused, so that no harm was done")
        if not tally.num_writes:
            self.bad.append("nothing was written")
        return [f"{name}: {one}" for one in (*self.bad, *lost, *tally.wrong, *tally.failed)]


@contextmanager
def under_writes(service: Service, trial: Trial, num_clients: int) -> Iterator[None]:
    """Let clients write while the block runs, and look at everything once more after it."""
    done = threading.Event()
    clients = [
        Client(service, trial.tally, number, done.is_set, patient=True, may_be_old=trial.is_harmed.is_set)
        for number in range(num_clients)
    ]
    for client in clients:
        client.start()
    yield
    done.set()
    for client in clients:
        client.join()
    for client in clients:
        client.check_everyone()


def kills(folder: Path, given: argparse.Namespace) -> list[str]:
    """Kill workers and the master in turn under writes; return what went wrong."""
    make_runs(folder)
    trial, chance = Trial(), random.Random(0)
    with served(folder, given) as service:
        with under_writes(service, trial, given.clients):
            for number in range(given.kills):
                what = "kill -9 of the master" if number % 2 else "kill -9 of a worker"
                _let_all_start(service, given.workers)
                time.sleep(chance.uniform(0.2, 1.0))
                victim = service.process.pid if number % 2 else chance.choice(service.workers).pid
                os.kill(victim, signal.SIGKILL)
                trial.back.setdefault(what, []).append(_until_back(service))
                say(f"\r{number + 1} kills, {trial.tally.num_writes:,} writes ")
        rows = _rows_of_file(folder / "live.db")
    say("\n")
    return trial.report("kills", rows)


def full(folder: Path, given: argparse.Namespace) -> list[str]:
    """Fill the disk of the log under writes; return what went wrong."""
    make_runs(folder)
    trial, chance = Trial(), random.Random(1)
    with _disk(folder / "disk") as disk, served(folder, given, "disk/live.db") as service:
        print(f"full: the disk is {disk.name}")
        with under_writes(service, trial, given.clients):
            for number in range(given.full):
                time.sleep(chance.uniform(0.5, 1.5))
                with _harm(trial):
                    disk.fill(service)
                    _ask_meanwhile(service, trial, chance.uniform(1, 3))
                    disk.free(service)
                    trial.back.setdefault("disk full", []).append(_until_back(service))
                say(f"\rfull {number + 1} times, {trial.tally.num_writes:,} writes ")
        rows = _rows_of_file(folder / "disk" / "live.db")
    say("\n")
    return trial.report("full", rows)


def away(folder: Path, given: argparse.Namespace) -> list[str]:
    """Let the database of the log go away under writes; return what went wrong."""
    missing = _missing_for_postgres()
    if missing:
        return [f"away: left out, there is no {missing}; install it, or leave the trial out with --away 0"]
    make_runs(folder)
    trial, chance = Trial(), random.Random(2)
    with _postgres() as database, served(folder, given, database.address) as service:
        harms: list[tuple[str, Callable[[float], None]]] = [
            ("database stopped (SIGSTOP)", database.hold),
            ("database killed (kill -9)", database.crash),
            ("database restarted", database.restart),
        ]
        with under_writes(service, trial, given.clients):
            for number in range(given.away):
                what, act = harms[number % len(harms)]
                time.sleep(chance.uniform(0.5, 1.5))
                with _harm(trial):
                    seconds = chance.uniform(2, 6)
                    acting = threading.Thread(target=act, args=(seconds,))
                    acting.start()
                    _ask_meanwhile(service, trial, seconds)
                    acting.join()
                    trial.back.setdefault(what, []).append(_until_back(service))
                say(f"\raway {number + 1} times, {trial.tally.num_writes:,} writes ")
        rows = database.rows()
    say("\n")
    return trial.report("away", rows)


@contextmanager
def _harm(trial: Trial) -> Iterator[None]:
    """While the block runs, and until every answer that began in it has ended, answers may be without new writes."""
    trial.is_harmed.set()
    yield
    time.sleep(2 * SECONDS_TO_ANSWER)
    trial.is_harmed.clear()


def _ask_meanwhile(service: Service, trial: Trial, seconds: float) -> None:
    """Ask for recommendations for a while, and note how long each took and how it ended."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        try:
            end = str(ask(service.port, "GET", "/recommendations/1001?k=5", seconds=_PATIENCE).status)
        except OSError as error:
            end = f"{type(error).__name__}: {error}"
        trial.during.append((time.monotonic() - began, end))
        time.sleep(0.05)


def _until_back(service: Service) -> float:
    """Return the seconds until the service recommends and takes a write."""
    started = time.monotonic()
    while not (_is_answered(service, "GET", "/recommendations/1001") and _is_answered(service, "PUT", "/items/p0")):
        if time.monotonic() - started > running.SECONDS:
            raise SystemExit("the service does not come back:\n" + "".join(service.said[-30:]))
        time.sleep(0.02)
    return time.monotonic() - started


def _is_answered(service: Service, method: str, path: str) -> bool:
    body = {"title": "red lamp"} if method == "PUT" else None
    with suppress(OSError, ValueError):
        return ask(service.port, method, path, body, seconds=SECONDS_BACK).status in (200, 201)
    return False


def _let_all_start(service: Service, num_workers: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while len(service.workers) < num_workers and time.monotonic() < deadline:
        time.sleep(0.02)


def _lost(rows: _Rows, tally: Tally) -> list[str]:
    """Return which acknowledged writes are not in the log as they were acknowledged, and which stand there twice."""
    places: dict[str, int] = {}
    lost = []
    for position, (_, _, key) in rows.items():
        if key is not None:
            if key in places:
                lost.append(f"twice in the log: {key}, at {places[key]} and {position}")
            places[key] = position
    at: dict[int, str] = {}
    for method, path, body, answer in tally.acknowledged:
        said, position = f"{method} {path} {body} acknowledged with {answer}", answer["position"]
        if method == "POST":
            place = places.get(f"named {body['events'][0]['event_id']}")
            is_there = place == position if answer["accepted"] else place is not None and place <= position
        else:
            kind, content, _ = rows.get(position, ("nothing", {}, None))
            wanted = ("item", body) if method == "PUT" else ("deletion", None)
            is_there = content.get("item_id") == path.rpartition("/")[2] and (kind, content.get("cells")) == wanted
        if not is_there:
            lost.append(f"not in the log as it was acknowledged: {said}")
        if answer.get("accepted", 1) and at.setdefault(position, said) != said:
            lost.append(f"two at one position: {said}, and {at[position]}")
    return lost


def _rows_of_file(path: Path) -> _Rows:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT position, kind, body, key FROM log").fetchall()
    return {position: (kind, json.loads(body), key) for position, kind, body, key in found}


class _SmallDisk:
    """A tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.name = f"a tmpfs of {_DISK_BYTES >> 20} MiB"
        self._filler = folder / "filler"

    def fill(self, service: Service) -> None:
        """Leave no byte."""
        with self._filler.open("wb", buffering=0) as file, suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while file.write(b"\0" * size):
                        pass

    def free(self, service: Service) -> None:
        """Give it back."""
        self._filler.unlink()


class _FileLimit:
    """A limit on how large a file the service may write, where no disk can be mounted."""

    name = "a limit on the size of files (no tmpfs could be mounted here)"

    def fill(self, service: Service) -> None:
        """Let no file grow."""
        self._limit(service, 1)

    def free(self, service: Service) -> None:
        """Let files grow."""
        self._limit(service, resource.RLIM_INFINITY)

    def _limit(self, service: Service, size: int) -> None:
        for process in service.workers:
            process.rlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def _disk(folder: Path) -> Iterator[_SmallDisk | _FileLimit]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield _SmallDisk(folder) if mounted else _FileLimit()
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


class Postgres:
    """A PostgreSQL of our own, in a folder of its own, at a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, running.free_port()
        self.address = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._run("initdb", "--pgdata", str(folder / "data"), "--auth", "trust", "--username", "postgres")
        self._process = self._started()

    def hold(self, seconds: float) -> None:
        """Stop every process of it for a while."""
        processes = self._processes()
        for process in processes:
            process.suspend()
        time.sleep(seconds)
        for process in processes:
            process.resume()

    def crash(self, seconds: float) -> None:
        """Kill every process of it, and start it again after a while."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        time.sleep(seconds)
        self._process = self._started()

    def restart(self, seconds: float) -> None:
        """Let it end at once, with every connection, and start it again after a while."""
        self.stop()
        time.sleep(seconds)
        self._process = self._started()

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=_PATIENCE)

    def rows(self) -> _Rows:
        """Return what is in the log."""
        import psycopg

        with psycopg.connect(self.address) as connection:
            found = connection.execute("SELECT position, kind, body, key FROM towers_log").fetchall()
        return {position: (kind, json.loads(bytes(body)), key) for position, kind, body, key in found}

    def _processes(self) -> list[psutil.Process]:
        master = psutil.Process(self._process.pid)
        return [master, *master.children(recursive=True)]

    def _started(self) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(postgres_program("postgres"), "-D", str(self._folder / "data"), "-p", str(self._port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._folder}"),
                ],
                user=self._user,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"PostgreSQL does not start:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        return process

    def _answers(self) -> bool:
        command = [postgres_program("pg_isready"), "-h", "127.0.0.1", "-p", str(self._port), "-q"]
        return subprocess.run(command).returncode == 0

    def _run(self, program: str, *words: str) -> None:
        command = [postgres_program(program), *words]
        done = subprocess.run(command, user=self._user, capture_output=True, text=True, cwd=self._folder, check=False)
        if done.returncode:
            raise SystemExit(f"{program}: {done.stdout}{done.stderr}")


@contextmanager
def _postgres() -> Iterator[Postgres]:
    # Not below the trial's own folder, which another user than this one cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="kills-postgres-"))
    database = Postgres(folder)
    try:
        yield database
    finally:
        database.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _missing_for_postgres() -> str:
    with suppress(ImportError):
        import psycopg  # noqa: F401

        needed = ("initdb", "postgres", "pg_isready")
        return next((f"{name} (PostgreSQL)" for name in needed if not postgres_program(name)), "")
    return "psycopg"


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many processes are killed (default: 50)")
    parser.add_argument("--full", type=int, default=10, help="how often the disk fills up (default: 10)")
    parser.add_argument("--away", type=int, default=10, help="how often the database goes away (default: 10)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--server", choices=("granian", "gunicorn"), default="granian")
    given = parser.parse_args()
    end_in_order()
    bad = []
    for trial in (kills, full, away):
        if getattr(given, trial.__name__):
            with tempfile.TemporaryDirectory(prefix=f"{trial.__name__}-") as folder:
                bad += trial(Path(folder), given)
    for line in bad[:30]:
        print(f"FAILED  {line:.600}")
    print("ok" if not bad else f"{len(bad)} things went wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
