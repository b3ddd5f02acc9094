"""Prometheus metrics, correct with any number of workers.

Each worker counts in a file of its own in shared memory, which it keeps locked while it runs. The worker that answers
`/metrics` adds up all files. The kernel releases the lock when a process ends, for whatever reason, so a scrape can
recognise workers that exited: their counters are added to the file `past`, and their gauges and files are removed.

The text format is that of prometheus-client. Its own multi-process mode is not used: it takes 13 microseconds for what
takes 3 here, so that a plain request has 0.90 of the throughput, and it keeps the files of exited workers unless the
server reports each exit, for which granian has no hook.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from serving.observability.request_log import OUTCOMES
from serving.observability.timings import STAGES, Stage

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram buckets of durations, in seconds."""
STATUSES = (200, 201, 202, 204, 301, 304, 308, 400, 401, 403, 404, 405, 408, 409, 412, 413, 415, 422, 429, 500, 503)
UNMATCHED = "none"
"""Value of the label `route` for requests that match no route."""
REJECTIONS = ("busy", "rate", "key", "slow", "deadline", "memory")
RERANK_OUTCOMES = ("done", "timeout")

# A worker's file begins with a description of the worker as JSON, followed by its numbers.
_ABOUT_BYTES = 1024
_LOCK, _PAST, _WORKER = "lock", "past", "worker"


@dataclass(frozen=True)
class Family:
    """One metric with all combinations of its labels' values.

    Attributes:
        kind: Counters and histograms outlive their worker; a gauge is dropped when its worker exits.
        name: The metric's name in Prometheus.
        help: Description in one line.
        labels: Names of the labels.
        cells: Every combination of the labels' values.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ((),)

    @property
    def width(self) -> int:
        """Numbers stored per combination: 1, or for a histogram one per bucket, one beyond the last, and the sum."""
        return len(BUCKETS) + 2 if self.kind == "histogram" else 1


def families(routes: Sequence[str], fallbacks: Sequence[str]) -> list[Family]:
    """Return the metrics of an application with these routes and fallbacks."""
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
        Family("histogram", "towers_request_duration_seconds", "Duration of requests.", ("route",), routed),
        Family(
            "histogram",
            "towers_stage_duration_seconds",
            "Duration of the stages of requests.",
            ("stage",),
            tuple(product(STAGES)),
        ),
        Family(
            "counter",
            "towers_fallbacks_total",
            "Responses served by a fallback instead of the model.",
            ("fallback",),
            tuple(product(fallbacks)),
        ),
        Family(
            "counter",
            "towers_rejected_total",
            "Requests rejected or aborted: concurrency limit, rate limit, API key, slow body, deadline, memory.",
            ("reason",),
            tuple(product(REJECTIONS)),
        ),
        Family(
            "counter",
            "towers_rerank_total",
            "Re-rankings, by outcome; after a timeout the response has the order of retrieval.",
            ("outcome",),
            tuple(product(RERANK_OUTCOMES)),
        ),
        Family(
            "counter",
            "towers_request_log_lines_total",
            "Lines of the request log, by outcome: written, or lost.",
            ("outcome",),
            tuple(product(OUTCOMES)),
        ),
        Family("gauge", "towers_requests_in_progress", "Requests being answered or queued."),
    ]


class _Layout:
    """The position of each number in a worker's file."""

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
        """A digest in the names of files, which differs for another layout, as after an upgrade."""
        return sha256(repr((self.families, BUCKETS)).encode()).hexdigest()[:12]

    @cached_property
    def gauges(self) -> np.ndarray:
        """Which numbers are gauges, `[numbers]`."""
        mask = np.zeros(self.size, dtype=bool)
        for family in self.families:
            if family.kind == "gauge":
                mask[[self.places[family.name, *cell] for cell in family.cells]] = True
        return mask


class Metrics:
    """The metrics of this worker, and the sums over all workers.

    Args:
        routes: The application's routes.
        fallbacks: The names of the fallbacks.
        folder: A folder that the workers of one server share. None: this process is the only one.
    """

    def __init__(self, routes: Sequence[str], fallbacks: Sequence[str], folder: Path | None = None) -> None:
        self._layout = _Layout(families(routes, fallbacks))
        self._places = self._layout.places
        self._route_places: dict[tuple[str, int], tuple[int, int]] = {}
        self._stage_places = {stage: self._places["towers_stage_duration_seconds", stage] for stage in STAGES}
        self._folder = folder
        num_bytes = _ABOUT_BYTES + 8 * self._layout.size
        if folder is None:
            self._memory = mmap.mmap(-1, num_bytes)
        else:
            file, self._memory = _own_file(folder, self._layout.digest, num_bytes)
            weakref.finalize(self, os.close, file)
        self._numbers: Any = memoryview(self._memory)[_ABOUT_BYTES:].cast("d")
        self._lock = threading.Lock()

    def answered(self, route: str, status: int, seconds: float, stages: Mapping[Stage, float]) -> None:
        """Count one request.

        Args:
            route: The path of its route; an unknown one is counted as `UNMATCHED`.
            status: HTTP status of the response.
            seconds: Duration of the request.
            stages: Duration of each stage in seconds.
        """
        numbers = self._numbers
        counted, taken = self._places_of(route, status)
        with self._lock:
            numbers[counted] += 1
            _observe(numbers, taken, seconds)
            for stage, lasted in stages.items():
                _observe(numbers, self._stage_places[stage], lasted)

    def _places_of(self, route: str, status: int) -> tuple[int, int]:
        """Return the places of a route's counter of a status and of its histogram of durations."""
        known = self._route_places.get((route, status))
        if known is None:
            places = self._places
            if ("towers_request_duration_seconds", route) not in places:
                route = UNMATCHED
            counted = places.get(("towers_requests_total", route, str(status)))
            if counted is None:
                counted = places["towers_requests_total", route, "other"]
            known = self._route_places[route, status] = counted, places["towers_request_duration_seconds", route]
        return known

    def count(self, name: str, *labels: str) -> None:
        """Add one to a counter."""
        place = self._places[name, *labels]
        with self._lock:
            self._numbers[place] += 1

    def gauge(self, name: str) -> Callable[[float], None]:
        """Return a function that sets a gauge of this worker."""
        return partial(self._numbers.__setitem__, self._places[name,])

    def describe_worker(self, **about: Any) -> None:
        """Record the versions of the `model` and `index` that this worker serves, and when it was built (`created`).

        If the model reads recent popularity, `trend_until` is its moment, in Unix seconds.
        """
        content = json.dumps(about).encode()
        assert len(content) <= _ABOUT_BYTES, f"{len(content)} bytes about a worker, room for {_ABOUT_BYTES}"
        self._memory[:_ABOUT_BYTES] = content.ljust(_ABOUT_BYTES)

    def workers(self) -> list[dict[str, Any]]:
        """Return the description of each running worker; empty for one that has no model loaded."""
        return self._gather()[1]

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics of all workers in a format of Prometheus, and its content type.

        Args:
            accept: The formats that the client accepts, the value of the `Accept` header.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Gathered(self._layout, *self._gather()))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def _gather(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the sums over all workers, exited ones included, and the descriptions of running workers."""
        if self._folder is None:
            return np.array(self._numbers), [_about(self._memory[:_ABOUT_BYTES])]
        with _locked(self._folder / _LOCK):
            return _add_up(self._folder, self._layout)


def _observe(numbers: Any, place: int, seconds: float) -> None:
    numbers[place + bisect_left(BUCKETS, seconds)] += 1
    numbers[place + len(BUCKETS) + 1] += seconds


def _own_file(folder: Path, digest: str, num_bytes: int) -> tuple[int, mmap.mmap]:
    """Create and lock the file of this process; return its descriptor and its memory."""
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(file, num_bytes)
    fcntl.flock(file, fcntl.LOCK_EX)
    # Renamed only once it is locked: an unlocked file with this name would be taken for that of an exited worker.
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
    living, descriptions, dead = np.zeros(layout.size), [], []
    for path in sorted(folder.glob(f"{layout.digest}.*.{_WORKER}")):
        if path.name in counted:
            path.unlink()  # already added to `past` by a worker that exited before it could remove the file
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
            descriptions.append(_about(content[:_ABOUT_BYTES]))
    if dead:
        _write_past(past, total, [path.name for path in dead])
        for path in dead:
            path.unlink()
    return total + living, descriptions


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
    """Write the counters of exited workers atomically, with the workers' names, so that each counts exactly once."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"numbers": numbers.tolist(), "workers": workers}), encoding="utf-8")
    draft.rename(path)


def _about(content: bytes) -> dict[str, Any]:
    """Return a worker's description; empty if it has written none, or is just writing it."""
    try:
        about: dict[str, Any] = json.loads(content.rstrip(b"\0 ") or b"{}")
    except ValueError:
        return {}
    return about


class _Gathered(Collector):
    """The sums as a collector of prometheus-client."""

    def __init__(self, layout: _Layout, numbers: np.ndarray, workers: list[dict[str, Any]]) -> None:
        self._layout = layout
        self._numbers = numbers
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; of those with labels only the combinations that occurred."""
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
            "towers_workers", "Running workers, by version of model and index.", labels=("model", "index")
        )
        versions = [(str(about.get("model", "")), str(about.get("index", ""))) for about in self._workers]
        for version in sorted(set(versions)):
            workers.add_metric(version, versions.count(version))
        yield workers
        if serving:
            age = time.time() - min(float(about["created"]) for about in serving)
            yield GaugeMetricFamily("towers_index_age_seconds", "Age of the oldest index in use.", value=age)
        trends = [float(about["trend_until"]) for about in serving if "trend_until" in about]
        if trends:
            text = "Age of the oldest recent popularity in use, for models that read it."
            yield GaugeMetricFamily("towers_trend_age_seconds", text, value=time.time() - min(trends))
