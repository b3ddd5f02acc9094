"""The client of a Qdrant server. No server is started here: what it asks for is run by the client's local mode, which
has the server's operations in plain Python, and sent to an HTTP server that fails in the ways that a server can."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import numpy as np
import pytest

from features.errors import UnavailableError
from serving.search.conditions import OPERATORS
from serving.search.databases.columns import kinds_of
from serving.search.databases.database import Asked
from serving.search.databases.open_database import open_database
from serving.search.databases.settings import DatabaseSettings
from tests.serving.search.databases import test_database_search as contract

qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact .brute-force. search:UserWarning"),
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning"),
]


@pytest.fixture(scope="module")
def database():
    """The client's local mode with all items of the contract."""
    from serving.search.databases.qdrant_server import QdrantServer

    local = qdrant_client.QdrantClient(":memory:")
    opened = QdrantServer("qdrant://host?collection=contract", None, 30, make_client=lambda seconds: local)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.search.databases.qdrant_server._SECONDS_BETWEEN_LOOKS", 0)
        contract.write(opened)
        yield opened
    opened.close()


@pytest.mark.parametrize(("column", "values"), contract.CONDITIONS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_conditions_let_through_what_the_mask_does(database, column, values, operator):
    contract.test_the_database_lets_through_what_the_mask_does(database, column, values, operator)


def test_a_search_is_as_exact_as_the_local_mode(database):
    index, queries = contract.searcher(database), contract.QUERIES[:3]
    for allowed in (None, contract.below(0.4), contract.below(0.01)):
        hits, true = (one(queries, 20, allowed=allowed) for one in (index.search, contract.EXACT.scan))
        np.testing.assert_array_equal(hits.rows, true.rows)


test_the_alias_moves_forth_and_back = contract.test_the_alias_moves_forth_and_back
test_live_writes_are_applied_once_and_in_place = contract.test_live_writes_are_applied_once_and_in_place
test_a_collection_that_lost_items_is_refused = contract.test_a_collection_that_lost_items_is_refused
test_what_belongs_to_another_bundle_is_refused_in_one_line = (
    contract.test_what_belongs_to_another_bundle_is_refused_in_one_line
)


@pytest.fixture
def server():
    """An HTTP server that keeps what it was asked, and answers as its `reply` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
            time.sleep(self.server.delay)
            status, content = self.server.reply
            self.send_response(status)
            self.end_headers()
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            step = 1 if self.server.pause else len(content)
            with suppress(OSError):  # the client does not wait for all of it
                for start in range(0, len(content), step):
                    self.wfile.write(content[start : start + step])
                    time.sleep(self.server.pause)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.delay, server.pause = [], 0, 0
    server.reply = (200, {"result": [{"points": []}], "status": "ok", "time": 0.0})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, seconds=5.0):
    address = f"qdrant://127.0.0.1:{server.server_port}?collection=items"
    database = open_database(DatabaseSettings(address, key="never-shown-key", timeout_seconds=seconds))
    allowed = contract.below(0.4)
    asked = Asked(contract.QUERIES[:1], 100, 256, where=allowed.conditions, excluded=[np.array([3, 4])])
    try:
        return database.nearest("items_one", kinds_of(contract.CELLS), asked)
    finally:
        database.close()
        open_database.cache_clear()


def test_a_search_is_one_request_with_filter_effort_and_key(server):
    point = {"id": 7, "version": 0, "score": 0.5}
    server.reply = (200, {"result": [{"points": [point]}], "status": "ok", "time": 0.0})
    assert [keys.tolist() for keys in ask(server)] == [[7]]
    ((path, headers, body),) = server.asked
    assert path == "/collections/items_one/points/query/batch"
    assert headers["api-key"] == "never-shown-key"
    (search,) = body["searches"]
    assert len(search.pop("query")["nearest"]) == 16
    assert search == {
        "filter": {"must": [{"key": "place", "range": {"lte": 1599.0}}], "must_not": [{"has_id": [3, 4]}]},
        "params": {"hnsw_ef": 256, "exact": False},
        "limit": 100,
        "with_payload": False,
        "with_vector": False,
    }


@pytest.mark.parametrize(
    "reply",
    [
        (401, {"status": {"error": "Invalid API key never-shown-key"}}),
        (404, {"status": {"error": "Not found: Collection `items_one` doesn't exist!"}}),
        (429, {"status": {"error": "rate limit"}}),
        (500, {"status": {"error": "Service internal error: panicked\nat segment"}}),
        (200, {"result": "nothing of this kind"}),
        (200, "no object"),
        (200, b"<html>a proxy: try later</html>"),
        (200, b'{"result": [{"points": ['),
        (200, b'\xff\xfe{"result"'),
        (200, b"[" * 100_000),
        (200, {"result": None, "status": "ok", "time": 0.0}),
        *((200, {"result": [{"points": [{"id": one, "version": 0, "score": 1}]}]}) for one in (str(uuid4()), 2**70)),
    ],
)
def test_what_a_server_refuses_is_one_line_without_the_key(server, reply):
    server.reply = reply
    with pytest.raises(UnavailableError, match="the Qdrant server cannot be used") as told:
        ask(server)
    assert "\n" not in str(told.value)
    assert "never-shown" not in str(told.value)


def test_a_server_that_hangs_is_waited_for_no_longer_than_it_may_take(server):
    server.delay = 2.0
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="the Qdrant server cannot be used"):
        ask(server, seconds=0.2)
    assert time.monotonic() - began < 1.5


def test_a_server_that_sends_byte_by_byte_is_waited_for_no_longer_either(server):
    server.pause = 0.05
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"did not respond within 0\.2 s"):
        ask(server, seconds=0.2)
    assert time.monotonic() - began < 1.5


def test_a_server_that_is_away_is_one_line(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UnavailableError, match="the Qdrant server cannot be used"):
        ask(server)
