"""Pretrained models that learn with the towers: in the same loop, at a rate of their own, resumed like the rest."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from features.config import FeaturesConfig
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from tests.tiny_models import WORDS, tiny_model
from towers.config import TowersConfig
from towers.model.two_tower import TwoTower
from training.config import RunConfig, TrainingConfig
from training.loop.build import TrainingData, build
from training.loop.losses import softmax_loss
from training.loop.negatives import AllItems, MixedSampler, Targets, reversed_negatives
from training.loop.trainer import Trainer

CPU = torch.device("cpu")
NUM = len(WORDS) // 2
ASKED, MEANT = WORDS[:NUM], WORDS[NUM : 2 * NUM]
"""What is asked, and what is wanted then: nothing that a model could know beforehand."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def trainer_of(
    model_folder: Path, checkpoint: Path | None = None, *, steps: int, device: torch.device = CPU, **changes: Any
) -> Trainer:
    """Many people ask for a word, and each took the item that is called by another."""
    encoder = {"model": str(model_folder), "trained_layers": "all", **changes.pop("encoder", {})}
    text = {"kind": "text", "encoder": "tiny", "frozen_dim": 16}
    usual = {"batch_size": 16, "warmup_steps": 5, "text_encoder_learning_rate": 3e-3, "checkpoint_seconds": 0.0}
    config = RunConfig(
        features=FeaturesConfig.model_validate(
            {"interactions": "none", "item": {"title": text}, "user": {"wish": text}, "encoders": {"tiny": encoder}}
        ),
        towers=TowersConfig(embedding_dim=16, num_heads=2, history_encoder="mean", dropout=0.0),
        training=TrainingConfig(**{**usual, **changes}),
    )
    people = np.arange(NUM * 4)
    sequences = Sequences(people, offsets_of(np.ones(len(people), dtype=np.int64)), people % NUM, None, is_ordered=True)
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(NUM), "title": MEANT}))
    users = Users(pd.DataFrame({"user_id": people, "wish": ASKED * 4}))
    featurizer = Featurizer.fit(Schema.from_config(config.features), catalog, users, sequences)
    data = TrainingData.prepare(sequences, catalog, users, featurizer)
    return Trainer(build(config, data, device), steps=steps, checkpoint=checkpoint, quiet=True)


def hits(model: TwoTower, data: TrainingData) -> float:
    """The share of the words whose item comes first."""
    model.eval()
    with torch.no_grad():
        items = model.item_vectors(data.item_features)
        asked = data.user_features.take(torch.arange(NUM))
        users = model.user_vectors(items[:0], torch.zeros(NUM + 1, dtype=torch.int64), asked)
    return float(((users @ items.T).argmax(dim=1) == torch.arange(NUM)).float().mean())


@pytest.mark.parametrize("encoder", [{}, {"trained_layers": 2, "lora_rank": 4}], ids=["weights", "corrections"])
def test_what_a_word_means_here_is_learned(model_folder, encoder) -> None:
    trainer = trainer_of(model_folder, steps=200, encoder=encoder)
    assert hits(trainer.model, trainer.data) < 0.3
    assert hits(trainer.fit(), trainer.data) > 0.7


def test_a_symmetric_loss_is_the_mean_of_both_ways(model_folder) -> None:
    trainer, one_way = (
        trainer_of(model_folder, steps=1, loss_precision="float32", symmetric_loss=symmetric)
        for symmetric in (True, False)
    )
    batch = next(iter(trainer.batches.epoch(0)))
    targets, model = Targets.of(batch), trainer.model.eval()
    one_way.model.eval()
    items = model.item_vectors(trainer.item_features.take(targets.rows))
    nobody = torch.zeros(len(targets.rows) + 1, dtype=torch.int64)  # of a history of one nothing is read
    users = model.user_vectors(items[:0], nobody, trainer.user_features.take(batch.users))
    back = softmax_loss(items, users, users, model.scale, reversed_negatives(targets, NUM * 4))
    torch.testing.assert_close(trainer.loss(batch), (one_way.loss(batch) + back) / 2)


def test_items_whose_text_is_dear_compete_with_those_of_the_batch_unless_others_are_asked_for(model_folder) -> None:
    chosen = trainer_of(model_folder, steps=1).negatives
    assert isinstance(chosen, MixedSampler)
    assert [type(source).__name__ for source in chosen.sources] == ["InBatchSampler"]
    assert isinstance(trainer_of(model_folder, steps=1, negatives="all").negatives, AllItems)
    assert isinstance(trainer_of(model_folder, steps=1, encoder={"trained_layers": 0}).negatives, AllItems)


def test_a_pretrained_model_learns_at_its_own_rate(model_folder) -> None:
    trainer = trainer_of(model_folder, steps=9, learning_rate=1e-3, text_encoder_learning_rate=1e-5)
    trainer.fit()
    encoders = {*trainer.model.encoders.parameters()}
    rates = {group["lr"]: {p in encoders for p in group["params"]} for group in trainer.optimizer.param_groups}
    assert rates == {1e-3: {False}, 1e-5: {True}}


def test_it_goes_on_after_a_stop_as_if_there_had_been_none(model_folder, tmp_path) -> None:
    whole = trainer_of(model_folder, steps=14, gradient_checkpointing=True).fit().state_dict()
    first = trainer_of(model_folder, tmp_path / "checkpoint", steps=14, gradient_checkpointing=True)
    first.model.train()
    for batch in itertools.islice(first.batches.epoch(0), 1):
        first.loss_sum += first.step(batch)
        first.progress.batch += 1
    first.save()
    second = trainer_of(model_folder, tmp_path / "checkpoint", steps=14, gradient_checkpointing=True)
    second.resume()
    resumed = second.fit().state_dict()
    assert any(name.startswith("encoders.tiny.") for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(value, resumed[name], rtol=0, atol=0, msg=name)
