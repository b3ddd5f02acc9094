"""The service against its own document: whatever is made from the one, the other answers as the document says."""

from __future__ import annotations

import json
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from pydantic import SecretStr
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from features.config import FeatureSettings
from features.tables import rows
from features.tables.tables import Catalog
from features.values import cells
from serving.catalog import filters
from serving.config import ServingConfig
from serving.http.app import create_app
from serving.http.contract import openapi
from serving.http.key_file import add_key
from serving.http.routes import ROUTES
from serving.recommend import users as people
from serving.recommend.recommender import Recommender
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import FakeBundle, make_features, make_tables

ITEMS = [f"i{number}" for number in range(50)]
LIMITS = ServingConfig(max_k=20, default_k=5, max_offset=30, max_users=4, max_history=8)
EXAMPLES = 15
SMALL = {"MAX_FILTER_VALUES": 50, "MAX_CELL_VALUES": 20, "MAX_CELL_CHARACTERS": 100}


@pytest.fixture(scope="module", autouse=True)
def _small_limits():
    """Limits that data made from the document can go over without being megabytes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (cells, rows, filters, openapi, people):
            for name, value in SMALL.items():
                patch.setattr(module, name, value, raising=False)
        yield


def typed(values, kind):
    return pd.Series(values, dtype=pd.ArrowDtype(kind))


def make_shop():
    """A shop with a column of each kind, one that nothing can be compared with, and one named like a parameter."""
    rng = np.random.default_rng(0)
    days = [date(2024, 1, 1) + timedelta(days=number) for number in range(50)]
    columns = {
        "brand": typed([["a", "b", None][number % 3] for number in range(50)], pa.string()),
        "price": typed(rng.normal(size=50).round(2), pa.float64()),
        "stock": typed(range(50), pa.int64()),
        "tags": typed([["x", "y"][: number % 3] for number in range(50)], pa.list_(pa.string())),
        "since": typed(days, pa.date32()),
        "is_new": typed([number % 2 == 0 for number in range(50)], pa.bool_()),
        "picture": typed([[0.5, 1.0]] * 50, pa.list_(pa.float32())),
        "k": typed(range(50), pa.int64()),
    }
    kinds = {"country": "category", "age": "number", "joined": "time", "likes": "categories", "about": "text"}
    people = pd.DataFrame({"user_id": [1, 2, 3], **{name: [None] * 3 for name in kinds}})
    tables = make_tables({1: ITEMS[:4], 2: ITEMS[4:9]}, ITEMS, users=people)
    catalog = Catalog(tables.catalog.frame.assign(**columns))
    item = {"brand": FeatureSettings(kind="text")}
    features = make_features(item=item, user={name: FeatureSettings(kind=kind) for name, kind in kinds.items()})
    bundle = FakeBundle("bundle", features)
    snapshot = Snapshot.build(bundle, type(tables)(tables.interactions, catalog, tables.users, ()))
    return Recommender(bundle, snapshot)


@pytest.fixture(scope="module")
def app():
    return create_app(make_shop(), LIMITS)


@pytest.fixture(scope="module")
def writing_app(tmp_path_factory):
    """The same, which takes writes; it is another one, because what is written changes what is right."""
    live = str(tmp_path_factory.mktemp("live") / "live.db")
    return create_app(make_shop(), LIMITS.model_copy(update={"live": SecretStr(live)}))


@pytest.fixture(scope="module")
def document(app):
    return app.test_client().get("/openapi.json").json


OPERATIONS = [
    ("/recommendations/{user_id}", "get"),
    ("/recommendations", "post"),
    ("/items/{item_id}/similar", "get"),
    ("/search", "get"),
    ("/healthz", "get"),
    ("/readyz", "get"),
]
WRITES = [("/items/{item_id}", "put"), ("/items/{item_id}", "delete"), ("/events", "post")]


def test_the_document_has_every_operation_of_the_route_table(document, writing_app):
    rules = {(route.path, route.method.lower()) for route in ROUTES if route.name is not None}
    there = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert there == set(OPERATIONS) == rules - set(WRITES)
    writing = writing_app.test_client().get("/openapi.json").json["paths"]
    assert {(path, method) for path, methods in writing.items() for method in methods} == {*OPERATIONS, *WRITES}


def test_the_document_says_the_limits_and_columns_of_this_service(document):
    schemas = document["components"]["schemas"]
    one = schemas["UserRecommendRequest"]["properties"]
    assert (one["k"]["maximum"], one["k"]["default"], one["offset"]["maximum"]) == (20, 5, 30)
    assert one["history"]["maxItems"] == 8
    assert schemas["BatchRecommendRequest"]["properties"]["users"]["maxItems"] == 4
    assert set(schemas["Filter"]["properties"]) == {
        *("item_id", "brand", "price", "stock", "tags", "since", "is_new", "k")
    }
    assert set(schemas["Attributes"]["properties"]) == {"country", "age", "joined", "likes", "about"}
    parameters = document["paths"]["/items/{item_id}/similar"]["get"]["parameters"]
    names = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
    assert len(names) == len(set(names))
    assert {"price_min", "since_max", "brand_not", "k_min", "pin", "boost"} < set(names)
    assert not {"brand_min", "picture", "reasons"} & set(names)
    needed = [one["name"] for one in document["paths"]["/search"]["get"]["parameters"] if one.get("required")]
    assert needed == ["q"]


def test_the_document_is_made_once_for_each_index(writing_app, monkeypatch):
    client = writing_app.test_client()
    first = client.get("/openapi.json")
    monkeypatch.setattr(
        "serving.http.contract.openapi.document", lambda *given, **named: pytest.fail("it is made again")
    )
    assert client.put("/items/i1", json={"brand": "a"}).status_code == 200
    assert client.get("/openapi.json").data == first.data


def test_every_example_of_the_document_is_accepted(tmp_path):
    settings = LIMITS.model_copy(update={"live": SecretStr(str(tmp_path / "live.db"))})
    client = create_app(make_shop(), settings).test_client()
    paths = client.get("/openapi.json").json["paths"]
    operations = [(method, path, one) for path, methods in paths.items() for method, one in methods.items()]
    for method, path, operation in sorted(operations, key=lambda one: one[0] == "delete"):
        given = {one["name"]: one["example"] for one in operation.get("parameters", []) if "example" in one}
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        assert body or method in ("get", "delete")
        answer = client.open(
            path.format(**given),
            method=method.upper(),
            json=body,
            query_string={"q": "red"} if path == "/search" else {},
        )
        assert answer.status_code in (200, 201), (method, path, body, answer.json)
        assert answer.json.get("fallback") is None
        assert not answer.json.get("unknown_items")


def references(schema):
    if isinstance(schema, dict):
        yield from [schema["$ref"]] if "$ref" in schema else []
        yield from (found for value in schema.values() for found in references(value))
    elif isinstance(schema, list):
        yield from (found for value in schema for found in references(value))


@pytest.mark.parametrize("which", ["app", "writing_app"])
def test_every_schema_of_the_document_is_used_and_there(request, which):
    document = request.getfixturevalue(which).test_client().get("/openapi.json").json
    named = {reference.rpartition("/")[2] for reference in references(document)}
    assert named == set(document["components"]["schemas"])
    assert "x-named" not in json.dumps(document)


# What no schema of a single value can say: ranges that end before they begin, times that are not as many as the items,
# or that are still to come, and values and texts that are too many together.
BETWEEN_VALUES = (
    "expected min <= max",
    "times: expected one for each",
    "expected Unix seconds in the past",
    "expected at most 50 values",
    "expected at most 100 characters",
)


CASES = [
    pytest.param(path, method, mode, id=f"{method} {path} {mode.value}")
    for path, method in OPERATIONS + WRITES
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE
    or path not in ("/healthz", "/readyz")  # where nothing is asked, nothing is wrong
]


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_it_answers_as_its_document_says(request, path, method, mode):
    """Right requests are accepted, wrong ones refused, in the types, statuses and shapes that the document has."""
    app = request.getfixturevalue("writing_app" if (path, method) in WRITES else "app")
    operation = schemathesis.openapi.from_wsgi("/openapi.json", app)[path][method]

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        if path == "/events" and mode is GenerationMode.POSITIVE:
            for event in case.body["events"]:  # which items there are, no schema says
                event["item_id"] = ITEMS[len(str(event["item_id"])) % len(ITEMS)]
        response = case.call()
        is_refused = response.status_code == 422 and any(said in response.text for said in BETWEEN_VALUES)
        assume(mode is GenerationMode.NEGATIVE or not is_refused)
        assume(response.status_code != 414)  # refused for its length before anything of it was read
        case.validate_response(response)

    ask()


def service_with_keys(folder):
    """The service with writes and keys, and its keys by their scope."""
    keys = {scope: add_key(folder / "keys.toml", scope, scope) for scope in ("read", "write")}
    changed = {"live": SecretStr(str(folder / "live.db")), "api_keys_file": str(folder / "keys.toml")}
    return create_app(make_shop(), LIMITS.model_copy(update=changed)), keys


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    return service_with_keys(tmp_path_factory.mktemp("guarded"))


@pytest.mark.parametrize(("path", "method"), [*OPERATIONS, *WRITES])
def test_keys_are_asked_for_as_the_document_says(guarded, path, method):
    """Whatever is asked: 401 without a key or with a wrong one, 403 where it may only read, else as without keys."""
    app, keys = guarded
    is_probe, is_write = path in ("/healthz", "/readyz"), (path, method) in WRITES
    bearer = {name: {"Authorization": f"Bearer {key}"} for name, key in {**keys, "wrong": "tt_x"}.items()}
    loaded = schemathesis.openapi.from_wsgi("/openapi.json", app, headers=bearer["read"])

    @settings(max_examples=3, suppress_health_check=list(HealthCheck))
    @given(case=loaded[path][method].as_strategy())
    def ask(case):
        found = {name: case.call(headers=header) for name, header in {"none": {}, **bearer}.items()}
        for response in found.values():
            case.validate_response(response, excluded_checks=[positive_data_acceptance])
        refused = {name: response.status_code for name, response in found.items() if response.status_code in (401, 403)}
        expected = {} if is_probe else {"none": 401, "wrong": 401} | ({"read": 403} if is_write else {})
        assert refused == expected

    ask()
