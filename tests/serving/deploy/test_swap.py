"""Another bundle, another index: taken over while requests go on, refused where it cannot be used, and taken back."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from features.errors import DataError
from features.files import move_link
from serving.config import ServingConfig
from serving.deploy.hot_reload import LastServed, RecommenderProvider, identity_of
from serving.deploy.swap import roll_back, swap_bundle
from serving.http.app import create_app
from serving.jobs.build_index import build_index
from tests.serving.conftest import model_of
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import BundleError

SECONDS = 30


@pytest.fixture
def runs(two_models, tmp_path):
    """The same, with `runs/production`, to be changed."""
    runs = tmp_path / "runs"
    shutil.copytree(two_models, runs)
    move_link(runs / "production", runs / "one")
    return runs


def wait_for(client, model):
    deadline = time.monotonic() + SECONDS
    while client.get("/readyz").headers["Towers-Model"] != model:
        assert time.monotonic() < deadline, "not reloaded"
        time.sleep(0.02)


def test_a_link_that_moves_is_followed_and_no_request_fails(runs):
    app = create_app(runs / "production", ServingConfig(watch_seconds=0.05))
    one, two = model_of(runs, "one"), model_of(runs, "two")
    expected = {
        version: create_app(runs / name).test_client().get("/recommendations/1001").json
        for name, version in (("one", one), ("two", two))
    }
    assert expected[one] != expected[two]
    done, wrong = threading.Event(), []

    def ask():
        client = app.test_client()
        while not done.is_set():
            answer = client.get("/recommendations/1001")
            if answer.status_code != 200 or answer.json != expected[answer.headers["Towers-Model"]]:
                wrong.append(answer.text)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    client = app.test_client()
    for name, version in (("two", two), ("one", one)) * 2:
        swap_bundle(runs / name, runs / "production")
        wait_for(client, version)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_index_made_anew_is_taken_over(runs):
    app = create_app(runs / "production", ServingConfig(watch_seconds=0.05))
    client = app.test_client()
    before = client.get("/recommendations/1001").headers["Towers-Index"]
    build_index(ModelBundle.open(runs / "one"), {})
    deadline = time.monotonic() + SECONDS
    while client.get("/recommendations/1001").headers["Towers-Index"] == before:
        assert time.monotonic() < deadline, "not reloaded"
        time.sleep(0.02)


def test_what_cannot_be_used_is_left_alone_and_the_old_one_goes_on(runs, caplog):
    path = runs / "production"
    source = RecommenderProvider(opener(path), identify=lambda: identity_of(path))
    first = source.get()
    weights = runs / "two" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    move_link(path, runs / "two")
    assert not source.reload()
    assert "model.safetensors was changed after it was written" in caplog.text
    assert source.get() is first
    move_link(path, runs / "one")
    assert source.reload(), "it is what was served all along"
    assert source.get() is first


def opener(path):
    from serving.recommend.recommender import Recommender

    return lambda: Recommender.open(path.resolve())


@pytest.mark.parametrize("damage", ["no index", "garbage", "nothing"])
def test_a_worker_that_is_replaced_serves_what_was_served_last_until_it_can_serve_what_it_should(
    runs, tmp_path, caplog, damage
):
    shared, path = tmp_path / "shared", runs / "production"
    shared.mkdir()
    one, two = model_of(runs, "one"), model_of(runs, "two")
    create_app(path, ServingConfig(watch_seconds=0), shared)
    shutil.copytree(runs / "two", runs / "mended")
    match damage:
        case "no index":
            shutil.rmtree(runs / "two" / "index")
        case "garbage":
            (runs / "two" / "manifest.json").write_bytes(b"\0garbage")
        case "nothing":
            shutil.rmtree(runs / "two")
    move_link(path, runs / "two")
    client = create_app(path, ServingConfig(watch_seconds=0.05), shared).test_client()
    answer = client.get("/recommendations/1001")
    assert (answer.status_code, answer.headers["Towers-Model"]) == (200, one)
    assert f"serving the previous bundle {(runs / 'one').resolve()}: " in caplog.text
    move_link(path, runs / "mended")
    wait_for(client, two)
    assert LastServed(shared).bundle() == (runs / "mended").resolve()


def test_live_writes_go_over_to_the_next_model(runs, tmp_path):
    settings = ServingConfig(watch_seconds=0.05, live=str(tmp_path / "live.db"))
    client = create_app(runs / "production", settings).test_client()
    assert client.put("/items/new", json={"title": "steel lamp"}).status_code == 201
    events = [{"user_id": user_id, "item_id": "new"} for user_id in (1001, 5000)]
    assert client.post("/events", json={"events": events}).status_code == 200
    swap_bundle(runs / "two", runs / "production")
    wait_for(client, model_of(runs, "two"))
    assert client.get("/items/new/similar?k=3").status_code == 200
    assert client.get("/recommendations/5000").json["fallback"] is None
    found = client.get("/recommendations/1001?k=200").json["items"]
    assert "new" not in [item["item_id"] for item in found]
    assert client.get("/readyz").headers["Towers-Live"] == "3"


def test_an_index_that_the_log_was_folded_into_answers_as_the_service_did(runs, tmp_path):
    log = str(tmp_path / "live.db")
    client = create_app(runs / "one", ServingConfig(live=log, watch_seconds=0)).test_client()
    client.put("/items/new", json={"title": "steel lamp", "price": 3.5})
    client.delete("/items/p5")
    client.post("/events", json={"events": [{"user_id": 1001, "item_id": "new"}, {"user_id": 5000, "item_id": "p7"}]})
    paths = ["/recommendations/1001?k=150", "/recommendations/5000", "/recommendations/nobody?k=150"]
    before = [client.get(path).json["items"] for path in paths]
    build_index(ModelBundle.open(runs / "one"), {}, live=log)
    for after in (
        create_app(runs / "one", ServingConfig(watch_seconds=0)).test_client(),
        create_app(runs / "one", ServingConfig(live=log, watch_seconds=0)).test_client(),
    ):
        for path, items in zip(paths, before, strict=True):
            found = after.get(path).json["items"]
            assert [item["item_id"] for item in found] == [item["item_id"] for item in items]
            assert [item["score"] for item in found] == pytest.approx([item["score"] for item in items], abs=1e-5)


def test_rollback_goes_back_and_again_forward(runs, capsys):
    link = runs / "production"
    swap_bundle(runs / "two", link)
    assert capsys.readouterr().out.startswith(f"{link}: one -> two; to undo: towers rollback --link {link}")
    assert (link.resolve().name, (runs / "production.previous").resolve().name) == ("two", "one")
    roll_back(link)
    assert (link.resolve().name, (runs / "production.previous").resolve().name) == ("one", "two")
    roll_back(link)
    assert link.resolve().name == "two"


def test_there_is_no_way_back_before_the_first_swap(runs):
    with pytest.raises(
        DataError, match=r"production.previous: no such link, so .*production has no previous bundle; deploy one"
    ):
        roll_back(runs / "production")


def test_a_bundle_that_cannot_be_used_is_not_swapped_in(runs):
    weights = runs / "two" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="was changed after it was written"):
        swap_bundle(runs / "two", runs / "production")
    with pytest.raises(BundleError, match="no such bundle"):
        swap_bundle(runs / "three", runs / "production")
    assert (runs / "production").resolve().name == "one"


def test_a_folder_is_not_replaced_by_a_link(runs):
    with pytest.raises(DataError, match="one: expected a link to a bundle, found a file or folder"):
        swap_bundle(runs / "two", runs / "one")


def test_a_link_can_point_to_another_folder(runs, tmp_path):
    shutil.copytree(runs / "two", tmp_path / "elsewhere")
    swap_bundle(tmp_path / "elsewhere", runs / "production")
    assert (runs / "production").resolve() == tmp_path / "elsewhere"
    roll_back(runs / "production")
    assert (runs / "production").resolve().name == "one"


def test_what_is_served_is_a_bundle_and_never_a_link_that_a_training_moves(runs):
    (runs / "latest").symlink_to("two")
    swap_bundle(runs / "latest", runs / "production")
    move_link(runs / "latest", runs / "one")
    assert (runs / "production").resolve().name == "two"
    with pytest.raises(
        DataError,
        match=r"latest: this link is set by each training run; deploy to another link, such as runs/production",
    ):
        swap_bundle(runs / "two", runs / "latest")
