"""What a whole training leaves out of its data is bounded, and said, once while it runs and once in its report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from features.config import FeaturesConfig, FeatureSettings
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import leave_one_out
from features.tables.tables import Catalog, Interactions, Tables
from towers.config import TowersConfig
from training.config import RunConfig, TrainingConfig
from training.loop import fit as fit_module
from training.loop import hard_negatives
from training.loop.fit import fit

NUM_USERS, NUM_ITEMS = 40, 30


def test_the_questions_of_a_validation_and_the_items_of_a_mining_are_bounded_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit_module, "MOST_VALIDATION_QUESTIONS", 15)
    monkeypatch.setattr(fit_module, "LEAST_VALIDATION_QUESTIONS", 1)
    monkeypatch.setattr(hard_negatives, "MOST_PAIRS", 10 * NUM_USERS)
    monkeypatch.setattr(hard_negatives, "LEAST_POOL", 1)
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(NUM_ITEMS)[:8] for _ in range(NUM_USERS)])
    sequences = Sequences(np.arange(NUM_USERS), np.arange(0, len(rows) + 1, 8), rows, None, is_ordered=True)
    frame = pd.DataFrame({"user_id": sequences.event_users, "item_id": rows})
    tables = Tables(Interactions(frame, True), Catalog(pd.DataFrame({"item_id": np.arange(NUM_ITEMS)})), None, ())
    config = RunConfig(
        features=FeaturesConfig(interactions="none.parquet", item={"item_id": FeatureSettings(kind="id")}),
        towers=TowersConfig(embedding_dim=8, history_encoder="mean"),
        training=TrainingConfig(hard_negatives=2, epochs=1, batch_size=128),
    )
    asked, said = [], []
    judge = fit_module.judge

    def counted(towers: object, questions: Queries, *arguments: object, **named: object) -> object:
        asked.append(len(questions))
        return judge(towers, questions, *arguments, **named)

    monkeypatch.setattr(fit_module, "judge", counted)
    split = leave_one_out(sequences, NUM_ITEMS, test=False)
    learned = fit(config, tables, split, device=torch.device("cpu"), say=said.append)
    assert set(asked) == {15}
    mined = "Hard negatives of the 40 users are mined from 10 of the 30 items, others at each mining, drawn at random,"
    assert said == [
        f"{mined} to save time.",
        "15 of the 40 validation questions, drawn at random, decide early stopping.",
    ]
    assert list(learned.notes) == said


def test_a_validation_computes_no_more_scores_of_a_larger_catalogue() -> None:
    for num_items in (1, 1_000_000, 3_000_000, 10_000_000):
        most = fit_module._validation_questions(num_items)
        assert most * num_items <= fit_module.MOST_VALIDATION_CELLS
    assert fit_module._validation_questions(1_000_000) == fit_module.MOST_VALIDATION_QUESTIONS
    assert fit_module._validation_questions(10**9) == fit_module.LEAST_VALIDATION_QUESTIONS
