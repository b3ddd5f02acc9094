"""Bundles broken in one way each, through every command that opens one: one line, the remedy, nothing written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from features.files import sha256
from serving.jobs.build_index import build_index
from serving.recommend.recommender import Recommender
from serving.recommend.reranking import RerankStage
from serving.snapshot.manifest import IndexManifest
from tests.broken_files import DAMAGES, damaged, files_in
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import BundleError, open_bundle
from towers.cli.main import main
from towers.rerankers.candidate_features import RankFeatures
from towers.rerankers.learned import RankNetwork
from towers.rerankers.manifest import open_ranker, write_ranker

TRAIN_AGAIN = "train again, or copy the whole folder again from where it was made"


def _manifest(bundle: Path, change: Callable[[dict], object]) -> None:
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _seal_again(bundle: Path, name: str) -> None:
    """Seal a changed file, as somebody might who means well."""
    path = bundle / name
    sealed = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    _manifest(bundle, lambda content: content["files"].update({name: sealed}))


def _append(bundle: Path, name: str, text: str) -> None:
    with (bundle / name).open("a", encoding="utf-8") as file:
        file.write(text)


def _file_instead(bundle: Path) -> None:
    shutil.rmtree(bundle)
    bundle.write_text("not a folder")


def _cut(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _flip(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _wider_weights(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    save_file({name: torch.stack([value, value]) for name, value in load_file(path).items()}, path)
    _seal_again(bundle, path.name)


def _fewer_weights(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    weights = load_file(path)
    del weights["log_scale"]
    save_file(weights, path)
    _seal_again(bundle, path.name)


def _nonsense_weights(bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(b"nonsense" * 100)
    _seal_again(bundle, "model.safetensors")


def _endless_weights(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(path).items()}, path)
    _seal_again(bundle, path.name)


def _other_settings(bundle: Path) -> None:
    path = bundle / "run.toml"
    path.write_text(path.read_text().replace("embedding_dim = 16", "embedding_dim = 32"))
    _seal_again(bundle, path.name)


def _no_settings(bundle: Path) -> None:
    (bundle / "run.toml").write_text("[features\n")
    _seal_again(bundle, "run.toml")


def _unsealed(bundle: Path) -> None:
    (bundle / "schema.json").unlink()
    _manifest(bundle, lambda content: content["files"].pop("schema.json"))


def _asks_for_a_secret(bundle: Path) -> None:
    """Name a service, and as its key the database's password, as a bundle from elsewhere might."""
    name = "encoders/titles/encoder.json"
    (bundle / name).parent.mkdir(parents=True)
    settings = {"model": "m", "url": "https://evil.example/v1", "key_variable": "TOWERS_LIVE"}
    (bundle / name).write_text(json.dumps({"settings": settings, "width": 1, "probe": [1.0]}))
    _seal_again(bundle, name)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "runs/model: no such bundle; `towers train run.toml` writes one"),
    "a file in its place": (_file_instead, "expected the folder that `towers train` writes, found a file"),
    "another folder": (lambda bundle: (bundle / "manifest.json").unlink(), "not a bundle, it has no manifest.json"),
    "a manifest that is no JSON": (
        lambda bundle: (bundle / "manifest.json").write_text("{"),
        "manifest.json is damaged (Expecting property name",
    ),
    "a manifest that is a list": (
        lambda bundle: (bundle / "manifest.json").write_text("[]"),
        "manifest.json is damaged",
    ),
    "a manifest without its files": (
        lambda bundle: _manifest(bundle, lambda content: content.pop("files")),
        "manifest.json is damaged",
    ),
    "a manifest of another format": (
        lambda bundle: _manifest(bundle, lambda content: content.update(format_version=99)),
        "expected bundle format 3, found 99; train again with this version of towers, or install two-towers",
    ),
    "no weights": (
        lambda bundle: (bundle / "model.safetensors").unlink(),
        f"model.safetensors is missing; {TRAIN_AGAIN}",
    ),
    "weights cut off": (_cut, "model.safetensors has"),
    "weights with one bit changed": (_flip, f"model.safetensors was changed after it was written; {TRAIN_AGAIN}"),
    "no schema": (lambda bundle: (bundle / "schema.json").unlink(), f"schema.json is missing; {TRAIN_AGAIN}"),
    "a schema that was never sealed": (_unsealed, f"schema.json is not in manifest.json; {TRAIN_AGAIN}"),
    "no vocabulary": (
        lambda bundle: next((bundle / "vocabularies").iterdir()).unlink(),
        f"is missing; {TRAIN_AGAIN}",
    ),
    "settings that were changed": (lambda bundle: _append(bundle, "run.toml", "\n# mine\n"), "run.toml has"),
    "a report that was changed": (lambda bundle: _append(bundle, "report.json", " "), "report.json has"),
    "weights of another shape, sealed": (_wider_weights, "sealed, yet it cannot be read with this version of towers"),
    "fewer weights, sealed": (_fewer_weights, "sealed, yet it cannot be read with this version of towers"),
    "nonsense for weights, sealed": (_nonsense_weights, "sealed, yet it cannot be read with this version of towers"),
    "weights that are no numbers, sealed": (_endless_weights, "the model cannot rank"),
    "settings of another width, sealed": (_other_settings, "sealed, yet it cannot be read with this version of towers"),
    "settings that are no TOML, sealed": (_no_settings, "sealed, yet it cannot be read with this version of towers"),
}
COMMANDS = {
    "index": ("index", "runs/model"),
    "recommend": ("recommend", "runs/model", "--output", "candidates.parquet"),
    "serve": ("serve", "runs/model", "--port", "0"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A bundle as it should be, without an index, and its tables."""
    folder = tmp_path_factory.mktemp("sound")
    write_shop(folder / "data")
    write_untrained(folder / "runs" / "model", folder / "data", SETTINGS)
    return folder


@pytest.fixture
def folder(sound, tmp_path, monkeypatch) -> Path:
    shutil.copytree(sound / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("command", [*COMMANDS.values(), ("duplicates", "runs/model"), ("deploy", "runs/model")])
def test_a_bundle_that_asks_for_a_secret_is_refused_by_whatever_opens_it(folder, capsys, monkeypatch, command):
    monkeypatch.setenv("TOWERS_LIVE", "planted.db")
    _asks_for_a_secret(folder / "runs" / "model")
    before = files(folder)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*runs/model: encoder 'titles' sends texts to https://evil.example:443, .*\n", said)
    assert 'put "evil.example" into encoder_hosts in serving.toml' in said
    monkeypatch.setenv("TOWERS_ENCODER_HOSTS", "evil.example")
    assert main(command) == 2
    said = capsys.readouterr().err
    assert 'put "TOWERS_LIVE" into encoder_key_variables in serving.toml' in said
    assert said.count("\n") == 1
    assert files(folder) == before


def test_at_least_ten_kinds_of_broken_bundle_are_covered():
    assert len(BROKEN) >= 10


def test_the_sound_one_is_read(folder):
    assert main(COMMANDS["recommend"]) == 0
    assert (folder / "candidates.parquet").is_file()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("break_it", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_bundle_is_one_line_with_the_remedy_and_nothing_is_written(folder, capsys, break_it, words, command):
    break_it(folder / "runs" / "model")
    before = files(folder)
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: runs/model")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert any(remedy in said.err for remedy in ("train again", "`towers train", "that `towers train"))
    assert said.out == ""
    assert files(folder) == before


def test_it_is_the_same_in_a_process_of_its_own(folder):
    break_it, words = BROKEN["weights with one bit changed"]
    break_it(folder / "runs" / "model")
    ended = subprocess.run(
        [sys.executable, "-m", "towers", *COMMANDS["recommend"]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: runs/model")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr
    assert not (folder / "candidates.parquet").exists()


def make_whole(folder: Path, tables: Path, seed: int) -> Path:
    """A bundle with a learned ranker and an index with shortlists and what the ranker reads."""
    write_untrained(folder, tables, SETTINGS, seed)
    bundle = ModelBundle.open(folder)
    write_ranker(bundle, "learned", RankNetwork(3, 2).save, num_candidates=100)  # so that there are facts to be read
    names = RankFeatures(build_index(bundle, {}, precomputed=5).item_statistics).names
    torch.manual_seed(seed)
    write_ranker(bundle, "learned", RankNetwork(len(names), 2).save, num_candidates=100, features=names)
    return folder


@pytest.fixture(scope="module")
def two_whole(sound, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return make_whole(folder / "one", sound / "data", 0), make_whole(folder / "two", sound / "data", 1)


def opened(folder: Path) -> Recommender:
    return Recommender.open(folder, open_rerank=lambda bundle, snapshot: RerankStage.open(bundle, snapshot, None, None))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_any_damage_to_any_file_that_is_served_from_is_one_line_with_a_remedy(two_whole, damage):
    one, two = two_whole
    names = files_in(one)
    assert {"index/item_statistics.safetensors", "index/precomputed.safetensors", "ranker/ranker.safetensors"} <= {
        *names
    }
    bundle = ModelBundle.open(one)
    verify_it = {"index": lambda: IndexManifest.open(one / "index", bundle), "ranker": lambda: open_ranker(bundle)}
    for name in names:
        verified = verify_it.get(name.split("/")[0], lambda: open_bundle(one))
        verified()
        with damaged(one, name, damage, two), pytest.raises(BundleError, match=r"^[^\n]+; [^\n]+$"):
            verified()


def test_after_every_damage_was_mended_it_is_served_as_before(two_whole):
    assert opened(two_whole[0]).rerank is not None


def _crafted(folder: Path, name: str, change: Callable[[Path], object]) -> None:
    """Change a file and seal it, as whoever makes a bundle can."""
    sealed = folder / name.split("/")[0] if name.startswith(("index/", "ranker/")) else folder
    change(folder / name)
    _seal_again(sealed, (folder / name).relative_to(sealed).as_posix())


def _other_numbers(array: str, value: int) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        arrays = load_file(path)
        arrays[array].view(-1)[0] = value
        with safe_open(path, "pt") as file:
            remarks = file.metadata()
        save_file(arrays, path, remarks)

    return change


def _claiming(num_rows: int) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        content = pq.read_table(path)
        pq.write_table(pa.concat_tables([content] * num_rows), path)

    return change


CRAFTED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "vectors that claim petabytes": (
        "index/vectors.safetensors",
        lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"),
    ),
    "a search index that claims a quintillion vectors": (
        "index/items.faiss",
        lambda path: path.write_bytes(path.read_bytes()[:8] + b"\xff" * 7 + b"\x0f" + path.read_bytes()[16:]),
    ),
    "a search index that ends in its first number": (
        "index/items.faiss",
        lambda path: path.write_bytes(path.read_bytes()[:27]),
    ),
    "more items than there are": ("index/items.parquet", _claiming(3)),
    "more users than there are": ("index/users.parquet", _claiming(3)),
    "users without ids": (
        "index/users.parquet",
        lambda path: pq.write_table(pq.read_table(path).drop(["user_id"]), path),
    ),
    "shortlists of items beyond the catalogue": ("index/precomputed.safetensors", _other_numbers("rows", 1 << 30)),
    "facts of items beyond the catalogue": (
        "index/item_statistics.safetensors",
        _other_numbers("follows.rows", 1 << 40),
    ),
    "facts that begin nowhere": ("index/item_statistics.safetensors", _other_numbers("offsets", -5)),
    "a ranker of other networks": (
        "ranker/ranker.safetensors",
        lambda path: save_file({"members.999999999.0.weight": torch.zeros(1)}, path),
    ),
    "a schema of texts without end": (
        "schema.json",
        lambda path: path.write_text(path.read_text().replace('"frozen_dim": null', '"frozen_dim": 1000000000')),
    ),
    "a schema nested without end": ("schema.json", lambda path: path.write_text("[" * 100_000)),
    "a vocabulary that is no table": (
        "vocabularies/item-00.parquet",
        lambda path: path.write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1"),
    ),
}


@pytest.mark.parametrize(("name", "change"), CRAFTED.values(), ids=CRAFTED)
def test_what_was_crafted_and_sealed_is_one_line_too(two_whole, tmp_path, name, change):
    folder = tmp_path / "crafted"
    shutil.copytree(two_whole[0], folder)
    _crafted(folder, name, change)
    with pytest.raises(BundleError, match=r"^[^\n]+; [^\n]+$"):
        opened(folder)
