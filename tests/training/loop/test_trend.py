"""Recent popularity in training and evaluation: learned where it decides, and blind to the future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from features.config import ColumnSettings, FeaturesConfig, FeatureSettings
from features.errors import DataError
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import Split, leave_one_out, time_split
from features.sequences.timeline import Timeline
from features.tables.tables import Catalog, Interactions, Tables
from towers.config import TowersConfig
from training.config import RunConfig, TrainingConfig
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.loop import trend as trend_module
from training.loop.build import TrainingData, TrainingParts, build
from training.loop.fit import fit, fit_featurizer
from training.loop.negatives import Targets
from training.loop.trainer import Trainer

NUM_ITEMS, NUM_DAYS, DAY = 60, 50, 86_400
CPU = torch.device("cpu")


def config_of(**training: object) -> RunConfig:
    return RunConfig(
        features=FeaturesConfig(
            interactions="none.parquet",
            columns=ColumnSettings(timestamp="time"),
            item={"item_id": FeatureSettings(kind="id")},
            max_history=5,
        ),
        towers=TowersConfig(embedding_dim=8, num_layers=1, num_heads=1, trend=[0.1, 1]),
        training=TrainingConfig(**{"batch_size": 128, "warmup_steps": 10, "learning_rate": 0.01, **training}),
    )


def fashions() -> Sequences:
    """Each user comes on a few days; what they have is mostly what everybody has on that day, whatever they had."""
    rng = np.random.default_rng(0)
    days = np.sort(rng.integers(NUM_DAYS, size=(300, 4)), axis=1)
    hot = rng.permutation(NUM_ITEMS)[:NUM_DAYS]
    rows = np.where(rng.random(days.shape) < 0.9, hot[days], rng.integers(NUM_ITEMS, size=days.shape))
    times = np.sort(days * DAY + rng.integers(DAY, size=days.shape), axis=1)
    return Sequences(np.arange(300), offsets_of(np.full(300, 4)), rows.ravel(), times.ravel(), is_ordered=True)


def data_of(config: RunConfig, train: Sequences) -> TrainingData:
    tables = tables_of(train)
    return TrainingData.prepare(train, tables.catalog, None, fit_featurizer(config, tables, train))


def tables_of(train: Sequences) -> Tables:
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(NUM_ITEMS)}))
    frame = pd.DataFrame({"user_id": train.user_ids[train.event_users], "item_id": train.item_rows})
    return Tables(Interactions(frame, is_ordered=True), catalog, None, ())


def parts_of(config: RunConfig, train: Sequences | None = None) -> TrainingParts:
    return build(config, data_of(config, fashions() if train is None else train), CPU)


def hit_rate(split: Split, trend: bool) -> float:
    config = config_of()
    if not trend:
        config = config.model_copy(update={"towers": config.towers.model_copy(update={"trend": []})})
    trainer = Trainer(build(config, data_of(config, split.train), CPU), quiet=True, steps=150)
    model, data = trainer.fit(), trainer.data
    towers = TwoTowerRecommender(model, data.featurizer, data.item_features, None, 5, split.timeline)
    queries = split.test
    assert queries is not None
    best = towers.scores(queries).argmax(axis=1)
    answers = np.split(queries.target_rows, queries.target_offsets[1:-1])
    return float(np.mean([row in mine for row, mine in zip(best, answers, strict=True)]))


def test_a_fashion_that_only_recent_popularity_shows_is_learned() -> None:
    split = leave_one_out(fashions(), NUM_ITEMS)
    assert hit_rate(split, trend=True) > hit_rate(split, trend=False) + 0.3


@pytest.mark.parametrize("targets", ["next", "future", "any"])
def test_numbers_are_the_same_from_a_table_and_made_for_a_step(targets: str) -> None:
    whole = parts_of(config_of(targets=targets))
    some = parts_of(config_of(targets=targets, negatives="sampled", uniform_negatives=20, in_batch_negatives=5))
    assert whole.trend is not None
    assert some.trend is not None
    generator = torch.Generator().manual_seed(0)
    for batch in whole.batches.epoch(0):
        chosen = Targets.of(batch)
        negatives = some.negatives.draw(chosen, generator)
        table, own = whole.trend.of(chosen, whole.negatives.draw(chosen, generator))
        made, own_made = some.trend.of(chosen, negatives)
        assert torch.equal(table.numbers[:, table.moments][:, :, negatives.rows], made.numbers[:, made.moments])
        assert torch.equal(own, own_made)


def test_nothing_from_the_moment_of_a_prediction_on_changes_its_numbers() -> None:
    train, cut = fashions(), 25 * DAY
    assert train.times is not None
    is_late = train.times >= cut
    other = replace(train, item_rows=train.item_rows.copy())
    other.item_rows[is_late] = train.item_rows[is_late][::-1]  # others, of the same items
    first, second = parts_of(config_of(), train), parts_of(config_of(), other)
    assert first.trend is not None
    assert second.trend is not None
    seen = 0
    for one, two in zip(first.batches.epoch(0), second.batches.epoch(0), strict=True):
        targets = Targets.of(one)
        found = [
            parts.trend.of(targets, parts.negatives.draw(targets, torch.Generator()))[0]
            for parts in (first, second)
            if parts.trend is not None
        ]
        early = (one.times[targets.places] <= cut).numpy()  # type: ignore[index]
        numbers = [part.numbers[:, part.moments[early]] for part in found]
        assert torch.equal(*numbers)
        assert torch.equal(one.times, two.times)  # type: ignore[arg-type]
        seen += int(early.sum())
    assert seen > 300


@pytest.mark.parametrize("change", ["others", "fewer"])
def test_nothing_from_the_moment_of_a_question_on_changes_its_scores(change: str) -> None:
    train, cut = fashions(), 25 * DAY
    assert train.times is not None
    config = config_of()
    data = data_of(config, train)
    model = build(config, data, CPU).model.eval()
    assert model.trend is not None
    torch.nn.init.normal_(model.trend.weights.bias)
    torch.nn.init.normal_(model.trend.weights.weight)
    is_late = train.times >= cut
    other = replace(train, item_rows=np.where(is_late, 0, train.item_rows))
    if change == "fewer":
        other = train.keep(~is_late)
    history = train.keep(~is_late).take(np.arange(40))
    asked = Queries(history, np.arange(41), np.zeros(40, int), np.arange(cut - 39 * 3600, cut + 1, 3600))

    def towers(events: Sequences, *, end_of_training: bool = False) -> TwoTowerRecommender:
        timeline, features = Timeline.of(events), data.item_features
        return TwoTowerRecommender(model, data.featurizer, features, None, 5, timeline, end_of_training=end_of_training)

    assert np.array_equal(towers(train).scores(asked), towers(other).scores(asked))
    indexed = [towers(events, end_of_training=True).scores(asked) for events in (train, other)]
    assert not np.array_equal(*indexed), "an index knows all events that it was made of"


def test_a_large_table_gets_a_coarser_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = parts_of(config_of()).trend
    monkeypatch.setattr(trend_module, "MOST_TABLE_BYTES", 2 * 100 * NUM_ITEMS)
    coarse = parts_of(config_of()).trend
    assert fine is not None
    assert coarse is not None
    assert coarse.trend.step == 64 * fine.trend.step
    assert coarse._table is not None
    assert coarse._table.shape[1] <= 100


def test_settings_that_do_not_go_with_it_are_refused() -> None:
    config = config_of().model_dump()
    with pytest.raises(ValidationError, match="trend needs the time of every interaction"):
        RunConfig.model_validate({**config, "features": {**config["features"], "columns": {}}})
    with pytest.raises(ValidationError, match="symmetric_loss has no place for"):
        config_of(symmetric_loss=True)
    with pytest.raises(ValidationError, match="trend needs histories"):
        TowersConfig(trend=[1], history_encoder="none")
    with pytest.raises(ValidationError, match="must ascend"):
        TowersConfig(trend=[7, 1])
    train = fashions()
    split = replace(time_split(train, NUM_ITEMS), train=replace(train, times=None))
    with pytest.raises(DataError, match=r"\[towers\] trend needs the time of every interaction, found none"):
        fit(config_of(), tables_of(train), split, device=CPU)
