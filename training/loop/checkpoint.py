"""Checkpoints for exact resumption: all tensors and counters that the next step depends on.

A checkpoint is one safetensors file, replaced in one step: whenever the process dies, a complete one remains. It is
not a bundle and is never served.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from features.errors import DataError
from features.files import atomic_file

FORMAT = 3
PARTS = "parts"
"""Counter of a checkpoint of several processes: the name of the folder of its tensors, which is where the file is."""
PARTS_BYTES = "parts_bytes"
"""Counter next to it: the bytes of each file in that folder, by name."""


@dataclass
class Checkpoint:
    """The state of a training run.

    Attributes:
        tensors: Weights, optimizer states, generator states and the best weights so far, by name.
        counters: Numbers and short texts: epoch, batch, steps, the best so far.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the checkpoint in place of an older one; the older one stays if this fails."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        content = json.dumps({"format": FORMAT, **self.counters})
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"counters": content})

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read what `save` wrote, or what several processes wrote (`training.distributed.sharded_checkpoint`).

        Raises:
            DataError: There is no checkpoint, or one that cannot be read.
        """
        counters = cls.load_counters(path)
        folder = parts_of(path, counters)
        if folder is not None:
            return cls(_read_parts(path, folder), counters)
        with reading(path), safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return cls(tensors, counters)

    @classmethod
    def load_counters(cls, path: Path) -> dict[str, Any]:
        """Read the counters of a checkpoint alone; errors as of `load`."""
        with reading(path), safe_open(path, framework="pt") as file:
            counters: dict[str, Any] = json.loads(file.metadata()["counters"])
        if counters.pop("format", None) != FORMAT:
            raise DataError(f"{path}: a checkpoint of another version of towers; train without --resume")
        return counters

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose name begins with `prefix` and a dot, by the rest of the name."""
        start = f"{prefix}."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def add(self, prefix: str, tensors: dict[str, Tensor]) -> None:
        """Put tensors under `prefix`."""
        self.tensors.update({f"{prefix}.{name}": tensor for name, tensor in tensors.items()})


@contextmanager
def reading(path: Path, *errors: type[BaseException]) -> Iterator[None]:
    """Let what goes wrong in reading a checkpoint be a `DataError` that says what to do; `errors` too."""
    unreadable: tuple[type[BaseException], ...] = (*errors, SafetensorError, OSError, KeyError, TypeError, ValueError)
    try:
        yield
    except DataError:  # which is a ValueError, and says it better
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no checkpoint to resume from; train without --resume") from None
    except unreadable as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise DataError(f"{path}: the checkpoint cannot be read ({reason}); train without --resume") from None


def parts_of(path: Path, counters: dict[str, Any]) -> str | None:
    """Return the name of the folder of the tensors, and take what is said of it out of the counters.

    Returns:
        The name. None: the tensors are in the file itself.

    Raises:
        DataError: A file of the folder is missing or cut off. A reader would take what is left for the whole.
    """
    folder, files = counters.pop(PARTS, None), counters.pop(PARTS_BYTES, {})
    for name, num_bytes in files.items():
        part = path.parent / str(folder) / name
        found = f"{part.stat().st_size:,} bytes" if part.is_file() else "no file"
        if found != f"{num_bytes:,} bytes":
            raise DataError(
                f"{part}: expected {num_bytes:,} bytes, found {found}; put it back, or train without --resume"
            )
    return None if folder is None else str(folder)


def _read_parts(path: Path, folder: str) -> dict[str, Tensor]:
    """Read whole tensors of which several processes wrote a part each."""
    # They take a second to load, which a training in one process is spared.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with reading(path, CheckpointException), warnings.catch_warnings():
        reader = HuggingFaceStorageReader(str(path.parent / folder))
        saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
        tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in saved.items()}
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)  # as it should
        load({**tensors}, storage_reader=reader, no_dist=True)
    return tensors
