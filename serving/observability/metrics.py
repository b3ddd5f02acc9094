"""What a service counts, for Prometheus, and right under any number of workers.

Each worker adds to numbers of its own, in a file of shared memory that it keeps locked while it lives. Whichever worker
is asked for `/metrics` adds up the files of all. The lock goes with the process, however that ended, so a scrape can
tell the dead: what they counted is moved into the file `past` and stays counted, their gauges and their files go.

The text format is prometheus-client's. Its own multi-process mode is not used: it keeps the files of dead workers for
ever unless the server reports each death, which granian has no hook for.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import secrets
import threading
import time
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from serving.observability.timings import STAGES

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the intervals that durations are counted in, in seconds."""
STATUSES = (200, 201, 202, 204, 301, 304, 308, 400, 401, 403, 404, 405, 408, 409, 412, 413, 415, 422, 429, 500, 503)
UNMATCHED = "none"
"""The route of requests that match none."""
REFUSALS = ("busy", "rate", "key", "slow", "deadline", "memory")
RERANK_OUTCOMES = ("done", "timeout")

# What a worker says of itself in words stands before its numbers.
_ABOUT_BYTES = 1024
_LOCK, _PAST, _WORKER = "lock", "past", "worker"


@dataclass(frozen=True)
class Family:
    """One metric and the combinations of labels that it is counted for.

    Attributes:
        kind: Counters and histograms only grow; a gauge belongs to a living worker.
        name: As Prometheus shows it.
        help: What it says, in a line.
        labels: Their names.
        cells: Every combination of their values.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ((),)

    @property
    def width(self) -> int:
        """How many numbers a combination takes: of a histogram each interval, what is beyond them, and the sum."""
        return len(BUCKETS) + 2 if self.kind == "histogram" else 1


def families(routes: Sequence[str], fallbacks: Sequence[str]) -> list[Family]:
    """Return what is counted for an application of these routes."""
    routes = [*routes, UNMATCHED]
    routed = tuple(product(routes))
    statuses = [*map(str, STATUSES), "other"]
    return [
        Family(
            "counter",
            "towers_requests_total",
            "Requests answered.",
            ("route", "status"),
            tuple(product(routes, statuses)),
        ),
        Family("histogram", "towers_request_duration_seconds", "From the request to its answer.", ("route",), routed),
        Family(
            "histogram",
            "towers_stage_duration_seconds",
            "Stages of requests that had them.",
            ("stage",),
            tuple(product(STAGES)),
        ),
        Family(
            "counter",
            "towers_fallbacks_total",
            "Answers that something gave in the model's place.",
            ("fallback",),
            tuple(product(fallbacks)),
        ),
        Family(
            "counter",
            "towers_rejected_total",
            "Requests refused: too many in progress, too many of one client, no key, body too slow, deadline, memory.",
            ("reason",),
            tuple(product(REFUSALS)),
        ),
        Family(
            "counter",
            "towers_rerank_total",
            "Answers that were to be re-ranked; late ones are in the recommender's order, as the time was up.",
            ("outcome",),
            tuple(product(RERANK_OUTCOMES)),
        ),
        Family("gauge", "towers_requests_in_progress", "Requests being answered or waiting for their turn."),
    ]


class _Layout:
    """Where each number stands."""

    def __init__(self, families: Sequence[Family]) -> None:
        self.families = families
        self.places: dict[tuple[str, ...], int] = {}
        size = 0
        for family in families:
            for cell in family.cells:
                self.places[family.name, *cell] = size
                size += family.width
        self.size = size

    @cached_property
    def digest(self) -> str:
        """Which tells the files of one layout from those of another, as after an upgrade."""
        return sha256(repr((self.families, BUCKETS)).encode()).hexdigest()[:12]

    @cached_property
    def gauges(self) -> np.ndarray:
        """Which numbers go with the worker that they belong to."""
        mask = np.zeros(self.size, dtype=bool)
        for family in self.families:
            if family.kind == "gauge":
                mask[[self.places[family.name, *cell] for cell in family.cells]] = True
        return mask


class Metrics:
    """The numbers of this worker, and the way to those of all.

    Args:
        routes: The application's routes.
        fallbacks: What may answer in the model's place.
        folder: Where the workers of one server meet. None: this process is the only one.
    """

    def __init__(self, routes: Sequence[str], fallbacks: Sequence[str], folder: Path | None = None) -> None:
        self._layout = _Layout(families(routes, fallbacks))
        self._places = self._layout.places
        self._folder = folder
        num_bytes = _ABOUT_BYTES + 8 * self._layout.size
        if folder is None:
            self._memory = mmap.mmap(-1, num_bytes)
        else:
            file, self._memory = _own_file(folder, self._layout.digest, num_bytes)
            weakref.finalize(self, os.close, file)
        self._numbers: Any = memoryview(self._memory)[_ABOUT_BYTES:].cast("d")
        self._turn = threading.Lock()

    def answered(self, route: str, status: int, seconds: float, stages: Mapping[str, float]) -> None:
        """Count one request.

        Args:
            route: One of the routes; any other is counted as none.
            status: Of the answer.
            seconds: How long it took.
            stages: How long its stages took.
        """
        places, numbers = self._places, self._numbers
        if ("towers_request_duration_seconds", route) not in places:
            route = UNMATCHED
        taken = places["towers_request_duration_seconds", route]
        counted = places.get(("towers_requests_total", route, str(status)))
        if counted is None:
            counted = places["towers_requests_total", route, "other"]
        with self._turn:
            numbers[counted] += 1
            _observe(numbers, taken, seconds)
            for stage, lasted in stages.items():
                _observe(numbers, places["towers_stage_duration_seconds", stage], lasted)

    def count(self, name: str, *labels: str) -> None:
        """Add one to a counter."""
        place = self._places[name, *labels]
        with self._turn:
            self._numbers[place] += 1

    def hold(self, name: str, value: float) -> None:
        """Set a gauge of this worker."""
        self._numbers[self._places[name,]] = value

    def tell(self, **about: Any) -> None:
        """Say of this worker which `model` and which `index`, made when (`created`, Unix seconds), it answers from."""
        said = json.dumps(about).encode()
        assert len(said) <= _ABOUT_BYTES, f"{len(said)} bytes about a worker, room for {_ABOUT_BYTES}"
        self._memory[:_ABOUT_BYTES] = said.ljust(_ABOUT_BYTES)

    def workers(self) -> list[dict[str, Any]]:
        """Return what each living worker told of itself."""
        return self._gather()[1]

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the numbers of all workers as Prometheus reads them, and the content type.

        Args:
            accept: The formats that the asker takes, as in the request's header.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Gathered(self._layout, *self._gather()))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def _gather(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the sums over all workers, dead ones included, and what the living told."""
        if self._folder is None:
            return np.array(self._numbers), [_about(self._memory[:_ABOUT_BYTES])]
        with _locked(self._folder / _LOCK):
            return _add_up(self._folder, self._layout)


def _observe(numbers: Any, place: int, seconds: float) -> None:
    numbers[place + bisect_left(BUCKETS, seconds)] += 1
    numbers[place + len(BUCKETS) + 1] += seconds


def _own_file(folder: Path, digest: str, num_bytes: int) -> tuple[int, mmap.mmap]:
    """Return a new file of this process's own, locked, and its memory."""
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(file, num_bytes)
    fcntl.flock(file, fcntl.LOCK_EX)
    # Only now does it bear a name that others look for: an unlocked one is a dead worker's.
    (folder / name).rename(folder / f"{digest}.{name}.{_WORKER}")
    return file, mmap.mmap(file, num_bytes)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _add_up(folder: Path, layout: _Layout) -> tuple[np.ndarray, list[dict[str, Any]]]:
    past = folder / f"{layout.digest}.{_PAST}"
    total, counted = _read_past(past, layout.size)
    living, told, dead = np.zeros(layout.size), [], []
    for path in sorted(folder.glob(f"{layout.digest}.*.{_WORKER}")):
        if path.name in counted:
            path.unlink()  # its end was written, but whoever wrote it ended before this
            continue
        with path.open("rb") as file:
            is_dead = _can_lock(file)
            content = file.read()
        numbers = np.frombuffer(content, offset=_ABOUT_BYTES)
        if is_dead:
            total += np.where(layout.gauges, 0, numbers)
            dead.append(path)
        else:
            living += numbers
            told.append(_about(content[:_ABOUT_BYTES]))
    if dead:
        _write_past(past, total, [path.name for path in dead])
        for path in dead:
            path.unlink()
    return total + living, told


def _can_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_past(path: Path, size: int) -> tuple[np.ndarray, set[str]]:
    if not path.exists():
        return np.zeros(size), set()
    content = json.loads(path.read_bytes())
    return np.array(content["numbers"]), set(content["workers"])


def _write_past(path: Path, numbers: np.ndarray, workers: list[str]) -> None:
    """Write what the dead counted; in one stroke, and with their names, so that nothing counts twice or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"numbers": numbers.tolist(), "workers": workers}), encoding="utf-8")
    draft.rename(path)


def _about(said: bytes) -> dict[str, Any]:
    """Return what a worker told; nothing where it has not, or is just telling."""
    try:
        told: dict[str, Any] = json.loads(said.rstrip(b"\0 ") or b"{}")
    except ValueError:
        return {}
    return told


class _Gathered(Collector):
    """The sums in prometheus-client's terms."""

    def __init__(self, layout: _Layout, numbers: np.ndarray, workers: list[dict[str, Any]]) -> None:
        self._layout = layout
        self._numbers = numbers
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; of counters with labels only what occurred."""
        for family in self._layout.families:
            yield self._metric(family)
        yield from self._about_workers()

    def _metric(self, family: Family) -> Metric:
        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
        metric: Any = kinds[family.kind](family.name, family.help, labels=family.labels)
        for cell in family.cells:
            place = self._layout.places[family.name, *cell]
            numbers = self._numbers[place : place + family.width]
            if family.labels and not numbers.any():
                continue
            if family.kind == "histogram":
                ends = [*map(str, BUCKETS), "+Inf"]
                counts = np.cumsum(numbers[:-1]).tolist()
                metric.add_metric(cell, list(zip(ends, counts, strict=True)), numbers[-1])
            else:
                metric.add_metric(cell, float(numbers[0]))
        return cast(Metric, metric)

    def _about_workers(self) -> Iterator[Metric]:
        serving = [about for about in self._workers if about]
        workers = GaugeMetricFamily(
            "towers_workers", "Living workers, by what they answer from.", labels=("model", "index")
        )
        versions = [(str(about.get("model", "")), str(about.get("index", ""))) for about in self._workers]
        for version in sorted(set(versions)):
            workers.add_metric(version, versions.count(version))
        yield workers
        if serving:
            age = time.time() - min(float(about["created"]) for about in serving)
            yield GaugeMetricFamily("towers_index_age_seconds", "Since the oldest index in use was made.", value=age)
