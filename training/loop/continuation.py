"""Incremental training: the weights of an earlier training go on with interactions that came since.

New ids and categories get rows behind the old ones, which stay where they are. A new row begins with zeros, so that
before its first step an item or a user is what it was to the old model: its texts and other columns. Then the new
interactions are trained on for a few epochs, and old ones are replayed with them (`features.sequences.replay`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.featurizer.featurizer import Featurizer
from features.sequences.replay import Replay
from features.sequences.sequences import Sequences
from features.tables.tables import Tables
from towers.bundle.continuation import Continuation
from towers.model.two_tower import TwoTower
from training.config import RunConfig
from training.loop.build import MIN_BATCH_SIZE, STEPS_PER_EPOCH, TrainingData, build
from training.loop.fit import TrainedModel
from training.loop.trainer import Progress, Trainer

WARM_UP_SHARE = 0.1
"""Share of the steps over which the learning rates rise, at most: AdamW begins without its moments."""
_ITEM_TABLES = "item_tower.embeddings."


@dataclass(frozen=True)
class Origin:
    """The training that goes on.

    Attributes:
        model: Its model.
        featurizer: What the model was built on.
        continuation: What was kept for this.
    """

    model: TwoTower
    featurizer: Featurizer
    continuation: Continuation


def continue_fit(
    config: RunConfig,
    tables: Tables,
    train: Sequences,
    origin: Origin,
    *,
    device: torch.device,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Progress, dict[str, float]], None] | None = None,
) -> TrainedModel:
    """Train on those interactions of `train` that the origin was not trained on, and keep the average of the weights.

    No epoch is chosen by validation: of most users the questions are those that chose the weights of the origin, which
    would therefore often win. Without new interactions, or with 0 epochs, the weights of known rows stay bit for bit.

    Args:
        config: The settings; `[features]` and `[towers]` are those of the origin.
        tables: Source of the features.
        train: All interactions to train on, old and new.
        origin: The training that goes on.
        device: Device to train on.
        checkpoint: File to resume from later; None: no checkpoints.
        resume: Whether to continue from that file.
        on_step: As for `training.loop.fit.fit`.
        on_epoch: As for `training.loop.fit.fit`.
    """
    began = time.monotonic()
    featurizer = origin.featurizer.grown(
        tables.catalog, tables.users, train, whole_catalog=not config.towers.reads_history
    )
    data = TrainingData.prepare(train, tables.catalog, tables.users, featurizer)
    is_new = origin.continuation.trained.are_new(train)
    replay = Replay.of(is_new, config.continuation.replay)
    trend = origin.model.trend
    parts = build(
        _settings(config, train, replay),
        data,
        device,
        replay=replay,
        trend_levels=None if trend is None else trend.levels.cpu().numpy(),
    )
    trainer = Trainer(parts, checkpoint=checkpoint, on_step=on_step, on_epoch=on_epoch)
    has_other_features = trainer.model.item_tower.has_other_features
    overwrite_grown(
        trainer.model.state_dict(),
        origin.model.state_dict(),
        lambda name: not has_other_features and name.startswith(_ITEM_TABLES),
    )
    overwrite_grown(trainer.table_states(), origin.continuation.table_states)
    if resume:
        trainer.resume()
    has_work = config.continuation.epochs and is_new.any()
    model = trainer.fit() if has_work else trainer.model.eval()
    return TrainedModel(model, data, trainer.progress, time.monotonic() - began, trainer.table_states())


@torch.no_grad()
def overwrite_grown(
    tensors: Mapping[str, Tensor],
    earlier: Mapping[str, Tensor],
    begins_with_mean: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give tensors the values of earlier ones of the same names, which may have fewer rows.

    Args:
        tensors: The tensors to overwrite.
        earlier: Those of the earlier training.
        begins_with_mean: Says of a name whether new rows begin with the mean of the earlier ones and not with zeros: in
            the table of the only feature, where zeros would be no vector at all.
    """
    for name, tensor in tensors.items():
        before = earlier[name].to(tensor.device)
        if tensor.shape == before.shape:
            tensor.copy_(before)
            continue
        tensor[: len(before)] = before
        tensor[len(before) :] = before[1:].mean(dim=0) if begins_with_mean(name) and len(before) > 1 else 0


def _settings(config: RunConfig, train: Sequences, replay: Replay) -> RunConfig:
    """Return the settings for the few steps of a continued training: smaller batches, a shorter warm-up."""
    training, own = config.training, config.continuation
    lengths = np.minimum(train.lengths, config.features.max_history + 1)
    has_new = np.bincount(train.event_users[replay.is_new], minlength=len(train)) > 0
    num_read = int((lengths * np.where(has_new, 1.0, replay.chance)).sum())
    batch_size = min(training.batch_size, max(MIN_BATCH_SIZE, num_read // STEPS_PER_EPOCH))
    num_steps = own.epochs * num_read / batch_size
    chunk = training.gradient_cache_chunk
    changed = {
        "epochs": max(own.epochs, 1),
        "batch_size": batch_size,
        "warmup_steps": min(training.warmup_steps, int(num_steps * WARM_UP_SHARE)),
        "item_init": "random",
        "gradient_cache_chunk": None if chunk is None or chunk > batch_size else chunk,
        **{
            name: getattr(training, name) * own.learning_rate_factor
            for name in ("learning_rate", "embedding_learning_rate", "text_encoder_learning_rate")
        },
    }
    return config.model_copy(update={"training": training.model_copy(update=changed)})
