"""Incremental training: known rows stay where they are, new ones join, and nothing moves without something new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from features.config import FeatureSettings
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.batches import TrainingBatches
from features.sequences.ragged import offsets_of
from features.sequences.replay import Replay
from features.sequences.seen_items import EXCLUDE
from features.sequences.sequences import Sequences
from features.sequences.trained_events import TrainedEvents
from features.tables.tables import Catalog, Interactions, Tables, Users
from tests.training.loop.test_trainer import config_of, same, weights_of
from towers.bundle.continuation import Continuation
from towers.model.two_tower import TwoTower
from training.config import ContinuationConfig, RunConfig
from training.loop.build import TrainingData, build
from training.loop.continuation import Origin, continue_fit, overwrite_grown, settings_of_steps
from training.loop.fit import TrainedModel
from training.loop.trainer import Trainer

CPU = torch.device("cpu")
NUM_OLD, NUM_ITEMS = 30, 34
NUM_OLD_USERS, NUM_USERS = 60, 90


def walk(first: int, length: int) -> list[int]:
    """Round the circle of old items; from item 29 on the way leads over the new ones, 30 to 33, and ends there."""
    return [place % NUM_OLD if first < NUM_OLD else place for place in range(first, first + length)]


def sequences_of(rows: list[list[int]]) -> Sequences:
    lengths = np.array([len(own) for own in rows])
    times = np.concatenate([np.arange(length) for length in lengths])
    events = np.array([item for own in rows for item in own], dtype=np.int64)
    return Sequences(np.arange(len(rows)), offsets_of(lengths), events, times, is_ordered=True)


def before() -> Sequences:
    return sequences_of([walk(user % NUM_OLD, 8) for user in range(NUM_OLD_USERS)])


def after() -> Sequences:
    """The old users have two more events each, and new users walk over the new items."""
    old = [walk(user % NUM_OLD, 10) for user in range(NUM_OLD_USERS)]
    return sequences_of([*old, *([26, 27, 28, 29, 30, 31, 32, 33] for _ in range(NUM_OLD_USERS, NUM_USERS))])


def tables_of(config: RunConfig) -> Tables:
    items = pd.DataFrame({"item_id": np.arange(NUM_ITEMS), "name": [f"thing {n}" for n in range(NUM_ITEMS)]})
    teams = ["red", "blue", "red"] * 20 + ["green"] * (NUM_USERS - NUM_OLD_USERS)
    users = Users(pd.DataFrame({"user_id": np.arange(NUM_USERS), "team": teams}))
    return Tables(
        Interactions(pd.DataFrame(), is_ordered=True), Catalog(items), users if config.features.user else None, ()
    )


def settings(epochs: int = 4, *, ids_only: bool = False, **training: Any) -> RunConfig:
    config = config_of(learning_rate=5e-3, epochs=100, **training)
    if ids_only:
        features = config.features.model_copy(update={"item": {"item_id": FeatureSettings(kind="id")}, "user": {}})
        config = config.model_copy(update={"features": features})
    own = ContinuationConfig(epochs=epochs, learning_rate_factor=1.0, layers_learning_rate_factor=1.0, replay=4.0)
    return config.model_copy(update={"continuation": own})


def settings_with(config: RunConfig, **own: Any) -> RunConfig:
    return config.model_copy(update={"continuation": config.continuation.model_copy(update=own)})


def origin_of(config: RunConfig, steps: int = 250) -> Origin:
    tables, train = tables_of(config), before()
    featurizer = Featurizer.fit(Schema.from_config(config.features), tables.catalog, tables.users, train)
    data = TrainingData.prepare(train, tables.catalog, tables.users, featurizer)
    trainer = Trainer(build(config, data, CPU), steps=steps, quiet=True)
    model = trainer.fit()
    return Origin(model, featurizer, Continuation(TrainedEvents.of(train), trainer.table_states()))


@pytest.fixture(scope="module")
def origin() -> Origin:
    return origin_of(settings())


def continued(config: RunConfig, train: Sequences, origin: Origin, **options: Any) -> TrainedModel:
    return continue_fit(config, tables_of(config), train, origin, device=CPU, **options)


def item_vectors(model: Any, featurizer: Featurizer, config: RunConfig) -> torch.Tensor:
    with torch.no_grad():
        return model.item_vectors(featurizer.item_features(tables_of(config).catalog))


@pytest.mark.parametrize("epochs", [0, 2])
def test_without_new_interactions_everything_stays_to_the_bit(origin: Origin, epochs: int) -> None:
    config = settings(epochs)
    learned = continued(config, before(), origin)
    assert same(weights_of(learned.model), weights_of(origin.model))
    assert learned.table_states is not None
    assert same(dict(learned.table_states), dict(origin.continuation.table_states))
    vectors = item_vectors(learned.model, learned.data.featurizer, config)
    assert torch.equal(vectors, item_vectors(origin.model, origin.featurizer, config))


def test_before_its_first_step_a_new_id_is_what_it_was_to_the_old_model(origin: Origin) -> None:
    config = settings(epochs=0)
    learned = continued(config, after(), origin)
    vectors = item_vectors(learned.model, learned.data.featurizer, config)
    assert torch.equal(vectors, item_vectors(origin.model, origin.featurizer, config))
    assert len(learned.data.featurizer.items.sparse["item_id"].vocabulary) == NUM_ITEMS + 1
    assert learned.data.featurizer.users.sparse["team"].vocabulary.values[-1] == "green"


def test_known_values_keep_their_rows(origin: Origin) -> None:
    grown = continued(settings(epochs=0), after(), origin).data.featurizer
    for side in ("items", "users"):
        for name, encoder in getattr(origin.featurizer, side).sparse.items():
            larger = getattr(grown, side).sparse[name]
            if hasattr(encoder, "vocabulary"):
                old = encoder.vocabulary.values
                assert larger.vocabulary.values[: len(old)].equals(old)
                assert larger.vocabulary.values.is_unique


def accuracy(
    model: TwoTower, featurizer: Featurizer, histories: list[list[int]], expected: list[int], team: str
) -> float:
    """The share of histories, of users of a team, whose best item is the expected one."""
    return float((ranks(model, featurizer, histories, expected, team) == 0).float().mean())


def ranks(
    model: TwoTower, featurizer: Featurizer, histories: list[list[int]], expected: list[int], team: str
) -> torch.Tensor:
    """How many items are better than the expected one, for histories of users of a team."""
    config = settings()
    vectors = item_vectors(model, featurizer, config)
    asked = sequences_of(histories)
    users = featurizer.user_features(asked.user_ids, pd.DataFrame({"team": [team] * len(histories)}))
    with torch.no_grad():
        found = model.user_vectors(
            vectors[torch.from_numpy(asked.item_rows)],
            torch.from_numpy(asked.offsets),
            users,
            request_times=torch.from_numpy(asked.lengths),
            event_times=torch.from_numpy(asked.times),
        )
    scores = found @ vectors.T
    return (scores > scores.gather(1, torch.tensor(expected)[:, None])).sum(dim=1)


def test_what_is_new_is_learned_and_what_is_old_is_not_forgotten(origin: Origin) -> None:
    learned = continued(settings(epochs=20), after(), origin)
    new = [[*walk(26, 4), *range(30, last)] for last in (30, 31, 32, 33)], [30, 31, 32, 33], "green"
    old = [walk(first, 5) for first in range(20)], [walk(first, 6)[-1] for first in range(20)], "red"
    known = accuracy(origin.model, origin.featurizer, *old)
    assert known >= 0.5
    assert accuracy(origin.model, origin.featurizer, *new) == 0
    assert accuracy(learned.model, learned.data.featurizer, *new) >= 0.5
    assert accuracy(learned.model, learned.data.featurizer, *old) >= known - 0.05
    weights, were = weights_of(learned.model), weights_of(origin.model)
    table = "item_tower.embeddings.collection.embedding_bags.table_0.weight"
    assert weights[table].shape[0] == were[table].shape[0] + NUM_ITEMS - NUM_OLD
    assert bool((weights[table][-4:].norm(dim=1) > 0.1).all())


@pytest.mark.parametrize(("factor", "stay"), [(0.0, True), (1.0, False)])
def test_layers_stay_as_they_are_unless_their_learning_rate_says_otherwise(
    origin: Origin, factor: float, stay: bool
) -> None:
    learned = continued(settings_with(settings(), layers_learning_rate_factor=factor), after(), origin)
    weights, were = weights_of(learned.model), weights_of(origin.model)
    new = [[*walk(26, 4), *range(30, last)] for last in (30, 31, 32, 33)], [30, 31, 32, 33], "green"
    before_it = ranks(origin.model, origin.featurizer, *new).float().mean()
    assert ranks(learned.model, learned.data.featurizer, *new).float().mean() < 0.7 * before_it
    layers = {name for name in were if ".collection." not in name}
    assert len(layers) > 5
    assert same({name: weights[name] for name in layers}, {name: were[name] for name in layers}) == stay
    table = "item_tower.embeddings.collection.embedding_bags.table_0.weight"
    assert not torch.equal(weights[table][: len(were[table])], were[table])


def test_without_embedding_tables_layers_are_trained() -> None:
    config = settings_with(settings(), layers_learning_rate_factor=0.0)
    size = {"item_id": FeatureSettings(kind="number")}
    features = config.features.model_copy(update={"item": size, "user": {}})
    config = config.model_copy(update={"features": features})
    origin = origin_of(config, steps=5)
    assert not origin.featurizer.items.sparse
    learned = continued(config, after(), origin)
    assert not same(weights_of(learned.model), weights_of(origin.model))


def test_where_an_id_is_all_there_is_a_new_one_begins_with_the_mean() -> None:
    config = settings(epochs=0, ids_only=True)
    origin = origin_of(config, steps=20)
    table = "item_tower.embeddings.collection.embedding_bags.table_0.weight"
    learned, were = continued(config, after(), origin), weights_of(origin.model)[table]
    assert torch.equal(weights_of(learned.model)[table][-1], were[1:].mean(dim=0))


@pytest.mark.parametrize("min_count", [2, 20])
def test_a_value_that_is_no_longer_rare_begins_as_the_hashed_rows_that_it_had(min_count: int) -> None:
    config = settings(epochs=0)
    name = FeatureSettings(kind="id", min_count=min_count, hashed_rows=7)
    features = config.features.model_copy(update={"item": {"item_id": name}, "user": {}})
    config = config.model_copy(update={"features": features})
    origin = origin_of(config, steps=5)
    learned = continued(config, after(), origin)
    vectors = item_vectors(learned.model, learned.data.featurizer, config)
    before_it, now = (one.items.sparse["item_id"].vocabulary for one in (origin.featurizer, learned.data.featurizer))
    counts = after().item_counts(NUM_ITEMS)
    assert len(now) - 1 == (counts >= min_count).sum() > len(before_it) - 1
    torch.testing.assert_close(vectors, item_vectors(origin.model, origin.featurizer, config), rtol=0, atol=1e-6)
    taught = continued(settings_with(config, epochs=1), after(), origin)
    assert not torch.allclose(item_vectors(taught.model, taught.data.featurizer, config)[-1], vectors[-1])


def test_each_day_replays_other_users_of_the_same_history() -> None:
    """With one seed for all, the first users would be drawn alike every day, and most never."""
    train = sequences_of([walk(user % NUM_OLD, 8) for user in range(200)])
    drawn = []
    for day in range(3):
        today = sequences_of([*(walk(user % NUM_OLD, 8) for user in range(200)), *([[1, 2]] * day)])
        replay = Replay(np.zeros(today.num_events, dtype=bool), chance=0.3)
        seed = settings_of_steps(settings(epochs=1), today, replay).training.seed
        batches = TrainingBatches(today, history=10, batch_size=512, seen_items=EXCLUDE, seed=seed, replay=replay)
        drawn.append({int(one) for batch in batches.epoch(0) for one in batch.users if one < len(train)})
    assert all(30 < len(one) < 90 for one in drawn)
    assert len(drawn[0] & drawn[1]) < 0.6 * len(drawn[0])
    assert len(drawn[1] & drawn[2]) < 0.6 * len(drawn[1])


def test_rows_grow_as_in_a_loop_over_them() -> None:
    rng = torch.Generator().manual_seed(0)
    earlier = {
        "table": torch.randn(5, 3, generator=rng),
        "sums": torch.rand(5, generator=rng),
        "one": torch.tensor(2.0),
    }
    grown = {"table": torch.randn(8, 3, generator=rng), "sums": torch.rand(7, generator=rng), "one": torch.tensor(1.0)}
    expected = {
        "table": torch.stack([earlier["table"][row] if row < 5 else torch.zeros(3) for row in range(8)]),
        "sums": torch.stack([earlier["sums"][row] if row < 5 else torch.tensor(0.0) for row in range(7)]),
        "one": earlier["one"],
    }
    overwrite_grown(grown, earlier)
    assert same(grown, expected)


def test_a_resumed_continuation_ends_with_the_weights_of_one_that_was_not_stopped(
    origin: Origin, tmp_path: Path
) -> None:
    config, path = settings(epochs=3), tmp_path / "checkpoint"
    whole = continued(config, after(), origin)

    class KilledError(Exception):
        pass

    def die(step: int, loss: float) -> None:
        if step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        continued(config, after(), origin, checkpoint=path, on_step=die)
    resumed = continued(config, after(), origin, checkpoint=path, resume=True)
    assert resumed.progress.step == whole.progress.step > 5
    assert same(weights_of(resumed.model), weights_of(whole.model))


def test_the_usual_level_of_popularity_is_that_of_the_first_training() -> None:
    config = settings(epochs=1, trend=[0.0001])
    origin = origin_of(config, steps=5)
    learned = continued(config, after(), origin)
    assert learned.model.trend is not None
    assert origin.model.trend is not None
    assert torch.equal(learned.model.trend.levels, origin.model.trend.levels)


def test_the_origin_is_not_changed(origin: Origin) -> None:
    were, states = weights_of(origin.model), {k: v.clone() for k, v in origin.continuation.table_states.items()}
    continued(settings(epochs=1), after(), replace(origin))
    assert same(weights_of(origin.model), were)
    assert same(dict(origin.continuation.table_states), states)
