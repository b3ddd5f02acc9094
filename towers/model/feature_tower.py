"""Features of entities to one vector each: every feature adds its part, and the sum is what the entity is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from features.featurizer.side_encoders import FeatureSizes
from features.schema import Feature
from features.sequences.batches import EntityFeatures, JaggedFeatures
from towers.model.embeddings import FeatureEmbeddings
from towers.model.text_encoder import with_texts

SHORTEST = 1e-12
"""The length that a shorter vector is taken to have, so that it can be divided by."""

TEXT = "text"
"""Feature name of all texts in a shared embedding table."""

FIXED_LENGTH = 0.5
"""Length of a frozen text vector that is added to a trained id embedding of initial length 1. It is small, so that the
id decides for known items; a new item consists of its text vector alone and is compared by it."""


class FeatureTower(nn.Module):
    """The sum of one vector per sparse feature, a projection of the dense numbers, and the places of fixed texts.

    Because it is a sum, a feature that is missing or unknown takes its part away and nothing else: an item without a
    trained id stands on its text and attributes. In training ids are hidden at random so that this is practised.

    Args:
        features: The features, in the order of the schema.
        sizes: What the featurizer says the tables must hold.
        width: Numbers in the result.
        id_dropout: Share of the ids that are hidden in training.
        learning_rate: Of the embedding tables; None: not trained.
        encoders: Models of texts that are trained, by name; the towers share them, and neither owns them.
        texts: The table in which all texts are looked up, of both towers; it belongs to neither. None: each text has a
            table of its own.
    """

    def __init__(
        self,
        features: tuple[Feature, ...],
        sizes: FeatureSizes,
        width: int,
        *,
        id_dropout: float = 0.0,
        learning_rate: float | None = None,
        encoders: Mapping[str, nn.Module] | None = None,
        texts: FeatureEmbeddings | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self._trained_texts = sizes.trained
        self._encoders = dict(encoders or {})
        self.id_dropout = id_dropout
        self._texts = (texts,)  # in a tuple, so that what belongs to the pair is not saved with each tower
        self._text_names = [] if texts is None else list(sizes.texts)
        own = {name: rows for name, rows in sizes.tables.items() if name not in self._text_names}
        self.embeddings = (
            FeatureEmbeddings(own, width, learning_rate=learning_rate, corrections=sizes.corrections) if own else None
        )
        self.dense_sizes = [sizes.dense, *sizes.fixed]
        self.dense = nn.Linear(sizes.dense, width, bias=False) if sizes.dense else None
        is_id_column = {feature.name: feature.definition.is_id for feature in features}
        is_id = [is_id_column[name] for name in own]
        self.is_id: Tensor
        self.register_buffer("is_id", torch.tensor(is_id, dtype=torch.bool), persistent=False)
        self.has_other_features = sum(self.dense_sizes) > 0 or len(own) < len(sizes.tables) or not all(is_id)

    def forward(self, features: EntityFeatures) -> Float[Tensor, "entities width"]:
        """Return one vector per entity, of any length."""
        dense = with_texts(features, self._trained_texts, self._encoders)
        numbers, *places = dense.split(self.dense_sizes, dim=1)
        parts: list[Tensor] = [
            functional.pad(FIXED_LENGTH * place, (0, self.width - place.shape[1])) for place in places
        ]
        if self._text_names and features.sparse is not None:
            parts.append(self._written(features.sparse))
        if self.embeddings is not None and features.sparse is not None:
            pooled = self._hide_ids(self.embeddings(features.sparse.select(self.embeddings.names)))
            parts.append(pooled.sum(dim=1) if pooled.shape[1] > 1 else pooled[:, 0])
        if self.dense is not None:
            parts.append(self.dense(numbers))
        return reduce(torch.add, parts)

    def _written(self, sparse: JaggedFeatures) -> Float[Tensor, "entities width"]:
        """Return the sum of what the texts say, each looked up in the table that all share."""
        texts, names = self._texts[0], self._text_names
        assert texts is not None, "there are names where there is a table"
        chosen = sparse.select(names)
        pooled: Tensor = texts(JaggedFeatures((TEXT,), chosen.values, chosen.lengths))
        return pooled.view(len(names), -1, self.width).sum(dim=0)

    def _hide_ids(self, pooled: Float[Tensor, "entities features width"]) -> Float[Tensor, "entities features width"]:
        if not (self.training and self.id_dropout and self.has_other_features and bool(self.is_id.any())):
            return pooled
        hidden = torch.rand(pooled.shape[:2], device=pooled.device) < self.id_dropout
        return pooled.masked_fill((hidden & self.is_id)[..., None], 0.0)


def unit(vectors: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Return the vectors at length one; zeros stay zeros."""
    result: Tensor = _Unit.apply(vectors)
    return result


class _Unit(torch.autograd.Function):
    """`functional.normalize` in fewer passes over memory: where all items are encoded in each step, they count."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_(min=SHORTEST)
        result: Tensor = vectors / lengths
        ctx.save_for_backward(result, lengths)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        result, lengths = ctx.saved_tensors
        along = (gradients[0] * result).sum(dim=-1, keepdim=True)
        return torch.addcmul(gradients[0], result, along, value=-1).div_(lengths)
