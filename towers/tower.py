"""Features of entities to one vector each: every feature adds its part, and the sum is what the entity is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from features.batches import EntityFeatures
from features.featurizer import FeatureSizes
from features.schema import Feature
from towers.embeddings import FeatureEmbeddings


class FeatureTower(nn.Module):
    """The sum of one vector per sparse feature and a projection of the dense numbers.

    Because it is a sum, a feature that is missing or unknown takes its part away and nothing else: an item without a
    trained id stands on its text and attributes. In training ids are hidden at random so that this is practised.

    Args:
        features: The features, in the order of the schema.
        sizes: What the featurizer says the tables must hold.
        width: Numbers in the result.
        id_dropout: Share of the ids that are hidden in training.
        learning_rate: Of the embedding tables; None: not trained.
    """

    def __init__(
        self,
        features: tuple[Feature, ...],
        sizes: FeatureSizes,
        width: int,
        *,
        id_dropout: float = 0.0,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.id_dropout = id_dropout
        self.embeddings = FeatureEmbeddings(sizes.tables, width, learning_rate=learning_rate) if sizes.tables else None
        self.dense = nn.Linear(sizes.dense, width, bias=False) if sizes.dense else None
        kinds = {feature.name: feature.kind for feature in features}
        is_id = torch.tensor([kinds[name] == "id" for name in sizes.tables], dtype=torch.bool)
        self.is_id: Tensor
        self.register_buffer("is_id", is_id, persistent=False)
        self.has_other_features = sizes.dense > 0 or not bool(is_id.all())

    def forward(self, features: EntityFeatures) -> Float[Tensor, "entities width"]:
        """Return one vector per entity, of any length."""
        total = features.dense.new_zeros(len(features), self.width)
        if self.embeddings is not None and features.sparse is not None:
            pooled = self.embeddings(features.sparse)
            total = total + self._hide_ids(pooled).sum(dim=1)
        if self.dense is not None:
            total = total + self.dense(features.dense)
        return total

    def _hide_ids(self, pooled: Float[Tensor, "entities features width"]) -> Float[Tensor, "entities features width"]:
        if not (self.training and self.id_dropout and self.has_other_features and bool(self.is_id.any())):
            return pooled
        hidden = torch.rand(pooled.shape[:2], device=pooled.device) < self.id_dropout
        return pooled.masked_fill((hidden & self.is_id)[..., None], 0.0)


def unit(vectors: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Return the vectors at length one."""
    return functional.normalize(vectors, dim=-1)
