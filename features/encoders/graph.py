"""A pretrained model as an ONNX graph, in whole numbers of eight bits: what a plain processor does fast.

Weights are rounded for each row of a matrix by itself, what flows between them for each batch. A batch runs on one
thread, and as many batches at a time as there are threads: each stays in the caches of its core, and none waits for
the others at every step of the way.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor, nn

from features.errors import needing
from features.files import atomic_file

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

VERSION = 2
"""Version of the graph export; cached graphs of another version are exported again."""
OPSET = 17
INPUTS = ["input_ids", "attention_mask"]
OUTPUT = "sentence_embedding"
ROUNDED = ["MatMul", "Attention"]
TRANSFORMER = "/model.0/"
"""In the names of its nodes: the first module of the model."""


Rectangle = tuple[Int[Tensor, "_texts _length"], Int[Tensor, "_texts _length"]]
"""The tokens of a batch of texts, and a mask that is 1 where they are."""


class Graph:
    """A graph that is ready to run.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        with needing("ONNX graphs"):
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session: InferenceSession = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, ids: Int[Tensor, "texts length"], mask: Int[Tensor, "texts length"]
    ) -> Float32[np.ndarray, "texts width"]:
        """Return the vectors of texts."""
        given = dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True))
        vectors: np.ndarray = np.asarray(self._session.run(None, given)[0])
        return vectors

    def each(self, batches: Iterable[Rectangle]) -> Iterator[Float32[np.ndarray, "_texts _width"]]:
        """Yield the vectors of each batch, in their order."""
        given = [*batches]
        at_once = min(torch.get_num_threads(), len(given))
        if at_once < 2:
            yield from (self(*batch) for batch in given)
            return
        with ThreadPoolExecutor(at_once) as workers:
            yield from workers.map(lambda batch: self(*batch), given)


def export_graph(model: nn.Module, path: Path, *, rounded: bool) -> None:
    """Write a model of sentence-transformers as an ONNX graph from `input_ids` and `attention_mask` to vectors.

    Args:
        model: With plain attention (`attn_implementation="eager"`), which alone is recognised and fused.
        path: The file; it appears complete or not at all.
        rounded: Whether weights become whole numbers of eight bits.

    Raises:
        DataError: The libraries for it are not there.
    """
    with needing("ONNX graphs"):
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions
    example = torch.ones(2, 8, dtype=torch.int64)
    fusion = FusionOptions("bert")
    fusion.enable_skip_layer_norm = False  # on a CPU the fused kernel takes several times as long as its parts
    with tempfile.TemporaryDirectory() as folder, atomic_file(path) as temporary, _quiet():
        whole, fused = Path(folder) / "whole.onnx", Path(folder) / "fused.onnx"
        torch.onnx.export(
            _Vectors(model),
            (example, example),
            str(whole),
            input_names=INPUTS,
            output_names=[OUTPUT],
            dynamic_axes={name: {0: "texts", 1: "length"} for name in INPUTS},
            opset_version=OPSET,
            dynamo=False,
        )
        optimizer.optimize_model(
            str(whole), model_type="bert", opt_level=0, optimization_options=fusion
        ).save_model_to_file(str(fused))
        if not rounded:
            temporary.write_bytes(fused.read_bytes())
            return
        quantize_dynamic(
            fused,
            temporary,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=ROUNDED,
            nodes_to_exclude=_after_the_transformer(fused),
            extra_options={"DefaultTensorType": 1},  # float, where fused parts hide what they return
        )


def _after_the_transformer(path: Path) -> list[str]:
    """Return the matrix products outside of the transformer, pooling and rotation, which are not quantised."""
    import onnx

    products = [node.name for node in onnx.load(path).graph.node if node.op_type == "MatMul"]
    after = [name for name in products if TRANSFORMER not in name]
    assert len(after) < len(products), f"the exporter names parts otherwise now: {products[:3]}"
    return after


class _Vectors(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vectors: Tensor = self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]
        return vectors


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's and the optimizer's advice to their developers from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
