"""A GPU that is pretended: what fails on a GPU for having tensors on two devices fails without one, too.

torch's meta device stands for the GPU. Its tensors usually have no numbers; here each wraps a tensor of the CPU, and
computes with that. An operation on tensors of both devices raises an error where CUDA raises one, as does `.numpy()`.
Not pretended: kernels and their rounding, memory, streams, FAISS, fbgemm (embedding tables that are trained compute on
the CPU, and check where their input is), and code that asks for the name `cuda`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from features.encoders.local import TOKENS_A_BATCH
from features.sequences.batches import JaggedFeatures
from towers.bundle import bundle
from towers.model import embeddings

CPU, GPU = torch.device("cpu"), torch.device("meta")
ops = torch.ops.aten
COPIES = (ops.copy_.default, ops._to_copy.default)
GATHERS, SCATTERS = (ops.index.Tensor,), (ops.index_put_.default, ops._index_put_impl_.default)


class GpuTensor(Tensor):
    """A tensor on the GPU, whose numbers are in `inner`, on the CPU."""

    is_cuda = True

    @staticmethod
    def __new__(cls, inner: Tensor) -> GpuTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __getitem__(self, places: Any) -> Tensor:
        # Of a list torch makes a tensor without numbers.
        found: Tensor = super().__getitem__(torch.tensor(places) if isinstance(places, list) else places)
        return found

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor(..., device=GPU)`, which torch does not dispatch."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or CPU) == GPU:
            return torch.tensor(*args, **{**kwargs, "device": CPU}).to(GPU)
        return function(*args, **kwargs)


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an operation makes, computed on the CPU; raise an error where CUDA would."""
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    _check(function, args, given)
    is_on_gpu = any(isinstance(one, GpuTensor) for one in given)
    if kwargs.get("device") is not None:
        is_on_gpu = torch.device(kwargs["device"]) == GPU
        kwargs = {**kwargs, "device": CPU}
    elif function is ops.copy_.default:
        is_on_gpu = isinstance(args[0], GpuTensor)
    found = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not is_on_gpu:
        return found
    own = {id(one.inner): one for one in given if isinstance(one, GpuTensor)}  # what was changed in place stays itself
    return tree_map(lambda one: own.get(id(one), GpuTensor(one)) if isinstance(one, Tensor) else one, found)


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, GpuTensor) else one


def _check(function: Any, args: Any, given: list[Tensor]) -> None:
    """Raise an error for tensors on two devices: numbers go with both, and what is on the GPU is indexed from both."""
    assert all(isinstance(one, GpuTensor) or one.device == CPU for one in given), f"{function}: no numbers"
    if function in COPIES:
        return
    if function in (*GATHERS, *SCATTERS) and isinstance(args[0], GpuTensor):
        given = [args[0], *args[2:3]] if function in SCATTERS else []
    devices = {isinstance(one, GpuTensor) for one in given if one.dim() or isinstance(one, GpuTensor)}
    if len(devices) > 1:
        found = ", ".join(f"{tuple(one.shape)} on {'GPU' if isinstance(one, GpuTensor) else 'CPU'}" for one in given)
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, found {found}")


def _on_gpu(module: Any, weights: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Put the weights of a collection on the GPU, where a state dict has them."""
    for name, one in weights.items():
        if name.startswith(prefix) and not isinstance(one, GpuTensor):
            weights[name] = GpuTensor(one)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Yield a device that is pretended to be a GPU while the block lasts."""
    fused_tables, sums = embeddings._fused_tables, embeddings.FeatureEmbeddings._sums

    def tables(*given: Any) -> Any:
        is_on_gpu = torch.get_default_device() == GPU
        with CPU:
            collection = fused_tables(*given)
        if is_on_gpu:
            collection.register_state_dict_post_hook(_on_gpu)
            collection.is_on_gpu = True
        return collection

    def looked_up(self: embeddings.FeatureEmbeddings, features: JaggedFeatures) -> Tensor:
        if not getattr(self.collection, "is_on_gpu", False):
            return sums(self, features)
        if not isinstance(features.values, GpuTensor):
            raise RuntimeError("embedding tables are on the GPU, and what is looked up is on the CPU")
        return sums(self, features.to(CPU)).to(GPU)

    def loaded(path: Path, device: str) -> dict[str, Tensor]:
        return {name: one.to(device) for name, one in load_file(path).items()}

    with (
        patch.object(embeddings, "_fused_tables", tables),
        patch.object(embeddings.FeatureEmbeddings, "_sums", looked_up),
        patch.dict(TOKENS_A_BATCH, {GPU.type: TOKENS_A_BATCH["cuda"]}),
        patch.object(Tensor, "pin_memory", lambda self: self),
        patch.object(torch, "inference_mode", torch.no_grad),  # whose tensors cannot be wrapped
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
        patch.object(bundle, "load_file", loaded),
        _Literals(),
        _Operations(),
    ):
        yield GPU
