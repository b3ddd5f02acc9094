"""Embedding tables for sparse features; the only file that uses torchrec.

In training the tables update themselves in the backward pass (row-wise Adagrad, fused into the kernel, so that a
gradient is never stored): torchrec's fused collection. Everywhere else they are torch's own, with the same names and
weights, so that a service does not import torchrec, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from features.sequences.batches import JaggedFeatures

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim.keyed import KeyedOptimizer


class FeatureEmbeddings(nn.Module):
    """One table per sparse feature; a bag of n rows becomes their sum divided by sqrt(n).

    So a bag is about as long as a single row, whatever n. The division is outside of the tables: per-sample weights
    would do the same, but fbgemm then computes their gradients, which are not needed and take longer than the rest.

    The tables are on torch's default device at the time.

    Args:
        tables: Rows of each feature's table, by feature.
        width: Numbers in a row.
        learning_rate: Of the fused row-wise Adagrad. None: the tables are not trained.
        corrections: The features whose tables begin with zeros.
        dtype: Type of the weights, `torch.float32` or `torch.float16`; bags are summed in float32. In training on a CPU
            an updated row is rounded to the nearest, on a GPU stochastically (by fbgemm's default, not run); the state
            of Adagrad is float32.
    """

    def __init__(
        self,
        tables: dict[str, int],
        width: int,
        *,
        learning_rate: float | None = None,
        corrections: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.collection: EmbeddingBags | FusedEmbeddingBagCollection = (
            EmbeddingBags(list(tables.values()), width, dtype)
            if learning_rate is None
            else _fused_tables(tables, width, learning_rate, dtype)
        )
        self.names = list(tables)
        self.width = width
        self.dtype = dtype
        self.look_up_elsewhere: Callable[[Any, JaggedFeatures], Tensor] | None = None
        """Looks up tables that are divided among processes (see `training.distributed.sharded_tables`), given the
        collection and the features, and returns the sums of the bags, those of each entity side by side."""
        self._initialize([name in corrections for name in tables])

    def _initialize(self, is_correction: Sequence[bool]) -> None:
        """Draw rows of about unit length, so that all features have equal initial weight; corrections are zero."""
        for weight, is_silent in zip(self.collection.state_dict().values(), is_correction, strict=True):
            with torch.no_grad():
                weight.normal_(0, 0.0 if is_silent else self.width**-0.5)

    def rows(self, feature: str) -> Float[Tensor, "rows width"]:
        """Return the table of a feature, whose rows may be overwritten."""
        weights: list[Tensor] = list(self.collection.state_dict().values())
        return weights[self.names.index(feature)]

    @property
    def fused_optimizer(self) -> KeyedOptimizer | None:
        """The optimizer inside the tables; None when they are not trained."""
        return None if isinstance(self.collection, EmbeddingBags) else self.collection.fused_optimizer()

    def forward(self, features: JaggedFeatures) -> Float[Tensor, "entities features width"]:
        """Return the pooled vector of each feature of each entity; the features are those of the tables, in order."""
        sums = self._sums(features)
        sizes = features.lengths.view(len(self.names), -1).T
        return sums.view(-1, len(self.names), self.width) * sizes.clamp(min=1).rsqrt()[..., None]

    def _sums(self, features: JaggedFeatures) -> Float[Tensor, "entities tables_times_width"]:
        if self.look_up_elsewhere is not None:
            return self.look_up_elsewhere(self.collection, features)
        is_plain = isinstance(self.collection, EmbeddingBags)
        sums: Tensor = self.collection(features) if is_plain else self.collection(keyed(features)).values()
        return sums


class EmbeddingBags(nn.Module):
    """Embedding tables that are looked up and not trained.

    Args:
        rows: Rows of each table.
        width: Numbers in a row.
        dtype: Type of the weights.
    """

    def __init__(self, rows: Sequence[int], width: int, dtype: torch.dtype) -> None:
        super().__init__()
        # torchrec's names, so that the weights of a training fit.
        self.embedding_bags = nn.ModuleDict(
            {
                f"table_{place}": nn.EmbeddingBag(
                    size, width, mode="sum", include_last_offset=True, _weight=torch.empty(size, width, dtype=dtype)
                )
                for place, size in enumerate(rows)
            }
        )

    def forward(self, features: JaggedFeatures) -> Float[Tensor, "entities tables_times_width"]:
        """Return the float32 sums of the rows of each bag, those of the tables side by side."""
        lengths = features.lengths.view(len(self.embedding_bags), -1).long()
        offsets = functional.pad(lengths.cumsum(dim=1), (1, 0))
        values = features.values.split(offsets[:, -1].tolist())
        return torch.cat(
            [_sums(bag, *given) for bag, *given in zip(self.embedding_bags.values(), values, offsets, strict=True)],
            dim=1,
        )


def _sums(bag: nn.Module, rows: Tensor, offsets: Tensor) -> Tensor:
    """Return the sums of bags in float32, as the fused kernel does; torch's own would round those of float16 tables."""
    weight = bag.weight
    assert isinstance(weight, Tensor)
    if weight.dtype != torch.float32:
        rows, weight = torch.arange(len(rows), device=rows.device), weight[rows].float()
    return functional.embedding_bag(rows, weight, offsets, mode="sum", include_last_offset=True)


def _fused_tables(
    tables: Mapping[str, int], width: int, learning_rate: float, dtype: torch.dtype
) -> FusedEmbeddingBagCollection:
    """Return torchrec's tables with a row-wise Adagrad in their backward pass."""
    from torchrec.modules.embedding_configs import (
        EmbeddingBagConfig,
        PoolingType,
        data_type_to_sparse_type,
        dtype_to_data_type,
    )
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    data_type = dtype_to_data_type(dtype)
    configs = [
        EmbeddingBagConfig(
            name=f"table_{place}",
            embedding_dim=width,
            num_embeddings=num_rows,
            feature_names=[feature],
            pooling=PoolingType.SUM,
            data_type=data_type,
        )
        for place, (feature, num_rows) in enumerate(tables.items())
    ]
    collection = FusedEmbeddingBagCollection(
        tables=configs,
        optimizer_type=RowWiseAdagrad,
        optimizer_kwargs={"lr": learning_rate, "weights_precision": data_type_to_sparse_type(data_type)},
        is_weighted=False,
        device=torch.get_default_device(),
    )
    # Tables that are whole ignore `data_type`; the kernel of divided ones takes it and must not get the other as well.
    del collection.optimizer_kwargs()["weights_precision"]
    return collection


def keyed(features: JaggedFeatures) -> KeyedJaggedTensor:
    """Return the features as torchrec takes them."""
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor(keys=list(features.keys), values=features.values, lengths=features.lengths)
