"""The parts of a training run before its first step: model, optimisers, batches, negatives.

`build` makes the parts and `Trainer` runs the steps. It calls both towers of the model, and the negatives of a batch,
directly. Several processes make the same parts and then divide the tables (`training.distributed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from features.featurizer.featurizer import Featurizer
from features.sequences.batches import EntityFeatures, TrainingBatches
from features.sequences.replay import Replay
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from towers.model.embeddings import FeatureEmbeddings
from towers.model.precision import fastest_precision
from towers.model.text_encoder import TextEncoder
from towers.model.two_tower import TwoTower
from training.config import RunConfig, TrainingConfig
from training.loop.losses import LOSSES, Loss
from training.loop.negatives import AllItems, MixedSampler, choose_negatives
from training.loop.trend import TrendOfTargets
from training.loop.weight_averaging import overwrite

MIN_BATCH_SIZE, STEPS_PER_EPOCH = 128, 50
"""Small tables get smaller batches, so that an epoch has about so many steps, but none smaller than the minimum."""


@dataclass(frozen=True)
class TrainingData:
    """The data of a run; features are computed once.

    Attributes:
        train: The interactions to train on, with catalogue rows.
        catalog: All items.
        users: Attributes of users. None: there is no users table.
        featurizer: Fitted on `train`.
        item_features: Features of the catalogue, `[items]`.
        user_features: Features of the users of `train`, `[users]`.
    """

    train: Sequences
    catalog: Catalog
    users: Users | None
    featurizer: Featurizer
    item_features: EntityFeatures
    user_features: EntityFeatures

    @classmethod
    def prepare(cls, train: Sequences, catalog: Catalog, users: Users | None, featurizer: Featurizer) -> TrainingData:
        """Featurize the catalogue and the training users."""
        attributes = None if users is None else users.attributes_of(train.user_ids)
        return cls(
            train=train,
            catalog=catalog,
            users=users,
            featurizer=featurizer,
            item_features=featurizer.item_features(catalog),
            user_features=featurizer.user_features(train.user_ids, attributes),
        )


@dataclass
class TrainingParts:
    """The parts that `Trainer` puts together.

    Only items with interactions take part: if an item without one were a negative, training would push new items down
    before they were ever shown. Item rows in `train`, `batches`, `item_features` and `negatives` are positions among
    these known items, not catalogue rows.

    Attributes:
        settings: `[training]`.
        data: What the parts were made from.
        device: Device of the model and the features.
        reads_history: Whether users have histories, and not only attributes.
        train: The interactions to train on.
        batches: Draws the batches of each epoch from them.
        item_features: Features of the known items, on the device.
        user_features: Features of the training users, on the device.
        model: With initial weights.
        optimizer: AdamW for all weights but embedding tables; its groups have their peak learning rate as `rate`.
        table_optimizers: Row-wise Adagrad of the embedding tables. They are fused: the backward pass applies them.
        negatives: Chooses the negatives of each batch.
        precision: Precision of the matrix products of the loss.
        loss: Loss of whole vectors and of each of their Matryoshka prefixes.
        trend: Recent popularity at the time of each prediction. None: it is no part of the score.
    """

    settings: TrainingConfig
    data: TrainingData
    device: torch.device
    reads_history: bool
    train: Sequences
    batches: TrainingBatches
    item_features: EntityFeatures
    user_features: EntityFeatures
    model: TwoTower
    optimizer: torch.optim.AdamW
    table_optimizers: list[Any]
    negatives: AllItems | MixedSampler
    precision: torch.dtype
    loss: Loss
    trend: TrendOfTargets | None = None


def build(
    config: RunConfig,
    data: TrainingData,
    device: torch.device,
    *,
    replay: Replay | None = None,
    trend_levels: Float[np.ndarray, "half_lives"] | None = None,
) -> TrainingParts:
    """Return the parts of a run, with initial weights that depend on `[training] seed` alone.

    Sets torch's random state, which the steps of the run then continue.

    Args:
        config: The settings.
        data: What is trained on.
        device: Device of the model and the features.
        replay: Which interactions an epoch of incremental training predicts. None: all.
        trend_levels: The usual levels of recent popularity of the training that goes on. None: those of `data`.
    """
    settings = config.training
    reads_history = config.towers.reads_history
    known_rows = np.flatnonzero(data.train.item_counts(len(data.catalog)))
    train = data.train.with_item_rows(lambda block: np.searchsorted(known_rows, block.item_rows))
    item_features = data.item_features.take(torch.from_numpy(known_rows)).to(device)
    model = _initial_model(config, data.featurizer, device)
    for encoder in model.encoders.values():
        assert isinstance(encoder, TextEncoder), "the towers hold no others there"
        encoder.recomputes = settings.gradient_checkpointing
    batches = TrainingBatches(
        train,
        history=config.features.max_history,
        batch_size=batch_size_of(settings, train.num_events),
        seen_items=SeenItems.of(config.features.recommend_seen),
        seed=settings.seed,
        targets=settings.targets,
        history_fraction=settings.history_fraction if reads_history else 0.0,
        replay=replay,
    )
    fused = (part.fused_optimizer for part in model.modules() if isinstance(part, FeatureEmbeddings))
    negatives = choose_negatives(
        settings,
        batches,
        len(item_features),
        width=config.towers.embedding_dim,
        device=device,
        is_expensive=bool(data.featurizer.items.sizes.trained),
    )
    trend = None
    if model.trend is not None:
        is_whole = isinstance(negatives, AllItems)
        trend = TrendOfTargets(
            train, len(item_features), config.towers.trend, device, whole=is_whole, levels=trend_levels
        )
        model.trend.levels.copy_(torch.from_numpy(trend.trend.levels))
    return TrainingParts(
        settings=settings,
        data=data,
        device=device,
        reads_history=reads_history,
        train=train,
        batches=batches,
        item_features=item_features,
        user_features=data.user_features.to(device),
        model=model,
        optimizer=_adamw(model, settings),
        table_optimizers=[one for one in fused if one is not None],
        negatives=negatives,
        precision=loss_precision(settings.loss_precision, device),
        loss=LOSSES[settings.loss],
        trend=trend,
    )


def batch_size_of(settings: TrainingConfig, num_events: int) -> int:
    """Return the interactions per step of a training on so many."""
    return min(settings.batch_size, max(MIN_BATCH_SIZE, num_events // STEPS_PER_EPOCH))


def dense_parameters(model: TwoTower) -> list[Tensor]:
    """Return all weights but those of embedding tables, whose optimiser is fused into the backward pass."""
    return [parameter for name, parameter in model.named_parameters() if ".collection." not in name]


def loss_precision(setting: str, device: torch.device) -> torch.dtype:
    """Return the precision that `auto`, `float32` or `bfloat16` stands for on this device."""
    if setting == "auto":
        return fastest_precision(device)
    return torch.bfloat16 if setting == "bfloat16" else torch.float32


def _initial_model(config: RunConfig, featurizer: Featurizer, device: torch.device) -> TwoTower:
    """Return a model whose random weights the CPU draws, so that a seed begins with the same ones on every device."""

    def made(where: torch.device) -> TwoTower:
        with where:
            rate = config.training.embedding_learning_rate
            return TwoTower(config.towers, featurizer, config.features.max_history, learning_rate=rate)

    torch.manual_seed(config.training.seed)
    drawn = made(torch.device("cpu"))
    if device.type == "cpu":
        return drawn
    model = made(device)
    overwrite(model.state_dict(), drawn.state_dict())
    return model


def _adamw(model: TwoTower, settings: TrainingConfig) -> torch.optim.AdamW:
    """Return the optimiser: pretrained text encoders have a learning rate of their own, only matrices weight decay."""
    encoders = model.encoders.children()
    pretrained = {one for part in encoders if isinstance(part, TextEncoder) for one in part.pretrained_parameters}
    dense = dense_parameters(model)
    groups = [
        {"params": [p for p in parameters if (p.dim() > 1) == is_matrix], "weight_decay": decay, "rate": rate}
        for parameters, rate in (
            ([p for p in dense if p not in pretrained], settings.learning_rate),
            ([p for p in dense if p in pretrained], settings.text_encoder_learning_rate),
        )
        for is_matrix, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98))
