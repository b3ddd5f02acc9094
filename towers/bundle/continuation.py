"""What a bundle keeps for `towers train --continue` beyond its weights.

Which interactions they were trained on, and the state of the embedding tables' optimiser: row-wise Adagrad divides the
learning rate of each row by what its gradients have summed up to. Without these sums, one number a row, the first steps
would move all rows as far as those of a model without any training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.sequences.trained_events import TrainedEvents

CONTINUATION = "continuation.safetensors"
"""Name of the file. Bundles of trainings in several processes have none."""

_EVENTS, _TABLES = "events", "tables"


@dataclass(frozen=True)
class Continuation:
    """What a later training continues from.

    Attributes:
        trained: Which interactions the weights were trained on.
        table_states: Of each row of each embedding table, the sum of its mean squared gradients, by table.
    """

    trained: TrainedEvents
    table_states: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors = {f"{_EVENTS}.{name}": torch.from_numpy(array) for name, array in self.trained.to_arrays().items()}
        tensors |= {f"{_TABLES}.{name}": state.detach().cpu().contiguous() for name, state in self.table_states.items()}
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> Continuation:
        """Read what `save` wrote."""
        parts: dict[str, dict[str, Tensor]] = {_EVENTS: {}, _TABLES: {}}
        for name, tensor in load_file(path).items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = tensor
        trained = TrainedEvents.from_arrays({name: tensor.numpy() for name, tensor in parts[_EVENTS].items()})
        return cls(trained, parts[_TABLES])
