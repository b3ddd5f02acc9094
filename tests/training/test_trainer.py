"""The training loop: it learns what can be learned, repeats to the bit, and resumes as if never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from features.config import FeaturesConfig, FeatureSettings
from features.errors import DataError
from features.featurizer import Featurizer
from features.schema import Schema
from features.sequences import Sequences, offsets_of
from features.tables import Catalog, Users
from towers.config import TowersConfig
from towers.two_tower import TwoTower
from training.checkpoint import Checkpoint
from training.config import RunConfig, TrainingConfig
from training.scoring import TowersRecommender
from training.trainer import Progress, Trainer, TrainingData, loss_precision

NUM_ITEMS = 30


def config_of(**training: Any) -> RunConfig:
    settings = {"batch_events": 64, "warmup_steps": 5, "epochs": 3, "checkpoint_seconds": 0.0, **training}
    return RunConfig(
        features=FeaturesConfig(
            interactions="none.parquet",
            history=10,
            item={"item_id": FeatureSettings(kind="id"), "name": FeatureSettings(kind="text")},
            user={"team": FeatureSettings(kind="category")},
        ),
        towers=TowersConfig(width=16, blocks=1, heads=2, dropout=0.1),
        training=TrainingConfig(**settings),
    )


def circle(num_users: int = 60) -> Sequences:
    """Everybody walks round a circle of items from a place of his own: the next item is the one after the last."""
    starts = np.random.default_rng(0).integers(NUM_ITEMS, size=num_users)
    rows = (starts[:, None] + np.arange(12)) % NUM_ITEMS
    times = np.tile(np.arange(12), num_users)
    return Sequences(np.arange(num_users), offsets_of(np.full(num_users, 12)), rows.ravel(), times, is_ordered=True)


def data_of(config: RunConfig) -> TrainingData:
    sequences = circle()
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(NUM_ITEMS), "name": [f"thing {n}" for n in range(NUM_ITEMS)]}))
    users = Users(pd.DataFrame({"user_id": sequences.user_ids, "team": ["red", "blue"] * 30}))
    featurizer = Featurizer.fit(Schema.from_config(config.features), catalog, users, sequences)
    return TrainingData.prepare(sequences, catalog, users, featurizer)


def trainer_of(config: RunConfig, **options: Any) -> Trainer:
    return Trainer(config, data_of(config), device=torch.device("cpu"), quiet=True, **options)


def weights_of(model: TwoTower) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("negatives", ["all", "sampled"])
def test_the_next_step_on_a_circle_is_learned(negatives: str) -> None:
    config = config_of(negatives=negatives, uniform_negatives=8, in_batch_negatives=8, learning_rate=5e-3)
    trainer = trainer_of(config, steps=250)
    model = trainer.fit()
    data = trainer.data
    towers = TowersRecommender(model, data.featurizer, data.item_features, data.users, 10)
    vectors = towers.item_vectors
    history = vectors[[4, 5, 6, 7]]
    user = model.user_vectors(history, torch.tensor([0, 4]), data.user_features.take(torch.tensor([0])))
    assert int((vectors @ user[0]).argmax()) == 8


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (weights_of(trainer_of(config_of(seed=seed), steps=12).fit()) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("stop_after", [1, 7, 12, 13, 25])
@pytest.mark.parametrize("negatives", ["all", "sampled"])
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(
    tmp_path: Path, stop_after: int, negatives: str
) -> None:
    config = config_of(negatives=negatives, uniform_negatives=8, in_batch_negatives=8)

    class KilledError(Exception):
        pass

    def die(step: int, loss: float) -> None:
        if step == stop_after + 1:  # the checkpoint of step `stop_after` is the last that was written
            raise KilledError

    def quality(model: TwoTower) -> float:
        return model.log_scale.item()

    expected = trainer_of(config, validate=quality)
    expected_weights = weights_of(expected.fit())
    with pytest.raises(KilledError):
        trainer_of(config, validate=quality, checkpoint=tmp_path / "c", on_step=die).fit()
    resumed = trainer_of(config, validate=quality, checkpoint=tmp_path / "c")
    resumed.resume()
    assert resumed.progress.step == stop_after
    assert same(weights_of(resumed.fit()), expected_weights)
    assert resumed.progress.step == expected.progress.step
    assert resumed.progress.best == expected.progress.best


def test_training_stops_when_validation_no_longer_rises_and_keeps_the_best_weights() -> None:
    measured = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    seen: list[dict[str, torch.Tensor]] = []

    def quality(model: TwoTower) -> float:
        seen.append(weights_of(model))
        return next(measured)

    epochs: list[Progress] = []
    trainer = trainer_of(
        config_of(epochs=50, patience=2, rate_cuts=0),
        validate=quality,
        on_epoch=lambda progress, values: epochs.append(Progress(**vars(progress))),
    )
    best = weights_of(trainer.fit())
    assert len(seen) == 4  # 0.5 is the best; two epochs without a better one
    assert same(best, seen[1])
    assert [epoch.best for epoch in epochs] == [0.1, 0.5, 0.5, 0.5]
    assert trainer.progress.best_step == epochs[1].step


def test_learning_rates_are_lowered_before_training_is_given_up() -> None:
    measured = iter([0.5, 0.4, 0.6, 0.3, 0.2, 0.1])
    rates: list[float] = []

    def quality(model: TwoTower) -> float:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return next(measured)

    trainer = trainer_of(
        config_of(epochs=50, patience=1, rate_cuts=2, learning_rate=1.0, warmup_steps=0), validate=quality
    )
    trainer.fit()
    # Lowered after 0.4, which is no better than 0.5, and after 0.3; given up after 0.2.
    np.testing.assert_allclose(rates, [1.0, 1.0, 0.3, 0.3, 0.09])
    assert trainer.progress.best == 0.6


def test_embedding_tables_learn_in_the_backward_pass_at_the_rate_of_the_schedule() -> None:
    config = config_of(warmup_steps=10, table_learning_rate=0.5)
    trainer = trainer_of(config, steps=1)
    weights = trainer.model.item_tower.embeddings
    assert weights is not None
    before = {name: value.clone() for name, value in weights.state_dict().items()}
    trainer.fit()
    moves = {name: (value - before[name]).abs().max().item() for name, value in weights.state_dict().items()}
    # Row-wise Adagrad's first step moves a row by the rate times its direction, at most sqrt(width) = 4 in one number.
    assert all(0 < move <= 0.5 / 10 * 4 + 1e-6 for move in moves.values())


def test_a_user_tower_never_sees_the_event_it_has_to_predict() -> None:
    trainer = trainer_of(config_of())
    trainer.model.eval()
    batch = next(trainer.batches.epoch(0))
    assert trainer.loss(batch).item() > 1.0  # untrained: if the target leaked through, the loss could not be tested
    seen: list[torch.Tensor] = []
    tower = trainer.model.user_tower

    def watch(module: torch.nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        seen.extend(given[:2])

    with torch.no_grad():
        handle = tower.register_forward_hook(watch)
        trainer.loss(batch)
        handle.remove()
    events, offsets = seen
    vectors = trainer.model.item_vectors(trainer.item_features)
    for user, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        own = batch.item_rows[batch.offsets[user] : batch.offsets[user + 1]]
        torch.testing.assert_close(events[begin:end], vectors[own[:-1]])


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint to resume from; train without --resume"):
        Checkpoint.load(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"not a checkpoint at all")
    with pytest.raises(DataError, match="the checkpoint cannot be read"):
        Checkpoint.load(tmp_path / "broken")


def test_bfloat16_is_used_where_the_processor_has_it_and_when_asked_for() -> None:
    cpu = torch.device("cpu")
    has = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    assert loss_precision("auto", cpu) == (torch.bfloat16 if has else torch.float32)
    assert loss_precision("bfloat16", cpu) == torch.bfloat16
    assert loss_precision("float32", cpu) == torch.float32


def test_a_schedule_that_is_known_beforehand_is_followed() -> None:
    rates: list[float] = []
    trainer = trainer_of(
        config_of(learning_rate=1.0, warmup_steps=0),
        steps=5,
        cut_steps=[2, 4],
        on_step=lambda step, loss: rates.append(trainer.optimizer.param_groups[0]["lr"]),
    )
    trainer.fit()
    np.testing.assert_allclose(rates, [1.0, 1.0, 0.3, 0.3, 0.09])
    assert trainer.progress.best_step == 5
