"""Trainings on the device and on the CPU: single steps with all kinds of settings, and the commands.

Without dropout and in float32, with weights that the CPU draws, both see the same batches and negatives, so that losses
differ by rounding alone. It grows from step to step; the tolerances are what a wrong kernel or a wrong weight exceeds.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import running
from tests.benchmarks.gpu.lines import Line, difference, measured
from tests.benchmarks.gpu.run import Run, StepError

if TYPE_CHECKING:
    import torch

    from features.sequences.batches import SequenceBatch
    from training.config import RunConfig
    from training.loop.trainer import Trainer

LOSS = 1e-3
"""Largest difference of losses in float32, in relation to the loss on the CPU."""
ROUNDED_LOSS = 2e-2
"""The same in bfloat16, and for tables of 16 bits, whose rows a GPU rounds by chance."""
QUALITY = 0.02
"""Largest difference of N@10: a few questions of which the answer moves by a rank."""
EPOCHS = 2
AS_ONE = ("towers.dropout=0", "towers.id_dropout=0", "towers.time_dropout=0", "training.loss_precision=float32")
"""Settings without random numbers inside the model, which each device would draw for itself."""
NO_CLOCK = "towers.time_bias=false"
"""Recommendations by the bundles do not depend on the moment, so that those of two moments can be compared."""
TRAININGS = "trainings.json"

_ROW = re.compile(r"^\s*(\d+)\s+(\d+\.\d+)\s+(?:(\d+\.\d+)(?: \*)?\s+)?([\d,]+)\s*$", re.MULTILINE)
_WATCHED = """
import resource, sys, torch
from towers.cli.main import main
status = main(sys.argv[2:])
used = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
with open(sys.argv[1], "w") as file:
    file.write(str(used or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
sys.exit(status)
"""
"""`towers` that writes the most memory that torch took on the GPU; without one, that of the process."""


@dataclass(frozen=True)
class Epoch:
    """A line of the table that a training prints."""

    number: int
    loss: float
    quality: float
    events_per_second: float


def epochs_in(text: str) -> list[Epoch]:
    """Return the lines of the epochs in what a training has said.

    Example:
        >>> epochs_in("epoch    loss   validation N@10   events/s\\n    1  3.5486          0.3679 *      1,265")
        [Epoch(number=1, loss=3.5486, quality=0.3679, events_per_second=1265.0)]
    """
    rows = _ROW.findall(text)
    return [
        Epoch(int(one), float(loss), float(best or 0), float(rate.replace(",", ""))) for one, loss, best, rate in rows
    ]


def flags(run: Run, *settings: str) -> list[str]:
    """Return the settings of every training here, and more, as flags."""
    usual = (f"training.epochs={EPOCHS}", "training.track=false", NO_CLOCK, *AS_ONE, *run.sizes.towers)
    return [word for one in (*usual, *settings) for word in ("--set", one)]


def words(run: Run, name: str, device: str, *settings: str) -> list[str]:
    """Return the words of `towers train` into `runs/NAME`."""
    output = ("--output", f"runs/{name}")
    return ["train", "run.toml", "--no-baselines", "--device", device, *output, *flags(run, *settings)]


def training(run: Run) -> Iterator[Line]:
    """`towers train` for two epochs on both devices: losses, N@10, events a second, memory; and once in bfloat16."""
    peak = run.folder / "peak"
    ended = {
        "device": run.command(
            [sys.executable, "-c", _WATCHED, str(peak.absolute())], *words(run, "device", run.device)
        ),
        "cpu": run.towers(*words(run, "cpu", "cpu")),
    }
    found = {name: epochs_in(one.stderr) for name, one in ended.items()}
    (run.folder / TRAININGS).write_text(json.dumps([vars(one) for one in found["device"]]), encoding="utf-8")
    yield from compared("towers train", found["device"], found["cpu"])
    bound = run.rate_bound(1, flop=flop_of_an_event(run))
    yield measured("events/s on the device", found["device"][-1].events_per_second, "events/s", bound)
    yield measured("events/s on the CPU", found["cpu"][-1].events_per_second, "events/s")
    rounded = epochs_in(run.towers(*words(run, "bfloat16", run.device, "training.loss_precision=bfloat16")).stderr)
    yield from compared("towers train in bfloat16", rounded, found["cpu"], ROUNDED_LOSS)
    plan = json.loads(run.towers("plan", "run.toml", "--json", *flags(run)).stdout)["memory"][0]
    data = plan["always"].pop("libraries, tables and features") if run.is_gpu else 0
    planned = sum(plan["always"].values()) + max(plan["moments"][one] for one in ("a step", "validation"))
    note = "bound: as `towers plan` says, " + ("without tables and features" if data else "on a CPU")
    yield measured("most memory of the training", int(peak.read_text()) / 1e6, "MB", planned / 1e6, note=note)


def compared(name: str, found: Sequence[Epoch], expected: Sequence[Epoch], most: float = LOSS) -> Iterator[Line]:
    """Compare the losses and the N@10 of trainings epoch by epoch.

    Raises:
        StepError: The training on the CPU has said nothing of its epochs.
    """
    if not expected:
        raise StepError(f"{name}: found no table of epochs in what the training on the CPU said")
    losses, best = ([one.loss for one in epochs] for epochs in (found, expected))
    yield difference(f"{name}: losses of {len(expected)} epochs", losses, best, most, relative=True)
    ours, theirs = ([one.quality for one in epochs] for epochs in (found, expected))
    if any(theirs):  # a training that is continued has no validation
        yield difference(f"{name}: validation N@10", ours, theirs, QUALITY)


def flop_of_an_event(run: Run) -> float:
    """Return the operations that learning one event takes at least: the softmax, and the layers of the transformer."""
    from training.config import read_run_config

    towers = read_run_config(run.shop / "run.toml", tuple(run.sizes.towers)).towers
    forward = run.sizes.shop[1] * towers.embedding_dim + 10 * towers.num_layers * towers.embedding_dim**2
    return 6.0 * forward  # a multiplication and an addition, forward and twice backward


def earlier(run: Run) -> list[Epoch]:
    """Return the epochs of the training on the device.

    Raises:
        StepError: There was none.
    """
    path = run.folder / TRAININGS
    if not path.is_file():
        raise StepError("there is no training on the device to compare with; run the step `training`")
    return [Epoch(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def resume(run: Run) -> Iterator[Line]:
    """A training on the device that is killed after a checkpoint, and resumed: its last epoch is the same."""
    expected = earlier(run)
    command = words(run, "killed", run.device, "training.checkpoint_seconds=0")
    checkpoint = run.shop / "runs" / ".killed.training" / "checkpoint.safetensors"
    process = running.start(run.shop, *command, program=run.program, **run.environment)
    while not checkpoint.is_file() and process.poll() is None and time.time() < run.ends:
        time.sleep(0.01)
    process.kill()
    said, _ = process.communicate()
    if process.returncode == 0 or not checkpoint.is_file():
        raise StepError(f"the training was not killed after a checkpoint: {said.strip().splitlines()[-1:]}")
    resumed = epochs_in(run.towers(*command, "--resume").stderr)
    yield from compared("killed and resumed, the last epoch", resumed[-1:], expected[-1:])


def processes(run: Run) -> Iterator[Line]:
    """`torchrun -m towers train`, with one process for each GPU: losses are those of one process."""
    import torch

    expected, count = earlier(run), torch.cuda.device_count() if run.is_gpu else 1
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    ended = run.command([*launcher, "-m", "towers"], *words(run, "together", run.device))
    backend = "NCCL" if run.is_gpu else "gloo"
    yield from compared(f"torchrun, {count} of {backend}", epochs_in(ended.stderr), expected)


def commands(run: Run) -> Iterator[Line]:
    """The other commands that train: `towers evaluate`, and `towers train --continue` with today's interactions."""
    found: dict[str, list[Any]] = {"evaluate": [], "continue": []}
    for name, device in run.devices.items():
        output = ("--no-baselines", "--device", device, "--output", f"evaluation-{name}")
        ended = run.towers("evaluate", "run.toml", *output, *flags(run))
        report = json.loads((run.shop / f"evaluation-{name}" / "report.json").read_text(encoding="utf-8"))
        found["evaluate"].append((epochs_in(ended.stderr), report["rows"][0]["metrics"]["ndcg_at_10"]["mean"]))
        new = ("--continue", "runs/cpu", "--interactions", "today.parquet", "--output", f"runs/continued-{name}")
        ended = run.towers("train", *new, "--device", device, "--set", "training.track=false")
        found["continue"].append(epochs_in(ended.stderr))
    (ours, quality), (theirs, expected) = found["evaluate"]
    yield from compared("towers evaluate", ours, theirs)
    yield difference("towers evaluate: test N@10", quality, expected, QUALITY)
    yield from compared("towers train --continue", *found["continue"])


def steps(run: Run) -> Iterator[Line]:
    """Steps of trainings with all kinds of negatives, tables and histories, from the same weights."""
    import torch

    cpu, device, count = torch.device("cpu"), torch.device(run.device), run.sizes.steps
    for name, config in kinds().items():
        most = ROUNDED_LOSS if "16" in name else LOSS
        here = config.model_copy(update={"training": config.training.model_copy(update={"loss_precision": "float32"})})
        found, expected = losses_of(trainer_of(config, device, count)), losses_of(trainer_of(here, cpu, count))
        yield difference(f"{name}: losses of {count} steps", found, expected, most, relative=True)
    config, half, path = with_dropout(), count // 2, run.folder / "half.safetensors"
    expected = losses_of(trainer_of(config, device, count))
    found = losses_of(trainer_of(config, device, count, checkpoint=path), until=half)
    again = trainer_of(config, device, count, checkpoint=path)
    again.resume()
    what = "with dropout, interrupted after the half: losses"
    yield difference(what, found + losses_of(again), expected, LOSS, relative=True)


def kinds() -> dict[str, RunConfig]:
    """Return settings of small trainings without dropout, of every kind of negatives, tables and histories."""
    from tests.training.distributed.scenarios import steady
    from tests.training.loop.test_trainer import STRATEGIES

    both = steady("sampled", symmetric_loss=True, targets="future")
    towers = {
        "transformer with times": {"time_bias": True, "sum_residual": True},
        "hstu": {"history_encoder": "hstu", "time_bias": True},
        "mean": {"history_encoder": "mean"},
        "attention pooling": {"history_encoder": "attention-pooling"},
    }
    rounded = steady("all")
    return {
        **{name: steady(name) for name in STRATEGIES},
        **{
            name: both.model_copy(update={"towers": both.towers.model_copy(update=own)}) for name, own in towers.items()
        },
        "spectral": steady("all", item_init="spectral"),
        "loss in bfloat16": rounded.model_copy(
            update={"training": rounded.training.model_copy(update={"loss_precision": "bfloat16"})}
        ),
    }


def with_dropout() -> RunConfig:
    """Return settings of a small training that draws random numbers where it computes."""
    from tests.training.loop.test_trainer import SAMPLED, config_of

    return config_of(**SAMPLED, loss_precision="float32", epochs=100)


def trainer_of(config: RunConfig, device: torch.device, num_steps: int, checkpoint: Path | None = None) -> Trainer:
    """Return a trainer of so many steps on a small table of the tests, which saves each if there is a checkpoint."""
    from tests.training.loop.test_trainer import data_of
    from training.loop.build import build
    from training.loop.trainer import Trainer

    parts = build(config, data_of(config), device)
    return Trainer(parts, steps=num_steps, quiet=True, checkpoint=checkpoint)


def losses_of(trainer: Trainer, until: int | None = None) -> list[float]:
    """Return the losses of the steps that are left; with `until` the training dies after so many."""
    found: list[float] = []
    step = trainer.step

    def seen(batch: SequenceBatch) -> torch.Tensor:
        if trainer.progress.step == until:
            raise InterruptedError
        loss = step(batch)
        found.append(loss.item())
        return loss

    trainer.step = seen  # type: ignore[method-assign]
    with suppress(InterruptedError):
        trainer.fit()
    return found
