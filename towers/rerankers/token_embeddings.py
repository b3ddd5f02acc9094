"""The vectors of the tokens of texts, a byte a number: what late interaction compares, made once for each item.

They lie in `index/tokens.safetensors` of a bundle whose ranker is of that kind, as what is written of today's items
changes with the tables, and know which model made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int8, Int64
from safetensors.numpy import save_file

from features.config import EncoderSettings
from features.encoders.local import TOKENS_A_BATCH, load_model
from features.encoders.model import Role
from features.files import mapped
from features.sequences.ragged import check_offsets, offsets_of, ragged_arange
from towers.model.precision import fastest_precision
from towers.rerankers.reranker import MOST_CHARACTERS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS_AT_ONCE = 256
_MOST = 127


@dataclass(frozen=True)
class TokenReader:
    """A bi-encoder of sentence-transformers whose vectors of tokens are looked at one by one.

    Attributes:
        model: It, made to read no more than `max_tokens`.
    """

    model: SentenceTransformer

    @classmethod
    def open(cls, folder: Path, max_tokens: int, precision: torch.dtype | None = None) -> TokenReader:
        """Return the reader whose model is in a folder, on the CPU.

        Args:
            folder: As sentence-transformers writes it, with safetensors.
            max_tokens: How many tokens of a text are read, from the first.
            precision: Of the computation. None: the fastest of this processor.

        Raises:
            DataError: It cannot be loaded, or the library for it is not there.
        """
        model = load_model(folder, EncoderSettings(model=str(folder)))
        model.to(precision or fastest_precision(torch.device("cpu")))
        model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
        return cls(model)

    def read(self, texts: Sequence[str], role: Role) -> list[Float32[np.ndarray, "tokens width"]]:
        """Return the unit vectors of the tokens of each text; none for empty texts."""
        prompt = role if role in (self.model.prompts or {}) else None
        found = self.model.encode(
            [text[:MOST_CHARACTERS] or " " for text in texts],
            prompt_name=prompt,
            batch_size=max(1, TOKENS_A_BATCH["cpu"] // (self.model.max_seq_length or 1)),
            output_value="token_embeddings",
            show_progress_bar=False,
            convert_to_numpy=False,
        )
        return [
            torch.nn.functional.normalize(one[: len(one) if text else 0].float(), dim=-1).cpu().numpy()
            for one, text in zip(found, texts, strict=True)
        ]


@dataclass(frozen=True)
class TokenVectors:
    """The vectors of the tokens of texts, each number rounded to a 127th of the greatest of its vector; jagged.

    Attributes:
        offsets: Where each text's begin, `[texts + 1]`.
        values: The numbers, `[tokens, width]`.
        scales: What a vector's numbers are multiples of, `[tokens]`.
        made_by: The digest of the ranker that they were made for.
    """

    offsets: Int64[np.ndarray, " texts_plus_1"]
    values: Int8[np.ndarray, "tokens width"]
    scales: Float32[np.ndarray, " tokens"]
    made_by: str = ""

    @classmethod
    def of(
        cls,
        reader: TokenReader,
        texts: Sequence[str],
        made_by: str = "",
        progress: Callable[[int], object] = lambda done: None,
    ) -> TokenVectors:
        """Return the vectors of the tokens of texts.

        Args:
            reader: Makes them.
            texts: They.
            made_by: The digest of the ranker that they are made for.
            progress: Called with the number of texts just done.
        """
        lengths = np.zeros(len(texts), dtype=np.int64)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            vectors = reader.read(texts[start : start + TEXTS_AT_ONCE], "document")
            lengths[start : start + len(vectors)] = [len(one) for one in vectors]
            parts.append(rounded(np.concatenate(vectors)))
            progress(len(vectors))
        width = reader.model.get_embedding_dimension() or 0
        return cls(
            offsets_of(lengths),
            np.concatenate([np.zeros((0, width), np.int8), *(values for values, _ in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(scales for _, scales in parts)]),
            made_by,
        )

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.offsets) - 1

    @property
    def num_bytes(self) -> int:
        """Size in memory, in bytes."""
        return self.offsets.nbytes + self.values.nbytes + self.scales.nbytes

    def take(
        self, rows: Int64[np.ndarray, " rows"]
    ) -> tuple[Int64[np.ndarray, " rows_plus_1"], Float32[np.ndarray, "tokens width"]]:
        """Return the offsets and vectors of some texts."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        places = ragged_arange(self.offsets[rows], lengths)
        return offsets_of(lengths), self.values[places] * self.scales[places, None]

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        arrays = {"offsets": self.offsets, "values": self.values, "scales": self.scales}
        save_file(arrays, path, {"about": json.dumps({"made_by": self.made_by})})

    @classmethod
    def load(cls, path: Path) -> TokenVectors:
        """Read what `save` wrote; the numbers stay where they lie on disk, shared by all processes."""
        arrays, about = mapped(path, "F32", "I64", "I8")
        offsets, values, scales = (arrays[name] for name in ("offsets", "values", "scales"))
        check_offsets(offsets, len(offsets) - 1, len(values))
        if len(values) != len(scales):
            raise ValueError(f"{len(values)} vectors of tokens with {len(scales)} scales")
        return cls(offsets, values, scales, json.loads(about["about"])["made_by"])


def rounded(vectors: Float32[np.ndarray, "tokens width"]) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors as whole numbers of eight bits, and what each vector's are multiples of."""
    scales = np.abs(vectors).max(axis=1, initial=0.0) / _MOST
    values = np.rint(vectors / np.maximum(scales, np.finfo(np.float32).tiny)[:, None])
    return values.astype(np.int8), scales.astype(np.float32)
