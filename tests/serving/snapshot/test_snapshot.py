from __future__ import annotations

import json
from dataclasses import replace

import faiss
import numpy as np
import pandas as pd
import pytest

from features.tables.tables import Interactions
from serving.recommend.recommender import Recommender
from serving.search import vectors as vectors_module
from serving.search.index_config import IndexConfig
from serving.snapshot import snapshot as snapshot_module
from serving.snapshot.manifest import FORMAT_VERSION, IndexManifest
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import FakeBundle, country, make_features, make_recommender, make_tables
from towers.bundle.manifest import BundleError


@pytest.fixture
def bundle(tmp_path):
    return FakeBundle(tmp_path / "run", make_features(user=country()))


@pytest.fixture
def saved(bundle, shop):
    """The index folder of the shop."""
    return Snapshot.build(bundle, shop).save(bundle.path)


def answers(bundle, snapshot):
    recommender = Recommender(bundle, snapshot)
    people = [recommender.recommend(user_id, 20) for user_id in [*range(100, 110), "nobody"]]
    return [*people, *(recommender.similar(item_id, 5) for item_id in recommender.state.items.ids)]


def test_a_reopened_snapshot_answers_as_before(bundle, shop, saved):
    assert answers(bundle, Snapshot.open(bundle)) == answers(bundle, Snapshot.build(bundle, shop))


def test_users_of_whom_nothing_is_known_get_what_is_popular_of_late(tmp_path):
    tables = make_tables(
        {1: ["old", "old too"], 2: ["old", "old too", "new"], 3: ["old", "new"]}, ["old", "old too", "new"]
    )
    days = pd.DataFrame({"timestamp": [1, 2, 1, 2, 9, 1, 10]}) * 86_400
    tables = replace(tables, interactions=Interactions(tables.interactions.frame.join(days), is_ordered=True))
    got = {}
    for popular_days in ("all", 3.0):
        bundle = FakeBundle(tmp_path / str(popular_days), make_features(popular_days=popular_days))
        Snapshot.build(bundle, tables).save(bundle.path)
        answer = Recommender(bundle, Snapshot.open(bundle)).recommend("nobody", 3)
        got[popular_days] = [item.item_id for item in answer.items]
        assert answer.fallback == "popular"
    assert got == {"all": ["old", "old too", "new"], 3.0: ["new", "old", "old too"]}


def test_ids_keep_their_type_and_titles_their_words(bundle, tmp_path):
    tables = make_tables({"7": [3, 1], "ä/ö": [2]}, [3, 1, 2], titles=["Eins", None, "日本"])
    Snapshot.build(bundle, tables).save(bundle.path)
    again = Snapshot.open(bundle)
    assert again.catalog.item_ids.tolist() == [3, 1, 2]
    assert again.histories.user_ids.tolist() == ["7", "ä/ö"]
    assert again.catalog.titles("title") == ["Eins", "1", "日本"]


def test_everyone_of_either_table_is_known(shop, bundle):
    snapshot = Snapshot.build(bundle, shop)
    assert snapshot.histories.user_ids.tolist() == list(range(100, 110))
    assert snapshot.attributes["country"].tolist()[:8] == ["de", "fr"] * 4
    assert snapshot.interactions.sum() == len(shop.interactions.frame)


def test_people_without_a_row_of_attributes_have_unknown_ones(bundle):
    users = pd.DataFrame({"user_id": ["b"], "country": ["de"]})
    snapshot = Snapshot.build(bundle, make_tables({"a": [1], "b": [2]}, [1, 2], users=users))
    assert snapshot.attributes["country"].isna().tolist() == [True, False]


def test_the_seal_tells_what_the_index_is(saved, bundle, shop):
    seal = IndexManifest.read(saved, bundle)
    events = len(shop.interactions.frame)
    assert (seal.num_items, seal.num_users, seal.num_interactions, seal.width) == (100, 10, events, 16)
    assert (seal.plan, seal.recall_at_100, seal.recall_wanted, seal.recall_users) == (IndexConfig(), 1.0, None, 8)
    assert seal.weights_digest == bundle.weights_digest
    assert set(seal.libraries) >= {"numpy", "pyarrow", "torch"}
    on_disk = {path.name for path in saved.iterdir()} - {"manifest.json"}
    assert set(seal.files) == on_disk
    assert on_disk >= {"items.parquet", "items.faiss", "vectors.safetensors", "users.parquet"}
    assert seal.created.endswith("+00:00")


def test_the_catalogue_has_the_same_digest_until_it_changes(bundle, shop):
    changed = make_tables({1: ["a"]}, ["a", "b"], titles=["A", "B!"])
    same = [make_tables({1: ["a"]}, ["a", "b"], titles=["A", "B"]) for _ in range(2)]
    digests = [Snapshot.build(bundle, tables).manifest.catalog_digest for tables in (*same, changed)]
    assert digests[0] == digests[1] != digests[2]


def test_processes_share_the_memory_of_the_vectors(saved, bundle, shop):
    snapshot = Snapshot.open(bundle)
    with open("/proc/self/maps") as maps:  # noqa: PTH123 (not a file of ours)
        assert str(saved / "vectors.safetensors") in maps.read()
    built = Snapshot.build(bundle, shop)
    np.testing.assert_array_equal(snapshot.index.vectors, built.index.vectors)
    np.testing.assert_array_equal(snapshot.user_vectors, built.user_vectors)


def test_a_new_index_takes_the_place_of_the_old_one_as_a_whole(saved, bundle):
    Snapshot.build(bundle, make_tables({1: ["a"]}, ["a", "b"])).save(bundle.path)
    assert len(Snapshot.open(bundle).catalog) == 2
    assert not (saved / "attributes.parquet").exists() or len(Snapshot.open(bundle).attributes) == 1
    assert [path.name for path in bundle.path.iterdir()] == ["index"]


def test_a_failed_save_leaves_the_old_index(saved, bundle, shop, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexManifest, "write", full)
    with pytest.raises(OSError, match="No space left"):
        Snapshot.build(bundle, shop).save(bundle.path)
    monkeypatch.undo()
    assert len(Snapshot.open(bundle).catalog) == 100
    assert [path.name for path in bundle.path.iterdir()] == ["index"]


@pytest.mark.parametrize("half_precision", [False, True])
def test_a_snapshot_encoded_in_blocks_is_the_one_encoded_at_once(half_precision, bundle, shop, monkeypatch):
    at_once = Snapshot.build(bundle, shop, half_precision=half_precision)
    bundle.path.mkdir(exist_ok=True)
    for module in (vectors_module, snapshot_module):
        monkeypatch.setattr(module, "BLOCK", 7)
    in_blocks = Snapshot.build(bundle, shop, half_precision=half_precision)
    np.testing.assert_array_equal(in_blocks.index.vectors[:], at_once.index.vectors[:])
    assert answers(bundle, in_blocks) == answers(bundle, at_once)
    assert list(bundle.path.iterdir()) == []


def test_vectors_in_half_precision_take_half_of_the_disk_and_answer_alike(saved, bundle, shop):
    whole, before = Snapshot.open(bundle), (saved / "vectors.safetensors").stat().st_size
    Snapshot.build(bundle, shop, half_precision=True).with_map(16).save(bundle.path)
    half = Snapshot.open(bundle)
    num_numbers = whole.index.vectors.shape[0] * whole.index.vectors.shape[1]
    assert before - (saved / "vectors.safetensors").stat().st_size == 2 * num_numbers
    np.testing.assert_allclose(half.index.vectors[:], whole.index.vectors[:], atol=5e-4)
    for found, expected in zip(answers(bundle, half), answers(bundle, whole), strict=True):
        scores, true = ([item.score for item in one.items] for one in (found, expected))
        np.testing.assert_allclose(scores, true, atol=1e-3)


def test_no_room_for_the_vectors_is_named_and_leaves_the_old_index(saved, bundle, shop, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    for module in (vectors_module, snapshot_module):
        monkeypatch.setattr(module, "BLOCK", 7)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device for 0 MB: .*run"):
        Snapshot.build(bundle, shop)
    assert len(Snapshot.open(bundle).catalog) == 100
    assert [path.name for path in bundle.path.iterdir()] == ["index"]


def test_whoever_may_read_one_file_may_read_all(saved):
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_no_pickle_is_written(saved):
    for path in saved.iterdir():
        assert path.suffix in {".json", ".parquet", ".safetensors", ".faiss"}


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder):
    data = (folder / "vectors.safetensors").read_bytes()
    (folder / "vectors.safetensors").write_bytes(data[:-40])


def flip_a_bit(folder):
    data = bytearray((folder / "items.faiss").read_bytes())
    data[-3] ^= 1
    (folder / "items.faiss").write_bytes(data)


def reseal(folder):
    """Make the seal fit the files, as someone who edits an index by hand might."""
    manifest = folder / "manifest.json"
    seal = IndexManifest.model_validate_json(manifest.read_text())
    manifest.unlink()
    seal.write(folder)


def of_another_catalogue(folder):
    index = faiss.IndexFlatIP(16)
    index.add(np.eye(16, dtype=np.float32))
    faiss.write_index(index, str(folder / "items.faiss"))
    reseal(folder)


def with_an_unknown_item(folder):
    frame = pd.read_parquet(folder / "items.parquet")
    frame.loc[0, "item_id"] = "another"
    frame.to_parquet(folder / "items.parquet")
    reseal(folder)


def with_a_user_less(folder):
    pd.read_parquet(folder / "attributes.parquet").iloc[1:].to_parquet(folder / "attributes.parquet")
    reseal(folder)


BROKEN = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: no such file"),
    "manifest cut off": (
        lambda folder: (folder / "manifest.json").write_text('{"format_version": 4, '),
        "manifest.json: cannot be read",
    ),
    "manifest is no table": (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json: "),
    "a setting is missing": (
        lambda folder: (folder / "manifest.json").write_text('{"format_version": 4}'),
        "manifest.json: weights_digest: field required",
    ),
    "newer format": (
        lambda folder: edit_manifest(folder, format_version=FORMAT_VERSION + 1),
        "written by a newer version of two-towers",
    ),
    "older format": (
        lambda folder: edit_manifest(folder, format_version=1),
        "written by an older version",
    ),
    "unknown kind": (
        lambda folder: edit_manifest(folder, plan={"kind": "magic"}),
        "manifest.json: plan.kind: input should be",
    ),
    "other weights": (
        lambda folder: edit_manifest(folder, weights_digest="f" * 64),
        r"built with other weights \(digest ffffffffffff\) than those of the model in .* \(digest [0-9a-f]{12}\)",
    ),
    "file missing": (lambda folder: (folder / "users.parquet").unlink(), "users.parquet is missing"),
    "file cut off": (truncate, r"vectors.safetensors has [0-9,]+ bytes, expected [0-9,]+"),
    "file changed": (flip_a_bit, r"items.faiss was changed after it was written"),
    "another index": (of_another_catalogue, r"do not fit together \(it has 16 vectors of dimension 16"),
    "another item": (with_an_unknown_item, r"do not fit together \([0-9]+ items of histories are not in the catalogue"),
    "another number of users": (
        with_a_user_less,
        r"do not fit together \(attributes.parquet has 9 rows, expected 10\)",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_index_is_refused_with_the_remedy_in_one_line(saved, bundle, damage, message):
    damage(saved)
    with pytest.raises(BundleError, match=message) as caught:
        Snapshot.open(bundle)
    assert f"towers index {bundle.path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_of_other_weights_is_refused_though_its_shape_fits(saved, shop, bundle):
    retrained = FakeBundle(bundle.path, make_features(user=country()), weights="after another epoch")
    with pytest.raises(BundleError, match="built with other weights"):
        Snapshot.open(retrained)


def test_a_bundle_without_an_index_says_how_to_make_one(bundle):
    with pytest.raises(BundleError, match="there is no index; rebuild the index with `towers index"):
        Snapshot.open(bundle)


def test_a_catalogue_alone_is_enough_to_be_asked_for_similar_items(bundle):
    tables = make_tables({1: ["a"]}, ["a", "b", "c"])
    assert len(make_recommender(tables).similar("b", 5).items) == 2


def test_a_model_that_diverged_is_refused(shop, bundle, monkeypatch):
    monkeypatch.setattr(FakeBundle, "encode_items", lambda _, catalog: np.full((len(catalog), 16), np.nan, np.float32))
    with pytest.raises(BundleError, match="the model cannot rank: expected vectors of length 1, found length nan"):
        Snapshot.build(bundle, shop)
