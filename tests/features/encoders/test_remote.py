"""Embeddings services: a real server on this machine that speaks both protocols, and fails in the ways they do."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import features.encoders.remote as remote
from features.config import EncoderSettings
from features.encoders.encoder import PretrainedText
from features.encoders.policy import RemotePolicy, origins_of
from features.encoders.remote import ATTEMPTS, TEXTS_A_REQUEST, RemoteModel
from features.errors import DataError, UnavailableError
from features.settings import parse_settings

WIDTH = 6


@dataclass
class Service:
    """What the server was asked, and what it is to do wrong."""

    address: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    failures: list[Callable[[BaseHTTPRequestHandler, list[str]], bool]] = field(default_factory=list)
    salt: str = ""

    def vector(self, text: str) -> list[float]:
        digits = hashlib.sha256(f"{self.salt}{text}".encode()).digest()[:WIDTH]
        return [(digit - 127) / 10 for digit in digits]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    monkeypatch.setenv("TOWERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "LONGEST_WAIT_SECONDS", 0.01)
    own = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            own.asked.append(body | {"path": self.path})
            own.keys.append(self.headers.get("Authorization"))
            texts = body.get("input") or body.get("texts")
            if own.failures and own.failures.pop(0)(self, texts):
                return
            vectors = [own.vector(text) for text in texts]
            if self.path.endswith("/embed"):
                assert body["embedding_types"] == ["float"]
                answer(self, 200, {"embeddings": {"float": vectors}})
            else:
                assert body["encoding_format"] == "float"
                data = [{"index": place, "embedding": vector} for place, vector in enumerate(vectors)]
                answer(self, 200, {"data": data[::-1]})  # in any order, says the protocol

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        own.address = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield own
        server.shutdown()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, status: int, content: Any, **headers: str) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler, list[str]], bool]:
    def fail(handler: BaseHTTPRequestHandler, texts: list[str]) -> bool:
        answer(handler, code, {"error": "as asked"}, **headers)
        return True

    return fail


def says(content: Any) -> Callable[[BaseHTTPRequestHandler, list[str]], bool]:
    def fail(handler: BaseHTTPRequestHandler, texts: list[str]) -> bool:
        answer(handler, 200, content)
        return True

    return fail


def hangs_up(handler: BaseHTTPRequestHandler, texts: list[str]) -> bool:
    handler.close_connection = True
    handler.connection.close()
    return True


def too_few(handler: BaseHTTPRequestHandler, texts: list[str]) -> bool:
    answer(handler, 200, {"data": [{"index": 0, "embedding": [0.0] * WIDTH}] * (len(texts) - 1)})
    return True


def unit(service: Service, texts: list[str]) -> np.ndarray:
    vectors = np.array([service.vector(text) for text in texts], dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def encoded(model: RemoteModel, texts: list[str], role: Any = "document") -> np.ndarray:
    found = np.zeros((len(texts), WIDTH), dtype=np.float32)
    for rows, vectors in model.encode(texts, role):
        found[rows] = vectors
    return found


@pytest.mark.parametrize("protocol", ["openai", "cohere"])
def test_vectors_come_in_the_order_of_the_texts_many_to_a_request(service, protocol) -> None:
    texts = [f"text {number}" for number in range(TEXTS_A_REQUEST * 2 + 5)]
    model = RemoteModel(EncoderSettings(model="m", url=service.address, protocol=protocol, dimensions=WIDTH))
    np.testing.assert_allclose(encoded(model, texts), unit(service, texts), rtol=1e-5)
    assert [len(body.get("input") or body["texts"]) for body in service.asked] == [64, 64, 5]
    assert service.asked[0]["model"] == "m"
    assert service.asked[0]["dimensions" if protocol == "openai" else "output_dimension"] == WIDTH
    assert service.keys[0] is None


def test_cohere_is_told_what_a_text_is_and_others_read_a_prompt(service) -> None:
    cohere = RemoteModel(EncoderSettings(model="m", url=service.address, protocol="cohere"))
    encoded(cohere, ["a"], "query"), encoded(cohere, ["a"], "document")
    assert [body["input_type"] for body in service.asked] == ["search_query", "search_document"]
    other = RemoteModel(EncoderSettings(model="m", url=service.address, query_prompt="query: "))
    encoded(other, ["a"], "query"), encoded(other, ["a"], "document")
    assert [body["input"] for body in service.asked[2:]] == [["query: a"], ["a"]]
    assert other.fingerprint != cohere.fingerprint


FAILURES = {
    "too many requests": status(429, Retry_After="0"),
    "too many requests, a date": status(429, Retry_After="Fri, 20 Nov 2026 19:00:00 GMT"),
    "server error": status(500),
    "unavailable": status(503),
    "hangs up": hangs_up,
    "fewer vectors than texts": too_few,
    "no JSON": says(b"<html>"),
    "another shape": says({"answer": 42}),
    "numbers that are none": says({"data": [{"index": 0, "embedding": [float("nan")] * WIDTH}] * 2}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_for_a_while_is_asked_again(service, failure) -> None:
    service.failures = [FAILURES[failure]] * (ATTEMPTS - 1)
    model = RemoteModel(EncoderSettings(model="m", url=service.address))
    np.testing.assert_allclose(encoded(model, ["a", "b"]), unit(service, ["a", "b"]), rtol=1e-5)
    assert len(service.asked) == ATTEMPTS


def test_what_fails_for_good_is_told_in_one_line(service) -> None:
    model = RemoteModel(EncoderSettings(model="m", url=service.address))
    service.failures = [status(500)] * ATTEMPTS
    with pytest.raises(UnavailableError, match=rf"answers with status 500, {ATTEMPTS} times; try again later"):
        encoded(model, ["a"])
    service.failures = [too_few] * ATTEMPTS
    with pytest.raises(UnavailableError, match=r"answers with vectors of shape \(1, 6\) to 2 texts"):
        encoded(model, ["a", "b"])
    asked = len(service.asked)
    service.failures = [status(400)]
    with pytest.raises(DataError, match=r"answers with status 400 \(.*as asked.*\)$"):
        encoded(model, ["a"])
    assert len(service.asked) == asked + 1  # to ask again would not help


def drips(handler: BaseHTTPRequestHandler, texts: list[str]) -> bool:
    """Answer a byte at a time, without end."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.01)
    except OSError:
        return True


def sleeps(handler: BaseHTTPRequestHandler, texts: list[str]) -> bool:
    time.sleep(1)
    return False


@pytest.mark.parametrize("failure", [drips, sleeps, status(503, Retry_After="60")])
def test_a_request_that_has_to_be_answered_waits_no_longer_than_it_may(service, failure) -> None:
    ends = time.monotonic() + 0.3
    service.failures = [failure] * ATTEMPTS
    model = RemoteModel(EncoderSettings(model="m", url=service.address), None, lambda: ends - time.monotonic())
    with pytest.raises(UnavailableError, match="try again later"):
        encoded(model, ["a"])
    assert time.monotonic() < ends + 0.5


@pytest.mark.parametrize("content", [b" " * 5000, b"[" * 900, b'{"data": ' * 100])
def test_an_answer_is_bounded_before_it_is_read(service, monkeypatch, content) -> None:
    monkeypatch.setattr(remote, "MAX_ANSWER_BYTES", 1000)
    service.failures = [says(content)] * ATTEMPTS
    expected = DataError if len(content) > 1000 else UnavailableError
    with pytest.raises(expected, match=r"answers with (more than 1,000 bytes|what is not openai's protocol)"):
        encoded(RemoteModel(EncoderSettings(model="m", url=service.address)), ["a"])


def test_the_key_is_read_from_the_environment_and_sent(service, monkeypatch) -> None:
    settings = EncoderSettings(model="m", url=service.address, key_variable="SOME_KEY")
    with pytest.raises(DataError, match="its key is expected in the environment variable SOME_KEY; set it"):
        encoded(RemoteModel(settings), ["a"])
    monkeypatch.setenv("SOME_KEY", "secret")
    encoded(RemoteModel(settings), ["a"])
    assert service.keys == ["Bearer secret"]
    service.failures = [status(401)]
    with pytest.raises(DataError, match="put the service's key into the environment variable SOME_KEY"):
        encoded(RemoteModel(settings), ["a"])


def test_texts_are_sent_once_and_a_service_of_another_model_is_noticed(service, tmp_path) -> None:
    texts = [f"text {number}" for number in range(100)]
    settings = EncoderSettings(model="m", url=service.address)
    fitted = PretrainedText.fit(settings, texts)
    expected = fitted.numbers(texts, "document")
    sent = [text for body in service.asked for text in body["input"]]
    assert sorted(text for text in sent if text in texts) == sorted(texts)
    np.testing.assert_allclose(expected @ expected.T, unit(service, texts) @ unit(service, texts).T, atol=1e-5)
    fitted.save(tmp_path / "encoder")
    allowed = RemotePolicy((service.address.removesuffix("/v1"),))
    read = PretrainedText.load(tmp_path / "encoder", allowed)
    np.testing.assert_allclose(read.numbers(["text 3"], "document"), expected[3:4], rtol=0, atol=1e-6)
    service.salt = "another model"
    with pytest.raises(DataError, match=r"'m' is not what it was in training \(.* a cosine of .*\); train again"):
        PretrainedText.load(tmp_path / "encoder", allowed).numbers(["text 3"], "document")


def test_a_bundle_sends_nothing_where_the_operator_has_not_allowed_it(service, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TOWERS_LIVE", "postgresql://towers:the-password@db/shop")
    settings = EncoderSettings(model="m", url=service.address)
    PretrainedText(settings, RemoteModel(settings, WIDTH), np.eye(WIDTH, dtype=np.float32), np.ones(WIDTH)).save(
        tmp_path / "names"
    )
    path = tmp_path / "names" / "encoder.json"
    described = json.loads(path.read_text())
    described["settings"]["key_variable"] = "TOWERS_LIVE"  # what was sent to whoever asked for it
    path.write_text(json.dumps(described))
    host = service.address.removeprefix("http://").removesuffix("/v1")
    with pytest.raises(DataError, match=rf"encoder 'names' sends texts to http://{host}, .* encoder_hosts in serving"):
        PretrainedText.load(tmp_path / "names")
    with pytest.raises(DataError, match=r"the environment variable TOWERS_LIVE to 127.0.0.1, .* encoder_key_variables"):
        PretrainedText.load(tmp_path / "names", RemotePolicy((host,), ("TOWERS_LIV", "OTHER")))
    assert service.asked == []
    PretrainedText.load(tmp_path / "names", RemotePolicy((host,), ("TOWERS_LIVE",)))


@pytest.mark.parametrize(
    ("entry", "url", "is_allowed"),
    [
        ("api.example.com", "https://api.example.com/v1", True),
        ("API.example.com.", "https://api.EXAMPLE.com:443/v1", True),
        ("api.example.com", "http://api.example.com/v1", False),
        ("api.example.com", "https://api.example.com:8443/v1", False),
        ("api.example.com", "https://api.example.com.evil.org/v1", False),
        ("example.com", "https://api.example.com/v1", False),
        ("http://api.example.com:8080", "http://api.example.com:8080", True),
        ("http://api.example.com:8080", "https://api.example.com:8080", False),
        ("127.0.0.1:9", "http://127.0.0.1:9/v1", True),
        ("localhost:9", "https://localhost:9/v1", True),
        ("[::1]:9", "http://[0:0::1]:9/v1", True),
        ("10.0.0.5:80", "http://10.0.0.5/v1", False),
    ],
)
def test_a_service_is_its_scheme_host_and_port(entry, url, is_allowed) -> None:
    policy = RemotePolicy((entry,))
    if is_allowed:
        policy.check("a", EncoderSettings(model="m", url=url))
        return
    with pytest.raises(DataError, match="encoder 'a' sends texts to"):
        policy.check("a", EncoderSettings(model="m", url=url))


@pytest.mark.parametrize("entry", ["*", "https://h/v1", "user@host", "host:port", "h:70000", "", "a b"])
def test_what_is_no_host_is_not_taken_for_one(entry) -> None:
    with pytest.raises(ValueError, match="expected HOST, HOST:PORT or http://HOST:PORT"):
        origins_of(entry)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:the-password@host/v1",
        "https://the-password@host/v1",
        "https://host/v1?key=the-password",
        "https://allowed.com\\@evil.com/",
        "https://evil.com#@allowed.com",
        "https://host:70000/v1",
        "file:///etc/passwd",
        "ftp://host/v1",
    ],
)
def test_an_address_holds_no_secret_and_is_read_alike_by_everybody(url) -> None:
    with pytest.raises(DataError, match="url: expected https://HOST/PATH") as told:
        parse_settings(EncoderSettings, {"model": "m", "url": url}, "run.toml")
    assert "the-password" not in str(told.value)


def test_redirects_are_not_followed(service) -> None:
    service.failures = [status(307, Location=f"{service.address}/elsewhere")]
    with pytest.raises(DataError, match=r"answers with status 307 .* make url the address that it redirects to"):
        encoded(RemoteModel(EncoderSettings(model="m", url=service.address)), ["a"])
    assert len(service.asked) == 1


def test_a_key_is_in_no_error_and_gives_way_to_nothing_else(service, monkeypatch, tmp_path) -> None:
    settings = EncoderSettings(model="m", url=service.address, key_variable="SOME_KEY")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password of-netrc")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("SOME_KEY", "planted-key\n")  # as `cat key.txt` leaves it

    def says_the_key(handler: BaseHTTPRequestHandler, texts: list[str]) -> bool:
        answer(handler, 401, {"error": f"wrong key {handler.headers['Authorization']}"})
        return True

    service.failures = [says_the_key]
    with pytest.raises(DataError, match="answers with status 401") as told:
        encoded(RemoteModel(settings), ["a"])
    assert service.keys == ["Bearer planted-key"]
    monkeypatch.setenv("SOME_KEY", "planted-key\r\nHost: evil")
    with pytest.raises(DataError, match="SOME_KEY holds characters that no key has") as other:
        encoded(RemoteModel(settings), ["a"])
    assert "planted-key" not in str(told.value) + str(other.value)
    encoded(RemoteModel(EncoderSettings(model="m", url=service.address)), ["a"])
    assert service.keys[1:] == [None], "nothing of ~/.netrc is sent"
