"""The processes of a training: what each computes of a batch, and how the results are put together.

`Trainer` is written for any number of processes; `OneProcess` is the ordinary case, and several are in
`training.distributed`. Every process deals the same batches and draws the same negatives, those of the whole batch,
from the same seeds: labels, masks and corrections need no exchange. What takes time is divided: the items that a step
encodes, and the users whose histories it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from features.sequences.batches import EntityFeatures, SequenceBatch
from features.sequences.sequences import Queries
from towers.model.two_tower import TwoTower
from training.loop.checkpoint import Checkpoint
from training.loop.negatives import Targets

WHOLE = slice(None)
"""The part of one process."""

Answer = Callable[[Queries, int], Float[np.ndarray, "questions"]]
"""A function that returns a number for each of some questions, given them and the place of the first."""


@dataclass(frozen=True)
class Share:
    """The part of a batch that one process computes.

    Attributes:
        batch: The users whose histories it reads, on the host.
        places: Which events of these are its predictions, `[own_positives]`.
        positives: Where these are among the predictions of the whole batch.
        sizes: Number of predictions of each process.
        weight: Factor of the mean loss of its predictions, so that the mean over the processes is the mean over all
            predictions.
    """

    batch: SequenceBatch
    places: Int[Tensor, "own_positives"]
    positives: slice
    sizes: Sequence[int]
    weight: float


class Processes(Protocol):
    """The processes that train a model together. All call the same methods in the same order."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what one of them has to write: log, record, bundle."""

    def check_same(self, said: Mapping[str, str]) -> None:
        """Check that all processes train the same; `DataError` where one does not.

        Args:
            said: Versions, digests of tables and settings, by name.
        """

    def from_first(self, text: str) -> str:
        """Return what the first process says."""

    def begin_step(self, seed: int, step: int) -> None:
        """Set torch's random state for a step, where it cannot simply go on."""

    def sizes(self, total: int) -> Sequence[int]:
        """Return how many of so many things each process takes; they take them one after another."""

    def own(self, sizes: Sequence[int]) -> slice:
        """Return what this process takes of them, never nothing: who has nothing to do does the first thing in vain."""

    def gather(self, vectors: Float[Tensor, "own width"], sizes: Sequence[int]) -> Float[Tensor, "all width"]:
        """Return the vectors that all processes have made; the gradients go back to where they were made."""

    def share(self, targets: Targets) -> Share:
        """Return the part of a batch that this process computes."""

    def reduce(self, loss: Float[Tensor, ""], parameters: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Replace the gradients of parameters by their mean over the processes, and return the mean loss."""

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """Return the highest of each of these numbers in any process."""

    def highest(self, table: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
        """Return the highest number of any process in each cell."""

    def mean(self, questions: Queries, answer: Answer) -> float:
        """Return the mean over all questions, of which each process answers a part."""

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what this process keeps of each tensor, by name; it may be overwritten."""

    def divide(self, model: TwoTower, optimizers: list[Any]) -> list[Any]:
        """Divide the embedding tables among the processes, and return the optimisers of those that this one keeps."""

    def whole(self, model: TwoTower, empty: Callable[[], TwoTower]) -> TwoTower:
        """Return the model with all its weights, or `empty` filled with them, to the first process; all call it."""

    def save(self, checkpoint: Checkpoint, path: Path) -> None:
        """Write a checkpoint of what each process keeps."""

    def load(self, path: Path) -> Checkpoint:
        """Read a checkpoint that as many processes, or others, wrote: what this one keeps of it."""


class OneProcess:
    """A training in one process: it does everything."""

    is_first = True

    def check_same(self, said: Mapping[str, str]) -> None:
        """Do nothing."""

    def from_first(self, text: str) -> str:
        """Return the text."""
        return text

    def begin_step(self, seed: int, step: int) -> None:
        """Let the random state go on."""

    def sizes(self, total: int) -> Sequence[int]:
        """Return all."""
        return (total,)

    def own(self, sizes: Sequence[int]) -> slice:
        """Return all."""
        return WHOLE

    def gather(self, vectors: Float[Tensor, "own width"], sizes: Sequence[int]) -> Float[Tensor, "all width"]:
        """Return the vectors."""
        return vectors

    def share(self, targets: Targets) -> Share:
        """Return the whole batch."""
        return Share(targets.batch, targets.places, WHOLE, (len(targets.rows),), 1.0)

    def reduce(self, loss: Float[Tensor, ""], parameters: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Return the loss."""
        return loss

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """Return the numbers."""
        return numbers

    def highest(self, table: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
        """Return the table."""
        return table

    def mean(self, questions: Queries, answer: Answer) -> float:
        """Return the mean over the questions."""
        return float(answer(questions, 0).mean())

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors."""
        return dict(tensors)

    def divide(self, model: TwoTower, optimizers: list[Any]) -> list[Any]:
        """Return the optimisers."""
        return optimizers

    def whole(self, model: TwoTower, empty: Callable[[], TwoTower]) -> TwoTower:
        """Return the model."""
        return model

    def save(self, checkpoint: Checkpoint, path: Path) -> None:
        """Write the checkpoint."""
        checkpoint.save(path)

    def load(self, path: Path) -> Checkpoint:
        """Read the checkpoint."""
        return Checkpoint.load(path)


def part_of(features: EntityFeatures, part: slice) -> EntityFeatures:
    """Return the features of some entities that follow one another."""
    return features if part == WHOLE else features.take(features.rows[part])


def encode_items(model: TwoTower, features: EntityFeatures, processes: Processes) -> Float[Tensor, "items width"]:
    """Return the unit vectors of items, each encoded in one of the processes."""
    sizes = processes.sizes(len(features))
    own = part_of(features, processes.own(sizes)).to(model.log_scale.device)
    return processes.gather(model.item_vectors(own), sizes)
