"""What users get of whom nothing is known: the window is chosen by validation, and the service counts as it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from features.config import FeaturesConfig, FeatureSettings
from features.sequences.ragged import offsets_of
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Sequences
from features.sequences.split import time_split
from features.tables.tables import Catalog, Interactions, Tables, Users
from serving.catalog.popularity import popularity_of
from towers.config import TowersConfig
from training.config import RunConfig, TrainingConfig, read_run_config
from training.evaluation import popular_items as module
from training.evaluation.popular_items import choose_popular_days, popular_items, popularity_gain
from training.loop.fit import fit
from training.tasks.init import propose, write_proposal

NUM_ITEMS, NUM_DAYS, DAY = 40, 100, 86_400


def waves(days_of_a_wave: int) -> Sequences:
    """Each user comes once, with a few of the items that are in fashion for so many days."""
    rng = np.random.default_rng(0)
    days = np.sort(rng.integers(NUM_DAYS, size=900))
    rows = (days[:, None] // days_of_a_wave * 3 + rng.permuted(np.tile(np.arange(3), (900, 1)), axis=1)) % NUM_ITEMS
    times = np.sort(days[:, None] * DAY + rng.integers(3_600, size=(900, 3)), axis=1)
    return Sequences(np.arange(900), offsets_of(np.full(900, 3)), rows.ravel(), times.ravel(), is_ordered=True)


@pytest.mark.parametrize(("days_of_a_wave", "longest"), [(20, 14), (10_000, np.inf)])
def test_the_window_is_what_validation_users_without_a_history_want(days_of_a_wave: int, longest: float) -> None:
    split = time_split(waves(days_of_a_wave), NUM_ITEMS)
    assert (split.validation.history.lengths == 0).sum() > 20
    days = choose_popular_days(split)
    assert (np.inf if days == "all" else days) <= longest
    assert (days == "all") == (days_of_a_wave > NUM_DAYS)


SEEN_ITEMS = SeenItems.of(False)


def test_recent_popularity_is_clearly_better_where_fashions_change_and_not_elsewhere() -> None:
    changing, lasting = (popularity_gain(waves(days), NUM_ITEMS, SEEN_ITEMS) for days in (20, 10_000))
    assert changing is not None
    assert lasting is not None
    assert (changing.is_clear, lasting.is_clear) == (True, False)
    assert changing.num_questions == 900
    assert changing.recent > 2 * changing.all_time > 0


def test_init_writes_the_setting_where_fashions_change(tmp_path: Path) -> None:
    events = waves(20)
    users = events.user_ids[events.event_users]
    frame = pd.DataFrame({"user_id": users, "item_id": events.item_rows, "timestamp": events.times})
    frame.to_csv(tmp_path / "events.csv", index=False)
    none = dict.fromkeys(("items", "users", "documents", "queries", "pairs"))
    settings = tmp_path / "run.toml"
    write_proposal(propose(settings, interactions=tmp_path / "events.csv", **none), settings)
    assert read_run_config(settings).towers.trend == [1, 7, 30]
    assert "recent popularity has an N@10 of 0." in settings.read_text(encoding="utf-8")


def test_of_many_events_the_newest_say_how_good_recent_popularity_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TREND_EVENTS", 1_000)
    events = waves(20)
    gain = popularity_gain(events, NUM_ITEMS, SEEN_ITEMS)
    newest = events.keep(events.times >= np.sort(events.times)[-1_000])
    assert gain == popularity_gain(newest.take(np.flatnonzero(newest.lengths)), NUM_ITEMS, SEEN_ITEMS)


def test_of_few_users_or_without_times_nothing_is_said_of_recent_popularity() -> None:
    few = popularity_gain(waves(20).take(np.arange(800, 850)), NUM_ITEMS, SEEN_ITEMS)
    assert few is not None
    assert not few.is_clear
    assert popularity_gain(replace(waves(20), times=None), NUM_ITEMS, SEEN_ITEMS) is None
    assert popularity_gain(waves(20).take(np.arange(0)), NUM_ITEMS, SEEN_ITEMS) is None


def test_without_times_all_interactions_count() -> None:
    split = time_split(waves(20), NUM_ITEMS)
    untimed = replace(split, train=replace(split.train, times=None))
    assert choose_popular_days(untimed) == "all"
    scores = popular_items(untimed.train, NUM_ITEMS, 7.0).scores(split.validation)[0]
    assert np.array_equal(scores, np.bincount(split.train.item_rows, minlength=NUM_ITEMS))


@pytest.mark.parametrize("days", [0.5, 3.0, 30.0, "all"])
def test_the_service_ranks_popular_items_as_the_evaluation_does(days: float) -> None:
    train = waves(20)
    question = time_split(train, NUM_ITEMS).validation.take(np.array([0]))
    scores = popular_items(train, NUM_ITEMS, days).scores(question)[0]
    served = popularity_of(train, NUM_ITEMS, np.inf if days == "all" else days)
    assert np.array_equal(np.argsort(-scores, kind="stable"), np.argsort(-served, kind="stable"))


def test_a_question_does_not_know_what_came_after_it() -> None:
    split = time_split(waves(20), NUM_ITEMS)
    assert split.test is not None
    assert split.test.times is not None
    known = popular_items(split.train, NUM_ITEMS, 7.0, split.timeline).scores(split.test)
    events = waves(20)
    for scores, time in zip(known, split.test.times, strict=True):
        before = (events.times < time) & (events.times >= time - 7 * DAY)
        assert np.array_equal(np.floor(scores), np.bincount(events.item_rows[before], minlength=NUM_ITEMS))


def test_users_of_whom_nothing_is_known_get_popular_items_and_others_what_the_towers_say() -> None:
    events = waves(20)
    split = time_split(events, NUM_ITEMS)
    queries = split.validation
    is_german = np.arange(len(queries)) % 2 == 0
    ids = queries.history.user_ids
    asked = pd.DataFrame({"user_id": ids, "country": np.where(is_german, "de", None)})
    earlier = pd.DataFrame({"user_id": split.train.user_ids, "country": "de"})
    users = Users(pd.concat([asked, earlier]).drop_duplicates("user_id", ignore_index=True))
    frame = pd.DataFrame({"user_id": events.user_ids[events.event_users], "item_id": events.item_rows})
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(NUM_ITEMS)}))
    tables = Tables(Interactions(frame, is_ordered=True), catalog, users, ())
    config = RunConfig(
        features=FeaturesConfig(
            interactions="none.parquet",
            users="none.parquet",
            item={"item_id": FeatureSettings(kind="id")},
            user={"country": FeatureSettings(kind="category")},
        ),
        towers=TowersConfig(embedding_dim=8, history_encoder="mean"),
        training=TrainingConfig(epochs=1),
    )
    learned = fit(config, tables, split, device=torch.device("cpu"))
    towers = learned.recommender(10, split.timeline)
    scores, is_known = towers.scores(queries), towers.knows(queries)
    assert np.array_equal(is_known, (queries.history.lengths > 0) | is_german)
    assert learned.popular_days == choose_popular_days(split)
    popular = popular_items(split.train, NUM_ITEMS, learned.popular_days, split.timeline).scores(queries)
    assert np.array_equal(scores[~is_known], popular[~is_known])
    assert (np.abs(scores[is_known]) < 1.1).all()
