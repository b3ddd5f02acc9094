"""Bodies: whole before a turn is taken, and bounded in size, time and memory; against streams that do as clients do."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge, ServiceUnavailable

from serving.config import ServingConfig
from serving.http import bodies
from serving.http.app import create_app
from serving.http.bodies import CONNECTION, Bodies
from serving.http.key_file import add_key

BODY = json.dumps({"history": ["item-001"], "k": 3}).encode()
JSON = "application/json"


class Stalled:
    """A body that does not come on, until its connection ends or `go_on` is set."""

    def __init__(self, first=b"", rest=b""):
        self.first, self.rest, self.go_on = first, rest, threading.Event()
        self.entered = threading.Event()

    def read(self, size=-1):
        self.entered.set()
        assert self.go_on.wait(20)
        content, self.first, self.rest = self.first + self.rest, b"", b""
        return content

    def end(self, status):
        """End the connection: the read has what came before."""
        self.ended, self.rest = status, b""
        self.go_on.set()


def slow(stream, length):
    return {
        "wsgi.input": stream,
        "wsgi.input_terminated": True,
        "CONTENT_LENGTH": str(length),
        CONNECTION: getattr(stream, "end", None),
    }


def chunked(content):
    return {"wsgi.input": BytesIO(content), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}


def test_senders_who_are_slow_take_nobodys_turn(recommender):
    app = create_app(recommender, ServingConfig(threads=1, queue_size=0))
    senders = [Stalled(BODY) for _ in range(8)]
    with ThreadPoolExecutor(len(senders)) as pool:
        asked = [
            pool.submit(
                app.test_client().post,
                "/recommendations",
                content_type=JSON,
                environ_overrides=slow(sender, len(BODY)),
            )
            for sender in senders
        ]
        assert all(sender.entered.wait(20) for sender in senders)
        client = app.test_client()
        assert client.get("/recommendations/103").status_code == 200
        assert client.post("/recommendations", data=BODY, content_type=JSON).status_code == 200
        assert app.extensions["towers"].limiter.in_progress == 0
        for sender, answer in zip(senders, asked, strict=True):
            sender.go_on.set()
            assert answer.result().status_code == 200


@pytest.mark.parametrize("status", [408, 413])
def test_a_body_that_does_not_come_ends_with_its_connection(recommender, monkeypatch, status):
    monkeypatch.setattr(bodies, "_SECONDS_TO_DRAIN", 0.2)
    client = create_app(recommender, ServingConfig(body_seconds=0.2, max_body_bytes=1000)).test_client()
    sender = Stalled(b"{", b"}")
    length = 2 if status == 408 else 2000
    answer = client.post("/recommendations", content_type=JSON, environ_overrides=slow(sender, length))
    assert (answer.status_code, sender.ended) == (status, status)
    assert answer.headers["Connection"] == "close"
    assert ('towers_rejected_total{reason="slow"} 1.0' in client.get("/metrics").text) is (status == 408)


@pytest.mark.parametrize(("method", "path"), [("POST", "/recommendations"), ("GET", "/recommendations/103")])
def test_a_body_without_a_length_is_as_good_and_as_bounded_as_one_with(recommender, method, path):
    client = create_app(recommender, ServingConfig(max_body_bytes=len(BODY))).test_client()
    for content, expected in [(BODY, 200), (BODY + b" ", 413)]:
        answer = client.open(path, method=method, content_type=JSON, environ_overrides=chunked(content))
        assert answer.status_code == expected
    assert "Connection" not in client.open(path, method=method, data=BODY, content_type=JSON).headers


def test_probes_do_not_wait_for_their_bodies(recommender):
    client = create_app(recommender).test_client()
    for probe in ("/healthz", "/readyz", "/metrics"):
        sender = Stalled()
        assert client.get(probe, environ_overrides=slow(sender, 10)).status_code == 200
        assert not sender.entered.is_set()


class Parts:
    """A stream that gives what it has in parts of any size, and then ends or breaks off."""

    def __init__(self, content, sizes, breaks):
        self.content, self.sizes, self.breaks = content, sizes, breaks

    def read(self, size):
        size = min(size, self.sizes.pop() if self.sizes else size)
        part, self.content = self.content[:size], self.content[size:]
        if not part and self.breaks:
            raise ConnectionResetError
        return part


@given(
    content=st.integers(0, 300_000).map(lambda size: b"x" * size),
    sizes=st.lists(st.integers(1, 100_000), max_size=20),
    breaks=st.booleans(),
    said=st.one_of(st.none(), st.integers(1, 300_000)),
    limit=st.integers(1, 300_000),
)
def test_a_body_is_what_was_sent_or_an_error(content, sizes, breaks, said, limit):
    environ = {"wsgi.input": Parts(content, sizes, breaks)}
    environ |= {"HTTP_TRANSFER_ENCODING": "chunked"} if said is None else {"CONTENT_LENGTH": str(said)}
    expected = content if said is None else content[:said]
    found = None
    receiving = Bodies(limit, 10)
    try:
        receiving.receive(environ)
        found = environ["wsgi.input"].read()
    except HTTPException as error:
        found = type(error)
    if said is not None and said > limit:
        assert found is RequestEntityTooLarge
    elif said is not None and len(content) < said:
        assert found is BadRequest
    elif said is None and len(content) > limit:
        assert found is RequestEntityTooLarge
    elif said is None and breaks:
        assert found is BadRequest
    else:
        assert found == expected
        assert environ["CONTENT_LENGTH"] == str(len(expected))
        assert "HTTP_TRANSFER_ENCODING" not in environ
    assert receiving._left == max(1 << 26, 4 * limit)
    assert not receiving.receiving


@pytest.mark.parametrize("said", ["x", "-1", "1" * 30, "٣"])
def test_a_length_that_is_no_number_is_refused(said):
    with pytest.raises(BadRequest, match="expected a number of bytes"):
        Bodies(100, 1).receive({"CONTENT_LENGTH": said, "wsgi.input": BytesIO()})


def test_large_bodies_share_their_memory_and_small_ones_need_none_of_it(monkeypatch):
    receiving = Bodies(1 << 20, 10)
    receiving._left = 1 << 17
    large = {"CONTENT_LENGTH": str(1 << 20), "wsgi.input": BytesIO(b"x" * (1 << 20))}
    with pytest.raises(ServiceUnavailable, match="too many large request bodies"):
        receiving.receive(large)
    receiving._left = 0
    small = {"CONTENT_LENGTH": "1000", "wsgi.input": BytesIO(b"x" * 1000)}
    receiving.receive(small)
    assert small["wsgi.input"].read() == b"x" * 1000


def test_a_body_that_came_in_time_is_never_cut_off():
    ended = []
    receiving = Bodies(100, 0.01)
    environ = {"CONTENT_LENGTH": "2", "wsgi.input": BytesIO(b"{}"), CONNECTION: ended.append}
    receiving.receive(environ)
    time.sleep(0.02)
    receiving.end_late()
    assert not ended


def test_wrong_keys_count_against_where_they_come_from_and_right_ones_go_on(recommender, tmp_path):
    secret = add_key(tmp_path / "keys.toml", "shop", "read")
    client = create_app(
        recommender, ServingConfig(api_keys_file=str(tmp_path / "keys.toml"), rate=0.001, burst=2)
    ).test_client()
    wrong, right = ({"Authorization": f"Bearer {key}"} for key in ("tt_wrong", secret))
    for path in ("/recommendations/103", "/search?q=x"):
        asked = [client.get(path, headers=wrong, environ_base={"REMOTE_ADDR": path}) for _ in range(4)]
        assert [answer.status_code for answer in asked] == [401, 401, 429, 429]
        assert asked[-1].headers["Retry-After"]
    assert client.get("/recommendations/103", headers=right).status_code == 200
    metrics = client.get("/metrics", headers=right)
    assert 'towers_rejected_total{reason="key"} 8.0' in metrics.text
