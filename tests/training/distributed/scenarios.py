"""What the processes of the tests do: each function runs in all of them, and in the test itself for comparison."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from features.errors import DataError
from tests.training.loop.test_trainer import STRATEGIES, config_of, data_of
from training.config import RunConfig, Sharding
from training.distributed.ranks import Ranks
from training.loop.build import build
from training.loop.losses import matryoshka_loss
from training.loop.negatives import Targets
from training.loop.processes import OneProcess, Processes
from training.loop.trainer import Trainer

CPU = torch.device("cpu")
LOSSES = ["all", "sampled", "classic", "hard and remembered", "trend", "trend, a bit of everything"]
TRAININGS: dict[str, tuple[str, Sharding, dict[str, Any], int]] = {
    # name: strategy, sharding, more settings, steps
    "by tables": ("all", "table-wise", {}, 100),
    "by rows": ("prefixes, a bit of everything", "row-wise", {}, 30),
    "both directions": ("sampled", "auto", {"symmetric_loss": True, "targets": "future"}, 14),
    "recent popularity": ("trend, a bit of everything", "auto", {}, 14),
    "spectral": ("all", "auto", {"item_init": "spectral"}, 4),
    "tables of 16 bits": ("tables of 16 bits", "row-wise", {}, 4),
}
RESUMED = ["hard and remembered", "tables of 16 bits"]
"""Strategies of the trainings with dropout and hard negatives that are interrupted."""


class KilledError(Exception):
    """Ends a training as a lost process does."""


def steady(strategy: str, **training: Any) -> RunConfig:
    """Settings without random numbers inside the model, whose losses can be compared between numbers of processes."""
    config = config_of(**STRATEGIES[strategy], loss_precision="float32", epochs=100, **training)
    towers = config.towers.model_copy(update={"dropout": 0.0, "id_dropout": 0.0, "time_dropout": 0.0})
    return config.model_copy(update={"towers": towers})


def losses_of(name: str, processes: Processes | None = None) -> list[float]:
    """Return the loss of each step of a training."""
    strategy, _, settings, steps = TRAININGS[name]
    config = steady(strategy, **settings)
    found: list[float] = []
    trainer = Trainer(build(config, data_of(config), CPU), steps=steps, quiet=True, processes=processes)
    step = trainer.step

    def seen(batch: Any) -> Tensor:
        loss = step(batch)
        found.append(loss.item())
        return loss

    trainer.step = seen  # type: ignore[method-assign]
    trainer.fit()
    return found


def gathered_loss(strategy: str, processes: Processes, *, events: int | None = None) -> list[list[float]]:
    """Return loss and gradients, in float64, of one batch with random vectors of items and users.

    Args:
        strategy: Of the negatives.
        processes: Those that compute it together.
        events: So many events are in the batch. None: as in training.
    """
    config = steady(strategy)
    parts = build(config, data_of(config), CPU)
    if events is not None:
        parts.batches.batch_size = events
    batch = next(parts.batches.epoch(0))
    targets, generator = Targets.of(batch), torch.Generator().manual_seed(1)
    negatives = parts.negatives.draw(targets, generator)
    widths = (16, 16) if parts.trend is None else (16, 16 + len(config.towers.trend))
    items = torch.randn(30, 16, dtype=torch.double, generator=generator).requires_grad_()
    users = torch.randn(len(batch.item_rows), widths[1], dtype=torch.double, generator=generator).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.double, requires_grad=True)
    share = processes.share(targets)
    sizes = processes.sizes(len(items))
    vectors = processes.gather(items[processes.own(sizes)], sizes)
    positives = vectors[targets.rows][share.positives]
    own = negatives.only(share.positives)
    if parts.trend is not None:
        numbers, trend = parts.trend.of(targets.only(share.positives), own)
        own, positives = replace(own, trend=numbers), torch.cat([positives, trend.double()], dim=1)
    asked = users[targets.places][share.positives]
    loss = matryoshka_loss(asked, positives, vectors[own.rows], scale, own, prefix_scales={8: scale}) * share.weight
    loss.backward()
    mean = processes.reduce(loss.detach(), [items, users, scale])
    return [[mean.item()], *(one.grad.flatten().tolist() for one in (items, users, scale) if one.grad is not None)]


def training(
    strategy: str, folder: Path | None, processes: Processes | None, *, dies_after: int | None = None
) -> Trainer:
    """Return a training of 30 steps that writes checkpoints."""
    config = config_of(**STRATEGIES[strategy])

    def die(step: int, loss: float) -> None:
        if dies_after is not None and step > dies_after:
            raise KilledError

    parts = build(config, data_of(config), CPU)
    path = None if folder is None else folder / "checkpoint.safetensors"
    return Trainer(parts, checkpoint=path, on_step=die, steps=30, quiet=True, processes=processes)


def whole_weights(strategy: str, trainer: Trainer) -> dict[str, Tensor]:
    """Return all weights, in the first process."""
    config = config_of(**STRATEGIES[strategy])
    empty = build(config, data_of(config), CPU).model
    return trainer.processes.whole(trainer.model, lambda: empty).state_dict()


def interrupted(strategy: str, folder: Path, processes: Processes) -> Trainer:
    """Return a training that was lost after its thirteenth step and goes on; `folder` keeps the checkpoint."""
    folder.mkdir(exist_ok=True)
    with suppress(KilledError):
        training(strategy, folder, processes, dies_after=13).fit()
    resumed = training(strategy, folder, processes)
    resumed.resume()
    assert resumed.progress.step == 13
    return resumed


def resumptions(strategy: str, rank: int, folder: Path) -> dict[str, bool]:
    """Return, in the first process, whether trainings go on from checkpoints as they should; the folder keeps these."""
    folder.mkdir(exist_ok=True)
    undisturbed = training(strategy, None, Ranks(CPU, "row-wise"))
    undisturbed.fit()
    resumed = interrupted(strategy, folder / "two", Ranks(CPU, "row-wise"))
    by_tables = training(strategy, folder / "two", Ranks(CPU, "table-wise"))
    by_tables.resume()
    whole, other = whole_weights(strategy, resumed), whole_weights(strategy, by_tables)
    resumed.checkpoint = None
    resumed.fit()
    again, expected = whole_weights(strategy, resumed), whole_weights(strategy, undisturbed)
    if rank == 0:
        torch.save(whole, folder / "after-13.pt")
        interrupted(strategy, folder / "one", OneProcess())
    dist.barrier()
    from_one = training(strategy, folder / "one", Ranks(CPU, "row-wise"))
    from_one.resume()
    loaded = whole_weights(strategy, from_one)
    if rank:
        return {}
    alone = training(strategy, folder / "one", OneProcess())
    alone.resume()
    return {
        "resumed is exact": _same(again, expected),
        "other division is exact": _same(whole, other),
        "from one is exact": _same(whole_weights(strategy, alone), loaded),
    }


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def run_all(rank: int, size: int, folder: Path) -> None:
    """Run everything in one process of several, and leave what the tests compare in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    found: dict[str, Any] = {"losses": {name: gathered_loss(name, Ranks(CPU)) for name in LOSSES}}
    found["few users"] = gathered_loss("all", Ranks(CPU), events=1)
    found["trainings"] = {name: losses_of(name, Ranks(CPU, kind)) for name, (_, kind, *_) in TRAININGS.items()}
    found["resumptions"] = {name: resumptions(name, rank, folder / name) for name in RESUMED}
    try:
        Ranks(CPU).check_same({"training.seed": str(rank)})
    except DataError as error:
        found["other settings"] = str(error)
    try:
        Ranks(CPU).check_same({"torch": "2"} | ({"users": "f00"} if rank else {}))
    except DataError as error:
        found["a table more"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()
