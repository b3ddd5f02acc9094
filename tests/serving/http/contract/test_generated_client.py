"""A client that openapi-python-client generates from the service's document, used against the service."""

from __future__ import annotations

import importlib
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.serving.http.contract.test_openapi import service_with_keys

httpx = pytest.importorskip("httpx", reason="httpx is not installed, which generated clients use")
generator = pytest.importorskip("openapi_python_client", reason="openapi-python-client is not installed")

GUIDE = Path(__file__).parents[4] / "docs" / "guides" / "clients.md"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return service_with_keys(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def package(service, tmp_path_factory):
    """The generated package."""
    from openapi_python_client.config import Config, ConfigFile, MetaType

    app, keys = service
    folder = tmp_path_factory.mktemp("generated")
    document = app.test_client().get("/openapi.json", headers={"Authorization": f"Bearer {keys['read']}"}).data
    (folder / "openapi.json").write_bytes(document)
    config = Config.from_sources(
        ConfigFile(post_hooks=[]),
        meta_type=MetaType.NONE,
        document_source=folder / "openapi.json",
        file_encoding="utf-8",
        overwrite=False,
        output_path=folder / "shop_client",
    )
    said = generator.generate(config=config)
    assert [one.detail or one.header for one in said] == []  # an operation or a type that it left out
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("shop_client")
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop_client"]:
        del sys.modules[name]


@pytest.fixture
def client(service, package):
    """Make a client with the key of a scope; its requests go to the application without a network."""
    app, keys = service
    return lambda scope: package.AuthenticatedClient(
        base_url="http://towers", token=keys[scope], httpx_args={"transport": httpx.WSGITransport(app=app)}
    )


def operation(name: str) -> ModuleType:
    return importlib.import_module(f"shop_client.api.default.{name}")


def models() -> ModuleType:
    return importlib.import_module("shop_client.models")


def test_a_generated_client_gets_what_the_service_answers(service, client):
    app, keys = service
    answer = operation("recommend").sync("1", client=client("read"), k=3)
    sent = app.test_client().get("/recommendations/1?k=3", headers={"Authorization": f"Bearer {keys['read']}"}).json
    assert answer.to_dict() == sent
    assert [item.rank for item in answer.items] == [1, 2, 3]


def test_a_generated_client_filters_and_posts_profiles(client):
    similar = operation("similar").sync("i3", client=client("read"), k=2, stock_max=10, brand=["a"])
    assert {item.item_id for item in similar.items} <= {f"i{number}" for number in range(0, 11, 3)} - {"i3"}
    assert len(similar.items) == 2
    profile = models().UserRecommendRequest(history=["i1", "gone"], k=2)
    answer = operation("recommend_described").sync(client=client("read"), body=profile)
    assert (len(answer.items), answer.unknown_items) == (2, ["gone"])


def test_a_generated_client_writes(client):
    event = models().EventBody(user_id=7, item_id="i2")
    accepted = operation("post_events").sync(client=client("write"), body=models().EventsRequest(events=[event]))
    assert accepted.position > 0
    written = operation("put_item").sync_detailed("new", client=client("write"), body=models().Cells(price=3.5))
    assert (written.status_code, written.parsed.item_id) == (201, "new")
    assert operation("delete_item").sync("new", client=client("write")).item_id == "new"


def test_a_generated_client_gets_problems_as_such(client):
    invalid = operation("recommend").sync("1", client=client("read"), k=0)
    assert (invalid.status, invalid.code, invalid.errors[0].field) == (422, "invalid", "k")
    refused = operation("delete_item").sync("i1", client=client("read"))
    assert refused.status == 403


@pytest.fixture
def backend(service, monkeypatch):
    """The backend of docs/guides/clients.md, with the key, and its connection to the service without a network."""
    app, keys = service
    for name, value in {"SESSION_KEY": "secret", "TOWERS_URL": "http://towers", "TOWERS_KEY": keys["read"]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.WSGITransport(app=app)))
    [code] = re.findall(r"```python[^\n]*\n(import os.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    written: dict[str, Any] = {"__name__": "backend"}
    exec(compile(code, GUIDE.name, "exec"), written)
    return written


def test_the_backend_of_the_guide_asks_for_its_own_user_only(backend):
    browser = backend["app"].test_client()
    assert browser.get("/api/recommendations").status_code == 401
    with browser.session_transaction() as session:
        session["user_id"] = 1
    items = browser.get("/api/recommendations?user_id=2").json["items"]
    assert items == backend["towers"].get("/recommendations/1?k=10").json()["items"] != []
    backend["towers"].headers["Authorization"] = "Bearer wrong"
    assert browser.get("/api/recommendations").json == {"items": []}
