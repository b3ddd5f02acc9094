"""What every request passes, and the route table from which its handling follows."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typing_extensions import TypedDict

from serving.config import ServingConfig
from serving.http import app as application
from serving.http.app import create_app
from serving.http.key_file import add_key
from serving.http.router import Route, Router
from serving.http.routes import ROUTES
from serving.http.service import json_reply


class Pong(TypedDict):
    """The response of a new endpoint."""

    pong: int


BODIES = [
    {},
    {"history": ["item-001", "item-002", "gone"], "k": 3},
    {"users": [103, {"history": ["item-001"]}, "nobody"], "k": 2},
    {"k": 0},
    [],
]
RAW = [b"", b"{", b"\xff", b'{"history": "' + b"x" * 20_000 + b'"}']
QUERIES = ["", "?k=3", "?k=3&offset=2", "?exclude=item-001&exclude=item-002", "?k=0", "?k=1&k=2", "?reasons=1", "?k"]


def client_of(recommender, **settings):
    return create_app(recommender, ServingConfig(max_body_bytes=20_000, **settings)).test_client()


@pytest.fixture
def client(recommender):
    return client_of(recommender)


def headers_of(response):
    """Status and headers, except the id, which differs by request."""
    return response.status_code, sorted(pair for pair in response.headers if pair[0] != "X-Request-Id")


@pytest.mark.parametrize(
    ("method", "path", "expected", "value"),
    [
        ("GET", "/recommendations/a/b", "/recommendations/{user_id}", "a/b"),
        ("HEAD", "/recommendations//", "/recommendations/{user_id}", "/"),
        ("POST", "/recommendations", "/recommendations", ""),
        ("GET", "/items/a\n/similar", "/items/{item_id}/similar", "a\n"),
        ("GET", "/items/similar/similar", "/items/{item_id}/similar", "similar"),
        ("PUT", "/items/a/similar", "/items/{item_id}", "a/similar"),
        ("GET", "/items//similar", None, ""),
        ("GET", "/recommendations/", None, ""),
        ("PATCH", "/recommendations", None, ""),
        ("OPTIONS", "/events", "/events", ""),
        ("OPTIONS", "/no", None, ""),
    ],
)
def test_a_request_finds_its_route(method, path, expected, value):
    route, found = Router(ROUTES).match(method, path)
    assert (route and route.path, found) == (expected, value)


def test_a_route_and_its_operation_stand_once_in_the_table():
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    names = [route.name for route in ROUTES if route.name is not None]
    assert len(set(names)) == len(names)


def test_options_and_a_wrong_method_say_which_methods_there_are(client):
    response = client.options("/items/a")
    assert (response.status_code, response.headers["Allow"]) == (200, "DELETE, OPTIONS, PUT")
    assert client.options("/items/a/similar").headers["Allow"] == "DELETE, GET, HEAD, OPTIONS, PUT"
    assert client.options("/static/style.css").headers["Allow"] == "GET, HEAD, OPTIONS"
    assert client.post("/recommendations/1").headers["Allow"] == "GET, HEAD, OPTIONS"
    assert client.post("/static/style.css").headers["Allow"] == "GET, HEAD, OPTIONS"
    assert client.options("/no").status_code == client.post("/no").status_code == 404


def test_a_path_that_is_not_there_is_answered_with_those_that_are(client):
    detail = client.get("/recommendation/103").json["detail"]
    assert detail.startswith("no such path; this service has /recommendations/{user_id}, /recommendations, ")
    assert all(route.path in detail for route in ROUTES)


def test_browsers_may_read_responses_only_from_the_origins_that_are_allowed(client, recommender):
    shop = {"Origin": "https://shop.example"}
    assert not {"Access-Control-Allow-Origin", "Vary"} & {*client.get("/search?q=red", headers=shop).headers.keys()}
    some = client_of(recommender, cors_origins=["https://shop.example"])
    for path in ("/recommendations/103", "/recommendations/103?k=0", "/no", "/readyz", "/"):
        answer = some.get(path, headers=shop)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert answer.headers["Vary"] == "Origin"
        for headers in ({"Origin": "https://shop.example.evil"}, {}):
            answer = some.get(path, headers=headers)
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert answer.headers["Vary"] == "Origin"
    everybody = client_of(recommender, cors_origins=["*"])
    assert everybody.get("/recommendations/103", headers=shop).headers["Access-Control-Allow-Origin"] == "*"


def test_a_preflight_is_answered_without_a_key_and_the_request_itself_is_not(recommender, tmp_path):
    secret = add_key(tmp_path / "keys.toml", "shop", "read")
    keys = {"api_keys_file": str(tmp_path / "keys.toml")}
    asked = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    client = client_of(recommender, cors_origins=["https://shop.example"], **keys)
    answer = client.options("/recommendations", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert answer.headers["Access-Control-Allow-Methods"] == "OPTIONS, POST"
    assert {"Authorization", "Content-Type"} <= {*answer.headers["Access-Control-Allow-Headers"].split(", ")}
    assert client.options("/no", headers=asked).status_code == 404
    assert client.post("/recommendations", json={}, headers=asked).status_code == 401
    assert client.post("/recommendations", json={}, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert client_of(recommender, **keys).options("/recommendations", headers=asked).status_code == 401
    other = client.options("/recommendations", headers={**asked, "Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_the_page_links_below_the_path_that_a_trusted_proxy_names(recommender):
    behind = {"X-Forwarded-Prefix": "/shop/recommend"}
    page = client_of(recommender, trusted_proxies=1).get("/", headers=behind).text
    assert 'href="/shop/recommend/static/style.css"' in page
    assert 'action="/shop/recommend/"' in page
    assert "/shop/recommend" not in client_of(recommender).get("/", headers=behind).text


def test_slashes_are_not_merged(client):
    for path in ("//", "/static//style.css", "//recommendations/103"):
        assert client.get(path).status_code == 404


def test_options_need_the_read_scope_except_for_probes(recommender, tmp_path):
    secret = add_key(tmp_path / "keys.toml", "shop", "read")
    client = client_of(recommender, api_keys_file=str(tmp_path / "keys.toml"))
    assert client.options("/healthz").status_code == 200
    assert client.options("/items/a").status_code == 401
    assert client.options("/items/a", headers={"Authorization": f"Bearer {secret}"}).status_code == 200


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("user", ["103", "nobody", "a/b", "%20", "%C3%A9", "103/"])
def test_head_and_a_cached_query_get_the_same_response(client, user, query):
    path = f"/recommendations/{user}{query}"
    first, again, head = client.get(path), client.get(path), client.head(path)
    assert headers_of(first) == headers_of(again) == headers_of(head)
    assert first.data == again.data
    assert head.data == b""


def test_queries_are_cached_up_to_a_limit(client):
    for offset in range(300):
        assert client.get(f"/recommendations/103?k=1&offset={offset}").status_code == 200
    assert 0 < len(client.application.extensions["towers"].recommend._cached) <= 256


@pytest.mark.parametrize("raw", [*(json.dumps(body).encode() for body in BODIES), *RAW])
def test_a_character_set_changes_nothing(client, raw):
    kinds = ("application/json", "application/json; charset=utf-8")
    one, other = (client.post("/recommendations", data=raw, content_type=kind) for kind in kinds)
    assert one.data == other.data
    assert headers_of(one) == headers_of(other)


def test_a_body_that_breaks_off_is_the_clients_error(client):
    broken = {"CONTENT_LENGTH": "9"}
    response = client.post("/recommendations", data=b"{}", content_type="application/json", environ_overrides=broken)
    assert (response.status_code, response.json["code"]) == (400, "bad_request")


def test_an_unexpected_error_goes_to_the_log_and_not_to_the_client(client, recommender, monkeypatch, caplog):
    monkeypatch.setattr(type(recommender), "recommend", lambda *_: 1 / 0)
    for path in ("/recommendations/103", "/?user=103"):
        response = client.get(path)
        assert (response.status_code, response.json["code"]) == (500, "internal")
        assert "division by zero" not in response.text
    assert "division by zero" in caplog.text


def test_requests_are_counted_by_route(client):
    for path in ("/recommendations/103", "/", "/static/style.css", "/static/no", "/no"):
        client.get(path).close()
    client.post("/recommendations", json={})
    found = {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name in ("towers_requests_total", "towers_fallbacks_total")
    }
    assert found == {
        ("/recommendations/{user_id}", "200"): 1,
        ("/recommendations", "200"): 1,
        ("/", "200"): 1,
        ("/static/{filename}", "200"): 1,
        ("/static/{filename}", "404"): 1,
        ("none", "404"): 1,
        ("popular",): 1,
    }


def test_every_route_but_the_probes_asks_for_a_key_and_is_limited_by_rate(recommender, tmp_path):
    secret = add_key(tmp_path / "keys.toml", "shop", "read")
    client = client_of(recommender, api_keys_file=str(tmp_path / "keys.toml"), rate=0.001, burst=len(ROUTES) + 1)
    for route in ROUTES:
        path = route.path.replace("{", "").replace("}", "")
        with client.open(path, method=route.method) as response:
            assert (response.status_code == 401) is (route.scope != "none"), route
    key = {"Authorization": f"Bearer {secret}"}
    statuses = [client.get("/recommendations/103", headers=key).status_code for _ in range(len(ROUTES) + 2)]
    assert statuses == [200] * (len(ROUTES) + 1) + [429]


def test_an_endpoint_is_added_by_a_route(recommender, monkeypatch):
    """The section "Add an endpoint" of CONTRIBUTING.md."""

    def ping(service, request):
        return json_reply(Pong(pong=1))

    route = Route("GET", "/ping", "A new endpoint", ping, name="ping", responses=(Pong,), problems=(404,))
    monkeypatch.setattr(application, "ROUTES", (*ROUTES, route))
    client = create_app(recommender).test_client()
    response = client.get("/ping")
    assert (response.status_code, response.json) == (200, {"pong": 1})
    assert response.headers["Towers-Model"] == recommender.model
    document = client.get("/openapi.json").json
    assert document["paths"]["/ping"]["get"]["operationId"] == "ping"
    assert document["components"]["schemas"]["Pong"]["properties"] == {"pong": {"type": "integer"}}
    assert 'towers_requests_total{route="/ping",status="200"} 1.0' in client.get("/metrics").text
