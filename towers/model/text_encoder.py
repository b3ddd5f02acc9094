"""A pretrained model of texts that is trained with the towers: tokens of an entity's texts to vectors, in each step.

It begins with the vectors that the model has by itself, turned as those of a model that stays as it is
(`features.encoders.encoder`), so that towers begin with what it knows. Only what is trained is a weight of the towers;
the rest stays in the model's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from features.encoders.encoder import PretrainedText
from features.encoders.local import TOKENS_A_BATCH, LocalModel, budget_batches, load_model
from features.errors import DataError
from features.featurizer.text import TrainedText
from features.sequences.batches import EntityFeatures

LORA_SCALE = 2.0
"""Scale of a low-rank correction (alpha / rank in the LoRA paper)."""


class TextEncoder(nn.Module):
    """Tokens to vectors of length one, turned to their principal directions.

    Args:
        pretrained: The model as it was fitted, and how it is trained.
    """

    def __init__(self, pretrained: PretrainedText) -> None:
        super().__init__()
        assert isinstance(pretrained.model, LocalModel), "a model behind an address is not trained"
        settings = pretrained.settings
        self.settings = settings
        self.recomputes = False
        """Gradient checkpointing: whether activations are recomputed in the backward pass."""
        device = torch.get_default_device()
        with torch.device("cpu"):  # where models are loaded: on a GPU transformers would ask for accelerate
            model = load_model(pretrained.model.folder, settings)
            model.requires_grad_(False)
            if settings.pooling == "attention":
                _pool_by_attention(model, pretrained.width)
            self._trained = _choose_trained(model, settings.trained_layers, settings.lora_rank)
        self._model = (model.to(device),)  # in a tuple: what is not trained is no weight of ours
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)
        self.padding = int(model.tokenizer.pad_token_id or 0)
        self.rotation: Tensor
        self.register_buffer("rotation", torch.tensor(pretrained.rotation), persistent=False)

    @property
    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Weights of the pretrained model and their LoRA corrections; not attention pooling, which is new."""
        new = {id(one) for part in self._model[0] if isinstance(part, AttentionPooling) for one in part.parameters()}
        return [one for one in self.parameters() if id(one) not in new]

    def forward(
        self, tokens: Int[Tensor, "tokens"], lengths: Int[Tensor, "texts"], width: int
    ) -> Float[Tensor, "texts width"]:
        """Return the vectors of texts, their first `width` numbers; zeros of those without a token.

        Args:
            tokens: Of all texts, one after another.
            lengths: How many tokens each text has.
            width: How many numbers are wanted.
        """
        sizes = lengths.cpu().numpy().astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        written = np.flatnonzero(sizes)
        vectors = [self.rotation.new_zeros(1, len(self.rotation))]
        place = torch.zeros(len(sizes), dtype=torch.int64)
        filled = 1
        for rows in budget_batches(sizes[written], TOKENS_A_BATCH[tokens.device.type]):
            texts = written[rows]
            vectors.append(self._vectors(*_rectangle(tokens, starts[texts], sizes[texts], self.padding)))
            place[torch.from_numpy(texts)] = torch.arange(filled, filled + len(texts))
            filled += len(texts)
        found: Tensor = torch.cat(vectors)[place.to(tokens.device)] @ self.rotation[:, :width]
        return found

    def _vectors(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "texts width"]:
        if self.recomputes and torch.is_grad_enabled():
            again: Tensor = checkpoint(self._encode, ids, mask, use_reentrant=False)
            return again
        return self._encode(ids, mask)

    def _encode(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "texts width"]:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            vectors = self._model[0]({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
        return functional.normalize(vectors.float(), dim=-1)

    def merged(self) -> nn.Module:
        """Return the sentence-transformers model with the fine-tuned weights; do not use this object afterwards."""
        model = self._model[0]
        for module in [one for one in model.modules() if parametrize.is_parametrized(one)]:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        return model

    def train(self, mode: bool = True) -> TextEncoder:
        """Set training mode of the trained layers; the frozen ones below stay in evaluation mode."""
        self._model[0].eval()
        for part in self._trained:
            part.train(mode)
        return super().train(mode)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        self._model[0]._apply(function, recurse)
        applied: TextEncoder = super()._apply(function, recurse)
        return applied


def trained_encoders(pretrained: Mapping[str, PretrainedText]) -> nn.ModuleDict:
    """Return a module for each of the models that is trained, by name."""
    return nn.ModuleDict({name: TextEncoder(one) for name, one in pretrained.items() if one.settings.is_trained})


def with_texts(
    features: EntityFeatures, texts: tuple[TrainedText, ...], encoders: Mapping[str, nn.Module]
) -> Float[Tensor, "entities dense"]:
    """Return the dense numbers of entities, the vectors of their trained texts where they belong."""
    if features.tokens is None:
        return features.dense
    parts, at, taken = [], 0, 0
    for text in texts:
        parts.append(features.dense[:, taken : taken + text.begin - at])
        taken += text.begin - at
        tokens = features.tokens.select([text.name])
        parts.append(encoders[text.encoder](tokens.values, tokens.lengths, text.width))
        at = text.begin + text.width
    return torch.cat([*parts, features.dense[:, taken:]], dim=1)


class LowRank(nn.Module):
    """A weight with a low-rank correction that is initialised to zero (LoRA: Hu et al. 2021, arXiv 2106.09685).

    Args:
        rows: Of the weight.
        columns: Of the weight.
        rank: Of the correction.
    """

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
        self.out = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Return the corrected weight."""
        return weight + LORA_SCALE * self.out @ self.into


class AttentionPooling(nn.Module):
    """Attention pooling: a weighted mean of token vectors, with weights from a learned direction.

    It begins as the plain mean.

    Args:
        width: Numbers in a token's vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.zeros(width))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add the vector of each text to its features."""
        vectors, mask = features["token_embeddings"], features["attention_mask"]
        scores = (vectors @ self.direction.to(vectors.dtype)).masked_fill(mask == 0, -torch.inf)
        features["sentence_embedding"] = (scores.softmax(dim=1)[:, None] @ vectors)[:, 0]
        return features


def _pool_by_attention(model: nn.Sequential, width: int) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    for place, module in enumerate(model):
        if isinstance(module, Pooling):
            model[place] = AttentionPooling(width)


def _choose_trained(model: nn.Sequential, layers: int | str, lora_rank: int) -> tuple[nn.Module, ...]:
    """Let gradients reach the last `layers` layers, or all that there is, or corrections of theirs; return them."""
    stack = max((one for one in model.modules() if isinstance(one, nn.ModuleList)), key=len, default=nn.ModuleList())
    if layers != "all" and int(layers) > len(stack):
        raise DataError(
            f'trained_layers = {layers} is more than the {len(stack)} layers of the model; lower it or say "all"'
        )
    last = stack if layers == "all" else stack[len(stack) - int(layers) :]
    if lora_rank:
        for linear in [one for one in last.modules() if isinstance(one, nn.Linear)]:
            correction = LowRank(linear.out_features, linear.in_features, lora_rank)
            parametrize.register_parametrization(linear, "weight", correction)
    else:
        (model if layers == "all" else last).requires_grad_(True)
    poolings = [one for one in model.modules() if isinstance(one, AttentionPooling)]
    for pooling in poolings:
        pooling.requires_grad_(True)
    return (model,) if layers == "all" else (last, *poolings)


def _rectangle(
    tokens: Int[Tensor, "tokens"], starts: np.ndarray, sizes: np.ndarray, padding: int
) -> tuple[Int[Tensor, "texts length"], Int[Tensor, "texts length"]]:
    """Return the tokens of some texts side by side, and a mask that is 1 where they are."""
    places = torch.from_numpy(starts)[:, None] + torch.arange(int(sizes.max()))
    mask = torch.arange(int(sizes.max())) < torch.from_numpy(sizes)[:, None]
    ids = tokens[places.masked_fill(~mask, 0).to(tokens.device)].long()
    mask = mask.to(tokens.device)
    return ids.masked_fill(~mask, padding), mask.long()
