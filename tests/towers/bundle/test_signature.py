"""Signatures: what a trusted key did not sign is not read, whichever of the three folders it is in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from features.errors import DataError
from features.files import sha256
from towers.bundle.manifest import verify
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import MANIFEST, read_manifest, seal
from towers.bundle.signature import make_key, read_signing_key, read_trusted_keys, signature_of, signing_key
from towers.bundle.trust import Trust
from towers.cli import main as cli
from towers.cli.commands import keygen, sign

RUNNER = CliRunner()


def make_bundle(folder: Path) -> Path:
    """A folder that `verify` takes for a bundle, with an index and a ranker as far as their seals go."""
    folder.mkdir()
    for name in ("run.toml", "schema.json", "columns.json", "model.safetensors", "report.json"):
        (folder / name).write_text(name)
    files = seal(folder)
    content = {
        "format_version": 3, "created": "", "tables_folder": "", "libraries": {}, "primary_metric": {},
        "digests": {"weights": sha256(folder / "model.safetensors")}, "files": files,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(content))
    for name in ("index", "ranker"):
        (folder / name).mkdir()
        (folder / name / "data").write_text(name)
        (folder / name / MANIFEST).write_text(json.dumps({"files": seal(folder / name)}))
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """`ours` and `theirs`, with `.pub` each, and `both.pub`."""
    folder = tmp_path / "keys"
    for name in ("ours", "theirs"):
        make_key(folder / name)
    (folder / "both.pub").write_bytes(
        b"# since May\n" + (folder / "theirs.pub").read_bytes() + (folder / "ours.pub").read_bytes()
    )
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def signed(bundle: Path, key: Path) -> Path:
    done = RUNNER.invoke(sign, [str(bundle), "--key", str(key)], catch_exceptions=False)
    assert [line.partition(":")[0] for line in done.output.splitlines()] == [
        str(bundle), str(bundle / "index"), str(bundle / "ranker")
    ]  # fmt: skip
    return bundle


def test_what_a_trusted_key_signed_is_read_and_keys_can_be_replaced(bundle, keys):
    assert verify(bundle), "nobody asked for a signature"
    signed(bundle, keys / "ours")
    for trusted in ("ours.pub", "both.pub"):
        assert verify(bundle, Trust(keys=keys / trusted))
        for name in ("index", "ranker"):
            assert read_manifest(bundle / name, keys / trusted)["files"]
    signed(bundle, keys / "theirs")
    assert verify(bundle, Trust(keys=keys / "both.pub"))
    with pytest.raises(
        BundleError, match=r"signed with the key '[0-9a-f]{16}', which is not in .*ours.pub \([0-9a-f]{16}\)"
    ):
        verify(bundle, Trust(keys=keys / "ours.pub"))


def test_what_is_not_signed_or_was_changed_is_refused_in_one_line(bundle, keys):
    with pytest.raises(
        BundleError, match=r"manifest.json: not signed \(there is no manifest.json.sig\).*`towers sign`"
    ):
        verify(bundle, Trust(keys=keys / "ours.pub"))
    signed(bundle, keys / "ours")
    (bundle / "run.toml").write_text("another")
    with pytest.raises(BundleError, match=r"run.toml has 7 bytes, expected 8"):
        verify(bundle, Trust(keys=keys / "ours.pub"))
    content = json.loads((bundle / MANIFEST).read_text())
    content["files"]["run.toml"] = seal(bundle)["run.toml"]  # sealed again, as anybody can
    (bundle / MANIFEST).write_text(json.dumps(content))
    assert verify(bundle)
    with pytest.raises(BundleError, match=r"manifest.json: was changed after it was signed"):
        verify(bundle, Trust(keys=keys / "ours.pub"))


@pytest.mark.parametrize("content", [b"", b"ed25519 x", b"\xff\xfe", b"ed25519 a b c", b"ed25519 k !!"])
def test_what_is_no_signature_is_refused(bundle, keys, content):
    signature_of(bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest.json.sig: not a signature"):
        verify(bundle, Trust(keys=keys / "ours.pub"))


def test_what_is_no_plain_file_is_no_signature(bundle, keys):
    signed(bundle, keys / "ours")
    place = signature_of(bundle / MANIFEST)
    place.rename(bundle / "elsewhere")
    place.symlink_to("elsewhere")
    with pytest.raises(BundleError, match=r"manifest.json: not signed"):
        verify(bundle, Trust(keys=keys / "ours.pub"))
    place.unlink()
    place.write_bytes(b"x" * (2 << 20))
    with pytest.raises(BundleError, match=r"manifest.json: not signed"):
        verify(bundle, Trust(keys=keys / "ours.pub"))


def test_a_signature_of_one_bundle_does_not_fit_another(bundle, keys, tmp_path):
    signed(bundle, keys / "ours")
    other = make_bundle(tmp_path / "other")
    (other / "report.json").write_text("better")
    content = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(
        json.dumps(content | {"files": {**content["files"], "report.json": seal(other)["report.json"]}})
    )
    shutil.copy(signature_of(bundle / MANIFEST), other)
    with pytest.raises(BundleError, match="was changed after it was signed"):
        verify(other, Trust(keys=keys / "ours.pub"))
    shutil.copy(signature_of(bundle / "index" / MANIFEST), signature_of(bundle / "ranker" / MANIFEST))
    with pytest.raises(BundleError, match=r"ranker/manifest.json: was changed after it was signed"):
        read_manifest(bundle / "ranker", keys / "ours.pub")


def test_nothing_is_signed_that_is_damaged(bundle, keys):
    (bundle / "index" / "data").write_text("other")
    done = RUNNER.invoke(sign, [str(bundle), "--key", str(keys / "ours")])
    assert isinstance(done.exception, BundleError)
    assert "index: data was changed after it was written; make it again before you sign it" in str(done.exception)
    assert not list(bundle.rglob("*.sig"))


def test_a_private_key_is_for_its_owner_alone_and_never_replaced_or_quoted(keys, tmp_path, capsys):
    path = keys / "ours"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(DataError, match=r"ours: exists, and a key is never replaced"):
        make_key(path)
    path.chmod(0o640)
    with pytest.raises(DataError, match=rf"others than its owner may read this private key; type: chmod 600 {path}"):
        read_signing_key(path)
    with pytest.raises(DataError, match=r"no such private key; `towers keygen"):
        read_signing_key(tmp_path / "none")
    for content in ("planted", path.read_text().replace("PRIVATE", "PUBLIC"), (keys / "ours.pub").read_text()):
        other = tmp_path / "other"
        other.write_text(content)
        other.chmod(0o600)
        with pytest.raises(DataError, match="expected an Ed25519 private key") as told:
            read_signing_key(other)
        assert not [line for line in content.splitlines() if line in str(told.value)]
    assert cli.main(["sign", str(tmp_path), "--key", str(tmp_path / "other")]) == 2
    assert "expected an Ed25519 private key" in capsys.readouterr().err


def test_a_file_of_trusted_keys_holds_such_keys_only(keys, tmp_path):
    assert len(read_trusted_keys(keys / "both.pub")) == 2
    path = tmp_path / "some.pub"
    for content in (
        b"",
        (keys / "ours").read_bytes(),
        (keys / "ours.pub").read_bytes() + b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----",
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"trusted_keys: .*some.pub: expected Ed25519 public keys in PEM"):
            read_trusted_keys(path)
    with pytest.raises(DataError, match=r"trusted_keys: .*none.pub: cannot be read"):
        read_trusted_keys(tmp_path / "none.pub")


def test_keygen_says_which_of_the_two_goes_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = RUNNER.invoke(keygen, [], catch_exceptions=False)
    assert "signing.key: the private key; TOWERS_SIGNING_KEY=signing.key" in done.output
    assert 'trusted_keys = "signing.key.pub"' in done.output
    monkeypatch.setenv("TOWERS_SIGNING_KEY", "signing.key")
    assert signing_key() is not None
    monkeypatch.delenv("TOWERS_SIGNING_KEY")
    assert signing_key() is None


def test_commands_of_no_service_read_what_is_trusted_from_the_environment():
    environment = {
        "TOWERS_ENCODER_HOSTS": "a.com, b.com:8",
        "TOWERS_ENCODER_KEY_VARIABLES": "KEY",
        "TOWERS_TRUSTED_KEYS": "k.pub",
    }
    trust = Trust.from_environment(environment)
    assert (trust.remote.hosts, trust.remote.key_variables, trust.keys) == (
        ("a.com", "b.com:8"),
        ("KEY",),
        Path("k.pub"),
    )
    with pytest.raises(DataError, match="environment: TOWERS_ENCODER_HOSTS: expected HOST"):
        Trust.from_environment({"TOWERS_ENCODER_HOSTS": "https://a/b"})
