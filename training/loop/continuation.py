"""Incremental training: the weights of an earlier training go on with interactions that came since.

New ids and categories get rows behind the old ones, which stay where they are. A new row begins as what the value was
to the old model, so that before its first step an item or a user is what it was: its texts and other columns. Then the
new interactions are trained on for a few epochs, and old ones may be replayed with them (`features.sequences.replay`).
Layers, which all users and items share, stay as they are by default: a few steps on what is new move them away from
what they did well for everything else, where a row of an embedding table is about one value.
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
from features.featurizer.side_encoders import SideEncoders
from features.featurizer.sparse import ValueEncoder
from features.sequences.replay import Replay
from features.sequences.sequences import Sequences
from features.tables.tables import Tables
from towers.bundle.continuation import Continuation
from towers.model.feature_tower import FeatureTower
from towers.model.two_tower import TwoTower
from training.config import RunConfig
from training.loop.build import TrainingData, batch_size_of, build
from training.loop.fit import TrainedModel
from training.loop.trainer import Progress, Trainer

MIN_BATCH_SIZE = 512
"""Of a few hundred new interactions smaller batches learn no more, and each encodes the catalogue again."""
WARM_UP_SHARE = 0.1
"""Share of the steps over which the learning rates rise, at most: AdamW begins without its moments."""


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
    has_tables = bool(featurizer.items.sparse or featurizer.users.sparse)
    parts = build(
        settings_of_steps(config, train, replay, has_tables=has_tables),
        data,
        device,
        replay=replay,
        trend_levels=None if trend is None else trend.levels.cpu().numpy(),
    )
    trainer = Trainer(parts, checkpoint=checkpoint, on_step=on_step, on_epoch=on_epoch)
    overwrite_grown(trainer.model.state_dict(), origin.model.state_dict())
    overwrite_grown(trainer.table_states(), origin.continuation.table_states)
    for tower, side in ((trainer.model.item_tower, "items"), (trainer.model.user_tower.attributes, "users")):
        if tower is not None:
            begin_new_rows(tower, getattr(featurizer, side), getattr(origin.featurizer, side))
    if resume:
        trainer.resume()
    has_work = config.continuation.epochs and is_new.any()
    model = trainer.fit() if has_work else trainer.model.eval()
    days = config.features.popular_days if config.towers.reads_history else None
    return TrainedModel(
        model,
        data,
        trainer.progress,
        time.monotonic() - began,
        popular_days="all" if days == "auto" else days,
        table_states=trainer.table_states(),
    )


@torch.no_grad()
def overwrite_grown(tensors: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> None:
    """Give tensors the values of earlier ones of the same names, and zeros where these have no row."""
    for name, tensor in tensors.items():
        before = earlier[name]
        if tensor.shape == before.shape:
            tensor.copy_(before)
        else:
            tensor[: len(before)] = before
            tensor[len(before) :] = 0


@torch.no_grad()
def begin_new_rows(tower: FeatureTower, grown: SideEncoders, earlier: SideEncoders) -> None:
    """Begin the row of each new value with the vector that the earlier model has for that value.

    That is the pooled vector of its hashed rows, or zero. Where an id is the only feature of an item, zero would be no
    vector at all, and the row begins with the mean of the others.
    """
    for name, encoder in grown.sparse.items():
        before = earlier.sparse[name]
        if not isinstance(encoder, ValueEncoder) or not isinstance(before, ValueEncoder):
            continue
        if tower.embeddings is None or encoder.num_rows == before.num_rows:
            continue
        table = tower.embeddings.rows(name)
        known, new = table[: before.num_rows], table[before.num_rows :]
        sizes, rows = map(torch.from_numpy, before.rows_of(encoder.vocabulary.values[-len(new) :].tolist()))
        new.index_add_(0, torch.repeat_interleave(sizes).to(table.device), known[rows.to(table.device)])
        new *= sizes.clamp(min=1).rsqrt()[:, None].to(table.device)
        if not tower.has_other_features and before.num_rows > 1:
            new[sizes == 0] = known[1:].mean(dim=0)


def settings_of_steps(config: RunConfig, train: Sequences, replay: Replay, *, has_tables: bool = True) -> RunConfig:
    """Return the settings for the few steps of a continued training: smaller batches, a shorter warm-up, other rates.

    The seed is another one each time: with the same one, day by day the same users would be replayed.

    Args:
        config: The settings.
        train: All interactions to train on, old and new.
        replay: Which of them are new, and how many of the others are repeated.
        has_tables: Whether there are embedding tables. Without, the layers are all that can learn.
    """
    training, own = config.training, config.continuation
    lengths = np.minimum(train.lengths, config.features.max_history + 1)
    has_new = np.bincount(train.event_users[replay.is_new], minlength=len(train)) > 0
    num_read = int((lengths * np.where(has_new, 1.0, replay.chance)).sum())
    batch_size = min(training.batch_size, max(MIN_BATCH_SIZE, batch_size_of(training, num_read)))
    num_steps = own.epochs * num_read / batch_size
    chunk = training.gradient_cache_chunk
    changed = {
        "epochs": max(own.epochs, 1),
        "batch_size": batch_size,
        "warmup_steps": min(training.warmup_steps, int(num_steps * WARM_UP_SHARE)),
        "item_init": "random",
        "seed": int(np.random.SeedSequence([training.seed, train.num_events]).generate_state(1)[0]),
        "gradient_cache_chunk": None if chunk is None or chunk > batch_size else chunk,
        "learning_rate": training.learning_rate
        * (own.layers_learning_rate_factor if has_tables else own.learning_rate_factor),
        "embedding_learning_rate": training.embedding_learning_rate * own.learning_rate_factor,
        "text_encoder_learning_rate": training.text_encoder_learning_rate * own.learning_rate_factor,
    }
    return config.model_copy(update={"training": training.model_copy(update=changed)})
