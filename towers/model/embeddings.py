"""Embedding tables for sparse features, on torchrec: the only file that builds its collections.

In training the tables update themselves in the backward pass (row-wise Adagrad, fused into the kernel, so that a
gradient is never stored); everywhere else they are torchrec's plain collection with the same names and weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad


class FeatureEmbeddings(nn.Module):
    """One table per sparse feature; a bag of n rows becomes their sum divided by sqrt(n).

    So a bag is about as long as a single row, whatever n. The division stands outside of the collection: per-sample
    weights would do the same, but fbgemm then computes their gradients, which are not needed and take longer than the
    rest.

    The tables stand on torch's default device at the time.

    Args:
        tables: Rows of each feature's table, by feature.
        width: Numbers in a row.
        learning_rate: Of the fused row-wise Adagrad. None: the tables are not trained.
        corrections: The features whose tables begin with zeros.
    """

    def __init__(
        self,
        tables: dict[str, int],
        width: int,
        *,
        learning_rate: float | None = None,
        corrections: Sequence[str] = (),
    ) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(
                name=f"table_{place}",
                embedding_dim=width,
                num_embeddings=num_rows,
                feature_names=[feature],
                pooling=PoolingType.SUM,
            )
            for place, (feature, num_rows) in enumerate(tables.items())
        ]
        if learning_rate is None:
            self.collection: nn.Module = EmbeddingBagCollection(tables=configs, is_weighted=False)
        else:
            self.collection = FusedEmbeddingBagCollection(
                tables=configs,
                optimizer_type=RowWiseAdagrad,
                optimizer_kwargs={"lr": learning_rate},
                is_weighted=False,
                device=torch.get_default_device(),
            )
        self.names = list(tables)
        self.width = width
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
        if isinstance(self.collection, FusedEmbeddingBagCollection):
            return self.collection.fused_optimizer()
        return None

    def forward(self, features: KeyedJaggedTensor) -> Float[Tensor, "entities features width"]:
        """Return the pooled vector of each feature of each entity."""
        sums = self.collection(features).values().view(-1, len(self.names), self.width)
        sizes = features.lengths().view(len(self.names), -1).T
        pooled: Tensor = sums * sizes.clamp(min=1).rsqrt()[..., None]
        return pooled
