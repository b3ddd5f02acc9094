"""What is written of requests: lines that machines can read, and an id that goes through everything."""

from __future__ import annotations

import json
import logging
import logging.config

import pytest

from serving.config import ServingConfig
from serving.http.app import create_app
from serving.observability import logs


@pytest.fixture
def written(capsys):
    """A service that logs as in production; asking it returns the answer and the lines of the log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def serve(recommender, form="json", **settings):
        logging.config.dictConfig(logs.configuration(form))
        client = create_app(recommender, ServingConfig(**settings)).test_client()

        def ask(path, **given):
            capsys.readouterr()
            response = client.get(path, **given)
            return response, capsys.readouterr().err.splitlines()

        return ask

    yield serve
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("serving").setLevel(logging.NOTSET)


def test_an_answer_bears_the_id_that_the_request_came_with_or_a_new_one(recommender):
    client = create_app(recommender).test_client()
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1.2"}).headers["X-Request-Id"] == "abc-1.2"
    made = [client.get("/recommendations/1").headers["X-Request-Id"] for _ in range(3)]
    assert len(set(made)) == 3
    assert client.get("/nowhere").headers["X-Request-Id"]


@pytest.mark.parametrize("given", ["", "a b", 'a"b', "ä", "x" * 129, "a\tb", "{}"])
def test_an_id_that_could_forge_a_line_is_replaced(recommender, given):
    answered = create_app(recommender).test_client().get("/healthz", headers={"X-Request-Id": given})
    assert answered.headers["X-Request-Id"] != given


def test_each_request_is_one_line_of_json_where_all_are_asked_for(written, recommender):
    ask = written(recommender, log_requests="all")
    _, lines = ask("/recommendations/103?k=3", headers={"X-Request-Id": "r1"})
    [line] = [json.loads(line) for line in lines]
    assert line["request_id"] == "r1"
    assert (line["level"], line["message"], line["status"], line["method"]) == ("info", "request", 200, "GET")
    assert line["route"] == "/recommendations/{user_id}"
    assert line["path"] == "/recommendations/103"
    assert 0 < line["stages"]["search"] <= line["seconds"]
    assert line["client"] == "127.0.0.1"


def test_a_mistake_of_ours_is_in_the_log_with_the_id_of_its_request(written, recommender, monkeypatch):
    def fail(*_):
        raise RuntimeError("secret\nof two lines")

    monkeypatch.setattr(recommender, "recommend", fail)
    response, lines = written(recommender)("/recommendations/103")
    assert response.status_code == 500
    mistake, request = [json.loads(line) for line in lines]
    assert mistake["request_id"] == request["request_id"] == response.headers["X-Request-Id"]
    assert "secret\nof two lines" in mistake["exception"]
    assert (request["status"], request["level"]) == (500, "error")


def test_what_went_well_is_not_written_of_unless_it_was_slow(written, recommender):
    assert written(recommender)("/recommendations/103")[1] == []
    [slow] = written(recommender, slow_seconds=1e-9)("/recommendations/103")[1]
    assert json.loads(slow)["message"] == "request"
    assert written(recommender, slow_seconds=1e-9, log_requests="none")("/recommendations/103")[1] == []


def test_people_read_text(written, recommender):
    [line] = written(recommender, "text", log_requests="all")("/recommendations/103", headers={"X-Request-Id": "r1"})[1]
    assert " info: request method=GET path=/recommendations/103" in line
    assert line.endswith("[r1]")


def test_a_key_is_never_written(written, recommender, tmp_path):
    from serving.http.key_file import add_key

    secret = add_key(tmp_path / "keys.toml", "shop", "read")
    ask = written(recommender, api_keys_file=str(tmp_path / "keys.toml"), log_requests="all")
    _, lines = ask("/recommendations/103", headers={"Authorization": f"Bearer {secret}"})
    assert json.loads(lines[0])["client"] == "shop"
    assert secret not in "".join(lines)
