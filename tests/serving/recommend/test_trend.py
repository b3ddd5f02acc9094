"""Recent popularity in the service: part of what a user gets, no part of what is alike, as old as the index."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from features.errors import DataError
from features.sequences.timeline import Timeline
from features.sequences.trend import STEPS
from features.tables.tables import read_tables
from serving.jobs.build_index import build_index
from serving.live.follower import LiveRecommender
from serving.live.log import Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.rules import Rules
from serving.search.faiss_index import ItemIndex
from serving.search.inverted_lists import FILE as LISTS
from serving.search.tuning import choose
from serving.snapshot.snapshot import Snapshot
from tests.serving.conftest import SETTINGS, write_untrained
from towers.bundle.bundle import ModelBundle
from towers.model.trend_head import TREND_DIMS

DIM = 16


@pytest.fixture(scope="module")
def world(pristine, tmp_path_factory):
    """A model that reads recent popularity, the table of its interactions, and who answers, after a round trip."""
    folder = tmp_path_factory.mktemp("trend")
    shutil.copytree(pristine / "data", folder / "data")
    settings = {**SETTINGS, "towers": {**SETTINGS["towers"], "trend": [0.1, 1.0]}}
    write_untrained(folder / "model", folder / "data", settings)
    bundle = ModelBundle.open(folder / "model")
    build_index(bundle, {})
    return bundle, folder / "data" / "clicks.csv", Recommender(bundle, Snapshot.open(bundle))


def expected_scores(bundle, clicks, vectors):
    """Scores of all items by row for users of these vectors, straight from the tables."""
    tables = read_tables(bundle.config.features, clicks.parent)
    items = bundle.encode_items(tables.catalog)
    trend = bundle.trend(Timeline.of(tables.interactions.sequences(tables.catalog)), len(items))
    numbers = trend.numbers(np.array([trend.end]))[:, 0].T / STEPS
    linear = bundle.model.trend.weights
    weights = vectors @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    return vectors @ items.T + weights @ numbers.T


@pytest.mark.parametrize("rules", [None, Rules(pin=("p3",))])
def test_scores_are_those_of_the_vectors_and_of_weights_times_numbers(world, rules):
    bundle, clicks, recommender = world
    users = [1001, 1017, UserProfile(history=("p1", "p2", "p9"))]
    queries, _ = recommender._encoder.encode(recommender.state, users)
    assert queries.vectors.shape == (3, DIM + TREND_DIMS)
    scores = expected_scores(bundle, clicks, queries.vectors[:, :DIM])
    request = RecommendRequest(20, rules=rules)
    for place, response in enumerate(recommender.recommend_many(users, request)):
        open_rows = np.setdiff1d(np.arange(scores.shape[1]), queries.excluded.row(place))
        found = {item.item_id: item.score for item in response.items}
        wanted = dict(zip(np.array(recommender.state.items.ids)[open_rows], scores[place, open_rows], strict=True))
        assert len(found) == 20
        for item_id, score in found.items():
            assert score == pytest.approx(wanted[item_id], abs=2e-6)
        if rules is None:
            assert [*found.values()] == pytest.approx(sorted(wanted.values(), reverse=True)[:20], abs=2e-6)
    assert np.ptp(scores - queries.vectors[:, :DIM] @ recommender.state.embeddings[np.arange(120)].T) > 0.01


def test_what_is_alike_does_not_depend_on_recent_popularity(world):
    _, _, recommender = world
    vectors = recommender.state.embeddings[np.arange(120)]
    cosines = vectors @ vectors[recommender.state.items.row("p5")]
    found = [item.score for item in recommender.similar("p5", 10).items]
    assert found == pytest.approx(np.sort(cosines)[::-1][1:11].tolist(), abs=2e-6)
    found = [item.score for item in recommender.search("red lamp", 5).items]
    assert max(found) <= 1 + 1e-6
    varied = recommender.recommend(1001, RecommendRequest(10, rules=Rules(diversity=0.5)))
    assert len(varied.items) == 10


def test_a_new_index_has_the_numbers_of_today(world, tmp_path):
    bundle, clicks, recommender = world
    table = pd.read_csv(clicks)
    more = pd.DataFrame({"user": range(1000, 1020), "product": "p119", "time": table["time"].max() + 3600})
    pd.concat([table, more]).to_csv(tmp_path / "clicks.csv", index=False)
    tables = bundle.read_tables(
        bundle.config.features.model_copy(update={"interactions": str(tmp_path / "clicks.csv")})
    )
    fresh = Snapshot.build(bundle, tables)
    row = recommender.state.items.row("p119")
    before, after = recommender.snapshot.index.vectors[row], fresh.index.vectors[row]
    assert np.array_equal(before[:DIM], after[:DIM])
    assert (after[DIM : DIM + 2] > before[DIM : DIM + 2]).all()
    assert not after[DIM + 2 :].any()
    assert recommender.snapshot.manifest.trend_until == table["time"].max() + 1
    assert fresh.manifest.trend_until == table["time"].max() + 3601
    frame = tables.interactions.frame.drop(columns="timestamp")
    untimed = replace(tables, interactions=replace(tables.interactions, frame=frame))
    with pytest.raises(DataError, match="needs the time of every interaction"):
        Snapshot.build(bundle, untimed)


def test_an_item_that_is_written_again_keeps_its_numbers_and_a_new_one_has_none(world, tmp_path):
    _, _, recommender = world
    log = SqliteLog(tmp_path / "live.db")
    live = LiveRecommender(recommender, log)
    cells = {"title": "blue lamp", "price": 3.0, "tags": "lamp|red"}
    log.append([Write("item", {"item_id": item_id, "cells": cells}) for item_id in ("p1", "fresh")])
    log.append([Write("event", {"user_id": 1001, "item_id": "fresh", "time": 1_700_600_000})])
    state = live.current().state
    before = recommender.state.vectors[[recommender.state.items.row("p1")]][0]
    again, new = (state.vectors[[state.items.row(item_id)]][0] for item_id in ("p1", "fresh"))
    assert not np.array_equal(before[:DIM], again[:DIM])
    assert np.array_equal(before[DIM:], again[DIM:])
    assert before[DIM:].any()
    assert not new[DIM:].any()
    for user in (1001, 1017, UserProfile(history=("fresh", "p1"))):
        assert len(live.current().recommend(user, 10).items) == 10


@pytest.mark.parametrize("kind", ["exact", "matryoshka", "hnsw", "ivf", "ivf-pq", "pq", "sq8", "rabitq"])
def test_every_kind_of_index_finds_items_by_both_parts(kind, tmp_path):
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(rows, DIM)).astype(np.float32) for rows in (1200, 60))
    vectors, queries = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (vectors, queries))
    numbers, weights = (np.zeros((rows, TREND_DIMS), np.float32) for rows in (1200, 60))
    numbers[:, :2] = rng.random((1200, 2)) ** 4
    weights[:, :2] = rng.random((60, 2))
    items, asked = np.hstack([vectors, numbers]), np.hstack([queries, weights])
    wanted = 0.95 if kind.startswith("ivf") else None  # lists of scattered items want more effort than is usual
    chosen = choose(items, asked, kind=kind, prefixes=[8], tail=TREND_DIMS, recall=wanted)
    assert chosen.recall > 0.9
    chosen.index.save(tmp_path / "items.faiss")
    lists = tmp_path / LISTS if (tmp_path / LISTS).exists() else None
    loaded = ItemIndex.load(tmp_path / "items.faiss", items, chosen.index.plan, chosen.index.partitions, lists)
    found, best = loaded.search(asked, 10), np.sort(asked @ items.T, axis=1)[:, ::-1]
    if kind == "exact":
        assert found.scores.reshape(60, 10) == pytest.approx(best[:, :10], abs=1e-6)
    assert np.array_equal(loaded.embeddings, vectors)
    with pytest.raises(ValueError, match="expected vectors of length 1"):
        choose(items, asked, kind=kind, prefixes=[8])
