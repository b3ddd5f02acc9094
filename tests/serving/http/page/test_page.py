from __future__ import annotations

import json
import shlex
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import ServingConfig
from serving.http.app import create_app
from serving.http.contract.problems import Problem
from serving.http.contract.requests import UserQuery
from serving.http.page.columns import CatalogColumns
from serving.http.page.overview import overview
from serving.http.page.query import PageQuery, body_of
from serving.http.page.snippets import ApiCall
from tests.serving.doubles import make_recommender, make_tables
from towers.item_map import ItemMap

DRAWN = "data:image/svg+xml,%3Csvg/%3E"
PICTURES = [DRAWN, "/own.png", "https://cdn.example.com/a.png", "javascript:alert(1)", "//evil.example/a.png"]


@pytest.fixture
def recommender():
    """Two users and five items, with pictures, a brand, a price, a date and lists."""
    tables = make_tables({1: ["a", "b"], 12: ["c"]}, list("abcde"), titles=["Ann", "Bob", "Cid", "Dan", "Eve"])
    frame = tables.catalog.frame.assign(
        image=PICTURES,
        brand=["Acme", "Acme", "Bolt", "Bolt", None],
        price=[1.0, 2.5, 1000.0, np.nan, 3.0],
        launched=pd.to_datetime(["2026-01-02"] * 5),
        text=["x" * 200] * 5,
    )
    catalog = type(tables.catalog)(frame)
    return make_recommender(type(tables)(tables.interactions, catalog, None, ()))


def client_of(recommender, **settings):
    return create_app(recommender, ServingConfig(**settings)).test_client()


def test_the_columns_are_told_apart_by_what_they_hold(recommender):
    columns = CatalogColumns.of(recommender)
    assert columns.picture == "image"
    assert columns.facts == ("brand", "price", "launched")
    assert [(field.name, field.kind) for field in columns.fields] == [
        ("brand", "choice"),
        ("price", "number"),
        ("launched", "date"),
    ]
    assert columns.fields[0].choices == ("Acme", "Bolt")
    assert columns.groups == ("brand",)
    assert columns.conditions["price_max"] == ("price", "max")


def test_only_columns_that_requests_may_filter_by_are_shown(recommender):
    made = make_recommender_with(recommender, ["brand"])
    text = client_of(made).get("/?item=a").text
    assert "Acme" in text
    assert "1,000" not in text
    assert DRAWN not in text


def make_recommender_with(recommender, filter_columns):
    return type(recommender)(recommender.bundle, recommender.snapshot, filter_columns=filter_columns)


@pytest.mark.parametrize(
    ("origins", "loaded"), [([], PICTURES[:2]), (["https://cdn.example.com"], PICTURES[:3])], ids=["own", "allowed"]
)
def test_pictures_come_from_the_catalogue_or_from_origins_that_are_allowed(recommender, origins, loaded):
    response = client_of(recommender, picture_origins=origins).get("/")
    assert [one for one in PICTURES if f'src="{one}"' in response.text] == loaded
    policy = response.headers["Content-Security-Policy"]
    assert f"img-src 'self' data:{''.join(f' {one}' for one in origins)};" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy


def test_all_that_the_api_can_be_asked_can_be_asked_in_the_address(recommender):
    client = client_of(recommender)
    wanted = client.get("/recommendations/1?k=2&brand=Bolt&boost=[]&price_min=2").json["items"]
    text = client.get("/?user=1&k=2&brand=Bolt&boost=[]&price_min=2&price_max=&diversity=0").text
    assert [one for one in "abcde" if f'class="card" data-item="{one}"' in text] == [one["item_id"] for one in wanted]
    assert '<input type="hidden" name="boost" value="[]">' in text
    assert '<input type="hidden" name="brand_not" value="Acme">' in client.get("/?user=1&brand_not=Acme").text


def test_a_mistake_is_shown_in_the_page(recommender):
    for address, detail in (
        ("/?user=1&k=0", "k: input should be"),
        ("/?user=1&colour_of_eyes=blue", "no column to filter by"),
        ("/?item=zz", "no item &#39;zz&#39;"),
        ("/?" + "&".join(f"history={number}" for number in range(51)), "history: expected at most 50 items"),
    ):
        response = client_of(recommender).get(address)
        assert response.status_code in (404, 422)
        assert detail in response.text


def test_no_name_of_a_parameter_means_anything_else(recommender):
    text = client_of(recommender).get("/?item=a&_scheme=javascript&_external=1&endpoint=x&_anchor=y").text
    assert "javascript:" not in text
    assert "no column to filter by" in text


def test_a_small_limit_is_kept(recommender):
    text = client_of(recommender, default_k=2, max_k=3).get("/?user=1").text
    assert text.count('class="card"') == 3
    assert 'max="3" value="3"' in text


def test_a_random_user_gets_an_address(recommender):
    response = client_of(recommender).get("/?random=1&k=3")
    assert (response.status_code, response.headers["Location"]) in [(302, "/?user=1&k=3"), (302, "/?user=12&k=3")]


def test_users_that_begin_like_an_unknown_one_are_named(recommender):
    tables = make_tables({10: ["a"], 12: ["a"], 2: ["a"]}, ["a", "b"])
    text = client_of(make_recommender(tables)).get("/?user=1").text
    assert "Unknown user: 1." in text
    assert text.count("/?user=10") == 2  # in the examples, and here


def test_the_page_leaves_the_counters_of_the_api_alone(recommender):
    client = client_of(recommender)
    client.get("/")
    assert "towers_fallbacks_total{" not in client.get("/metrics").text.replace(" 0.0\n", "")


def test_a_query_becomes_a_body():
    conditions = {"brand": ("brand", "any"), "price_min": ("price", "min"), "price_max": ("price", "max")}
    columns = CatalogColumns(None, (), (), (), conditions)
    given = {
        "k": ["5"],
        "brand": ["Acme", "Bolt"],
        "price_min": ["2"],
        "price_max": ["9"],
        "pin": ["a"],
        "at_most": ['{"brand": 1}'],
    }
    assert body_of(given, columns) == {
        "k": 5,
        "pin": ["a"],
        "at_most": {"brand": 1},
        "filter": {"brand": ["Acme", "Bolt"], "price": {"min": "2", "max": "9"}},
    }


def test_items_are_picked_and_removed():
    query = PageQuery.of({"history": ["a", "b", "a"], "user": [""], "k": ["3"]})
    assert (query.kind, query.history) == ("profile", ("a", "b"))
    assert query.picking("a").history == ("b", "a")
    assert query.without("a").history == ("b",)
    assert query.picking("c").pairs == (("history", "a"), ("history", "b"), ("history", "c"), ("k", "3"))
    with pytest.raises(Problem, match="expected at most 50 items, found 51; remove some"):
        PageQuery.of({"history": [str(number) for number in range(51)]})


def test_a_call_is_written_so_that_a_shell_and_python_read_it():
    call = ApiCall.get("recommendations", "it's/1", query={"k": ["2"], "exclude": ["a", "b c"]})
    words = shlex.split(call.curl("http://here", needs_key=True).replace("$TOWERS_KEY", "secret"))
    assert words == [
        "curl",
        "http://here/recommendations/it%27s%2F1?k=2&exclude=a&exclude=b+c",
        "--header",
        "Authorization: Bearer secret",
    ]
    body = {"history": ["it's"], "k": 2}
    words = shlex.split(ApiCall("/recommendations", {}, body).curl("http://here", needs_key=False))
    assert json.loads(words[-1]) == body
    compile(ApiCall("/recommendations", {}, body).python("http://here", needs_key=True), "program", "exec")
    assert "'exclude': ['a', 'b c']" in call.python("http://here", needs_key=False)


def test_the_overview_says_how_old_and_how_good(recommender):
    day = 86_400
    trained = pd.Timestamp("2026-01-02T03:04:05Z").timestamp()
    rows = [
        {"name": name, "metrics": {"ndcg_at_10": {"mean": mean}}} for name, mean in (("towers", 0.5), ("ease", 0.25))
    ]
    object.__setattr__(recommender.bundle, "report", {"rows": rows})
    facts = {fact.name: fact for fact in overview(recommender, trained + 2 * day)}
    assert (facts["NDCG@10"].value, facts["NDCG@10"].note) == ("0.500", "best baseline: ease 0.250")
    assert facts["Model"].note == "trained 2 days ago"
    assert facts["Items"].value == "5"
    assert "Live writes" not in facts


def test_the_map_is_shown_if_the_index_has_one(recommender):
    assert "view=map" not in client_of(recommender).get("/?user=1").text
    positions = np.array([[0, 0], [1, 1], [0, 1], [1, 0], [0.5, 0.5]], dtype=np.float32)
    object.__setattr__(recommender.snapshot, "item_map", ItemMap(positions, np.arange(5)))
    text = client_of(recommender).get("/?user=1&view=map").text
    assert '<circle cx="24" cy="24" r="4"><title>Ann</title></circle>' in text  # the corner, within the margin of 24
    assert '<circle cx="976" cy="676" r="11"/>' in text  # Bob is in the history
    assert text.count('class="found-point"') == 3


def test_reports_are_shown_without_an_origin(recommender, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("<p>good</p>", encoding="utf-8")
    folder = type("Folder", (dict,), {"file": lambda self, name: path})({"report.html": None})
    object.__setattr__(recommender.bundle, "folder", folder)
    (tmp_path / "audit.html").write_text("<p>fair</p>", encoding="utf-8")
    client = client_of(recommender, audit=str(tmp_path))
    for address, content in (("/report", "good"), ("/audit", "fair")):
        response = client.get(address)
        assert content in response.text
        assert "sandbox allow-scripts" in response.headers["Content-Security-Policy"]
        assert f'href="{address}"' in client.get("/").text
    (tmp_path / "audit.html").unlink()
    assert "No such file" in client.get("/audit").json["detail"]
    assert str(tmp_path) not in client.get("/audit").text


def test_only_the_files_of_swagger_ui_are_served(recommender):
    client = client_of(recommender)
    assert client.get("/docs").status_code == 200
    with client.get("/docs/swagger-ui.css") as style:
        assert style.status_code == 200
    for name in ("swagger-ui.js", "../__init__.py", "%2e%2e/__init__.py"):
        assert client.get(f"/docs/{name}").status_code == 404


WRITTEN = st.sampled_from(["", "=", "[]", "{}", "null", "1", "-1", "nan", "a", "[1]", '{"brand":{"not":[]}}', "true"])


def test_whatever_a_form_sends_is_answered_or_refused(recommender):
    client = client_of(recommender)
    conditions = st.sampled_from(sorted(CatalogColumns.of(recommender).conditions))
    names = st.just("filter") | conditions | st.sampled_from(sorted(UserQuery.model_fields))

    @given(st.lists(st.tuples(names, WRITTEN), max_size=6), st.sampled_from(["", "user=1", "item=a", "history=a"]))
    def check(pairs, shown):
        query = urlencode([*parse_qsl(shown), *pairs])
        assert client.get(f"/?{query}").status_code in (200, 404, 422)

    check()


def test_conditions_beside_a_filter_that_is_no_object_are_a_mistake_that_is_shown(recommender):
    answer = client_of(recommender).get("/?history=a&filter==&brand=Acme")
    assert answer.status_code == 422
    assert "filter" in answer.text
