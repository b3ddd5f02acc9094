"""Signed bundles where they are served: what is not signed is never gone over to, and what is made here is signed."""

from __future__ import annotations

import shutil

import pytest

from features.errors import DataError
from features.files import move_link
from serving.config import ServingConfig, read_settings
from serving.deploy.hot_reload import RecommenderProvider, identity_of
from serving.deploy.prepare import ensure_index
from serving.deploy.swap import swap_bundle
from serving.jobs.build_index import build_index
from serving.jobs.open import open_recommender
from tests.serving.conftest import SETTINGS, model_of, write_untrained
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import BundleError, sign_bundle
from towers.bundle.signature import make_key, read_signing_key, signature_of


@pytest.fixture
def runs(two_models, tmp_path):
    """`one`, signed, and `two`, which is not, with `production`; `key` and `key.pub` beside them."""
    runs = tmp_path / "runs"
    shutil.copytree(two_models, runs)
    make_key(tmp_path / "key")
    sign_bundle(runs / "one", read_signing_key(tmp_path / "key"))
    move_link(runs / "production", runs / "one")
    return runs


@pytest.fixture
def settings(tmp_path):
    return ServingConfig(trusted_keys=str(tmp_path / "key.pub"))


def test_a_service_goes_over_to_what_a_trusted_key_signed_and_to_nothing_else(runs, settings, tmp_path, caplog):
    path = runs / "production"
    source = RecommenderProvider(lambda: open_recommender(path.resolve(), settings), identify=lambda: identity_of(path))
    first = source.get()
    with pytest.raises(BundleError, match=r"two/manifest.json: not signed"):
        swap_bundle(runs / "two", path, settings)
    assert path.resolve().name == "one"
    move_link(path, runs / "two")
    assert not source.reload()
    assert "two/manifest.json: not signed (there is no manifest.json.sig)" in caplog.text
    assert source.get() is first
    sign_bundle(runs / "two", read_signing_key(tmp_path / "key"))
    signature_of(runs / "two" / "index" / "manifest.json").unlink()
    assert not source.reload()
    assert "two/index/manifest.json: not signed" in caplog.text
    sign_bundle(runs / "two", read_signing_key(tmp_path / "key"))
    assert source.reload()
    assert source.get().model == model_of(runs, "two")


def test_what_is_made_where_a_key_is_named_is_signed_and_holds_nothing_of_it(pristine, tmp_path, monkeypatch):
    make_key(tmp_path / "key")
    settings = ServingConfig(trusted_keys=str(tmp_path / "key.pub"))
    bundle = tmp_path / "bundle"
    monkeypatch.setenv("TOWERS_SIGNING_KEY", str(tmp_path / "key"))
    write_untrained(bundle, pristine / "data", SETTINGS)
    monkeypatch.delenv("TOWERS_SIGNING_KEY")
    with pytest.raises(DataError, match=r"has to be signed by a key of .*key.pub; set TOWERS_SIGNING_KEY"):
        ensure_index(bundle, settings)
    assert not (bundle / "index").exists(), "an index that could not be served would take the place of one that can"
    monkeypatch.setenv("TOWERS_SIGNING_KEY", str(tmp_path / "key"))
    ensure_index(bundle, settings)
    assert signature_of(bundle / "index" / "manifest.json").exists()
    private = (tmp_path / "key").read_bytes().splitlines()[1]
    assert not [path for path in bundle.rglob("*") if path.is_file() and private in path.read_bytes()]
    monkeypatch.delenv("TOWERS_SIGNING_KEY")
    build_index(ModelBundle.open(bundle), {})  # where nothing has to be signed, it is not
    assert not signature_of(bundle / "index" / "manifest.json").exists()


def test_what_is_trusted_is_a_setting(tmp_path):
    (tmp_path / "serving.toml").write_text('encoder_hosts = ["https://a/b"]')
    with pytest.raises(DataError, match=r"encoder_hosts.0: expected HOST, HOST:PORT or http://HOST:PORT"):
        read_settings(tmp_path / "serving.toml", {})
    (tmp_path / "serving.toml").write_text(
        'encoder_hosts = ["a.com"]\nencoder_key_variables = ["KEY"]\ntrusted_keys = "k.pub"'
    )
    trust = read_settings(tmp_path / "serving.toml", {}).trust
    assert (trust.remote.hosts, trust.remote.key_variables, str(trust.keys)) == (("a.com",), ("KEY",), "k.pub")
