"""This process among the others of a training that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from features.errors import DataError
from towers.process import end_with_parent
from training.config import Sharding
from training.loop.processes import OneProcess, Processes

LONGEST_WAIT = timedelta(minutes=30)
"""How long a process waits for the others in one exchange before it gives up."""


def is_launched() -> bool:
    """Return whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Return whether this process is the one that writes the bundle."""
    return os.environ.get("RANK", "0") == "0" or not is_launched()


def was_restarted() -> bool:
    """Return whether torchrun has started the processes again, after one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: of the GPUs of a machine each process has one.

    Raises:
        DataError: There are fewer GPUs than processes on this machine.
    """
    if device.type != "cuda":
        return device
    place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if place >= count:
        raise DataError(
            f"process {place + 1} of this machine has no GPU, as there are {count}; run torchrun with --nproc-per-node "
            f"{count}, or add --device cpu"
        )
    own = torch.device("cuda", place)
    torch.cuda.set_device(own)
    return own


@contextmanager
def processes_of(device: torch.device, sharding: Sharding) -> Iterator[tuple[Processes, torch.device]]:
    """Yield the processes of this training, and the device of this one: alone, or among those that torchrun started.

    Args:
        device: To train on.
        sharding: How several processes divide the embedding tables.

    Raises:
        DataError: Another process has ended, or there are fewer GPUs than processes.
    """
    if not is_launched():
        yield OneProcess(), device
        return
    end_with_parent()  # which also ends by `kill -9`, and would leave processes that train on
    own = own_device(device)
    with process_group(own):
        from training.distributed.ranks import Ranks

        yield Ranks(own, sharding), own


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes in this block. What is lost with one of them ends the others with one line.

    Raises:
        DataError: Another process has ended.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = _meeting()
        # torchrun's store outlives a restart, and has the addresses of the processes before.
        own = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        _check_backend(own, rank, backend)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=LONGEST_WAIT)
        yield
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        raise DataError(
            "another process of this training has ended or does not answer; its own message says why. With "
            "--max-restarts torchrun starts all again, and they go on from the last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meeting() -> tuple[Any, int, int]:
    """Return the store of all processes, the rank of this one, and their number.

    Raises:
        DataError: Variables that torchrun sets are missing or no numbers.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=LONGEST_WAIT))
    except ValueError as error:
        raise DataError(
            f"TORCHELASTIC_RUN_ID is set, as by torchrun, and other variables that it sets cannot be used ({error}); "
            "start the command with torchrun, or unset TORCHELASTIC_RUN_ID"
        ) from None
    return store, rank, size


def _check_backend(store: Any, rank: int, backend: str) -> None:
    """Check that all processes exchange in the same way, before an exchange that would wait for ever.

    Raises:
        DataError: This one has a GPU and the first none, or the other way round.
    """
    if rank == 0:
        store.set("backend", backend)
    elif (first := store.get("backend").decode()) != backend:
        raise DataError(
            f"process {rank} exchanges by {backend}, and process 0 by {first}: one has a GPU and the other none; give "
            "all the same --device"
        )


def _is_of_connection(error: RuntimeError) -> bool:
    """Return whether an exchange failed: gloo says so in a plain RuntimeError."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "Gloo", "NCCL"))
