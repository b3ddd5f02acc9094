"""Exports a (fine-tuned) text encoder of a bundle as an ONNX graph for other programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.encoders.folder import PARTS
from features.encoders.graph import INPUTS, OUTPUT, Graph, export_graph
from features.encoders.local import LocalModel, load_model, padded
from features.errors import DataError
from features.files import atomic_folder
from towers.bundle.bundle import ModelBundle
from towers.export.sentence_transformers import SentenceTransformerAdapter
from towers.model.text_encoder import TextEncoder

SAMPLE = ["a", "Wooden chair, large", "The quick brown fox jumps over the lazy dog", "Ein langer Satz " * 30]
"""Texts by which a graph is compared with its model before anybody relies on it."""
LEAST_COSINE = {False: 0.9999, True: 0.95}
"""Of the same text by the model and by its graph, rounded or not."""


def export_encoder(bundle: ModelBundle, name: str, output: Path, *, rounded: bool = False) -> float:
    """Write the graph, and return the lowest cosine of its vectors to those of the bundle.

    The graph goes from `input_ids` and `attention_mask` to vectors as the towers read them: of length one, turned so
    that the first numbers say most.

    Args:
        bundle: The bundle; it cannot be used for anything else afterwards.
        name: Of the model.
        output: The folder; one that is there is replaced.
        rounded: Whether weights become whole numbers of eight bits.

    Raises:
        DataError: The model runs elsewhere, or its graph does not say what it says.
    """
    pretrained = bundle.featurizer.pretrained[name]
    own = pretrained.model
    if not isinstance(own, LocalModel):
        raise DataError(f"encoder {name!r} runs behind {pretrained.settings.url}: there is nothing to export")
    expected = SentenceTransformerAdapter.of_encoder(bundle, name).encode_document(SAMPLE)
    with atomic_folder(output) as folder:
        export_graph(_turned(bundle, name), folder / "model.onnx", rounded=rounded)
        found = Graph(folder / "model.onnx")(*padded(pretrained.tokens(SAMPLE, "document"), own.padding))
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = float(((found * expected).sum(axis=1) / lengths).min())
        if cosine < LEAST_COSINE[rounded]:
            raise DataError(
                f"encoder {name!r}: its graph would have a cosine of {cosine:.4f} to it, expected "
                f"{LEAST_COSINE[rounded]}; {'leave out --int8' if rounded else 'this model cannot be exported'}"
            )
        for path in own.folder.iterdir():
            if path.suffix in PARTS and path.suffix != ".safetensors":
                shutil.copyfile(path, folder / path.name)
        (folder / "graph.json").write_text(json.dumps(_described(own), indent=1), encoding="utf-8")
    return cosine


def chosen_encoder(bundle: ModelBundle, name: str | None) -> str:
    """Return the name of the pretrained model that is meant: the one that there is, where none is named.

    Raises:
        DataError: There is none of this name, or there are several.
    """
    there = list(bundle.featurizer.pretrained)
    if name is None and len(there) == 1:
        return there[0]
    if name not in there:
        found = ", ".join(there) or "none"
        raise DataError(f"{bundle.path}: give --encoder the name of a pretrained model in it; there is {found}")
    return name


def _described(model: LocalModel) -> dict[str, object]:
    """Return what a program needs to know in order to use the graph."""
    prompts = {"query": model.prompt("query"), "document": model.prompt("document")}
    return {"inputs": INPUTS, "output": OUTPUT, "width": model.width, "max_tokens": model.longest, "prompts": prompts}


def _turned(bundle: ModelBundle, name: str) -> nn.Module:
    pretrained = bundle.featurizer.pretrained[name]
    assert isinstance(pretrained.model, LocalModel), "asked before"
    if pretrained.settings.is_trained:
        encoder = bundle.model.encoders[name]
        assert isinstance(encoder, TextEncoder), "the towers hold no others there"
        model = encoder.merged().cpu().float()
        transformer: Any = next(model.children())
        transformer.model.set_attn_implementation("eager")  # the one kind that is recognised, and fused
    else:
        model = load_model(pretrained.model.folder, pretrained.settings, attention="eager")
    return _Turned(model, torch.tensor(pretrained.rotation)).eval()


class _Turned(nn.Module):
    def __init__(self, model: nn.Module, rotation: Tensor) -> None:
        super().__init__()
        self.model = model
        self.rotation: Tensor
        self.register_buffer("rotation", rotation)

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors = self.model(given)["sentence_embedding"]
        return {"sentence_embedding": functional.normalize(vectors, dim=-1) @ self.rotation}
