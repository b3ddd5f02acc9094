"""Keys: what a stranger, a reader and a writer may do, and that a file of keys gives none away."""

from __future__ import annotations

import base64
import stat

import pytest
from click.testing import CliRunner

from features.errors import DataError
from serving.commands import key
from serving.config import ServingConfig
from serving.http import app as application
from serving.http.app import create_app
from serving.http.auth import Keys
from serving.http.key_file import add_key, read_keys, remove_key
from serving.http.router import Reply, Route
from serving.http.routes import ROUTES


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.toml"


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def asked(recommender, path, monkeypatch):
    """A service that asks for keys, with a route that needs a key to write, and a reader's and a writer's key."""
    reader, writer = add_key(path, "shop", "read"), add_key(path, "feed", "write")
    written = [Route(method, "/written", "", lambda *_: Reply(b"{}"), scope="write") for method in ("GET", "POST")]
    monkeypatch.setattr(application, "ROUTES", (*ROUTES, *written))
    return create_app(recommender, ServingConfig(api_keys_file=str(path))).test_client(), reader, writer


def test_a_stranger_is_asked_for_a_key_and_may_only_see_whether_the_service_lives(asked):
    client, *_ = asked
    for method, path in [("GET", "/recommendations/103"), ("POST", "/recommendations"), ("GET", "/"), ("GET", "/no")]:
        response = client.open(path, method=method)
        assert response.status_code == 401
        assert response.json["code"] == "no_key"
        assert [challenge.partition(" ")[0].lower() for challenge in response.headers.getlist("WWW-Authenticate")] == [
            "bearer",
            "basic",
        ]
    assert client.get("/metrics").status_code == 401
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_a_reader_reads_and_a_writer_does_both(asked):
    client, reader, writer = asked
    for secret in (reader, writer):
        assert client.get("/recommendations/103", headers=bearer(secret)).status_code == 200
        assert client.post("/recommendations", json={}, headers=bearer(secret)).status_code == 200
        assert client.get("/metrics", headers=bearer(secret)).status_code == 200
    for method, path in [("GET", "/written"), ("POST", "/written")]:
        assert client.open(path, method=method, headers=bearer(writer)).status_code == 200
        refused = client.open(path, method=method, headers=bearer(reader))
        assert refused.status_code == 403
        assert refused.json["code"] == "forbidden"


def test_a_browser_may_send_the_key_as_a_password(asked):
    client, reader, _ = asked
    given = base64.b64encode(f"anybody:{reader}".encode()).decode()
    assert client.get("/", headers={"Authorization": f"Basic {given}"}).status_code == 200


@pytest.mark.parametrize(
    "given", ["Bearer", "Bearer ", "Bearer tt_wrong", "Basic !!!", "Basic dXNlcjo=", "Digest x=1", "tt_wrong", "ä"]
)
def test_what_is_no_key_is_refused(asked, given):
    client, *_ = asked
    assert client.get("/recommendations/103", headers={"Authorization": given}).status_code == 401


def test_the_file_holds_no_key_and_is_its_owners_alone(path):
    secrets = [add_key(path, name, "read") for name in ("a", "b")]
    assert len(set(secrets)) == 2
    assert all(len(secret) == 46 for secret in secrets)
    assert not any(secret in path.read_text() for secret in secrets)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [known.name for known in read_keys(path)] == ["a", "b"]


def test_a_key_that_is_made_or_removed_counts_within_a_second_and_a_broken_file_changes_nothing(path, caplog):
    now = 0.0
    first = add_key(path, "first", "read")
    keys = Keys(path, clock=lambda: now)
    second = add_key(path, "second", "write")
    assert keys.find(second) is None
    now = 1.5
    assert keys.find(second).name == "second"
    remove_key(path, "first")
    now = 3.0
    assert keys.find(first) is None
    path.write_text("keys = 1")
    now = 5.0
    assert keys.find(second).name == "second"
    assert "the keys read before stay valid" in caplog.text


def test_a_name_is_taken_once_and_only_a_known_one_removed(path):
    add_key(path, "shop", "read")
    with pytest.raises(DataError, match="a key 'shop' already exists"):
        add_key(path, "shop", "write")
    with pytest.raises(DataError, match="no key 'shpo'; the file has 'shop'"):
        remove_key(path, "shpo")


def test_a_service_does_not_start_without_the_keys_it_was_told_of(recommender, path):
    with pytest.raises(DataError, match="no such file; create it, with a first key: towers key add NAME --file"):
        create_app(recommender, ServingConfig(api_keys_file=str(path)))


def test_the_command_makes_lists_and_removes(path):
    run = CliRunner().invoke
    made = run(key, ["add", "shop", "--file", str(path)])
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert Keys(path).find(secret).scope == "read"
    assert "The key is not shown again" in made.stderr
    run(key, ["add", "feed", "--write", "--file", str(path)])
    listed = run(key, ["list", "--file", str(path)]).stdout
    assert [line.split("\t")[:2] for line in listed.splitlines()] == [["shop", "read"], ["feed", "write"]]
    assert secret not in listed
    assert run(key, ["remove", "shop", "--file", str(path)]).exit_code == 0
    assert Keys(path).find(secret) is None
