"""Embedding tables divided among processes by torchrec: `DistributedModelParallel` with its planner.

A process asks for the rows of the items and users that it encodes; torchrec fetches them from where they are, and
brings gradients there, where the fused row-wise Adagrad applies them. Of these divisions:

- `table-wise`: each table is in one process; `row-wise`: each process has a part of the rows of every table. Both
  train as one process does.
- `column-wise`: each process has a part of every row. Row-wise Adagrad then has a step size for each part of a row,
  so that training differs a little from that of one process, and a checkpoint fits as many parts only.
- `auto`: torchrec's planner chooses among the first two.

Tables that every process has whole (data-parallel) are not offered: torchrec's fused tables cannot be made so on a CPU,
and on a GPU the state of their optimiser cannot be saved.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from features.errors import DataError
from features.parquet import memory_bytes
from features.sequences.batches import JaggedFeatures
from towers.model.embeddings import FeatureEmbeddings, keyed
from towers.model.two_tower import TwoTower
from towers.warnings_filter import quiet_imports
from training.config import Sharding

EXACT = ("table_wise", "row_wise")
"""torchrec's names of the divisions with which training is that of one process."""
RESERVED = 0.15
"""Share of memory that the planner leaves to everything but tables."""
TABLE_COPIES = {torch.float32: 3, torch.float16: 4}
"""How many times its bytes training keeps of a table, by type: itself, its running average in 32 bits, the best one."""


def shard_tables(model: TwoTower, sharding: Sharding, device: torch.device) -> list[Any]:
    """Replace the tables of a model by parts of them, in place, with the weights that they have.

    Returns:
        The fused optimisers of the parts.

    Raises:
        DataError: The vectors cannot be divided among so many processes (`column-wise`).
    """
    tables = [part for part in model.modules() if isinstance(part, FeatureEmbeddings)]
    whole = [{name: weight.clone() for name, weight in part.collection.state_dict().items()} for part in tables]
    _wrap(model, tables, sharding, device)
    for part, weights in zip(tables, whole, strict=True):
        for name, weight in part.collection.state_dict().items():
            for shard in _shards(weight):
                shard.tensor.copy_(weights[name][places_of(shard.metadata)])
        part.look_up_elsewhere = _look_up
    collections: list[Any] = [part.collection for part in tables]
    return [collection.fused_optimizer for collection in collections]


def _look_up(collection: Any, features: JaggedFeatures) -> Float[Tensor, "entities tables_times_width"]:
    """Return the sums of the bags of this process's entities, from tables that are divided.

    All processes look up as many entities, or gloo could not exchange them: those of others are empty bags here.
    """
    from torchrec import KeyedTensor

    num_tables, num_entities = len(features.keys), len(features)
    most = torch.tensor(num_entities)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    lengths = functional.pad(features.lengths.view(num_tables, -1), (0, int(most) - num_entities))
    filled = JaggedFeatures(features.keys, features.values, lengths.flatten())
    found = collection(keyed(filled))
    sums: Tensor = KeyedTensor.regroup([found], [[*features.keys]])[0]
    return sums[:num_entities]


def local_part(tensor: Tensor) -> Tensor | None:
    """Return what this process has of a tensor, which is all unless it is divided; None if that is nothing."""
    shards = _shards(tensor)
    if shards is None:
        return tensor
    assert len(shards) < 2, "the planner gives a process at most one part of a table"
    return shards[0].tensor if shards else None


def layout_of(tensor: Tensor) -> Any:
    """Return which process has which part of a divided tensor (torch's metadata); None if each has it all."""
    divided: Any = tensor
    return None if _shards(tensor) is None else divided.metadata()


def places_of(shard: Any) -> tuple[slice, ...]:
    """Return where a part, of which torch's metadata is given, is in the whole."""
    pairs = zip(shard.shard_offsets, shard.shard_sizes, strict=True)
    return tuple(slice(begin, begin + size) for begin, size in pairs)


def _shards(tensor: Tensor) -> Any:
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor

    return tensor.local_shards() if isinstance(tensor, ShardedTensor) else None


def _wrap(model: TwoTower, tables: list[FeatureEmbeddings], sharding: Sharding, device: torch.device) -> None:
    quiet_imports()
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv

    size = dist.get_world_size()
    local_size = _local_size(size)
    memory = memory_bytes() // local_size if device.type == "cpu" else gpu_bytes(device)
    planner, sharders = table_planner(tables, sharding, size, local_size, device, memory)
    with planning():
        plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=sharders,
        init_data_parallel=False,  # `Ranks.reduce` averages the gradients of all other weights
    )


def table_planner(
    tables: Sequence[FeatureEmbeddings],
    sharding: Sharding,
    size: int,
    local_size: int,
    device: torch.device,
    memory: int | None,
) -> tuple[Any, list[Any]]:
    """Return torchrec's planner for these tables, and the sharders that its plan is for.

    Args:
        tables: The tables, of which the planner reads the sizes alone.
        sharding: `[training] table_sharding`.
        size: Number of processes.
        local_size: Number of those that share a machine.
        device: Device of the tables.
        memory: Bytes of each process on that device, of which a table may take a part, because training keeps its
            bytes `TABLE_COPIES` times. None: torchrec's own figure.

    Raises:
        DataError: The vectors cannot be divided among so many processes (`column-wise`).
    """
    quiet_imports()
    from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.distributed.types import ShardingType

    class Sharder(FusedEmbeddingBagCollectionSharder):
        """torchrec hides row-wise division from its planner on a CPU, where it works as well."""

        def sharding_types(self, compute_device_type: str) -> list[str]:
            return [*{*super().sharding_types(compute_device_type), ShardingType.ROW_WISE.value}]

    least = _columns(tables, size) if sharding == "column-wise" else None
    collections: list[Any] = [part.collection for part in tables]
    constraints = {
        config.name: ParameterConstraints(
            sharding_types=_kinds(sharding, config.num_embeddings, size), compute_kernels=["fused"], min_partition=least
        )
        for one in collections
        for config in one.embedding_bag_configs()
    }
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    most = None if memory is None else memory // max((TABLE_COPIES[part.dtype] for part in tables), default=1)
    cap = {"hbm_cap" if device.type == "cuda" else "ddr_cap": most}
    topology = Topology(world_size=size, local_world_size=local_size, compute_device=device.type, **cap)
    planner = EmbeddingShardingPlanner(
        topology=topology, constraints=constraints, storage_reservation=FixedPercentageStorageReservation(RESERVED)
    )
    return planner, [Sharder()]


@contextmanager
def planning() -> Iterator[None]:
    """Let torchrec's planner fail in one line.

    Raises:
        DataError: The tables do not fit into the memory of the processes.
    """
    from torchrec.distributed.planner.types import PlannerError, PlannerErrorType

    try:
        yield
    except PlannerError as error:
        if error.error_type not in (PlannerErrorType.INSUFFICIENT_STORAGE, PlannerErrorType.STRICT_CONSTRAINTS):
            raise
        raise DataError(
            "torchrec's planner finds no way to divide the embedding tables so that each process has the memory for "
            "its part; `towers plan run.toml --processes N` says what they take, and which setting to change"
        ) from None


def _kinds(sharding: Sharding, num_rows: int, size: int) -> list[str]:
    """Return torchrec's names of the ways in which a table may be divided."""
    kinds = [*EXACT] if sharding == "auto" else [sharding.replace("-", "_")]
    is_empty_somewhere = -(-num_rows // size) * (size - 1) >= num_rows  # by rows; the kernels fail on a part of none
    return ["table_wise"] if "row_wise" in kinds and is_empty_somewhere else kinds


def _columns(tables: Sequence[FeatureEmbeddings], size: int) -> int:
    width = tables[0].width if tables else 4 * size
    if width % (4 * size):
        raise DataError(
            f"[training] table_sharding: vectors of {width} numbers cannot be divided among {size} processes, because "
            f'a part is a multiple of 4; set "row-wise", or [towers] embedding_dim to a multiple of {4 * size}'
        )
    return width // size


def gpu_bytes(device: torch.device) -> int:
    """Return the memory of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def _local_size(size: int) -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size))


def whole_weights(weights: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return all weights, on the host, to the first process; nothing to the others, which call it as well."""
    found = {}
    for name, weight in weights.items():
        layout = layout_of(weight)
        if layout is None:
            found[name] = weight.cpu()
            continue
        whole = torch.empty(layout.size, dtype=weight.dtype) if rank == 0 else None
        for shard in layout.shards_metadata:
            _fetch(weight, shard, whole, rank)
        if whole is not None:
            found[name] = whole
    return found if rank == 0 else {}


def _fetch(weight: Tensor, shard: Any, whole: Tensor | None, rank: int) -> None:
    """Bring a part of a tensor to its place in the whole, which the first process has."""
    owner = shard.placement.rank()
    if 0 in shard.shard_sizes:
        return
    if rank == owner:
        own = local_part(weight)
        assert own is not None, "its owner has it"
        part = own.detach().cpu().contiguous()
        if whole is None:
            dist.send(part, 0)
    elif whole is not None:
        part = torch.empty(shard.shard_sizes, dtype=weight.dtype)
        dist.recv(part, owner)
    if whole is not None:
        whole[places_of(shard)] = part
