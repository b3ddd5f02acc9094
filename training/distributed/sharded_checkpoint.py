"""Checkpoints of several processes: `torch.distributed.checkpoint`, in safetensors files.

Each process writes what it keeps to a file in a new folder. When all are there, `checkpoint.safetensors` is replaced by
one that has the counters and names the folder; only then is the folder before it removed. Whenever processes die, a
complete checkpoint remains. Any number of processes, and a training in one, can read it, because each file says which
part of which tensor it holds. The folder has to be on a file system that all processes see.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from features.errors import DataError
from training.distributed.sharded_tables import places_of
from training.loop.checkpoint import PARTS, PARTS_BYTES, Checkpoint, parts_of, reading

Layouts = Mapping[str, Any]
"""Which process has which part (torch's `ShardedTensorMetadata`), by the name of a tensor that is divided."""


def save_parts(checkpoint: Checkpoint, path: Path, layouts: Layouts) -> None:
    """Write a checkpoint in place of an older one; all processes call it.

    Raises:
        DataError: A process cannot write its part; the older one stays.
    """
    is_first = dist.get_rank() == 0
    folder: list[str | None] = [tempfile.mkdtemp(prefix=f"{PARTS}-", dir=path.parent) if is_first else None]
    dist.broadcast_object_list(folder, 0)
    assert folder[0] is not None, "the first process has made it"
    tensors = {name: _sharded(name, tensor.detach(), layouts) for name, tensor in checkpoint.tensors.items()}
    try:
        save(tensors, storage_writer=HuggingFaceStorageWriter(folder[0], save_distributed=True))
    except CheckpointException as error:
        shutil.rmtree(folder[0], ignore_errors=True)
        causes = ", ".join(f"process {rank}: {cause}" for rank, (cause, _) in error.failures.items())
        raise DataError(
            f"{path.parent}: the checkpoint cannot be written ({causes}); free space there if there is none left, then "
            "train with --resume, which goes on from the checkpoint before"
        ) from None
    if not is_first:
        return
    name = Path(folder[0]).name
    sizes = {part.name: part.stat().st_size for part in sorted(Path(folder[0]).iterdir())}
    Checkpoint(counters={**checkpoint.counters, PARTS: name, PARTS_BYTES: sizes}).save(path)
    for older in path.parent.glob(f"{PARTS}-*"):
        if older.name != name:
            shutil.rmtree(older, ignore_errors=True)


def load_parts(path: Path, layouts: Layouts) -> Checkpoint:
    """Read this process's part of a checkpoint; all processes call it.

    Raises:
        DataError: There is no checkpoint, it cannot be read, or it has the step sizes of parts of rows, for another
            number of processes (`column-wise`).
    """
    counters = Checkpoint.load_counters(path)
    if (folder := parts_of(path, counters)) is None:  # a training in one process wrote it
        whole = Checkpoint.load(path).tensors
        parts = {
            name: tensor[places_of(shard)] for name, tensor in whole.items() for shard in _own_shards(name, layouts)
        }
        undivided = {name: tensor for name, tensor in whole.items() if not _is_divided(name, layouts)}
        return Checkpoint(undivided | parts, counters)
    with reading(path, CheckpointException):
        reader = HuggingFaceStorageReader(str(path.parent / folder))
        saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
        own: dict[str, Tensor] = {}
        for name, one in saved.items():
            if not _is_divided(name, layouts):
                own[name] = torch.empty(one.size, dtype=one.properties.dtype)
            for shard in _own_shards(name, layouts):
                _check_size(path, name, one.size, layouts)
                device = shard.placement.device()
                own[name] = torch.empty(shard.shard_sizes, dtype=one.properties.dtype, device=device)
        load({name: _sharded(name, one, layouts) for name, one in own.items()}, storage_reader=reader)
    return Checkpoint(own, counters)


def _name_in_layouts(name: str) -> str:
    """Return the name of a weight without the part of the checkpoint: `model.`, `average.`, `best.` or `tables.`."""
    return name.partition(".")[2]


def _is_divided(name: str, layouts: Layouts) -> bool:
    """Return whether a tensor is divided; the states of a table that is elsewhere have no layout here."""
    return name.startswith("tables.") or _name_in_layouts(name) in layouts


def _own_shards(name: str, layouts: Layouts) -> list[Any]:
    layout = layouts.get(_name_in_layouts(name))
    shards = [] if layout is None else layout.shards_metadata
    return [shard for shard in shards if shard.placement.rank() == dist.get_rank()]


def _sharded(name: str, part: Tensor, layouts: Layouts) -> Tensor:
    """Return a part as torch's `ShardedTensor`, which knows its place in the whole; what is not divided as it is."""
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor
    from torch.distributed._shard.sharded_tensor.shard import Shard

    shards = [Shard(part, shard) for shard in _own_shards(name, layouts)]
    if not shards:
        return part
    layout = layouts[_name_in_layouts(name)]
    layout = replace(layout, tensor_properties=replace(layout.tensor_properties, dtype=part.dtype))  # of an average
    divided: Tensor = ShardedTensor._init_from_local_shards_and_global_metadata(shards, layout)
    return divided


def _check_size(path: Path, name: str, saved: torch.Size, layouts: Layouts) -> None:
    here = layouts[_name_in_layouts(name)].size
    if tuple(saved) != tuple(here):
        raise DataError(
            f"{path}: {name} has the size {tuple(saved)}, here {tuple(here)}; a training with table_sharding = "
            '"column-wise" is resumed with as many processes as wrote the checkpoint'
        )
