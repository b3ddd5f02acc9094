"""Recommendations of all users offline: exact search against FAISS and `implicit`, Ray against one process, and kills.

    python tests/benchmarks/offline.py --what search [--items 100000] [--users 8192] [--threads 1] [--rounds 5]
    python tests/benchmarks/offline.py --what ray [--users 40000] [--actors 2]
    python tests/benchmarks/offline.py --what kills [--kills 10] [--engine process]

`search` compares users a second on random unit vectors of 64 dimensions, top 100, with the items that a user has seen
left out (32 on average, log-normal), in blocks of 1,024 users, in turns after a turn that does not count, the same
threads for all, in the process that `towers recommend` prepares (freed memory stays in it):

    ours          `ItemIndex.search`: all scores, exclusions, candidates scored again in double precision
    faiss         `IndexFlat`, ready vectors, the best 100, seen items in it: less than is needed
    faiss, seen   the same with as many more as a user of the block has seen, and those left out
    implicit      `implicit.cpu.topk.topk` with exclusions, what `recommend` of its models calls

`ray` writes the parts of a generated shop by one process, in one thread and in as many as Ray has actors, and by actors
of Ray, each time with `towers` as a process of its own, and compares users a second as the command prints them: with
the start of Ray, without the start of Python.

`kills` kills a job with SIGKILL (its process; Ray's end by themselves), each time after some more parts, starts it
again, and compares the content with a run that was left alone. It ends with status 1 where they differ.

The bars: `ours` at least 0.9 of `faiss`, 1.0 of `implicit`; Ray at least 0.8 of one process with as many threads.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from features.sequences.ragged import Ragged
from serving.jobs.offline.parts import SUCCESS
from serving.jobs.precompute import BLOCK
from serving.search.faiss_index import ItemIndex, num_threads_set
from tests import running
from tests.benchmarks.harness import say
from towers.process import restart_prepared

WIDTH, K = 64, 100


def compare_searches(num_items: int, num_users: int, threads: int, rounds: int) -> None:
    """Print the users a second of each search, and ours relative to the others, as the median over rounds."""
    import faiss
    from implicit.cpu.topk import topk
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    items, users = (_unit(rng.standard_normal((rows, WIDTH))) for rows in (num_items, num_users))
    counts = np.minimum(num_items // 2, rng.lognormal(3, 1, size=num_users)).astype(int)
    seen = [np.unique(rng.integers(0, num_items, size=count)) for count in counts]
    blocks = [slice(start, start + BLOCK) for start in range(0, num_users, BLOCK)]
    excluded = {block.start: Ragged.of(seen[block]) for block in blocks}
    ours, flat = ItemIndex.build(items), faiss.IndexFlatIP(WIDTH)
    flat.add(items)

    def with_seen(block: slice) -> None:
        most = max(map(len, seen[block]))
        _, rows = flat.search(users[block], K + most)
        for found, known in zip(rows, seen[block], strict=True):
            found[~np.isin(found, known)][:K]

    def by_implicit(block: slice) -> None:
        rows = excluded[block.start]
        known = csr_matrix(
            (np.ones(len(rows.values), np.float32), rows.values, rows.offsets), shape=(len(rows), num_items)
        )
        topk(items, users[block], K, filter_query_items=known, num_threads=threads)

    searches: dict[str, Callable[[slice], object]] = {
        "ours": lambda block: ours.search(users[block], K, excluded[block.start]),
        "faiss": lambda block: flat.search(users[block], K),
        "faiss, seen": with_seen,
        "implicit": by_implicit,
    }
    rates: dict[str, list[float]] = {name: [] for name in searches}
    with num_threads_set(threads), threadpool_limits(threads):
        for turn in range(rounds + 1):
            for name, search in searches.items():
                began = time.perf_counter()
                for block in blocks:
                    search(block)
                if turn:
                    rates[name].append(num_users / (time.perf_counter() - began))
                say(f"\rround {turn} of {rounds}: {name}        ")
    say("\n")
    print(f"{num_items:,} items x {WIDTH}, {num_users:,} users, top {K}, {np.mean(counts):.0f} seen, {threads} threads")
    for name, found in rates.items():
        relative = np.median(np.array(rates["ours"]) / found)
        print(f"{name:12s} {np.median(found):8,.0f} users/s   ours/{name}: {relative:.2f}")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def make_bundle(folder: Path, num_users: int, num_items: int) -> Path:
    """Train for an epoch on a generated shop, and return the bundle with its index."""
    running.write_small_shop(folder / "data", num_users, num_items, 5 * num_users)
    tables = [f"--{name}=data/{name}.parquet" for name in ("interactions", "items", "users")]
    for words in (
        ["init", *tables],
        ["train", "run.toml", "--no-baselines"],
        ["index", "runs/run-1", "--precompute=0"],
    ):
        if words[0] == "train":
            running.quicker(folder / "run.toml", epochs=1)
        done = _towers(folder, words)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
    return folder / "runs" / "run-1"


def compare_engines(folder: Path, bundle: Path, actors: int, rounds: int) -> None:
    """Print the users a second of one process, in one thread and in as many as Ray has actors, and of Ray, in turns."""
    one, several, ray = "one process, 1 thread", f"one process, {actors} threads", f"Ray, {actors} actors"
    rates: dict[str, list[float]] = {one: [], several: [], ray: []}
    for turn in range(rounds):
        for place, (name, found) in enumerate(rates.items()):
            engine = "ray" if name == ray else "process"
            words = _words(bundle, folder / f"{place}-{turn}", 1024, engine, actors)
            done = _towers(folder, words, threads=actors if name == several else 1)
            rate = re.search(r", ([\d,]+) users/s", done.stdout)
            if done.returncode or rate is None:
                raise SystemExit(done.stdout + done.stderr)
            found.append(float(rate[1].replace(",", "")))
            say(f"\r{name}: {found[-1]:,.0f} users/s    ")
    say("\n")
    for name, found in rates.items():
        ratios = ", ".join(f"{np.median(found) / np.median(rates[other]):.2f} of {other}" for other in (one, several))
        print(f"{name:24s} {np.median(found):8,.0f} users/s ({min(found):,.0f} to {max(found):,.0f}), {ratios}")


def kill_often(folder: Path, bundle: Path, engine: str, kills: int) -> bool:
    """Return whether a job that is killed so often ends with the content of one that is left alone."""
    chance = random.Random(0)
    whole = _towers(folder, _words(bundle, folder / "whole", 64, "process", 1))
    if whole.returncode:
        raise SystemExit(whole.stdout + whole.stderr)
    parts = folder / "killed"
    words = _words(bundle, parts, 64, engine, 1)
    killed = 0
    while killed < kills:
        before = len(list(parts.glob("part-*")))
        process = running.start(folder, *words)
        wanted = before + 1 + chance.randrange(3)
        while len(list(parts.glob("part-*"))) < wanted and process.poll() is None:
            time.sleep(0.001)
        if process.poll() is not None:
            print("the job ended before its time: give more --users")
            return False
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        say(f"\r{killed} kills, {len(list(parts.glob('part-*')))} parts ")
    say("\n")
    last = _towers(folder, words)
    is_same = (parts / SUCCESS).exists() and pd.read_parquet(parts).equals(pd.read_parquet(folder / "whole"))
    print(
        f"{kills} kills, engine {engine}: {'the same content' if is_same else 'OTHER CONTENT'}; {last.stdout.strip()}"
    )
    return is_same


def _towers(folder: Path, words: Sequence[str], threads: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, however long it takes."""
    command = [sys.executable, "-m", "towers", *words]
    environment = running.environment(OMP_NUM_THREADS=str(threads))
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _words(bundle: Path, output: Path, users_per_part: int, engine: str, actors: int) -> list[str]:
    words = ["recommend", str(bundle), "--output-folder", str(output), "--part-users", str(users_per_part)]
    return [*words, "--engine", "ray", "--actors", str(actors)] if engine == "ray" else words


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["search", "ray", "kills"], default="search")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--engine", choices=["process", "ray"], default="process")
    given = parser.parse_args()
    if given.what == "search":
        restart_prepared()
        compare_searches(given.items, given.users, given.threads, given.rounds)
        return
    folder = Path(tempfile.mkdtemp(prefix="towers-offline-"))
    try:
        bundle = make_bundle(folder, given.users, given.items)
        if given.what == "ray":
            compare_engines(folder, bundle, given.actors, given.rounds)
        elif not kill_often(folder, bundle, given.engine, given.kills):
            raise SystemExit(1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
