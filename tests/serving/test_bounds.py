"""How much a request may hold: a megabyte of anything, anywhere, is refused or answered soon, and in few words.

Where a text may stand is read from the service's own document, so that a new field is here by itself.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from io import BytesIO, StringIO
from itertools import islice

import orjson
import pytest
from pydantic import SecretStr

from features.ids import MAX_ID_CHARACTERS
from features.messages import did_you_mean, shown
from features.values.cells import MAX_CELL_CHARACTERS, MAX_CELL_VALUES
from serving.bounds import (
    MAX_BRACKETS,
    MAX_CONDITIONS,
    MAX_DEPTH,
    MAX_FILTER_VALUES,
    MAX_MISTAKES,
    MAX_NUMBER_CHARACTERS,
    MAX_QUERY_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    MAX_VALUE_CHARACTERS,
)
from serving.catalog.filters import _NUMBER
from serving.config import ServingConfig
from serving.errors import NotReady
from serving.http.app import create_app
from serving.http.key_file import add_key
from serving.observability.logs import JsonFormatter, TextFormatter
from tests.benchmarks.long_texts import Sent, requests, texts
from tests.serving.http.contract.test_openapi import LIMITS, make_shop

MAX_ANSWER_BYTES = 8_192
MAX_LINE_CHARACTERS = 10_000
EVERY = 61
KNOWN = {"user_id": "1", "item_id": "i1", "q": "chair"}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A service with a column of each kind that takes writes, asks for keys, and believes a proxy; and a key."""
    folder = tmp_path_factory.mktemp("long")
    secret = add_key(folder / "keys.toml", "shop", "write")
    settings = {
        "live": SecretStr(str(folder / "live.db")),
        "api_keys_file": str(folder / "keys.toml"),
        "trusted_proxies": 1,
    }
    app = create_app(make_shop(), LIMITS.model_copy(update={**settings, "max_body_bytes": 1 << 21}))
    return app, f"Bearer {secret}"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A service with limits that are wide."""
    settings = ServingConfig(live=str(tmp_path_factory.mktemp("wide") / "live.db"))
    return create_app(make_shop(), settings).test_client()


def ask(app, key, sent):
    """Ask as a server does that has no limits of its own; return the status and the answer."""
    environ = {
        "REQUEST_METHOD": sent.method,
        "PATH_INFO": sent.path.decode("latin-1"),
        "QUERY_STRING": sent.query.encode().decode("latin-1"),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.input": BytesIO(sent.body or b""),
        "wsgi.url_scheme": "http",
        "HTTP_AUTHORIZATION": key,
    }
    if sent.body is not None:
        environ["CONTENT_LENGTH"] = str(len(sent.body))
    for name, value in sent.headers.items():
        name = name.upper().replace("-", "_")
        environ[name if name == "CONTENT_TYPE" else f"HTTP_{name}"] = value.decode("latin-1")
    statuses = []

    def start(status, headers, error=None):
        statuses.append(int(status[:3]))
        return lambda part: None

    answer = b"".join(app(environ, start))
    return statuses[0], answer


def test_a_megabyte_of_anything_anywhere_takes_no_second(app):
    """Each place gets some of the kinds of text, and each kind comes to some of the places; the benchmark sends all."""
    app, key = app
    document = json.loads(ask(app, key, Sent("", "GET", b"/openapi.json"))[1])
    lines, slow, wrong, count = Lines(), [], [], 0
    logging.getLogger("serving").addHandler(lines)
    try:
        for sent in islice(requests(document, KNOWN, 1_000_000, MAX_QUERY_CHARACTERS - 100), 0, None, EVERY):
            began = time.thread_time()  # of this thread, so that a busy machine is no slow service
            status, answer = ask(app, key, sent)
            seconds = time.thread_time() - began
            count += 1
            if seconds > 1:
                slow.append((seconds, sent.place))
            if status >= 500 or (status != 200 and len(answer) > MAX_ANSWER_BYTES):
                wrong.append((status, len(answer), sent.place))
    finally:
        logging.getLogger("serving").removeHandler(lines)
    assert not slow
    assert not wrong
    assert lines.longest <= MAX_LINE_CHARACTERS
    assert count > 150


class Lines(logging.Handler):
    """Remembers how long the longest line is."""

    longest = 0

    def emit(self, record):
        self.longest = max(self.longest, len(TextFormatter().format(record)))


def test_no_time_is_lost_on_what_is_almost_a_number():
    began = time.thread_time()
    for text in ("1" * 100_000 + "x", "." * 100_000, "1" * 50_000 + "." + "1" * 50_000 + "x", "1e" * 50_000):
        assert _NUMBER.fullmatch(text) is None
    assert time.thread_time() - began < 0.1


def test_no_time_is_lost_on_what_is_cut():
    for kind, text in texts(1_000_000).items():
        began = time.thread_time()
        shown(text)
        shown([text])
        TextFormatter().format(record(text, path=text))
        assert time.thread_time() - began < 0.1, kind


def request_schemas(document):
    for methods in document["paths"].values():
        for operation in methods.values():
            yield from (
                one.get("schema") or one["content"]["application/json"]["schema"] for one in parameters(operation)
            )
            if "requestBody" in operation:
                yield operation["requestBody"]["content"]["application/json"]["schema"]


def parameters(operation):
    return operation.get("parameters", [])


def unbounded(schema, document, place, opened):
    """The places of a schema that say no limit of a text or a list."""
    if isinstance(schema, list):
        return [found for one in schema for found in unbounded(one, document, place, opened)]
    if not isinstance(schema, dict):
        return []
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in opened:
            return []
        opened.add(name)
        return unbounded(document["components"]["schemas"][name], document, name, opened)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    found = [place] if "string" in kinds and not {"maxLength", "enum", "const", "pattern"} & set(schema) else []
    found += [place] if "array" in kinds and "maxItems" not in schema else []
    if "pattern" in schema and ("*" in schema["pattern"] or "+" in schema["pattern"]) and "maxLength" not in schema:
        found.append(place)
    for name, inner in schema.get("properties", {}).items():
        found += unbounded(inner, document, f"{place}.{name}", opened)
    for key in ("anyOf", "items"):
        found += unbounded(schema.get(key, []), document, f"{place}.{key}", opened)
    return found


def test_the_document_says_a_limit_of_every_text_and_list_of_a_request(client):
    document = client.get("/openapi.json").json
    schemas = list(request_schemas(document))
    assert len(schemas) > 50
    assert unbounded(schemas, document, "", set()) == []


ID, VALUE = "a" * MAX_ID_CHARACTERS, "a" * MAX_VALUE_CHARACTERS
AT_THE_LIMIT = [
    ("GET", f"/recommendations/{ID}", None),
    ("GET", f"/recommendations/1?exclude={ID}&brand={VALUE}&price_min={'0' * MAX_NUMBER_CHARACTERS}", None),
    ("POST", "/recommendations", {"history": [ID], "exclude": [ID], "pin": [ID]}),
    ("POST", "/recommendations", {"users": [ID, {"history": [ID]}]}),
    ("POST", "/recommendations", {"filter": {"brand": [VALUE], "item_id": {"not": [VALUE]}}}),
    ("POST", "/recommendations", {"filter": {"stock": ["1"] * MAX_FILTER_VALUES}}),
    ("POST", "/recommendations", {"attributes": {"about": "a" * MAX_CELL_CHARACTERS}}),
    ("POST", "/recommendations", {"attributes": {"likes": ["a"] * MAX_CELL_VALUES}}),
    ("PUT", f"/items/{ID}", {"brand": "a" * MAX_CELL_CHARACTERS}),
    ("POST", "/events", {"events": [{"user_id": 5, "item_id": ID, "event_id": "a" * 200}]}),
]
ABOVE = [
    ("GET", f"/recommendations/{ID}a", None, 422, "user_id: expected at most 512 characters, found 513"),
    ("GET", f"/items/{ID}a/similar", None, 422, "item_id: expected at most 512 characters, found 513"),
    ("GET", f"/recommendations/1?exclude={ID}a", None, 422, "exclude.0"),
    ("GET", f"/recommendations/1?brand={VALUE}a", None, 422, "brand: expected text of at most 512 characters"),
    ("GET", f"/recommendations/1?price_min={'0' * 65}", None, 422, "price_min: expected a number of at most 64"),
    ("GET", f"/recommendations/1?since={' ' * 65}", None, 422, "since: expected a date"),
    ("GET", f"/search?q={'a' * 10_001}", None, 422, "q: string should have at most 10000 characters"),
    (
        "GET",
        f"/healthz?{'a' * (MAX_QUERY_CHARACTERS + 1)}",
        None,
        414,
        "expected a query string of at most 65,536 characters",
    ),
    ("GET", f"/recommendations/1?{'a' * (MAX_QUERY_CHARACTERS + 1)}", None, 414, "found 65,537"),
    (
        "GET",
        "/recommendations/1?" + "&".join(f"c{n}=1" for n in range(MAX_CONDITIONS + 1)),
        None,
        422,
        "query: expected",
    ),
    ("GET", "/recommendations/1?" + "brand=a&" * 8_000 + "stock=1&" * 2_001, None, 414, ""),
    ("GET", f"/items/i1/similar?{'k=1&' * 2_000}", None, 422, "k: expected once, found 2000 times"),
    ("POST", "/recommendations", {"history": [ID + "a"]}, 422, "history.0"),
    ("POST", "/recommendations", {"pin": [ID + "a"]}, 422, "pin.0"),
    ("POST", "/recommendations", {"users": [ID + "a"]}, 422, "users.0"),
    ("POST", "/recommendations", {"history": [None] * 10_001}, 422, "history: list should have at most 10000 items"),
    ("POST", "/recommendations", {"filter": {"brand": VALUE + "a"}}, 422, "filter.brand: expected text of at most 512"),
    (
        "POST",
        "/recommendations",
        {"filter": {"stock": ["1"] * MAX_FILTER_VALUES, "price": [None]}},
        422,
        "filter: expected at most 10,000 values, found 10,001",
    ),
    (
        "POST",
        "/recommendations",
        {"filter": {f"c{number}": 1 for number in range(65)}},
        422,
        "filter: expected at most 64 columns, found 65",
    ),
    (
        "POST",
        "/recommendations",
        {"at_most": {f"c{number}": None for number in range(100)}},
        422,
        "at_most: dict should have at most 4 items after validation, not 100",
    ),
    (
        "POST",
        "/recommendations",
        {"attributes": {"about": "a" * (MAX_CELL_CHARACTERS + 1)}},
        422,
        "attributes.about: expected at most 65,536 characters, found 65,537",
    ),
    (
        "POST",
        "/recommendations",
        {"users": [{"attributes": {"about": "a" * 50_000}}] * 3},
        422,
        "attributes: expected at most 131,072 characters in all attributes of a request, found 150,000",
    ),
    (
        "POST",
        "/recommendations",
        {"attributes": {"joined": "2024-01-01" + " " * 55}},
        422,
        "attributes.joined: expected a date or Unix seconds, found '2024",
    ),
    (
        "POST",
        "/recommendations",
        {"attributes": {"likes": ["a"] * (MAX_CELL_VALUES + 1)}},
        422,
        "at most 16,384 values",
    ),
    (
        "PUT",
        f"/items/{ID}a",
        {},
        422,
        "item_id: expected text without surrounding whitespace, as in the tables and at most",
    ),
    ("PUT", "/items/new", {"brand": "a" * (MAX_CELL_CHARACTERS + 1)}, 422, "brand: expected at most 65,536 characters"),
    ("PUT", "/items/new", {"tags": ["a" * 40_000] * 2}, 422, "tags: expected at most 65,536 characters, found 80,000"),
    ("PUT", "/items/new", {"tags": ["a"] * (MAX_CELL_VALUES + 1)}, 422, "tags: expected at most 16,384 values"),
    ("PUT", "/items/new", {"brand": "a" * MAX_CELL_CHARACTERS, "tags": ["a" * 65_537]}, 422, "in all cells together"),
    ("POST", "/events", {"events": [{"user_id": ID + "a", "item_id": "i1"}]}, 422, "events.0.user_id"),
    ("POST", "/events", {"events": [{"user_id": 1, "item_id": "i1", "event_id": "a" * 201}]}, 422, "events.0.event_id"),
    ("POST", "/events", {"events": [None] * 10_001}, 422, "events: list should have at most 10000 items"),
]


@pytest.mark.parametrize(("method", "path", "body"), AT_THE_LIMIT, ids=range(len(AT_THE_LIMIT)))
def test_what_is_as_long_as_may_be_is_taken(client, method, path, body):
    if method == "POST" and "events" in body:
        client.put(f"/items/{ID}", json={})
    response = client.open(path, method=method, json=body)
    assert response.status_code in (200, 201), response.text


@pytest.mark.parametrize(("method", "path", "body", "status", "said"), ABOVE, ids=range(len(ABOVE)))
def test_what_is_longer_is_refused_before_it_is_read_and_the_answer_says_the_limit(
    client, method, path, body, status, said
):
    response = client.open(path, method=method, json=body)
    assert response.status_code == status, response.text
    assert said in response.json["detail"]
    assert len(response.data) < 1_000


@pytest.mark.parametrize("path", ["/recommendations", "/events", "/items/new"])
@pytest.mark.parametrize(
    "body",
    [
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"filter":' * 500 + b"1" + b"}" * 500,
        b'{"history":' + b"[" * 900 + b"]" * 900 + b"}",
        b"[" * 100_000,
        b"[" + b",".join([b"{}"] * MAX_BRACKETS) + b"]",
    ],
    ids=["one too many", "objects", "lists", "without an end", "many"],
)
def test_what_is_nested_deep_or_has_many_parts_is_a_bad_request_and_nothing_is_written_of_it(
    client, caplog, path, body
):
    method = "PUT" if path.startswith("/items") else "POST"
    response = client.open(path, method=method, data=body, content_type="application/json")
    assert response.status_code == 400, response.text
    assert len(response.data) < 500
    assert not caplog.records


def test_what_is_nested_as_deep_as_may_be_is_read(client):
    body = {"filter": {"brand": json.loads("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2))}}
    response = client.post("/recommendations", json=body)
    assert response.status_code == 422
    assert response.json["detail"] == "filter.brand: expected text, found [[[[...]]]]"
    assert client.get(f"/recommendations/1?boost={'[' * 900}{']' * 900}").status_code == 422


def test_an_answer_names_twenty_mistakes_and_says_how_many_more_there_are(client):
    response = client.post("/recommendations", json={f"field {number}": 1 for number in range(30)})
    assert response.status_code == 422
    assert len(response.json["errors"]) == MAX_MISTAKES
    assert "(and 10 more mistakes than `errors` lists)" in response.json["detail"]
    response = client.post("/recommendations", json={f"field {number}": 1 for number in range(50_000)})
    assert [mistake["field"] for mistake in response.json["errors"]] == ["body"]
    assert "not 50000, found {'field 0': 1" in response.json["detail"]


def test_of_a_list_the_first_mistake_is_named_and_whole_numbers_with_points_are_none(client):
    response = client.post("/recommendations", json={"history": [7.0, None, None], "k": 5.0, "offset": -1})
    assert [mistake["field"] for mistake in response.json["errors"]] == ["history.1", "offset"]


def test_names_of_any_length_are_cut(client):
    for body in ({"x" * 500_000: 1}, {"filter": {"x" * 500_000: 1}}, {"attributes": {"x" * 500_000: 1}}):
        response = client.post("/recommendations", json=body)
        assert response.status_code == 422
        assert len(response.data) < 4_000


def test_a_value_is_cut_before_it_is_written_out():
    assert shown("a" * 60) == repr("a" * 60)
    assert shown("a" * 1_000_000) == f"{'a' * 60!r}... (1,000,000 characters)"
    assert shown("a\n\x1b\u202e") == r"'a\n\x1b\u202e'"
    assert len(shown([["x" * 1_000_000] * 1_000_000] * 2)) < 100
    assert shown(-1000000000000000.1) == "-1000000000000000.1"
    assert did_you_mean("categry", ["category"]) == "; did you mean 'category'?"
    assert did_you_mean("category" * 100_000, ["category"] * 100) == ""


FORGED = 'a\n12:00:00 info: request status=200\r\x1b[2J\x7f\x85\x9b31m\u2028\u202e" x=1'


def record(message="request", exception=None, **fields):
    made = logging.LogRecord(
        "serving", logging.ERROR, "", 0, message, None, exception and (type(exception), exception, None)
    )
    made.fields = fields
    return made


def test_nothing_in_a_text_can_look_like_another_line_or_field_or_change_the_terminal():
    line = TextFormatter().format(record(path=FORGED, client="1.2.3.4"))
    assert line.isprintable()
    assert ' path="a' in line
    assert '\\" x=1" client=1.2.3.4' in line
    assert TextFormatter().format(record(FORGED)).isprintable()
    first, *others = TextFormatter().format(record(exception=ValueError(FORGED))).split("\n")
    assert first.endswith("error: request")
    assert len(others) > 1
    assert all(other.startswith("  ") and other.isprintable() for other in others)
    line = JsonFormatter().format(record(FORGED, path=FORGED, exception=ValueError(FORGED)))
    assert line.isprintable()
    assert json.loads(line)["path"] == json.loads(line)["message"] == FORGED


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_no_line_of_the_log_is_long_and_both_ends_of_a_text_are_there(formatter):
    long = "begin" + "x\n" * 500_000 + "\ud800end"
    line = formatter.format(record(long, path=long, exception=ValueError(long)))
    assert len(line) < 60_000
    assert line.count("begin") == 3
    assert line.count("end") >= 3
    assert "characters left out" in line


def test_a_path_reaches_the_log_as_text_of_one_line():
    written = StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(TextFormatter())
    logger = logging.getLogger("serving")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        app = create_app(make_shop(), ServingConfig(log_requests="all", trusted_proxies=1))
        headers = {"X-Forwarded-For": "\x1b[31m"}
        app.test_client().get("/recommendations/1%0a12:00:00%20info:%20forged%1b%5b2J", headers=headers)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    [line] = written.getvalue().splitlines()
    assert line.isprintable()
    assert "forged" in line


def test_callers_are_not_told_the_words_of_a_database_driver(tmp_path, caplog):
    app = create_app(make_shop(), ServingConfig(live=str(tmp_path / "live.db")))
    app.extensions["towers"].provider.store.close()
    response = app.test_client().delete("/items/i1")
    assert response.status_code == 503
    assert response.json["detail"] == "the log of live writes cannot be read"
    assert "cannot be read (the log was closed)" in caplog.text
    error = NotReady("the log cannot be read", sqlite3.OperationalError("no\nway"))
    assert (str(error), error.message) == ("the log cannot be read (no way)", "the log cannot be read")


def test_the_texts_of_a_batch_are_counted_together(client):
    whole = [{"attributes": {"about": "a" * (MAX_TEXT_CHARACTERS // 2)}}] * 2
    assert (
        client.post(
            "/recommendations", data=orjson.dumps({"users": whole}), content_type="application/json"
        ).status_code
        == 200
    )
