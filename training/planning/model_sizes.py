"""Sizes of a model that is not built: its tensors are on torch's meta device and take no memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from towers.model.embeddings import FeatureEmbeddings
from towers.model.two_tower import TwoTower
from towers.warnings_filter import quiet_imports
from training.config import RunConfig, Sharding
from training.distributed.sharded_tables import TABLE_COPIES, planning, table_planner
from training.loop.build import dense_parameters

CPU, META = torch.device("cpu"), torch.device("meta")
UNDIVIDED = "whole"
"""Sharding of a table in a training with one process."""
_SIDES = {"item_tower": "items", "user_tower": "users"}


@dataclass(frozen=True)
class TablePart:
    """What one process keeps of a table.

    Attributes:
        rank: The process.
        rows: Rows of its part.
        width: Numbers of each.
        weight_bytes: Bytes of the weights.
        optimizer_bytes: Bytes of the optimiser's state: a number for each row of the part.
    """

    rank: int
    rows: int
    width: int
    weight_bytes: int
    optimizer_bytes: int


@dataclass(frozen=True)
class PlannedTable:
    """An embedding table.

    Attributes:
        side: `items`, `users`, or `both` for a table of texts that both towers share.
        feature: The column.
        rows: Rows, that of unknown values included.
        width: Numbers of each.
        dtype: Their type, such as `float32`.
        sharding: `table-wise`, `row-wise` or `column-wise`; `whole` in one process.
        parts: What each process keeps; one that keeps nothing has none.
        whole_optimizer_bytes: Bytes of the optimiser's state where the table is not divided.
    """

    side: str
    feature: str
    rows: int
    width: int
    dtype: str
    sharding: str
    parts: tuple[TablePart, ...]
    whole_optimizer_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in all processes."""
        return sum(part.weight_bytes for part in self.parts)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimiser's state in all processes."""
        return sum(part.optimizer_bytes for part in self.parts)


@dataclass(frozen=True)
class ModelSizes:
    """Bytes of a model and of what trains it.

    Attributes:
        tables: Each embedding table.
        dense_bytes: All other weights and buffers, which every process has.
        trained_bytes: Those of them that have gradients.
        processes: How many processes divide the tables.
        fits: Whether torchrec's planner can divide the tables so that each process keeps its part in memory. Where it
            cannot, the parts are those that it would choose with more memory.
    """

    tables: tuple[PlannedTable, ...]
    dense_bytes: int
    trained_bytes: int
    processes: int
    fits: bool

    @property
    def table_bytes(self) -> int:
        """Weights of all tables."""
        return sum(table.weight_bytes for table in self.tables)

    def tables_of(self, rank: int) -> tuple[int, int]:
        """Return the bytes of the weights of a process's parts of tables, and of their optimiser's state."""
        parts = [part for table in self.tables for part in table.parts if part.rank == rank]
        return sum(part.weight_bytes for part in parts), sum(part.optimizer_bytes for part in parts)

    @property
    def bundle_bytes(self) -> int:
        """Bytes of the weights in a bundle."""
        return self.table_bytes + self.dense_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the tensors of a checkpoint of all processes: weights, their average and the best, optimisers.

        Cross-batch and hard negatives come on top of it.
        """
        optimizers = sum(table.optimizer_bytes for table in self.tables) + 2 * self.trained_bytes
        return TABLE_COPIES * self.bundle_bytes + optimizers


def model_sizes(
    config: RunConfig,
    featurizer: Featurizer,
    *,
    processes: int = 1,
    memory: int | None = None,
) -> ModelSizes:
    """Return the sizes of the model of these settings, trained on CPUs.

    Args:
        config: The settings.
        featurizer: Fitted on the training data: the rows of each table.
        processes: Number of processes.
        memory: Bytes of memory of each. None: torchrec's planner decides by its own figure.

    Raises:
        DataError: The tables cannot be divided so.
    """
    model = unbuilt(config, featurizer)
    named = [(path, part) for path, part in model.named_modules() if isinstance(part, FeatureEmbeddings)]
    divided, fits = _divided(model, [part for _, part in named], config.training.table_sharding, processes, memory)
    tables = [table for path, part in named for table in _tables(path, part, divided)]
    in_tables = {f"{path}.collection.{name}" for path, part in named for name in part.collection.state_dict()}
    dense = {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.state_dict()}
    return ModelSizes(
        tables=tuple(tables),
        dense_bytes=sum(one.nbytes for name, one in dense.items() if name not in in_tables),
        trained_bytes=sum(one.nbytes for one in dense_parameters(model) if one.requires_grad),
        processes=processes,
        fits=fits,
    )


def unbuilt(config: RunConfig, featurizer: Featurizer) -> TwoTower:
    """Return the model of a training without memory for its weights; text encoders that are trained have theirs."""
    quiet_imports()
    import torchrec  # noqa: F401 (computes with numbers when it is imported, which the meta device has none of)

    trained = (*featurizer.items.sizes.trained, *featurizer.users.sizes.trained)
    with CPU if trained else META:
        return TwoTower(
            config.towers,
            featurizer,
            config.features.max_history,
            learning_rate=config.training.embedding_learning_rate,
        )


def _divided(
    model: TwoTower,
    tables: list[FeatureEmbeddings],
    sharding: Sharding,
    processes: int,
    memory: int | None,
) -> tuple[dict[str, Any], bool]:
    """Return torchrec's plan, by module and table, and whether it fits; of one process an empty one."""
    if processes == 1 or not tables:
        return {}, True
    for limit in (memory, None):
        planner, sharders = table_planner(tables, sharding, processes, processes, CPU, limit)
        try:
            with planning():
                return planner.plan(model, sharders).plan, limit == memory
        except DataError:
            if limit is None:
                raise
    raise AssertionError("the last limit is None")


def _tables(path: str, part: FeatureEmbeddings, divided: dict[str, Any]) -> Iterator[PlannedTable]:
    """Yield the tables of one collection."""
    assert part.fused_optimizer is not None, "a model that is trained"
    states = part.fused_optimizer.state_dict()["state"]
    for (name, weight), feature in zip(part.collection.state_dict().items(), part.names, strict=True):
        table = name.split(".")[1]
        planned = divided.get(f"{path}.collection", {}).get(table)
        (state,) = states[f"{table}.weight"].values()
        yield PlannedTable(
            side=_SIDES.get(path.partition(".")[0], "both"),
            feature=feature,
            rows=weight.shape[0],
            width=weight.shape[1],
            dtype=str(weight.dtype).removeprefix("torch."),
            sharding=UNDIVIDED if planned is None else planned.sharding_type.replace("_", "-"),
            parts=tuple(_parts(weight, state, planned)),
            whole_optimizer_bytes=state.nbytes,
        )


def _parts(weight: Tensor, state: Tensor, planned: Any) -> Iterator[TablePart]:
    """Yield what each process keeps of a table; of columns each has a state for all rows."""
    of_row = state.nbytes // len(state)
    if planned is None:
        rows, width = weight.shape
        yield TablePart(0, rows, width, weight.nbytes, state.nbytes)
        return
    for shard in planned.sharding_spec.shards:
        rows, width = shard.shard_sizes
        if rows:
            size = rows * width * weight.element_size()
            yield TablePart(shard.placement.rank(), rows, width, size, rows * of_row)
