"""The spectral start against the ridge regression that it stands for, solved slowly, and what training makes of it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from pydantic import ValidationError
from sklearn.feature_extraction.text import TfidfTransformer

from features.config import FeaturesConfig, FeatureSettings
from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog
from towers.config import TowersConfig
from training.config import RunConfig, TrainingConfig
from training.loop import spectral_init
from training.loop.build import TrainingData, build
from training.loop.spectral_init import decompose, right_singular_vectors
from training.loop.trainer import Trainer

RANDOM = np.random.default_rng(0)
HAD = (RANDOM.random((40, 24)) < 0.25).astype(np.float32)
COLORS = np.eye(4, dtype=np.float32)[RANDOM.integers(4, size=24)]
SETTINGS: dict[str, Any] = {"regularisation": 3.0, "attributes": 2.0, "seed": 0}


def start(width: int = 64, **settings: Any):
    bags = {"color": sp.csr_array(COLORS)}
    return decompose(sp.csr_array(HAD), bags, width, **{**SETTINGS, **settings})


@pytest.mark.parametrize("attributes", [0.0, 2.0])
def test_inner_products_are_the_scores_of_a_ridge_regression(attributes: float) -> None:
    described = attributes * TfidfTransformer().fit_transform(COLORS).toarray().T
    stacked = np.concatenate([HAD, described]).astype(np.float64)
    gram = stacked.T @ stacked
    scores = gram @ np.linalg.inv(gram + 3.0 * np.eye(24))
    items = start(attributes=attributes).items[:, :-1]
    longest = np.sqrt(scores.diagonal().max())
    np.testing.assert_allclose(items @ items.T * longest**2, scores, atol=1e-5)


def test_items_have_length_one_and_the_longest_needs_no_more_for_it() -> None:
    items = start(width=9).items
    assert items.shape == (24, 9)
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, atol=1e-6)
    assert items[:, -1].min() == pytest.approx(0, abs=1e-3)


def test_of_a_wide_vector_the_numbers_beyond_the_rank_are_zero() -> None:
    items = start(width=100).items
    assert items.shape == (24, 100)
    assert not items[:, 24:-1].any()


@pytest.mark.parametrize("block_cells", [30, 1 << 24], ids=["in blocks", "at once"])
def test_singular_vectors_are_those_of_the_whole_decomposition(
    monkeypatch: pytest.MonkeyPatch, block_cells: int
) -> None:
    monkeypatch.setattr(spectral_init, "BLOCK_CELLS", block_cells)
    found, values = right_singular_vectors(sp.csr_array(HAD), 6, seed=0)
    _, singular, right = np.linalg.svd(HAD.astype(np.float64))
    np.testing.assert_allclose(values, singular[:6], rtol=1e-3)
    np.testing.assert_allclose(np.abs((found * right[:6].T).sum(axis=0)), 1, atol=0.02)
    np.testing.assert_allclose(found.T @ found, np.eye(6), atol=1e-5)


def test_memory_does_not_grow_with_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral_init, "BLOCK_CELLS", 1 << 14)

    def peak(users: int) -> int:
        had = sp.random_array((users, 300), density=0.01, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
        tracemalloc.start()
        right_singular_vectors(sp.csr_array(had), 64, seed=0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(2_000), peak(20_000)
    assert many < few + 100_000, "the users' vectors would be 18,000 x 74 x 4 bytes more"


def test_directions_that_are_not_there_give_no_values() -> None:
    alike = np.repeat(HAD[:3], 20, axis=0)  # of 60 users three differ
    begun = decompose(sp.csr_array(alike), {"color": sp.csr_array(COLORS)}, 64, **SETTINGS)
    assert (np.linalg.norm(begun.values["color"], axis=1) < 1).all()
    items = begun.items[:, :-1]
    np.testing.assert_allclose(np.linalg.norm(items, axis=1).max(), 1, atol=1e-5)


def test_an_item_that_nobody_had_is_where_its_value_begins() -> None:
    had = HAD.copy()
    had[:, 0] = 0
    begun = decompose(sp.csr_array(had), {"color": sp.csr_array(COLORS)}, 64, **SETTINGS)
    item, value = begun.items[0, :-1], begun.values["color"][COLORS[0].argmax(), :-1]
    assert item @ value / np.linalg.norm(item) / np.linalg.norm(value) == pytest.approx(1, abs=1e-5)


def test_the_same_seed_begins_at_the_same_place() -> None:
    np.testing.assert_array_equal(start().items, start().items)


def trainer_of(features: dict[str, FeatureSettings], *, dtype: Any = "float32", **options: Any) -> Trainer:
    config = RunConfig(
        features=FeaturesConfig(interactions="none.parquet", max_history=30, item=features),
        towers=TowersConfig(embedding_dim=32, embedding_dtype=dtype, history_encoder="mean", id_dropout=0.5),
        training=TrainingConfig(
            item_init="spectral",
            spectral_regularisation=3.0,
            spectral_attribute_weight=2.0,
            batch_size=64,
            epochs=2,
            patience=1,
        ),
    )
    users, rows = HAD.nonzero()
    offsets = offsets_of(np.bincount(users, minlength=len(HAD)))
    sequences = Sequences(np.arange(len(HAD)), offsets, rows, None, is_ordered=False)
    words = np.array(["red", "green", "blue", "grey"])[COLORS.argmax(1)]
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(24), "color": words, "name": [f"{w} thing" for w in words]}))
    featurizer = Featurizer.fit(Schema.from_config(config.features), catalog, None, sequences)
    data = TrainingData.prepare(sequences, catalog, None, featurizer)
    return Trainer(build(config, data, torch.device("cpu")), quiet=True, **options)


WITH_COLOR = {"item_id": FeatureSettings(kind="id"), "color": FeatureSettings(kind="category")}


@pytest.mark.parametrize(
    "others",
    [{}, {"name": FeatureSettings(kind="text")}, {"name": FeatureSettings(kind="text", frozen_dim=8)}],
    ids=["color", "and a text", "and a fixed text"],
)
def test_the_towers_begin_at_the_decomposition_whatever_else_is_known_of_an_item(others: dict[str, Any]) -> None:
    qualities = iter([0.9, 0.1, 0.1, 0.1])
    trainer = trainer_of({**WITH_COLOR, **others}, validate=lambda model: next(qualities))
    model = trainer.fit()  # the beginning was the best
    assert trainer.progress.best_step == 0
    with torch.no_grad():
        items = model.item_vectors(trainer.data.item_features)
        history = torch.tensor([3, 7, 11])
        user = model.user_vectors(
            items[history], torch.tensor([0, 3]), trainer.data.user_features.take(torch.tensor([0]))
        )
    np.testing.assert_allclose(items.norm(dim=1), 1, atol=1e-5)
    expected = items[:, :-1] @ items[history, :-1].sum(0)
    np.testing.assert_allclose(torch.corrcoef(torch.stack([items @ user[0], expected]))[0, 1], 1, atol=1e-5)
    if not others:
        places = start(width=32).items[:, :-1]
        np.testing.assert_allclose(items[:, :-1] @ items[:, :-1].T, places @ places.T, atol=1e-4)


def test_tables_of_16_bits_begin_there_as_nearly_as_they_can() -> None:
    vectors = []
    for dtype in ("float32", "float16"):
        trainer = trainer_of(WITH_COLOR, dtype=dtype, steps=0)
        vectors.append(trainer.fit().item_vectors(trainer.data.item_features).detach())
    assert not torch.equal(*vectors)
    torch.testing.assert_close(*vectors, rtol=0, atol=2**-11)


def test_training_goes_on_from_there_and_is_kept_where_it_is_better() -> None:
    qualities = iter([0.1, 0.5, 0.9])
    told: list[tuple[int, float]] = []
    trainer = trainer_of(
        WITH_COLOR,
        validate=lambda model: next(qualities),
        on_epoch=lambda progress, measured: told.append((progress.epoch, measured["validation_ndcg_at_10"])),
    )
    trainer.fit()
    assert told == [(0, 0.1), (1, 0.5), (2, 0.9)]
    assert trainer.progress.best == 0.9
    assert trainer.progress.best_step == trainer.progress.step > 0


def test_no_step_is_made_when_none_was_best() -> None:
    trainer = trainer_of(WITH_COLOR, steps=0)
    model = trainer.fit()
    assert trainer.progress.step == 0
    assert not model.user_tower.beginning.any()


def test_items_without_ids_have_no_such_start() -> None:
    with pytest.raises(DataError, match="add item_id"):
        trainer_of({"color": FeatureSettings(kind="category")}).fit()


def test_without_histories_there_is_no_such_start() -> None:
    with pytest.raises(ValidationError, match='set item_init = "random"'):
        RunConfig(
            features=FeaturesConfig(interactions="none.parquet"),
            towers=TowersConfig(history_encoder="none"),
            training=TrainingConfig(item_init="spectral"),
        )
