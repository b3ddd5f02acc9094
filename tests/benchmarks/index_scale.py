"""A compressed index at several sizes: build time, memory, disk, recall and latency, and a formula for larger ones.

    python tests/benchmarks/index_scale.py --items 1000000 3000000 10000000 --folder /var/tmp/scale
    python tests/benchmarks/index_scale.py --items 1000000 --bundle runs/latest --folder /var/tmp/scale
    python tests/benchmarks/index_scale.py --only serve --items 10000000 --folder /var/tmp/scale

The vectors are those of `index.py`: made to look like those of trained towers, or a bundle's own, their number grown.
They are encoded in blocks as `towers index --half-precision` does; kind `ivf-pq` is tuned for a recall with some users,
and others judge it against an exact search over the vectors before they were rounded to half precision. Each step is a
process of its own: `vectors`, `truth`, `build`, and `serve`, which opens the index as a service does, memory-mapped,
and searches for one user at a time, with one thread and with two.

With three sizes or more, the last one is predicted from the two before it, before it is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from features.files import mapped, save_arrays, scratch_array
from serving.search.brute_force import BruteForce
from serving.search.faiss_index import ItemIndex, num_threads_set
from serving.search.index_config import FIRST_LEVEL, IndexConfig, standard
from serving.search.inverted_lists import FILE as LISTS
from serving.search.levels import SearchTask
from serving.search.partitions import FILE as PARTITIONS
from serving.search.partitions import Partitions
from serving.search.results import Hits
from serving.search.tuning import tune
from serving.search.vectors import blocks_of, stored_array, stored_as
from tests.benchmarks.index import K, made, of_bundle

STEPS = ("vectors", "truth", "build", "serve")
BILLION = 1_000_000_000
MEBI = 1 << 20


def make_vectors(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Write the vectors of items and users, in single precision."""
    users = given.tuning + given.judging
    items = given.items[0]
    if given.bundle:
        vectors, queries = of_bundle(given.bundle, items, users, seed=given.seed)
    else:
        vectors, queries = made(
            items, users, given.width, given.seed, scratch_array(folder, (items, given.width), np.float32)
        )
    save_arrays(folder / "made.safetensors", {"items": vectors, "users": queries})
    return {}


def find_truth(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Write the true best items of the judging users."""
    vectors, queries = read_vectors(folder)
    began = time.perf_counter()
    task = SearchTask.of(queries[given.tuning :], K, None, None, len(vectors))
    true = task.compared(BruteForce(vectors))
    save_arrays(folder / "true.safetensors", {"rows": true.rows.reshape(-1, K)})
    return {"exact search, s for each user": (time.perf_counter() - began) / len(task)}


def build(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Encode, tune and write the index; return seconds, and the peak of private and of all memory."""
    source, queries = read_vectors(folder)
    began = time.perf_counter()
    encoded = scratch_array(folder, source.shape, np.float16)
    for block in blocks_of(len(source)):
        encoded[block] = source[block]
    vectors = stored_as(encoded)
    plan = standard("ivf-pq", len(vectors), vectors.shape[1])
    if given.nlist:
        plan = plan.model_copy(update={"nlist": given.nlist})
    plans = [plan.model_copy(update={"bits": bits}) for bits in given.bits]
    tuning = tune(vectors, queries[: given.tuning], given.recall, plans=plans)
    print(tuning.table(), flush=True)
    save_arrays(folder / "vectors.safetensors", {"items": stored_array(vectors)})
    tuning.index.save(folder / "items.faiss")
    if tuning.index.partitions is not None:
        tuning.index.partitions.save(folder / PARTITIONS)
    (folder / "plan.json").write_text(tuning.chosen.plan.model_dump_json(), encoding="utf-8")
    return {
        "build, s": time.perf_counter() - began,
        "of it the chosen index alone, s": tuning.chosen.build_seconds,
        "memory of the build, MB": peak_anonymous(),
    }


def serve(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Open the index as a service does; return memory, recall and latency."""
    before = memory()
    plan = IndexConfig.model_validate_json((folder / "plan.json").read_text(encoding="utf-8"))
    index = opened(folder, plan)
    started = memory()
    _, queries = read_vectors(folder)
    judging = np.array(queries[given.tuning :])
    rows = mapped(folder / "true.safetensors", "I64")[0]["rows"]
    true = Hits(np.arange(len(rows) + 1) * K, rows.ravel(), np.zeros(rows.size, np.float32))
    found: dict[str, float] = {"nlist": plan.nlist, "nprobe": plan.nprobe, "oversampling": plan.oversampling}
    found |= {"bits": plan.bits, "disk, MB": on_disk(folder), "opened: resident, MB": started["Rss"]}
    with num_threads_set(1):
        found["recall@100"], _ = searched(index, judging, true)
        found |= latencies(index, judging, "one thread", given.rounds)
    after = memory()
    found |= {
        "after these searches: resident, MB": after["Rss"],
        "of it libraries, before opening, MB": before["Rss"],
        "of it private, MB": after["Anonymous"],
    }
    with num_threads_set(2):
        found |= latencies(index, judging, "two threads", given.rounds)
    for nprobe in sorted({max(1, plan.nprobe // 4), max(1, plan.nprobe // 2), min(plan.nlist, plan.nprobe * 2)}):
        with num_threads_set(1):
            other = index.with_effort(plan.model_copy(update={"nprobe": nprobe}))
            share, p50 = searched(other, judging, true)
            found |= {
                f"nprobe {nprobe}: recall@100": share,
                f"nprobe {nprobe}: p50 of the time on the processor, ms": p50,
            }
    return found


def opened(folder: Path, plan: IndexConfig) -> ItemIndex:
    """Return the index, memory-mapped, as a snapshot opens it."""
    partitions = Partitions.load(folder / PARTITIONS) if (folder / PARTITIONS).exists() else None
    vectors = stored_as(mapped(folder / "vectors.safetensors", "F16")[0]["items"])
    return ItemIndex.load(folder / "items.faiss", vectors, plan, partitions, folder / LISTS)


def searched(index: ItemIndex, queries: np.ndarray, true: Hits) -> tuple[float, float]:
    """Return recall@100 and the median milliseconds of a search on the processor, one user at a time."""
    hits, seconds = [], []
    for query in queries:
        began = time.thread_time()
        hits.append(index.search(query[None], K).of(0))
        seconds.append(time.thread_time() - began)
    return Hits.join(hits).share_of(true), 1e3 * float(np.median(seconds))


def latencies(index: ItemIndex, queries: np.ndarray, named: str, rounds: int) -> dict[str, float]:
    """Return p50 and p99 of single searches: of all, of each user's fastest of some rounds, and beside FAISS's.

    The time on the processor of the searching thread is what one thread takes on a machine that does nothing else.
    FAISS's is its own search of the same lists for as many candidates, without re-scoring, in turns with ours.
    """
    inner, plan = index._index, index.plan
    effort = faiss.SearchParametersIVF(nprobe=plan.nprobe)
    spent, busy = np.zeros((2, rounds, len(queries))), np.zeros((rounds, len(queries)))
    for turn in range(rounds):
        for user, query in enumerate(queries):
            searches = (
                partial(index.search, query[None], K),
                partial(inner.search, query[None], FIRST_LEVEL * plan.oversampling, params=effort),
            )
            for which, search in enumerate(searches):
                began, worked = time.perf_counter(), time.thread_time()
                search()
                spent[which, turn, user] = 1e3 * (time.perf_counter() - began)
                busy[turn, user] += 0 if which else 1e3 * (time.thread_time() - worked)
    ours, theirs = spent.min(axis=1)
    return {
        f"{named}: p50, ms": float(np.median(ours)),
        f"{named}: p99, ms": float(np.percentile(ours, 99)),
        f"{named}: p50 of the time on the processor, ms": float(np.median(busy)),
        f"{named}: p99 of the time on the processor, ms": float(np.percentile(busy, 99)),
        f"{named}: p50 of all rounds, ms": float(np.median(spent[0])),
        f"{named}: p99 of all rounds, ms": float(np.percentile(spent[0], 99)),
        f"{named}: p50 / that of FAISS's lists": float(np.median(ours) / np.median(theirs)),
    }


def read_vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of items and users, mapped."""
    arrays, _ = mapped(folder / "made.safetensors", "F32")
    return arrays["items"], arrays["users"]


def on_disk(folder: Path) -> float:
    """Return the megabytes of the files of an index."""
    names = ("vectors.safetensors", "items.faiss", LISTS, PARTITIONS)
    return sum((folder / name).stat().st_size for name in names if (folder / name).exists()) / MEBI


def memory() -> dict[str, float]:
    """Return the memory of this process in MiB, as the kernel counts it: all that is resident, and what is private."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def peak_anonymous() -> float:
    """Return the greatest private memory of this process so far in MiB, sampled by `watched`."""
    return watched.peak


class Watched:
    """The greatest private memory of this process, sampled ten times a second."""

    def __init__(self) -> None:
        self.peak = 0.0

    def go(self) -> None:
        """Sample until the process ends."""
        import threading

        def sample() -> None:
            while True:
                status = Path("/proc/self/status").read_text(encoding="utf-8")
                self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) / 1024)
                time.sleep(0.1)

        threading.Thread(target=sample, daemon=True).start()


watched = Watched()
PREDICTED: Mapping[str, Callable[[int], tuple[float, float]]] = {
    "disk, MB": lambda items: (1, items),
    "of it private, MB": lambda items: (1, items),
    "memory of the build, MB": lambda items: (1, items),
    "build, s": lambda items: (items, items**1.5),
    "one thread: p50 of the time on the processor, ms": lambda items: (1, math.sqrt(items)),
}
"""The terms whose multiples add up to a figure; their factors come from two sizes."""


def predicted(measured: dict[int, dict[str, float]], items: int) -> dict[str, float]:
    """Return the figures of another size, from those of the two largest, of the steps that were run."""
    sizes = sorted(measured)[-2:]
    return {
        name: float(
            np.linalg.solve([terms(size) for size in sizes], [measured[size][name] for size in sizes]) @ terms(items)
        )
        for name, terms in PREDICTED.items()
        if all(name in measured[size] for size in sizes)
    }


def show(title: str, figures: Mapping[str, float]) -> None:
    """Print figures, one a line."""
    print(f"\n{title}")
    for name, figure in figures.items():
        print(f"  {name:58}{figure:14,.4f}", flush=True)


def run(items: int, given: argparse.Namespace) -> dict[str, float]:
    """Measure one size, each step in a process of its own."""
    folder = given.folder / str(items)
    folder.mkdir(parents=True, exist_ok=True)
    for step in given.only:
        argv = [sys.executable, __file__, *sys.argv[1:], "--step", step, "--items", str(items)]
        if subprocess.run(argv, env=os.environ).returncode:
            raise SystemExit(f"{step} of {items:,} items failed")
    found: dict[str, float] = {}
    for step in STEPS:
        if (folder / f"{step}.json").exists():
            found |= json.loads((folder / f"{step}.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Measure every size; predict the last before it is measured, and a billion after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--width", type=int, default=64, help="numbers in a vector, without --bundle")
    parser.add_argument("--bundle", type=Path, help="a bundle with an index, whose vectors are taken")
    parser.add_argument("--folder", type=Path, required=True, help="for some 500 bytes an item")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--nlist", type=int, help="partitions; without it the default of `towers index`")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2], help="bits per dimension that are tried")
    parser.add_argument("--tuning", type=int, default=600, help="users for tuning, a third each for its three uses")
    parser.add_argument("--judging", type=int, default=1000, help="other users, who judge the result")
    parser.add_argument("--rounds", type=int, default=5, help="searches for each user, of which the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        watched.go()
        folder = given.folder / str(given.items[0])
        steps: dict[str, Callable[..., dict[str, float]]] = dict(
            zip(STEPS, (make_vectors, find_truth, build, serve), strict=True)
        )
        (folder / f"{given.step}.json").write_text(json.dumps(steps[given.step](folder, given)), encoding="utf-8")
        return
    measured: dict[int, dict[str, float]] = {}
    for items in sorted(given.items):
        if len(measured) >= 2:
            show(
                f"{items:,} items, predicted from {' and '.join(f'{size:,}' for size in sorted(measured)[-2:])}",
                predicted(measured, items),
            )
        measured[items] = run(items, given)
        show(f"{items:,} items, measured", measured[items])
    if len(measured) >= 2:
        show(f"{BILLION:,} items, a projection and no measurement", predicted(measured, BILLION))


if __name__ == "__main__":
    main()
