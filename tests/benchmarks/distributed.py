"""Do several processes train as one does, and does a killed one cost anything?

    python tests/benchmarks/distributed.py run.toml --what losses [--processes 1 2 4] [--steps 100] [--set ...]
    python tests/benchmarks/distributed.py run.toml --what quality [--processes 1 2 4] [--seeds 3] [--set ...]
    python tests/benchmarks/distributed.py run.toml --what kills [--kills 20] [--processes 2] [--set ...]

`losses` prints the largest difference between the losses of the first steps and those of the first number of processes,
without dropout and in float32, and ends with status 1 where it is above 1e-5. All use the gloo backend on CPUs, the
same global batch and seed.

`quality` trains to the end with the settings as they are, and prints the best validation N@10 of each number. ± is half
the 95 % interval (Student's t) of the difference for the same seeds; it ends with status 1 where that is without zero.

`kills` runs `torchrun --max-restarts 3 -m towers train` in as many processes as the last number says, kills one worker
with SIGKILL at a random moment of the training, and compares the weights in the bundle with those of a run that was
left alone: where they are the same to the bit, each example was used once in each epoch. It ends with status 1 where a
run fails or ends with other weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from scipy import stats

from tests.benchmarks.harness import say

HERE = Path(__file__).parents[2]
AS_ONE = ("towers.dropout=0", "towers.id_dropout=0", "training.loss_precision=float32")
"""Settings without which each process would draw random numbers of its own."""
MOST = 1e-5


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--what", choices=["losses", "quality", "kills"], default="losses")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        train(given.settings, given.overrides, given.worker, given.steps)
        return
    overrides = [*given.overrides, "training.track=false"]
    match given.what:
        case "losses":
            is_good = compare_losses(given.settings, overrides, given.processes, given.steps)
        case "quality":
            is_good = compare_quality(given.settings, overrides, given.processes, given.seeds)
        case _:
            is_good = kill_workers(given.settings, overrides, given.processes[-1], given.kills)
    sys.exit(0 if is_good else 1)


def train(settings: Path, overrides: Sequence[str], output: Path, most_steps: int) -> None:
    """Train, with the processes that torchrun started; the first writes the loss of each step, and the best N@10.

    Args:
        settings: The run.toml.
        overrides: `table.key=value` each.
        output: The file to write.
        most_steps: After which training ends; 0: when it has learned all it can.
    """
    import torch

    from features.tables.tables import read_tables
    from towers.warnings_filter import quiet_imports
    from training.config import read_run_config
    from training.distributed.launch import is_first, processes_of
    from training.loop.fit import fit
    from training.tasks.protocols import early_stopping_split

    class EnoughError(Exception):
        """So many steps were made."""

    quiet_imports()
    config = read_run_config(settings, tuple(overrides))
    tables = read_tables(config.features, settings.parent)
    split = early_stopping_split(config, tables.interactions.sequences(tables.catalog), len(tables.catalog))
    sums, losses, best = [0.0], [], 0.0

    def on_step(step: int, mean: float) -> None:
        sums.append(mean * len(sums))
        losses.append(sums[-1] - sums[-2])
        if step == most_steps:
            raise EnoughError

    def on_epoch(_: object, measured: dict[str, float]) -> None:
        nonlocal best
        best = max(best, measured["validation_ndcg_at_10"])
        sums[:] = [0.0]

    with processes_of(torch.device("cpu"), config.training.table_sharding) as (processes, device):
        with suppress(EnoughError):
            fit(config, tables, split, device=device, on_step=on_step, on_epoch=on_epoch, processes=processes)
        if is_first():
            output.write_text(json.dumps({"losses": losses, "best": best}), encoding="utf-8")


def measured(settings: Path, overrides: Sequence[str], processes: int, steps: int) -> dict[str, list[float] | float]:
    """Return the losses of the steps, and the best N@10, of a training in so many processes."""
    say(f"\r{processes} processes ...   ")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        words = [__file__, str(settings), "--worker", str(output), "--steps", str(steps)]
        words += [word for one in overrides for word in ("--set", one)]
        launcher = [] if processes == 1 else _launcher(processes)
        done = subprocess.run([sys.executable, *launcher, *words], env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        found: dict[str, list[float] | float] = json.loads(output.read_text(encoding="utf-8"))
        return found


def compare_losses(settings: Path, overrides: Sequence[str], processes: Sequence[int], steps: int) -> bool:
    """Print the largest differences, and return whether none is too large."""
    found = [np.array(measured(settings, [*overrides, *AS_ONE], count, steps)["losses"]) for count in processes]
    say("\r")
    differences = [float(np.abs(losses - found[0]).max()) for losses in found[1:]]
    print(f"{len(found[0])} steps, loss from {found[0][0]:.4f} to {found[0][-1]:.4f}")
    for count, difference in zip(processes[1:], differences, strict=True):
        print(f"{count} processes against {processes[0]}: losses differ by {difference:.1e} at most")
    return max(differences, default=0.0) <= MOST


def compare_quality(settings: Path, overrides: Sequence[str], processes: Sequence[int], seeds: int) -> bool:
    """Print the validation N@10 of each number of processes, and return whether none differs from the first number."""
    is_same, first = True, np.zeros(seeds)
    for count in processes:
        trained = [measured(settings, [*overrides, f"training.seed={seed}"], count, 0)["best"] for seed in range(seeds)]
        found = np.array(trained)
        say("\r")
        line = f"{count} processes: N@10 {found.mean():.4f} ({seeds} seeds"
        if seeds > 1:
            line += f", standard deviation {found.std(ddof=1):.4f}"
        if count == processes[0]:
            first = found
        elif seeds > 1:
            half = stats.t.ppf(0.975, seeds - 1) * (found - first).std(ddof=1) / np.sqrt(seeds)
            line += f", difference to {processes[0]}: {(found - first).mean():+.4f} ± {half:.4f}"
            is_same = is_same and abs((found - first).mean()) <= half
        print(f"{line})", flush=True)
    return is_same


def kill_workers(settings: Path, overrides: Sequence[str], processes: int, kills: int) -> bool:
    """Return whether every run in which a worker was killed ended with the weights of the one that was left alone."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="runs-", dir=settings.parent) as folder:
        begun = time.monotonic()
        expected, _ = _trained(settings, overrides, Path(folder) / "whole", processes, None)
        longest = time.monotonic() - begun
        num_runs = num_same = num_killed = 0
        while num_killed < kills:
            output = Path(folder) / f"killed-{num_runs}"
            weights, was_killed = _trained(settings, overrides, output, processes, chance.uniform(0.1, 0.9) * longest)
            num_runs += 1
            num_same += weights == expected
            num_killed += was_killed
            if not was_killed:
                longest *= 0.8  # the machine was busier before
            say(f"\r{num_runs} runs, {num_killed} with a killed worker, {num_same} with the same weights ")
        say("\r")
    print(f"{num_runs} runs, {num_killed} with a killed worker, {num_same} with the weights of the run left alone")
    return num_same == num_runs


def _trained(
    settings: Path, overrides: Sequence[str], output: Path, processes: int, kill_after: float | None
) -> tuple[str, bool]:
    """Train a bundle, and return the digest of its weights, and whether a worker was killed on the way.

    Args:
        settings: The run.toml.
        overrides: `table.key=value` each.
        output: The folder of the bundle.
        processes: How many.
        kill_after: Seconds after which one is killed, at once where its training has begun by then. None: none is.
    """
    words = ["-m", "towers", "train", settings.name, "--output", str(output.absolute()), "--no-baselines"]
    words += [word for one in (*overrides, "training.checkpoint_seconds=1") for word in ("--set", one)]
    launcher = [*_launcher(processes), "--max-restarts=3"]
    process = subprocess.Popen(
        [sys.executable, *launcher, *words],
        cwd=settings.parent,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    was_killed = False
    if kill_after is not None:
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            with suppress(psutil.Error):  # a worker that ends at this moment
                workers = [one for one in psutil.Process(process.pid).children() if "towers" in one.cmdline()]
                if workers:
                    workers[-1].kill()
                    was_killed = True
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(said)
    from towers.bundle.bundle import ModelBundle

    return ModelBundle.open(output).weights_digest, was_killed


def _launcher(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}


if __name__ == "__main__":
    main()
