"""The short way around Flask, beside Flask's own, which what is unusual about a request takes."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.config import ServingConfig
from serving.http.app import create_app
from serving.http.key_file import add_key

PLAIN, UNUSUAL = "application/json", "application/json; charset=utf-8"
BODIES = [
    {},
    {"history": ["item-001", "item-002", "gone"], "k": 3},
    {"history": ["item-001"], "k": 2, "offset": 1, "exclude": ["item-003"], "diversity": 0.5, "reasons": 1},
    {"users": [103, {"history": ["item-001"]}, "nobody"], "k": 2},
    {"history": [1.5]},
    {"k": 0},
    {"misspelt": 1},
    {"attributes": {"town": "Ulm"}},
    [],
    "text",
]
RAW = [b"", b"{", b"\xff", b'{"k": 1e400}', b'{"history": "' + b"x" * 20_000 + b'"}']
QUERIES = [
    "",
    "?k=3",
    "?k=3&offset=2",
    "?exclude=item-001&exclude=item-002",
    "?k=0",
    "?k=x",
    "?k=1&k=2",
    "?reasons=1",
    "?no=1",
    "?k",
]


def asking(retriever, **settings):
    """A client of a service where Flask marks what it answers."""
    app = create_app(retriever, ServingConfig(max_body_bytes=20_000, **settings))

    @app.after_request
    def mark(response):
        response.headers["By-Flask"] = "yes"
        return response

    return app.test_client()


@pytest.fixture
def client(retriever):
    return asking(retriever)


def told(response):
    """All that an answer says, but for what differs by request."""
    headers = [pair for pair in response.headers if pair[0] not in ("X-Request-Id", "By-Flask")]
    return response.status_code, sorted(headers)


def took_the_short_way(response):
    return "By-Flask" not in response.headers


@pytest.mark.parametrize("raw", [*(json.dumps(body).encode() for body in BODIES), *RAW])
def test_a_posted_description_is_answered_the_same_either_way(client, raw):
    short, long = (client.post("/recommendations", data=raw, content_type=kind) for kind in (PLAIN, UNUSUAL))
    assert took_the_short_way(short) is (len(raw) > 0)
    assert took_the_short_way(long) is (len(raw) > 20_000)  # refused before either way
    assert short.data == long.data
    assert told(short) == told(long)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("user", ["103", "nobody", "a/b", "%20", "103/"])
def test_a_user_is_answered_the_same_either_way(client, user, query):
    """HEAD goes by Flask; its length stands for the body, and the second time a query is remembered."""
    path = f"/recommendations/{user}{query}"
    short, again, long = client.get(path), client.get(path), client.head(path)
    assert took_the_short_way(short)
    assert not took_the_short_way(long)
    assert told(short) == told(again) == told(long)
    assert short.data == again.data


def test_what_is_unusual_goes_by_flask_and_is_answered_all_the_same(client):
    for path in ("/recommendations/%C3%A9", "/recommendations/", "/recommendationsx"):
        assert not took_the_short_way(client.get(path))
    assert client.get("/recommendations/%C3%A9").status_code == 200
    for headers in ({"Content-Type": "text/plain"}, {}):
        response = client.post("/recommendations", data=b"{}", headers=headers)
        assert response.status_code == 415
        assert not took_the_short_way(response)
    assert client.put("/recommendations", json={}).status_code == 405
    assert client.delete("/recommendations/103").status_code == 405


def test_a_body_that_breaks_off_is_the_callers_mistake(client):
    for kind in (PLAIN, UNUSUAL):
        broken = {"CONTENT_LENGTH": "9"}
        response = client.post("/recommendations", data=b"{}", content_type=kind, environ_overrides=broken)
        assert (response.status_code, response.json["code"]) == (400, "bad_request")


def test_a_mistake_of_ours_is_told_to_the_log_and_not_to_the_caller(client, retriever, monkeypatch, caplog):
    monkeypatch.setattr(type(retriever), "recommend", lambda *_: 1 / 0)
    response = client.get("/recommendations/103")
    assert took_the_short_way(response)
    assert (response.status_code, response.json["detail"]) == (500, "the server made a mistake; its log says more")
    assert "division by zero" in caplog.text


def test_requests_are_counted_by_the_same_routes(client):
    for method in (client.get, client.head):
        method("/recommendations/103")
    for kind in (PLAIN, UNUSUAL):
        client.post("/recommendations", data=b"{}", content_type=kind)
    found = {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name in ("towers_requests_total", "towers_fallbacks_total")
    }
    assert found == {("/recommendations/<id:user_id>", "200"): 2, ("/recommendations", "200"): 2, ("popular",): 2}


def test_keys_and_rates_stand_before_both_ways(retriever, tmp_path):
    secret = add_key(tmp_path / "keys.toml", "shop", "read")
    client = asking(retriever, api_keys_file=str(tmp_path / "keys.toml"), rate=0.001, burst=3)
    key = {"Authorization": f"Bearer {secret}"}
    for ask in (client.get, client.head):
        assert ask("/recommendations/103").status_code == 401
    answers = [ask("/recommendations/103", headers=key) for ask in (client.get, client.head) * 2]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [took_the_short_way(answer) for answer in answers] == [True, False] * 2
    assert client.get("/recommendations/103", headers=key).headers["Retry-After"]
