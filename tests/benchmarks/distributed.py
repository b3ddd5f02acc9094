"""Whether several processes train as one does, and whether a training survives the loss of any of them.

    python tests/benchmarks/distributed.py [--processes 2 4] [--steps 100] [--kills 20] [--seed 0]

    losses  the same steps in one process and in several (gloo), with the same global batch and seed, and without random
            numbers inside the model (dropout 0, loss in float32): how far the losses differ, and the validation N@10
    kills   `torchrun --max-restarts` of `towers train` with the default dropout; a worker, the first among them, is
            killed (`kill -9`) at a random moment, again and again. Each run must end, with the weights of the run that
            was left alone, bit for bit: an example that was lost, or counted twice, would have changed them

It ends with status 1 where losses differ by more than 1e-5, a run does not end, or weights differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing

from features.tables.tables import read_tables
from tests import running
from training.config import read_run_config
from training.distributed.ranks import Ranks
from training.loop.fit import fit
from training.loop.processes import OneProcess, Processes
from training.tasks.protocols import early_stopping_split

LARGEST_DIFFERENCE = 1e-5
"""The bar: how far the loss of a step may be from that of one process."""
STEADY = ("towers.dropout=0.0", "towers.id_dropout=0.0", "towers.time_dropout=0.0", "training.loss_precision=float32")
MOST_RESTARTS = 100


class EnoughError(Exception):
    """Ends a training after the steps that are compared."""


def losses(processes: Processes, folder: Path, steps: int) -> dict[str, Any]:
    """Return the mean loss of the epoch so far after each step, and the last validation N@10."""
    config = read_run_config(folder / "run.toml", (*STEADY, f"training.epochs={steps}"))
    tables = read_tables(config.features, folder)
    split = early_stopping_split(config, tables.interactions.sequences(tables.catalog), len(tables.catalog))
    found: list[float] = []
    began = time.perf_counter()

    def on_step(step: int, loss: float) -> None:
        found.append(loss)

    quality: list[float] = []

    def on_epoch(progress: Any, measured: dict[str, float]) -> None:
        quality.append(measured["validation_ndcg_at_10"])
        if progress.step >= steps:
            raise EnoughError

    device = torch.device("cpu")
    with suppress(EnoughError):
        fit(config, tables, split, device=device, on_step=on_step, on_epoch=on_epoch, processes=processes)
    return {"losses": found[:steps], "n@10": quality[-1], "seconds": time.perf_counter() - began}


def one_of(rank: int, size: int, folder: Path, steps: int) -> None:
    """Train as one of several processes; the first leaves what it found."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    found = losses(Ranks(torch.device("cpu")), folder, steps)
    if rank == 0:
        (folder / f"losses-{size}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def compare_losses(folder: Path, sizes: list[int], steps: int) -> list[str]:
    """Print how far several processes are from one, and return what is too far."""
    torch.set_num_threads(1)
    expected, bad = losses(OneProcess(), folder, steps), []
    print(f"1 process: N@10 {expected['n@10']:.4f}, {expected['seconds']:.0f} s")
    for size in sizes:
        multiprocessing.spawn(one_of, args=(size, folder, steps), nprocs=size)
        found = json.loads((folder / f"losses-{size}.json").read_text(encoding="utf-8"))
        pairs = zip(found["losses"], expected["losses"], strict=True)
        furthest = max(abs(one - other) for one, other in pairs)
        print(
            f"{size} processes: {len(found['losses'])} losses, furthest apart {furthest:.1e}; "
            f"N@10 {found['n@10']:.4f}, {found['seconds']:.0f} s",
            flush=True,
        )
        if furthest > LARGEST_DIFFERENCE:
            bad.append(f"{size} processes: losses differ by {furthest:.1e}, expected {LARGEST_DIFFERENCE:.0e} at most")
    return bad


def start(folder: Path, output: str, size: int) -> subprocess.Popen[bytes]:
    """Start a training of several processes; what they say goes to a file beside the bundle."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}")
    settings = ("--set", "training.checkpoint_seconds=0.2", "--set", "training.track=false")
    command = (f"--max-restarts={MOST_RESTARTS}", "-m", "towers", "train", "run.toml", "--output", output, *settings)
    with (folder / f"{Path(output).name}.log").open("wb") as log:
        environment = running.environment()
        return subprocess.Popen(
            [sys.executable, *launcher, *command], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def kill_workers(folder: Path, size: int, kills: int, seed: int) -> list[str]:
    """Kill workers of trainings until that has happened so often; return what went wrong."""
    chance, bad = random.Random(seed), []
    began = time.monotonic()
    if start(folder, "runs/alone", size).wait() != 0:
        return ["the training that was left alone failed"]
    usual = time.monotonic() - began
    expected = load_file(folder / "runs/alone/weights.safetensors")
    done, number = 0, 0
    while done < kills:
        number += 1
        name = f"killed-{number}"
        process, killed = start(folder, f"runs/{name}", size), 0
        while process.poll() is None:
            time.sleep(chance.uniform(0.3, usual))
            workers = _workers(process)
            if workers and done < kills:
                os.kill(chance.choice(workers).pid, signal.SIGKILL)
                done, killed = done + 1, killed + 1
        same = False
        if process.returncode == 0:
            found = load_file(folder / "runs" / name / "weights.safetensors")
            same = all(torch.equal(found[one], expected[one]) for one in expected)
        print(f"{name}: {killed} kills, status {process.returncode}, the same weights: {same}", flush=True)
        if not same:
            bad.append(f"{name}: status {process.returncode}, the same weights: {same}")
    return bad


def _workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that torchrun has started and that train."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "towers" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def main() -> int:
    """Run both trials, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        running.write_small_shop(folder / "data")
        print(
            running.towers(
                folder,
                "init",
                "--interactions",
                "data/interactions.parquet",
                "--items",
                "data/items.parquet",
                "--users",
                "data/users.parquet",
            ).stdout
        )
        running.quicker(folder / "run.toml", epochs=4)
        bad = compare_losses(folder, given.processes, given.steps)
        if given.kills:
            bad += kill_workers(folder, given.processes[0], given.kills, given.seed)
    print("\n".join(bad))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
