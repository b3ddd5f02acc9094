from __future__ import annotations

import json
import logging
import re
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import ServingConfig
from serving.deploy.hot_reload import RecommenderProvider
from serving.errors import NotReady
from serving.http.app import create_app
from serving.recommend.recommender import Recommender
from serving.recommend.request import UserProfile
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import FakeBundle, country, make_features, make_recommender, make_tables
from towers.bundle.manifest import BundleError


@pytest.fixture
def client(recommender):
    settings = ServingConfig(max_k=50, max_body_bytes=20_000, max_offset=200, max_users=5, max_history=100)
    return create_app(recommender, settings).test_client()


def error_of(response, status, code):
    """The one error shape, and nothing else."""
    assert response.status_code == status, response.text
    assert response.mimetype == "application/problem+json"
    error = response.json
    assert set(error) == {"type", "title", "status", "detail", "code", "errors"}
    assert (error["type"], error["status"], error["code"]) == ("about:blank", status, code)
    assert error["title"]
    assert error["detail"]
    assert all(set(mistake) == {"field", "detail"} for mistake in error["errors"])
    assert "Traceback" not in response.text
    return error


def test_a_known_user_gets_items_in_the_shape_of_the_contract(client, recommender):
    response = client.get("/recommendations/103?k=7")
    assert response.status_code == 200, response.text
    content = response.json
    assert set(content) == {"user_id", "items", "fallback", "model"}
    assert content["user_id"] == 103
    assert content["fallback"] is None
    assert content["model"] == recommender.model
    expected = recommender.recommend(103, 7).items
    assert content["items"] == [
        {"item_id": item.item_id, "score": pytest.approx(item.score), "rank": rank, "title": item.title}
        for rank, item in enumerate(expected, start=1)
    ]


def test_k_is_ten_unless_said_otherwise(client):
    assert len(client.get("/recommendations/103").json["items"]) == 10
    assert len(client.post("/recommendations", json={}).json["items"]) == 10
    assert len(client.get("/items/item-001/similar").json["items"]) == 10


def test_an_unknown_user_is_answered_and_told(client):
    content = client.get("/recommendations/nobody?k=5").json
    assert (content["user_id"], content["fallback"], len(content["items"])) == ("nobody", "popular", 5)


def test_items_have_no_title_where_the_catalogue_has_none():
    client = create_app(make_recommender(make_tables({1: ["a"]}, ["a", "b"]))).test_client()
    assert set(client.get("/recommendations/1").json["items"][0]) == {"item_id", "score", "rank"}


def test_someone_described_is_answered_by_the_model(client, recommender):
    history = ["item-001", "item-005", "gone"]
    content = client.post("/recommendations", json={"history": history, "attributes": {"country": "de"}, "k": 4}).json
    assert set(content) == {"user_id", "items", "fallback", "model", "unknown_items", "unknown_values"}
    assert content["unknown_items"] == ["gone"]
    assert content["fallback"] is None
    expected = recommender.recommend(UserProfile(history, {"country": "de"}), 4).items
    assert [item["item_id"] for item in content["items"]] == [item.item_id for item in expected]
    assert not set(history) & {item["item_id"] for item in content["items"]}


def test_attributes_alone_are_enough(client):
    assert client.post("/recommendations", json={"attributes": {"country": "fr"}}).json["fallback"] is None
    assert client.post("/recommendations", json={"attributes": {"country": None}}).json["fallback"] == "popular"
    assert client.post("/recommendations", json={"history": ["gone"]}).json["fallback"] == "popular"


def test_similar_items_come_without_the_item(client, recommender):
    content = client.get("/items/item-004/similar?k=3").json
    assert set(content) == {"item_id", "items", "fallback", "model"}
    assert content["item_id"] == "item-004"
    assert [item["item_id"] for item in content["items"]] == [
        item.item_id for item in recommender.similar("item-004", 3).items
    ]


@pytest.fixture
def priced():
    """Forty items with a category, a price and a stock that some lack; the operator hides what they cost him."""
    items = [f"i{number}" for number in range(40)]
    tables = make_tables({1: ["i0", "i1"], 2: ["i2"]}, items)
    frame = tables.catalog.frame.assign(
        category=["shoe", "boot", None, "hat"] * 10, price=[float(number) for number in range(40)], cost=[1.0] * 40
    )
    tables = type(tables)(tables.interactions, type(tables.catalog)(frame), None, ())
    bundle = FakeBundle("bundle", make_features())
    columns = ["item_id", "category", "price"]
    return create_app(Recommender(bundle, Snapshot.build(bundle, tables), filter_columns=columns)).test_client()


def found(response):
    assert response.status_code == 200, response.text
    return {int(item["item_id"][1:]) for item in response.json["items"]}


SHOES = set(range(0, 40, 4))


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ("category=shoe", {"category": "shoe"}, SHOES),
        (
            "category=shoe&category=hat&price_max=11",
            {"category": ["shoe", "hat"], "price": {"max": 11}},
            {0, 3, 4, 7, 8, 11},
        ),
        ("category_not=shoe&price_min=36", {"category": {"not": ["shoe"]}, "price": {"min": 36}}, {37, 38, 39}),
        ("item_id=i5&item_id=i6", {"item_id": ["i5", "i6"]}, {5, 6}),
        ("item_id_not=i39&price_min=38", {"item_id": {"not": ["i39"]}, "price": {"min": 38}}, {38}),
        ("category=none", {"category": "none"}, set()),
    ],
)
def test_answers_are_filtered_by_the_columns_of_the_catalogue(priced, query, body, expected):
    assert found(priced.get(f"/recommendations/1?k=40&{query}")) == expected - {0, 1}
    assert found(priced.get(f"/recommendations/nobody?k=40&{query}")) == expected
    assert found(priced.get(f"/items/i4/similar?k=40&{query}")) == expected - {4}
    assert found(priced.post("/recommendations", json={"k": 40, "filter": body})) == expected
    assert found(priced.post("/recommendations", json={"k": 40, "filter": body, "history": ["i0"]})) == expected - {0}


def test_a_query_can_say_all_that_a_body_can(priced):
    for body in (
        {"k": 3, "offset": 2},
        {"exclude": ["i5", "i7", "gone"], "k": 40},
        {"pin": ["i20", "i21"], "diversity": 0.5, "k": 7},
        {"boost": [{"filter": {"category": "boot"}, "by": 0.5}, {"filter": {"price": {"min": 20}}, "by": 0.1}]},
        {"demote": [{"category": "shoe"}, {"price": {"max": 3}}], "at_most": {"category": 2}, "k": 40},
        {"filter": {"price": {"min": 20}, "category": ["shoe", "boot"]}, "k": 40},
    ):
        query = {name: value if name in ("exclude", "pin") else json.dumps(value) for name, value in body.items()}
        asked = priced.get("/recommendations/nobody", query_string=query)
        posted = priced.post("/recommendations", json=body)
        assert asked.json["items"] == posted.json["items"] != []
    both = priced.get("/recommendations/nobody", query_string={"filter": '{"price": {"min": 36}}', "category": "shoe"})
    assert found(both) == {36}


def test_whole_numbers_may_be_written_with_a_point(client):
    bodies = [{"k": k, "offset": 2, "exclude": [1.0], "users": [103.0]} for k in (3, 3.0)]
    assert client.post("/recommendations", json=bodies[0]).json == client.post("/recommendations", json=bodies[1]).json
    assert client.get("/recommendations/103?k=3.0").json == client.get("/recommendations/103?k=3").json


def test_pages_go_on_where_the_one_before_ended(client):
    for path in ("/recommendations/103", "/recommendations/nobody", "/items/item-004/similar"):
        everything = client.get(f"{path}?k=30").json["items"]
        pages = [client.get(f"{path}?k=7&offset={offset}").json["items"] for offset in range(0, 30, 7)]
        assert [item for page in pages for item in page][:30] == everything
    assert client.get("/recommendations/103?offset=100").json["items"] == []
    body = {"history": ["item-001"], "k": 5}
    both = [client.post("/recommendations", json={**body, "offset": offset}).json["items"] for offset in (0, 5)]
    assert both[0] + both[1] == client.post("/recommendations", json={**body, "k": 10}).json["items"]


def test_excluded_items_are_left_out_and_k_is_met_all_the_same(client):
    for path in ("/recommendations/103", "/recommendations/nobody", "/items/item-004/similar"):
        best = [item["item_id"] for item in client.get(f"{path}?k=20").json["items"]]
        query = {"k": 10, "exclude": [best[0], best[4], "gone", best[0]]}
        left = [item["item_id"] for item in client.get(path, query_string=query).json["items"]]
        assert left == [item_id for item_id in best if item_id not in query["exclude"]][:10]


def test_rules_arrange_an_answer(priced):
    rules = {
        "pin": ["i9", "i8"],
        "boost": [{"filter": {"category": "boot"}, "by": 2}],
        "demote": [{"price": {"min": 30}}],
        "at_most": {"category": 5},
        "k": 40,
    }
    found = [int(item["item_id"][1:]) for item in priced.post("/recommendations", json=rules).json["items"]]
    kinds = [("shoe", "boot", None, "hat")[number % 4] for number in found]
    assert found[:2] == [9, 8]
    assert kinds[2:6] == ["boot"] * 4
    assert [kinds.count(kind) for kind in ("shoe", "boot", "hat", None)] == [5, 5, 5, 10]
    is_late = [number >= 30 for number in found]
    assert is_late == sorted(is_late)


def test_reasons_name_what_the_user_had(client):
    for content in (
        client.get("/recommendations/103?reasons=2&k=5").json,
        client.post("/recommendations", json={"history": ["item-001", "item-002"], "reasons": 2, "k": 5}).json,
    ):
        because = [reason for item in content["items"] for reason in item["because"]]
        assert because
        assert all(set(reason) == {"item_id", "contribution", "title"} for reason in because)
        assert all(reason["contribution"] > 0 for reason in because)
        assert all(len(item["because"]) <= 2 for item in content["items"])
    assert client.get("/recommendations/nobody?reasons=2").json["items"][0]["because"] == []
    error = error_of(client.get("/items/item-001/similar?reasons=2"), 422, "invalid")
    assert error["errors"][0]["field"] == "reasons"


def test_several_users_are_answered_as_each_alone(recommender):
    client = create_app(recommender).test_client()
    described = [
        {"history": ["item-001", "gone"], "attributes": {"country": "de"}},
        {"attributes": {"country": "fr"}},
        {},
    ]
    asked = {"k": 6, "offset": 1, "exclude": ["item-003"]}
    users = [103, described[0], "nobody", "104", described[1], 108, described[2]]
    content = client.post("/recommendations", json={"users": users, **asked}).json
    assert set(content) == {"answers", "model"}
    assert [answer["user_id"] for answer in content["answers"]] == [103, None, "nobody", 104, None, 108, None]
    for user, answer in zip(users, content["answers"], strict=True):
        if isinstance(user, dict):
            alone = client.post("/recommendations", json={**user, **asked}).json
        else:
            alone = client.get(f"/recommendations/{user}", query_string=asked).json
        assert {**answer, "model": content["model"]} == alone


def test_k_counts_what_fits(priced):
    for k in (1, 5, 8, 9, 40):
        assert len(priced.get(f"/recommendations/1?category=shoe&k={k}").json["items"]) == min(k, 9)


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("categry=shoe", "categry", "did you mean 'category'?"),
        ("price=cheap", "price", "price: expected a number, found 'cheap'"),
        ("price_min=1&price_min=2", "price_min", "price_min: expected once, found 2 times"),
        ("category_max=a", "category_max", "expected a column of numbers or times, but 'category' holds text"),
        ("cost_max=0.5", "cost_max", "no column to filter by; the catalogue has 'item_id', 'category', 'price'"),
    ],
)
@pytest.mark.parametrize("path", ["/recommendations/1", "/recommendations/nobody", "/items/i1/similar"])
def test_a_filter_that_cannot_be_is_invalid_and_says_which(priced, path, query, field, message):
    error = error_of(priced.get(f"{path}?{query}"), 422, "invalid")
    assert message in error["detail"]
    assert error["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"categry": "shoe"}, "filter.categry: no column to filter by"),
        ({"price": {"above": 1}}, "filter.price: expected any, not, min or max, found 'above'"),
        ({"price": {"min": 3, "max": 2}}, "price: expected min <= max, found min 3 and max 2"),
        ({"cost": 1}, "filter.cost: no column to filter by"),
        ([], "filter: "),
        ("shoe", "filter: "),
    ],
)
def test_a_posted_filter_that_cannot_be_is_invalid_and_says_which(priced, body, message):
    error = error_of(priced.post("/recommendations", json={"filter": body}), 422, "invalid")
    assert message in error["detail"]


def test_a_column_that_is_named_like_a_parameter_is_reached_by_a_body():
    tables = make_tables({1: ["a"]}, ["a", "b", "c"])
    catalog = type(tables.catalog)(tables.catalog.frame.assign(k=[5, 6, 7]))
    client = create_app(make_recommender(type(tables)(tables.interactions, catalog, None, ()))).test_client()
    assert len(client.get("/recommendations/1?k=1").json["items"]) == 1
    only = client.post("/recommendations", json={"filter": {"k": {"min": 7}}}).json["items"]
    assert [item["item_id"] for item in only] == ["c"]


ODD_IDS = [
    "a/b",
    "/a",
    "a//b",
    "a/",
    "ä ö",
    "日本",
    "100%",
    "%2F",
    "a?b&c=d",
    "#1",
    "similar",
    "x/similar",
    "..",
    "+",
    "'\"",
    "a\nb",
]


@pytest.mark.parametrize("odd", ODD_IDS)
def test_ids_with_slashes_and_letters_of_any_script_work(odd):
    client = create_app(make_recommender(make_tables({odd: [odd], "b": ["b"]}, [odd, "b", "c"]))).test_client()
    path = quote(odd, safe="")
    known = client.get(f"/recommendations/{path}").json
    assert (known["user_id"], known["fallback"]) == (odd, None)
    assert odd not in {item["item_id"] for item in known["items"]}
    alike = client.get(f"/items/{path}/similar").json
    assert alike["item_id"] == odd
    assert len(alike["items"]) == 2


def test_whole_numbers_in_a_path_find_whole_numbers():
    client = create_app(make_recommender(make_tables({42: [7]}, [7, 8]))).test_client()
    assert client.get("/recommendations/42").json["user_id"] == 42
    assert client.get("/items/7/similar").json["items"][0]["item_id"] == 8
    assert client.get("/recommendations/042").json == {
        **client.get("/recommendations/43").json,
        "user_id": "042",
    }
    assert client.get(f"/recommendations/{10**30}").json["user_id"] == str(10**30)


@pytest.mark.parametrize("k", ["0", "-1", "51", "ten", "1.5", "", "1e9", "9" * 5000, "nan"])
@pytest.mark.parametrize("path", ["/recommendations/103", "/items/item-001/similar"])
def test_a_k_that_is_not_allowed_is_invalid(client, path, k):
    error = error_of(client.get(f"{path}?k={k}"), 422, "invalid")
    assert error["detail"].startswith("k: ")
    assert error["errors"][0]["field"] == "k"


@pytest.mark.parametrize("query", ["k=1&k=2", "K=5", "k=5&page=2"])
def test_parameters_that_do_not_exist_or_come_twice_are_invalid(client, query):
    error_of(client.get(f"/recommendations/103?{query}"), 422, "invalid")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"k": "10"}, "k"),
        ({"k": True}, "k"),
        ({"k": 0}, "k"),
        ({"k": 1.5}, "k"),
        ({"history": "item-001"}, "history"),
        ({"history": [1.5]}, "history.0"),
        ({"history": [None]}, "history.0"),
        ({"history": [["item-001"]]}, "history.0"),
        ({"history": {}}, "history"),
        ({"attributes": []}, "attributes"),
        ({"user": 5}, "user"),
        ({"offset": -1}, "offset"),
        ({"offset": 201}, "offset"),
        ({"exclude": "item-001"}, "exclude"),
        ({"exclude": ["item-001"] * 101}, "exclude"),
        ({"diversity": 1.1}, "diversity"),
        ({"diversity": "0.5"}, "diversity"),
        ({"pin": [None]}, "pin.0"),
        ({"pin": ["item-001"] * 101}, "pin"),
        ({"boost": [{"by": 0.5}]}, "boost.0.filter"),
        ({"boost": [{"filter": {}, "by": 3}]}, "boost.0.by"),
        ({"boost": [{"filter": {"colour": "red"}, "by": 1}]}, "boost.0.filter.colour"),
        ({"demote": {"title": "Thing"}}, "demote"),
        ({"demote": [{"title": ["x"], "colour": "red"}]}, "demote.0.colour"),
        ({"at_most": {"title": 0}}, "at_most.title"),
        ({"at_most": {"colour": 1}}, "at_most.colour"),
        ({"reasons": 11}, "reasons"),
        ({"exclude": [2**63]}, "exclude.0"),
        ({"history": ["item-001"] * 101}, "history"),
        ({"users": []}, "users"),
        ({"users": [1] * 6}, "users"),
        ({"users": [1, 1.5]}, "users.1"),
        ({"users": [{"k": 5}]}, "users.0.k"),
        ({"users": [{"history": [True]}]}, "users.0.history.0"),
        ({"users": [1], "history": []}, "history"),
        ([], "body"),
        ("text", "body"),
        (None, "body"),
        (5, "body"),
    ],
)
def test_a_body_with_wrong_fields_is_invalid_and_says_which(client, body, field):
    response = client.post("/recommendations", data=orjson.dumps(body), content_type="application/json")
    error = error_of(response, 422, "invalid")
    assert [mistake["field"] for mistake in error["errors"]] == [field]


def test_what_takes_long_is_limited_for_all_users_of_a_request_together(recommender):
    settings = ServingConfig(max_slate_slots=40, max_explained_users=2, max_limited_users=2)
    client = create_app(recommender, settings).test_client()
    users = {"users": [103, 104, "nobody"]}
    assert client.post("/recommendations", json={**users, "k": 13, "diversity": 0.5}).status_code == 200
    assert client.post("/recommendations", json={**users, "k": 14, "offset": 50}).status_code == 200
    error = error_of(client.post("/recommendations", json={**users, "k": 14, "diversity": 0.5}), 422, "invalid")
    assert (
        "expected at most 40 slots (users x (offset + k)) with rules (setting max_slate_slots), found 42"
        in error["detail"]
    )
    assert "max_slate_slots" in error["detail"]
    for rule in ({"distinct": 0.9}, {"at_most": {"title": 1}}):
        error = error_of(client.post("/recommendations", json={**users, **rule}), 422, "invalid")
        assert error["errors"][0]["field"] in rule
        assert "expected at most 2 users" in error["detail"]
        assert "max_limited_users" in error["detail"]
        assert client.post("/recommendations", json={"users": [103, 104], **rule}).status_code == 200
    error_of(client.get("/recommendations/103?k=10&offset=31&pin=item-001"), 422, "invalid")
    error = error_of(client.post("/recommendations", json={**users, "reasons": 1}), 422, "invalid")
    assert error["errors"][0]["field"] == "reasons"
    assert client.post("/recommendations", json={"users": [103, 104], "reasons": 1}).status_code == 200


def test_attributes_that_the_model_does_not_read_are_named(client):
    error = error_of(client.post("/recommendations", json={"attributes": {"age": 5}}), 422, "invalid")
    assert error["detail"] == "attributes: the model does not read 'age'; it reads 'country'"
    error = error_of(client.post("/recommendations", json={"attributes": {"country": []}}), 422, "invalid")
    assert error["detail"] == "attributes.country: expected text or a number, found []"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'k': 1}", b"\xff", b'{"k": NaN}', b'{"history": ["\\ud800"]}', b"[" * 5000]
)
def test_malformed_json_is_a_bad_request(client, body):
    error_of(client.post("/recommendations", data=body, content_type="application/json"), 400, "bad_request")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_another_type_of_body_is_unsupported(client, content_type):
    response = client.post("/recommendations", data=b"{}", content_type=content_type)
    error = error_of(response, 415, "unsupported_media_type")
    assert "application/json" in error["detail"]


def test_json_with_a_character_set_is_accepted(client):
    response = client.post("/recommendations", data=b"{}", content_type="application/json; charset=utf-8")
    assert response.status_code == 200


def test_a_body_that_is_too_large_is_refused(client):
    response = client.post("/recommendations", json={"history": ["item-001"] * 5000})
    error_of(response, 413, "too_large")


@pytest.mark.parametrize("path", ["/nothing", "/recommendations", "/recommendations/", "/items//similar", "/items/a"])
def test_pages_that_do_not_exist_are_not_found(client, path):
    response = client.get(path)
    has_other_methods = path == "/recommendations" or path.startswith("/items/")
    error_of(response, 405 if has_other_methods else 404, response.json["code"])


def test_an_item_that_is_not_in_the_catalogue_is_not_found(client):
    assert "no item 'gone'" in error_of(client.get("/items/gone/similar"), 404, "not_found")["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/recommendations/103", "GET"), ("GET", "/recommendations", "POST"), ("POST", "/healthz", "GET")],
)
def test_a_method_that_is_not_allowed_says_which_are(client, method, path, allowed):
    response = client.open(path, method=method)
    error_of(response, 405, "method_not_allowed")
    assert allowed in response.headers["Allow"]


def test_a_mistake_of_ours_goes_to_the_log_and_not_to_the_caller(recommender, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("secret path /etc/passwd")

    monkeypatch.setattr(recommender, "recommend", fail)
    with caplog.at_level(logging.ERROR):
        response = create_app(recommender).test_client().get("/recommendations/103")
    error_of(response, 500, "internal")
    assert "secret" not in response.text
    assert "secret path" in caplog.text


def test_alive_and_ready(client, recommender):
    assert client.get("/healthz").json == {"status": "ok"}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json["status"] == "ready"
    assert (ready.json["model"], ready.json["items"], ready.json["users"]) == (recommender.model, 100, 10)


def test_alive_but_not_ready_without_a_model(tmp_path, caplog):
    client = create_app(tmp_path / "nothing").test_client()
    assert client.get("/healthz").status_code == 200
    for path in ("/readyz", "/recommendations/1", "/items/1/similar", "/"):
        response = client.get(path)
        error_of(response, 503, "not_ready")
        assert response.headers["Retry-After"].isdigit()
        assert str(tmp_path) not in response.text
    error_of(client.post("/recommendations", json={}), 503, "not_ready")
    assert "nothing" in caplog.text


def test_a_source_is_tried_again_but_not_at_every_request(recommender, monkeypatch):
    now, tries = [100.0], []

    def open_recommender():
        tries.append(now[0])
        if now[0] < 108:
            raise BundleError("damaged")
        return recommender

    monkeypatch.setattr("serving.deploy.hot_reload.time.monotonic", lambda: now[0])
    source = RecommenderProvider(open_recommender)
    for now[0] in (100.0, 101.0, 104.9, 105.1):
        with pytest.raises(NotReady, match="see the server's log"):
            source.get()
    now[0] = 111.0
    assert source.get() is source.get() is recommender
    assert tries == [100.0, 105.1, 111.0]


def test_settings_come_from_the_operator(shop):
    recommender = make_recommender(shop, user=country())
    client = create_app(recommender, ServingConfig(default_k=3, max_k=4)).test_client()
    assert len(client.get("/recommendations/103").json["items"]) == 3
    assert "less than or equal to 4, found 5" in client.get("/recommendations/103?k=5").json["detail"]


def test_the_page_shows_what_someone_had_and_gets(client):
    assert "104" in client.get("/").text
    text = client.get("/?user=103").text
    assert "Thing item-" in text
    assert "Recommendations" in text
    assert re.search(r"because of <a [^>]*>Thing item-", text)
    assert "Popular items (nothing is known about this user)" in client.get("/?user=nobody").text
    with client.get("/static/style.css") as style:
        assert style.status_code == 200


def test_the_page_shows_any_id_as_text():
    script = "<script>alert(1)</script>"
    client = create_app(
        make_recommender(make_tables({script: ["a"]}, ["a", script], titles=["A", script]))
    ).test_client()
    text = client.get("/", query_string={"user": script}).text
    assert script not in text
    assert "&lt;script&gt;" in text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
some_client = None


@given(
    body=json_values
    | st.fixed_dictionaries({}, optional={"history": json_values, "attributes": json_values, "k": json_values})
    | st.fixed_dictionaries({"attributes": st.dictionaries(st.just("country"), json_values)})
    | st.fixed_dictionaries({"filter": st.dictionaries(st.just("item_id"), json_values)})
)
def test_no_body_at_all_makes_the_service_fail(body):
    try:
        data = orjson.dumps(body)
    except TypeError:  # text that is not valid Unicode
        return
    global some_client
    some_client = (
        some_client
        or create_app(make_recommender(make_tables({1: ["a"]}, ["a", "b", "c"]), user=country())).test_client()
    )
    response = some_client.post("/recommendations", data=data, content_type="application/json")
    if response.status_code != 200:
        error_of(response, 422, "invalid")


def test_every_answer_tells_browsers_to_be_careful(client):
    for path in ("/", "/recommendations/103", "/recommendations/103?k=0", "/nothing", "/healthz", "/static/style.css"):
        with client.get(path) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
            assert "Cache-Control" in response.headers
    assert client.get("/recommendations/103").headers["Cache-Control"] == "no-store"


def test_the_page_needs_no_more_than_its_policy_allows(client):
    text = client.get("/?user=103").text
    assert re.findall(r"<script[^>]*>[^<]*", text) == ['<script src="/static/page.js" defer>']
    assert not re.search(r"<style| style=| on[a-z]+=", text)
    assert {*re.findall(r"https?://[^/'\" <]+", text)} == {"http://localhost"}, "only in lines to copy"


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_pages_of_other_origins_are_granted_nothing(client, method):
    headers = {"Origin": "https://shop.example", "Access-Control-Request-Method": "GET"}
    response = client.open("/recommendations/103", method=method, headers=headers)
    assert response.status_code == 200
    assert [name for name in response.headers.keys() if name.startswith("Access-Control-")] == []  # noqa: SIM118
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
