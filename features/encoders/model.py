"""The interface of text encoders, local or behind a service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float32, Int

Role = Literal["query", "document"]
"""Role of a text: `query` (user side) or `document` (item side)."""

Encoded = tuple[Int[np.ndarray, "batch"], Float32[np.ndarray, "batch width"]]
"""Places of texts in the sequence given, and their vectors."""


class TextModel(Protocol):
    """Texts to vectors of length one."""

    @property
    def fingerprint(self) -> str:
        """Everything that decides the vectors, in a few letters: models of one fingerprint give the same vectors."""

    @property
    def width(self) -> int:
        """How many numbers a vector has."""

    def encode(self, texts: Sequence[str], role: Role) -> Iterator[Encoded]:
        """Yield batches of vectors as they are made, in any order.

        Raises:
            DataError: The model cannot be loaded.
        """
