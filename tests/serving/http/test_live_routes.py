"""Items and events over HTTP: what is taken, what is refused and how, and that the next answer has it."""

from __future__ import annotations

import time

import pytest

from features.errors import UnavailableError
from serving.config import ServingConfig
from serving.errors import NotReady
from serving.http.app import create_app
from serving.live.follower import vector_from_json
from tests.serving.doubles import country, make_recommender, make_tables


@pytest.fixture
def client(recommender, tmp_path):
    return create_app(recommender, ServingConfig(live=str(tmp_path / "live.db"))).test_client()


def ids(response):
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json["items"]]


def test_an_item_that_was_put_is_in_the_next_answer_and_gone_after_it_was_deleted(client):
    assert client.get("/items/new/similar").status_code == 404
    put = client.put("/items/new", json={"title": "Brand new"})
    assert (put.status_code, put.json) == (201, {"item_id": "new", "position": 1})
    answer = client.get("/recommendations/108?k=101")
    assert ids(answer).count("new") == 1
    assert next(item for item in answer.json["items"] if item["item_id"] == "new")["title"] == "Brand new"
    assert ids(client.get("/items/new/similar?k=1")) != ["new"]
    assert ids(client.get("/recommendations/108?title=Brand%20new")) == ["new"]
    again = client.put("/items/new", json={"title": "Renamed"})
    assert (again.status_code, again.json["position"]) == (200, 2)
    assert ids(client.get("/recommendations/108?title=Brand%20new")) == []
    assert ids(client.get("/recommendations/108?title=Renamed")) == ["new"]
    deleted = client.delete("/items/new")
    assert (deleted.status_code, deleted.json) == (200, {"item_id": "new", "position": 3})
    assert "new" not in ids(client.get("/recommendations/108?k=101"))
    assert client.delete("/items/new").status_code == 404


def test_events_are_in_the_next_answer(client):
    (best,) = ids(client.get("/recommendations/107?k=1"))
    posted = client.post("/events", json={"events": [{"user_id": 107, "item_id": best}]})
    assert (posted.status_code, posted.json) == (200, {"accepted": 1, "repeated": 0, "position": 1})
    answer = client.get("/recommendations/107?k=100")
    assert best not in ids(answer)
    assert answer.headers["Towers-Live"] == "1"


def test_new_users_appear_with_their_first_event(client):
    assert client.get("/recommendations/4711").json["fallback"] == "popular"
    client.post("/events", json={"events": [{"user_id": "4711", "item_id": "item-007"}]})
    known = client.get("/recommendations/4711").json
    described = client.post("/recommendations", json={"history": ["item-007"]}).json
    assert known["fallback"] is None
    assert known["items"] == described["items"]


def test_an_event_that_is_sent_again_is_not_counted_again(client):
    named = {"user_id": 107, "item_id": "item-003", "event_id": "order 5"}
    timed = {"user_id": 107, "item_id": "item-004", "time": 1_700_000_000}
    nameless = {"user_id": 107, "item_id": "item-005"}
    first = client.post("/events", json={"events": [named, timed, nameless]}).json
    again = client.post("/events", json={"events": [named, timed, nameless]}).json
    assert (first["accepted"], first["repeated"]) == (3, 0)
    assert (again["accepted"], again["repeated"]) == (1, 2)


def test_an_answer_says_in_its_headers_what_produced_it(client, recommender):
    for answer in (client.get("/recommendations/100"), client.get("/items/item-001/similar"), client.get("/readyz")):
        assert answer.headers["Towers-Model"] == recommender.model
        assert answer.headers["Towers-Index"] == recommender.snapshot.manifest.version
        assert answer.headers["Towers-Live"] == "0"
    assert "Towers-Live" not in create_app(recommender).test_client().get("/recommendations/100").headers
    assert "Towers-Model" not in client.get("/healthz").headers


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        (
            "PUT",
            "/items/new",
            {"titel": "x"},
            422,
            "titel: the table has no such column; it has 'item_id', 'title'",
        ),
        ("PUT", "/items/new", {"title": 7}, 422, "title: expected text, found 7"),
        ("PUT", "/items/new", ["title"], 422, "body: expected an object with the columns of the item"),
        ("PUT", "/items/new", {"item_id": "other"}, 422, "item_id: expected 'new', as in the path"),
        ("PUT", "/items/%20new", {}, 422, "item_id: expected text without surrounding whitespace, as in the tables"),
        ("DELETE", "/items/gone", None, 404, "no item 'gone' in the catalogue"),
        ("POST", "/events", {"events": []}, 422, "events: list should have at least 1 item"),
        ("POST", "/events", {"event": 1}, 422, "events: required field is missing"),
        ("POST", "/events", {"events": [{"user_id": 1}]}, 422, "events.0.item_id: required field is missing"),
        (
            "POST",
            "/events",
            {"events": [{"user_id": 1, "item_id": "gone"}]},
            422,
            "events.0.item_id: no item 'gone'",
        ),
        (
            "POST",
            "/events",
            {"events": [{"user_id": "Ann", "item_id": "item-001"}]},
            422,
            "events.0.user_id: expected",
        ),
        ("POST", "/events", {"events": [{"user_id": 2**70, "item_id": "item-001"}]}, 422, "events.0.user_id"),
        ("POST", "/events", {"events": [{"user_id": 1, "item_id": "item-001", "time": 2**60}]}, 422, "in the future"),
        ("POST", "/events", {"events": [{"user_id": 1, "item_id": "item-001", "time": -1}]}, 422, "events.0.time"),
        ("POST", "/events", {"events": [{"user_id": 1, "item_id": "item-001", "event_id": ""}]}, 422, "event_id"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_that_says_where_and_nothing_is_written(
    client, method, path, body, status, said
):
    response = client.open(path, method=method, json=body)
    assert response.status_code == status, response.text
    assert said in response.json["detail"]
    assert client.get("/readyz").headers["Towers-Live"] == "0"


def test_of_several_events_all_or_none_are_taken(client):
    events = [{"user_id": 1, "item_id": "item-001"}, {"user_id": 1, "item_id": "gone"}]
    response = client.post("/events", json={"events": events})
    assert response.status_code == 422
    assert "events.1.item_id" in response.json["detail"]
    assert client.get("/recommendations/1").json["fallback"] == "popular"


def test_a_body_that_is_not_json_is_refused(client):
    assert client.put("/items/new", data=b"{", content_type="application/json").status_code == 400
    assert client.put("/items/new", data=b"{}", content_type="text/plain").status_code == 415


def test_without_a_log_nothing_can_be_written_and_the_answer_says_what_to_do(recommender):
    client = create_app(recommender).test_client()
    for method, path in (("PUT", "/items/new"), ("DELETE", "/items/item-001"), ("POST", "/events")):
        response = client.open(path, method=method, json={})
        assert response.status_code == 403
        assert "--live FILE" in response.json["detail"]


def test_ids_with_slashes_and_umlauts_can_be_written(client):
    for item_id in ("a/b", "ä ö", "x/similar"):
        assert client.put(f"/items/{item_id}", json={}).json["item_id"] == item_id
        assert client.delete(f"/items/{item_id}").json["item_id"] == item_id


def test_ids_of_numbers_stay_numbers(tmp_path):
    recommender = make_recommender(make_tables({7: [1, 2], 8: [3]}, [1, 2, 3, 4]))
    client = create_app(recommender, ServingConfig(live=str(tmp_path / "live.db"))).test_client()
    assert client.put("/items/42", json={}).json["item_id"] == 42
    assert client.put("/items/04", json={}).status_code == 422
    assert 42 in ids(client.get("/recommendations/7"))


def test_a_log_out_of_reach_refuses_writes_and_lets_answers_go_on(client, monkeypatch, caplog):
    client.post("/events", json={"events": [{"user_id": 4711, "item_id": "item-001"}]})
    assert client.get("/recommendations/4711").json["fallback"] is None

    def gone(*_):
        raise NotReady("the log of live writes cannot be read (disk I/O error)")

    store = client.application.extensions["towers"].provider.store
    for name in ("change_token", "append"):
        monkeypatch.setattr(store, name, gone)
    answer = client.get("/recommendations/4711")
    assert (answer.status_code, answer.json["fallback"]) == (200, None)
    assert "responses do not include the newest live writes" in caplog.text
    refused = client.post("/events", json={"events": [{"user_id": 4711, "item_id": "item-002"}]})
    assert refused.status_code == 503
    assert refused.headers["Retry-After"]


def test_what_another_worker_wrote_is_not_denied_while_the_log_is_out_of_reach(recommender, tmp_path, monkeypatch):
    mine, other = (
        create_app(recommender, ServingConfig(live=str(tmp_path / "live.db"))).test_client() for _ in range(2)
    )
    assert mine.get("/recommendations/107").status_code == 200
    assert other.put("/items/new", json={}).status_code == 201

    def gone(*_):
        raise NotReady("the log of live writes cannot be read")

    store = mine.application.extensions["towers"].provider.store
    with monkeypatch.context() as patch:
        patch.setattr(store, "change_token", gone)
        event = {"events": [{"user_id": 107, "item_id": "new"}]}
        for _ in range(2):  # the first finds the log away, the second knows it
            assert mine.post("/events", json=event).status_code == 503
            assert mine.delete("/items/new").status_code == 503
            assert mine.put("/items/new", json={}).status_code == 503
            assert mine.get("/recommendations/107").status_code == 200
    time.sleep(0.6)
    assert mine.post("/events", json=event).status_code == 200
    assert mine.delete("/items/new").status_code == 200


def test_an_item_is_searchable_in_under_half_a_second_with_a_real_model(pristine, tmp_path):
    """With the item tower, the log on the disk, and the next search; the fastest of three, as others only slow it."""
    from features.tables.tables import read_tables
    from serving.recommend.recommender import Recommender
    from serving.snapshot.snapshot import Snapshot
    from towers.bundle.bundle import ModelBundle

    bundle = ModelBundle.open(pristine / "runs" / "model")
    tables = read_tables(bundle.config.features, bundle.tables_folder)
    app = create_app(Recommender(bundle, Snapshot.build(bundle, tables)), ServingConfig(live=str(tmp_path / "live.db")))
    client = app.test_client()
    client.get("/recommendations/1001")
    seconds = []
    for name in ("new", "newer", "newest"):
        started = time.perf_counter()
        put = client.put(f"/items/{name}", json={"title": "red steel lamp", "price": 3, "tags": "red|lamp"})
        found = ids(client.get("/recommendations/1001?k=130"))
        seconds.append(time.perf_counter() - started)
        assert put.status_code == 201
        assert name in found
    assert min(seconds) < 0.5
    assert client.put("/items/new", json={"price": "cheap"}).status_code == 422


def test_attributes_of_known_users_still_count_beside_their_events(recommender, tmp_path):
    client = create_app(recommender, ServingConfig(live=str(tmp_path / "live.db"))).test_client()
    client.post("/events", json={"events": [{"user_id": 107, "item_id": "item-007"}]})
    body = {"history": ["item-007"], "attributes": {"country": "fr"}}
    assert country().keys() == body["attributes"].keys()
    known = client.get("/recommendations/107").json["items"]
    assert known == client.post("/recommendations", json=body).json["items"]


def test_where_the_service_of_the_vectors_is_away_a_write_is_503_and_not_remembered(client, monkeypatch, recommender):
    def away(*_):
        raise UnavailableError("https://vectors.example: no answer")

    monkeypatch.setattr(type(recommender.bundle), "encode_items", away)
    refused = client.put("/items/new", json={"title": "Brand new"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "vectors.example" not in refused.text
    assert client.get("/items/new/similar").status_code == 404


def test_a_write_remembers_the_vector_that_its_model_made(client, recommender):
    client.put("/items/new", json={"title": "Brand new"})
    (record,) = client.application.extensions["towers"].provider.store.read_after(0)
    assert vector_from_json(record.body["vector"], recommender.model, recommender.state.search.width) is not None
