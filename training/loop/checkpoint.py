"""Checkpoints for exact resumption: all tensors and counters that the next step depends on.

A checkpoint is one safetensors file, replaced in one step: whenever the process dies, a complete one remains. It is
not a bundle and is never served.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from features.errors import DataError
from features.files import atomic_file

FORMAT = 2


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
        """Read what `save` wrote.

        Raises:
            DataError: There is no checkpoint, or one that cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                counters = json.loads(file.metadata()["counters"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError:
            raise DataError(f"{path}: no checkpoint to resume from; train without --resume") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: the checkpoint cannot be read ({error}); train without --resume") from None
        if counters.pop("format", None) != FORMAT:
            raise DataError(f"{path}: a checkpoint of another version of towers; train without --resume")
        return cls(tensors, counters)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose name begins with `prefix` and a dot, by the rest of the name."""
        start = f"{prefix}."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def add(self, prefix: str, tensors: dict[str, Tensor]) -> None:
        """Put tensors under `prefix`."""
        self.tensors.update({f"{prefix}.{name}": tensor for name, tensor in tensors.items()})
