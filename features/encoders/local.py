"""A sentence-transformers model on this machine, and how texts go through it fast.

A batch holds texts of about one length and as many as fit a number of tokens: padding is hardly computed, and what a
layer reads and writes stays in the processor's caches.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Int

from features.config import EncoderSettings
from features.encoders.cache import cache_folder
from features.encoders.folder import check_model
from features.encoders.graph import VERSION, Graph, Rectangle, export_graph
from features.encoders.model import Encoded, Role
from features.errors import DataError, needing

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TOKENS_A_BATCH = {"cpu": 1024, "cuda": 65_536}
"""Padding included. On a CPU more is slower, because it no longer fits the caches."""
TOKENS_A_ROUNDED_BATCH = 256
"""In whole numbers, where what flows is rounded for each batch."""
TEXTS_AT_ONCE = 8192
"""Texts that are sorted by length together."""
POOLINGS = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
"""Our names, and those of sentence-transformers."""


class LocalModel:
    """A local model; loaded on first use.

    Args:
        folder: The folder.
        settings: How it is used.
        digest: Of the folder's files.
        width: Dimensions of its vectors. None: read from the model, which is then loaded on first use.
        graph: Where its graph is kept, for those that compute in whole numbers; made if it is not there.
    """

    def __init__(
        self, folder: Path, settings: EncoderSettings, digest: str, width: int | None = None, graph: Path | None = None
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.digest = digest
        self._width = width
        self._graph = graph

    @property
    def fingerprint(self) -> str:
        """The files, and the settings that decide the vectors."""
        settings = self.settings
        deciding = [settings.pooling, settings.precision, settings.max_tokens, self.prompt("query")]
        return hashlib.sha256(json.dumps([self.digest, *deciding, self.prompt("document")]).encode()).hexdigest()[:24]

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        if self._width is None:
            self._width = int(self.model.get_embedding_dimension() or 0)
        return self._width

    def prompt(self, role: Role) -> str:
        """Return the prefix of each text: the setting, else the model's own."""
        own = self.settings.query_prompt if role == "query" else self.settings.document_prompt
        return self._prompts.get(role) or "" if own is None else own

    def encode(self, texts: Sequence[str], role: Role) -> Iterator[Encoded]:
        """Yield batches of vectors, texts of about one length together."""
        prompt = self.prompt(role)
        for begin in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = self.tokens([prompt + text for text in texts[begin : begin + TEXTS_AT_ONCE]])
            lengths = np.array([len(one) for one in tokens], dtype=np.int64)
            batches = [*budget_batches(lengths, self._tokens_a_batch)]
            rectangles = (padded([tokens[place] for place in places], self.padding) for places in batches)
            for places, vectors in zip(batches, self._vectors(rectangles), strict=True):
                yield begin + places, torch.nn.functional.normalize(vectors, dim=-1).numpy()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, cut off where the model ends to read."""
        encoded = self.model.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.longest,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        tokens: list[list[int]] = encoded["input_ids"]
        return tokens

    def _vectors(self, batches: Iterable[Rectangle]) -> Iterator[Float32[torch.Tensor, "batch width"]]:
        if self.settings.precision == "int8":
            yield from map(torch.from_numpy, self.graph.each(batches))
            return
        for ids, mask in batches:
            given = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
            with torch.inference_mode():
                vectors = self.model(given)["sentence_embedding"].float().cpu()
            yield vectors

    @property
    def longest(self) -> int:
        """How many tokens of a text are read."""
        longest = self.model.max_seq_length or 512
        return min(longest, self.settings.max_tokens or longest)

    @property
    def padding(self) -> int:
        """The padding token; masked."""
        return int(self.model.tokenizer.pad_token_id or 0)

    @cached_property
    def device(self) -> torch.device:
        """Where the model computes: a GPU if torch finds one; in whole numbers the CPU."""
        is_there = torch.cuda.is_available() and self.settings.precision != "int8"
        return torch.device("cuda" if is_there else "cpu")

    @property
    def _tokens_a_batch(self) -> int:
        return TOKENS_A_ROUNDED_BATCH if self.settings.precision == "int8" else TOKENS_A_BATCH[self.device.type]

    @property
    def graph_path(self) -> Path:
        """Path of the quantised ONNX graph, which is made if necessary."""
        path = self._graph or cache_folder() / "graphs" / f"{self.fingerprint}-{VERSION}.onnx"
        if not path.is_file():
            export_graph(load_model(self.folder, self.settings, attention="eager"), path, rounded=True)
        return path

    @cached_property
    def graph(self) -> Graph:
        """The model in whole numbers."""
        return Graph(self.graph_path)

    @cached_property
    def model(self) -> SentenceTransformer:
        """The model of sentence-transformers, in evaluation mode."""
        model = load_model(self.folder, self.settings).to(self.device)
        return model.to(torch.bfloat16) if self.settings.precision == "bfloat16" else model

    @cached_property
    def _prompts(self) -> dict[str, str]:
        path = self.folder / "config_sentence_transformers.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content.get("prompts") or {}


def load_model(folder: Path, settings: EncoderSettings, attention: str | None = None) -> SentenceTransformer:
    """Return the model in a folder with the pooling of the settings, in evaluation mode, on the CPU.

    Args:
        folder: The folder.
        settings: How it is used.
        attention: How attention is computed, as transformers call it. None: the fastest.

    Raises:
        DataError: It cannot be loaded, or the library for it is not there.
    """
    with needing("pretrained models of texts"):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling
    check_model(folder)
    try:
        chosen = {"use_safetensors": True} | ({"attn_implementation": attention} if attention else {})
        with quiet_models():
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=chosen)
    except Exception as error:  # the files may say anything
        said = " ".join(str(error).split())[:160]
        raise DataError(f"{folder}: not a model that sentence-transformers can load ({said})") from None
    if settings.pooling in POOLINGS:
        places = [place for place, module in enumerate(model) if isinstance(module, Pooling)]
        if not places:
            raise DataError(
                f'{folder}: has no pooling that could be replaced; leave out pooling = "{settings.pooling}"'
            )
        width = model[places[0]].embedding_dimension
        model[places[0]] = Pooling(width, pooling_mode=POOLINGS[settings.pooling])
    return model.eval()


@contextmanager
def quiet_models() -> Iterator[None]:
    """Keep progress bars and advice of the libraries from the user while models are read or written."""
    from transformers.utils import logging as advice

    known = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels, had_bars = [one.level for one in known], advice.is_progress_bar_enabled()
    advice.disable_progress_bar()  # type: ignore[no-untyped-call]
    for one in known:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(known, levels, strict=True):
            one.setLevel(level)
        if had_bars:
            advice.enable_progress_bar()  # type: ignore[no-untyped-call]


def budget_batches(lengths: Int[np.ndarray, "texts"], budget: int) -> Iterator[Int[np.ndarray, "batch"]]:
    """Yield places of texts, the longest first, so many together that they have at most `budget` tokens when padded.

    Example:
        >>> [batch.tolist() for batch in budget_batches(np.array([2, 5, 3, 2]), 6)]
        [[1], [2, 0], [3]]
    """
    order = np.argsort(-lengths, kind="stable")
    ends, begin = [0], 0
    while begin < len(order):
        begin += max(1, budget // max(1, int(lengths[order[begin]])))
        ends.append(min(begin, len(order)))
    for first, last in pairwise(ends):
        yield order[first:last]


def padded(tokens: Sequence[Sequence[int]], filling: int) -> Rectangle:
    """Return tokens as a rectangle, and a mask that is 1 where they are."""
    lengths = torch.tensor([len(one) for one in tokens])
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    ids = torch.full(mask.shape, filling)
    ids[mask.bool()] = torch.tensor([token for one in tokens for token in one])
    return ids, mask
