"""The seams, with a real model: what training wrote, what the index holds and what each way of asking answers."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from features.sequences.ragged import offsets_of
from features.tables.tables import read_tables
from serving.http.app import create_app
from serving.jobs.recommend_all import Audience, write_candidates
from serving.recommend.recommender import Recommender
from serving.recommend.request import UserProfile
from serving.snapshot.snapshot import Snapshot

NOW = 1_700_500_000


@pytest.fixture(scope="module", params=["model", "timed"])
def world(pristine, tmp_path_factory, request):
    """A model, its tables and who answers from them, after a round trip over the disk."""
    from towers.bundle.bundle import ModelBundle

    folder = tmp_path_factory.mktemp("world") / "bundle"
    shutil.copytree(pristine / "runs" / request.param, folder)
    bundle = ModelBundle.open(folder)
    tables = read_tables(bundle.config.features, bundle.tables_folder)
    Snapshot.build(bundle, tables).save(folder)
    return bundle, tables, Recommender(bundle, Snapshot.open(bundle), clock=lambda: NOW)


def brute_force(bundle, tables, user_id, k):
    """Scores of all items straight from the bundle and the tables, by ids; nothing of serving."""
    events = tables.interactions.frame
    mine = events[events["user_id"] == user_id]
    history = mine["item_id"].tolist()
    vectors = dict(zip(tables.catalog.item_ids.tolist(), bundle.encode_items(tables.catalog), strict=True))
    people = tables.users.frame.set_index("user_id")
    attributes = people.loc[[user_id]].reset_index() if user_id in people.index else None
    past = np.array([vectors[item_id] for item_id in history], dtype=np.float32).reshape(-1, 16)
    times = {"request_times": np.array([NOW]), "event_times": mine["timestamp"].to_numpy(np.int64)}
    user = bundle.encode_users(past, offsets_of(np.array([len(history)])), attributes, np.array([user_id]), **times)[0]
    scores = {item_id: float(vector @ user) for item_id, vector in vectors.items() if item_id not in set(history)}
    return sorted(scores.items(), key=lambda pair: -pair[1])[:k]


def assert_alike(found, expected):
    """To the item; where two scores are closer than single precision can tell, either order will do."""
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-6)
    for (item_id, score), (other_id, _) in zip(found, expected, strict=True):
        assert item_id == other_id or score == pytest.approx(dict(expected).get(item_id, 2), abs=2e-6)


def assert_same(found, expected):
    assert found == expected


def test_the_service_agrees_with_brute_force_from_the_bundle(world):
    bundle, tables, recommender = world
    client = create_app(recommender).test_client()
    for user_id in recommender.state.users.ids:
        content = client.get(f"/recommendations/{user_id}?k=50").json
        assert content["fallback"] is None
        found = [(item["item_id"], item["score"]) for item in content["items"]]
        assert_alike(found, brute_force(bundle, tables, user_id, 50))


def test_the_file_agrees_with_the_service(world, tmp_path):
    """To the bit where both read vectors made before; those made for a request depend on who else is in the block."""
    bundle, _, recommender = world
    client = create_app(recommender).test_client()
    write_candidates(recommender, Audience.everyone(recommender), 30, tmp_path / "c.parquet")
    for user_id, rows in pd.read_parquet(tmp_path / "c.parquet").groupby("user_id"):
        served = client.get(f"/recommendations/{user_id}?k=30").json["items"]
        listed = list(zip(rows["item_id"], rows["score"], strict=True))
        asked = [(item["item_id"], np.float32(item["score"])) for item in served]
        assert_alike(listed, asked) if bundle.config.reads_time else assert_same(listed, asked)


def test_a_posted_history_agrees_with_the_known_user(world):
    _, tables, recommender = world
    client = create_app(recommender).test_client()
    people = tables.users.frame.set_index("user_id")
    for user_id, events in list(tables.interactions.frame.groupby("user_id"))[:40]:
        known = client.get(f"/recommendations/{user_id}").json["items"]
        body = {"history": events["item_id"].tolist(), "times": events["timestamp"].tolist()}
        if user_id in people.index:
            row = people.loc[user_id]
            body["attributes"] = {"country": str(row["country"]), "age": float(row["age"])}
        posted = client.post("/recommendations", json=body).json["items"]
        assert_alike(*([(item["item_id"], item["score"]) for item in items] for items in (posted, known)))


def test_someone_without_clicks_is_answered_from_attributes(world):
    bundle, tables, recommender = world
    assert_alike(
        [(item.item_id, item.score) for item in recommender.recommend(1000, 10).items],
        brute_force(bundle, tables, 1000, 10),
    )
    assert recommender.recommend(1000, 10).fallback is None


def test_attributes_of_any_allowed_type_are_read(world):
    *_, recommender = world
    client = create_app(recommender).test_client()
    for attributes in ({"country": "de", "age": 30}, {"age": 30.5}, {"country": "atlantis"}, {"country": 7}):
        assert client.post("/recommendations", json={"attributes": attributes}).status_code == 200
    wrong = client.post("/recommendations", json={"attributes": {"age": "old"}})
    assert wrong.status_code == 422
    assert "attributes.age: expected a number" in wrong.json["detail"]
    unknown = client.post("/recommendations", json={"attributes": {"town": "Ulm"}})
    assert "it reads 'country', 'age'" in unknown.json["detail"]


def test_an_item_that_training_did_not_know_is_found_and_read(world):
    """A new catalogue, the same weights: that is what a second seal is for."""
    bundle, tables, _ = world
    new = tables.catalog.frame.iloc[[0]].assign(item_id="brand-new")
    catalog = type(tables.catalog)(pd.concat([tables.catalog.frame, new], ignore_index=True))
    recommender = Recommender(
        bundle, Snapshot.build(bundle, type(tables)(tables.interactions, catalog, tables.users, ()))
    )
    assert "brand-new" in {item.item_id for item in recommender.similar(tables.catalog.item_ids[0], 5).items}
    assert recommender.recommend(UserProfile(["brand-new"]), 5).fallback is None


def test_times_are_read_by_models_that_look_at_the_clock_and_by_no_others(world):
    bundle, tables, recommender = world
    client = create_app(recommender).test_client()
    history = tables.catalog.item_ids[:6].tolist()

    def scores(times):
        body = {"history": history, "k": 20} | ({} if times is None else {"times": times})
        return [item["score"] for item in client.post("/recommendations", json=body).json["items"]]

    assert (scores([NOW - 60] * 6) == scores([NOW - 10**8] * 6)) is not bundle.config.reads_time
    assert (scores([NOW - 60] * 6) == scores(None)) is not bundle.config.reads_time
    assert scores([NOW] * 6) == scores([NOW + 60] * 6)  # a clock that is fast is no reason to refuse
    with_unknown = {"history": ["gone", *history], "times": [5, *[NOW - 60] * 6], "k": 20}
    answer = client.post("/recommendations", json=with_unknown).json
    assert [item["score"] for item in answer["items"]] == scores([NOW - 60] * 6)


def test_times_that_cannot_be_are_refused(world):
    *_, recommender = world
    client = create_app(recommender).test_client()
    short = client.post("/recommendations", json={"history": ["p1", "p2"], "times": [5]})
    assert short.status_code == 422
    assert "times: expected one for each of the 2 items of history, found 1" in short.json["detail"]
    for wrong in ([-1], ["yesterday"], [2**70], 5):
        assert client.post("/recommendations", json={"history": ["p1"], "times": wrong}).status_code == 422
