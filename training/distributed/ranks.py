"""`Ranks`: the processes of one training, over torch's collectives (gloo between CPUs, NCCL between GPUs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_single_autograd
from torch.nn import functional

from features.errors import DataError
from features.messages import cut
from features.sequences.sequences import Queries
from towers.model.two_tower import TwoTower
from training.config import Sharding
from training.distributed.batch_division import divide_evenly, share_of
from training.distributed.sharded_checkpoint import load_parts, save_parts
from training.distributed.sharded_tables import layout_of, local_part, shard_tables, whole_weights
from training.loop.build import dense_parameters
from training.loop.checkpoint import Checkpoint
from training.loop.negatives import Targets
from training.loop.processes import Answer, Share

_MOST_SHOWN = 60


class Ranks:
    """The `Processes` of torch's default process group.

    A loss is the mean over the processes, and gradients are averaged: those of tables by torchrec, the others by
    `reduce`. Each process has random numbers of its own in each step, made from the seed, the step and its rank, so
    that a run that is resumed by as many processes repeats to the bit, whatever happened in between.

    Args:
        device: Of this process.
        sharding: How the tables are divided.
    """

    def __init__(self, device: torch.device, sharding: Sharding = "auto") -> None:
        self.device = device
        self.sharding: Sharding = sharding
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._group: Any = dist.group.WORLD
        self._layouts: dict[str, Any] = {}

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def begin_step(self, seed: int, step: int) -> None:
        """Seed torch by the seed, the step and the rank."""
        torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)[0] >> 1))

    def sizes(self, total: int) -> Sequence[int]:
        """Return as even numbers as possible."""
        return divide_evenly(total, self.size)

    def own(self, sizes: Sequence[int]) -> slice:
        """Return the part after those of lower ranks; the first thing where that is empty."""
        begin = sum(sizes[: self.rank])
        return slice(begin, begin + sizes[self.rank]) if sizes[self.rank] else slice(0, 1)

    def gather(self, vectors: Float[Tensor, "own width"], sizes: Sequence[int]) -> Float[Tensor, "all width"]:
        """Return the vectors of all ranks. A vector's gradient is the sum of those that all ranks have for it."""
        own = vectors[: sizes[self.rank]]
        padded = functional.pad(own, (0, 0, 0, max(sizes) - len(own)))
        parts = all_gather_single_autograd(padded, 0, self._group).split(max(sizes))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def share(self, targets: Targets) -> Share:
        """Return some users of the batch that follow one another."""
        return share_of(targets, self.rank, self.size)

    def reduce(self, loss: Float[Tensor, ""], parameters: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Average in one exchange; a weight that no rank has a gradient of keeps none."""
        has_gradient = self.agree(*(parameter.grad is not None for parameter in parameters))
        taught = [one for one, has in zip(parameters, has_gradient, strict=True) if has]
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in taught]
        flat = torch.cat([loss.view(1), *(gradient.flatten() for gradient in gradients)]) / self.size
        dist.all_reduce(flat)
        mean, *parts = flat.split([1, *(gradient.numel() for gradient in gradients)])
        for parameter, part in zip(taught, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        found: Tensor = mean[0]
        return found

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """Return the highest numbers, exchanged on the host."""
        highest = torch.tensor(numbers, dtype=torch.long)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return tuple(highest.tolist())

    def highest(self, table: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
        """Return the highest numbers of tables on the host."""
        dist.all_reduce(table, dist.ReduceOp.MAX)
        return table

    def mean(self, questions: Queries, answer: Answer) -> float:
        """Return the mean; each rank answers as many questions, because all have to take part in each look-up."""
        count = -(-len(questions) // self.size)
        first = self.rank * count
        rows = np.minimum(np.arange(first, first + count), len(questions) - 1)
        own = torch.from_numpy(np.asarray(answer(questions.take(rows), first), dtype=np.float64))
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return float(torch.cat(parts)[: len(questions)].numpy().mean())

    def divide(self, model: TwoTower, optimizers: list[Any]) -> list[Any]:
        """Shard the tables; the other weights become those of rank 0, wherever it computed them."""
        for parameter in dense_parameters(model):
            dist.broadcast(parameter.detach(), 0)
        return shard_tables(model, self.sharding, self.device)

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's part of tables and their optimisers, and all else."""
        self._layouts |= {name: layout for name, one in tensors.items() if (layout := layout_of(one)) is not None}
        parts = {name: local_part(one) for name, one in tensors.items()}
        return {name: part for name, part in parts.items() if part is not None}

    def whole(self, model: TwoTower, empty: Callable[[], TwoTower]) -> TwoTower:
        """Return, to rank 0, `empty` with the weights of all ranks."""
        weights = whole_weights(model.state_dict(), self.rank)
        if not self.is_first:
            return model
        filled = empty().to(self.device)
        filled.load_state_dict(weights)
        return filled

    def save(self, checkpoint: Checkpoint, path: Path) -> None:
        """Write one file for each rank, and then, in place of the checkpoint, which files these are."""
        save_parts(checkpoint, path, self._layouts)

    def load(self, path: Path) -> Checkpoint:
        """Read this rank's parts of what any number of processes wrote."""
        return load_parts(path, self._layouts)

    def check_same(self, said: Mapping[str, str]) -> None:
        """Compare what all ranks say with what rank 0 does."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, dict(said))
        for rank, other in enumerate(found):
            for name in {**found[0], **other}:
                here, there = (cut(one.get(name, "not there"), _MOST_SHOWN) for one in (found[0], other))
                if found[0].get(name) != other.get(name):
                    raise DataError(
                        f"process {rank} of {self.size} does not train the same as process 0: {name} is {there}, in "
                        f"process 0 {here}; give all the same command, settings, tables and versions"
                    )

    def from_first(self, text: str) -> str:
        """Return the text of rank 0."""
        said: list[Any] = [text]
        dist.broadcast_object_list(said, 0)
        return str(said[0])
