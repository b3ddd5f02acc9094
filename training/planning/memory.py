"""What a process of a training needs at most, and when that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.distributed.sharded_tables import TABLE_COPIES
from training.planning.model_sizes import ModelSizes
from training.planning.trial import Trial


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of one process, in bytes.

    Attributes:
        rank: The process.
        always: What it has all the time, by name.
        moments: What comes on top of it at some moments, by name; the largest decides.
    """

    rank: int
    always: Mapping[str, int]
    moments: Mapping[str, int]

    @property
    def moment(self) -> str:
        """When the most memory is needed."""
        return max(self.moments, key=self.moments.__getitem__)

    @property
    def total(self) -> int:
        """The most that is needed."""
        return sum(self.always.values()) + self.moments[self.moment]


def process_memory(sizes: ModelSizes, rank: int, data_bytes: int, trial: Trial | None) -> ProcessMemory:
    """Return what a process needs.

    Args:
        sizes: Of the model.
        rank: The process.
        data_bytes: Libraries, tables and features, which every process has.
        trial: What a step takes. It was measured in one process; of several each takes less, by how much is not known.
            None: nothing is known.
    """
    tables, optimizer = sizes.tables_of(rank)
    copies = TABLE_COPIES - 1
    always = {
        "libraries, tables and features": data_bytes,
        "embedding tables": tables,
        "optimiser of the tables": optimizer,
        "average and best weights of the tables": copies * tables,
        "other weights, with their optimiser, average and best": (
            TABLE_COPIES * sizes.dense_bytes + 2 * sizes.trained_bytes
        ),
    }
    own = tables + sizes.dense_bytes
    moments = {
        "a checkpoint": TABLE_COPIES * own + optimizer + 2 * sizes.trained_bytes,
        "validation": own + (trial.catalogue_bytes if trial is not None else 0),
    }
    if trial is not None:
        always["cross-batch and hard negatives"] = trial.negative_bytes
        moments["a step"] = trial.step_bytes
        moments["a checkpoint"] += trial.negative_bytes
    if sizes.processes > 1:  # each makes the whole model, its average and a copy before it keeps its part
        begun = 3 * sizes.table_bytes + sum(table.whole_optimizer_bytes for table in sizes.tables)
        moments["the start, with whole tables"] = begun - copies * tables
    return ProcessMemory(rank, {name: size for name, size in always.items() if size}, moments)


def largest(sizes: ModelSizes, data_bytes: int, trial: Trial | None) -> ProcessMemory:
    """Return the memory of the process that needs the most."""
    found = [process_memory(sizes, rank, data_bytes, trial) for rank in range(sizes.processes)]
    return max(found, key=lambda one: one.total)
