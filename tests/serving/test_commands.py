from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time

import numpy as np
import pandas as pd
import pytest

from features.files import mapped
from serving.recommend.recommender import Recommender
from serving.search.index_config import INDEX_KINDS
from tests.serving.conftest import SETTINGS, write_untrained
from towers.cli.main import main


@pytest.fixture
def folder(pristine, tmp_path, monkeypatch):
    """A folder of work: `runs/latest` is a link to a bundle without an index."""
    shutil.copytree(pristine / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "latest").symlink_to("model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def manifest(folder):
    return json.loads((folder / "runs/model/index/manifest.json").read_text())


def assert_one_line(capsys, *words):
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_index_says_what_it_made(folder, capsys):
    assert run("index", "runs/latest") == 0
    said = capsys.readouterr().out
    assert "120 items" in said
    assert "exact index (recall@100 1.000)" in said
    assert manifest(folder)["num_items"] == 120
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["latest", "model", "timed"]


def test_index_in_half_precision_is_half_as_large(folder):
    file, sizes = folder / "runs/model/index/vectors.safetensors", []
    for flags in ([], ["--half-precision"]):
        assert run("index", "runs/latest", *flags) == 0
        sizes.append(mapped(file, "F32", "F16")[0]["items"].nbytes)
    assert sizes[0] == 2 * sizes[1]
    assert run("recommend", "runs/latest", "--output", "all.parquet", "--k", 5) == 0


def test_index_reads_the_tables_of_today(folder, pristine, capsys):
    clicks = pd.read_csv(pristine / "data" / "clicks.csv")
    pd.concat([clicks, clicks.tail(3)]).to_csv("clicks.csv", index=False)
    products = pd.read_csv(pristine / "data" / "products.csv")
    pd.concat([products, products.head(1).assign(product="new")]).to_csv("products.csv", index=False)
    assert run("index", "runs/latest", "--interactions", "clicks.csv", "--items", "products.csv") == 0
    said = capsys.readouterr().out
    assert "121 items" in said
    assert "note: " in said
    assert "3 duplicate" in said


@pytest.fixture
def many_items(folder, pristine):
    """Today's catalogue: 1,500 products, most of which nobody had yet."""
    products = pd.read_csv(pristine / "data" / "products.csv")
    copies = [products.assign(product=products["product"] + f"-{copy}") for copy in range(12)]
    pd.concat([products, *copies])[:1500].to_csv("products.csv", index=False)
    return ["--items", "products.csv"]


def test_index_tunes_itself_and_shows_what_it_tried(folder, many_items, capsys, monkeypatch):
    monkeypatch.setattr("serving.search.tuning._ROUNDS", 1)
    assert run("index", "runs/latest", *many_items, "--recall", 0.9) == 0
    said = capsys.readouterr().out
    assert "searches/s" in said
    for kind in INDEX_KINDS:
        assert (f" {kind} " in said) == (kind != "matryoshka"), "the model has no prefixes"
    seal = manifest(folder)
    assert f"{seal['plan']['kind']} index (recall@100 {seal['recall_at_100']:.3f})" in said
    assert seal["recall_wanted"] == 0.9
    assert seal["recall_at_100"] > 0.85
    assert seal["recall_users"] == 29, "of 89 users, 60 had a part in choosing it"


def test_an_index_of_a_kind_is_served(folder, many_items, capsys):
    assert run("index", "runs/latest", *many_items, "--kind", "ivf-pq") == 0
    assert "1,500 items" in capsys.readouterr().out
    assert manifest(folder)["plan"] == {
        "kind": "ivf-pq", "prefix": 0, "bits": 4, "nlist": 50, "m": 0, "nprobe": 12, "ef_search": 0, "oversampling": 6,
        "tail": 0,
    }  # fmt: skip
    assert (folder / "runs/model/index/partitions.safetensors").exists()
    assert run("recommend", "runs/latest", "--output", "c.parquet", "--k", 7) == 0
    assert (pd.read_parquet("c.parquet").groupby("user_id").size() == 7).all()


def test_a_model_with_prefixes_has_an_index_on_one_of_them(folder, pristine, many_items, capsys, monkeypatch):
    monkeypatch.setattr("serving.search.tuning._ROUNDS", 1)
    settings = {**SETTINGS, "towers": {**SETTINGS["towers"], "matryoshka_dims": [4, 8]}}
    write_untrained(folder / "runs" / "nested", pristine / "data", settings)
    assert run("index", "runs/nested", *many_items, "--kind", "matryoshka", "--recall", 0.8) == 0
    said = capsys.readouterr().out
    assert " matryoshka prefix=4 " in said
    assert " matryoshka prefix=8 " in said
    seal = json.loads((folder / "runs/nested/index/manifest.json").read_text())
    assert (seal["plan"]["kind"], seal["width"]) == ("matryoshka", 16)
    assert seal["plan"]["prefix"] in (4, 8)
    assert run("recommend", "runs/nested", "--output", "c.parquet", "--k", 7) == 0
    assert (pd.read_parquet("c.parquet").groupby("user_id").size() == 7).all()


def test_a_prefix_of_a_model_without_any_is_one_line(folder, many_items, capsys):
    assert run("index", "runs/latest", *many_items, "--kind", "matryoshka") == 2
    assert_one_line(capsys, "--kind matryoshka: expected a model trained with prefixes", "towers.matryoshka_dims")


def test_a_kind_that_cannot_find_enough_is_told_and_kept(folder, many_items, capsys, monkeypatch):
    monkeypatch.setattr("serving.search.tuning._ROUNDS", 1)
    monkeypatch.setattr("serving.search.tuning.efforts", lambda plan, num_items: iter([[plan]]))
    assert run("index", "runs/latest", *many_items, "--kind", "hnsw", "--recall", 1) == 0
    said = capsys.readouterr().out
    recall = manifest(folder)["recall_at_100"]
    assert ("note: recall@100 of hnsw is at most" in said) == (recall < 1)
    assert manifest(folder)["plan"]["kind"] == "hnsw"


def test_a_kind_for_more_items_than_there_are_is_one_line(folder, capsys):
    assert run("index", "runs/latest", "--kind", "hnsw") == 2
    assert_one_line(capsys, "--kind hnsw: expected at least 1,000 items, found 120; choose exact")
    assert not (folder / "runs/model/index").exists()


@pytest.mark.parametrize("recall", ["0", "1.1", "-0.5", "much"])
def test_a_recall_that_cannot_be_is_one_line(folder, capsys, recall):
    assert run("index", "runs/latest", "--recall", recall) == 2
    assert_one_line(capsys, "--recall")


def test_sigterm_while_tuning_leaves_the_old_index(folder, many_items, capsys, monkeypatch):
    assert run("index", "runs/latest") == 0
    before = manifest(folder)

    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("serving.search.tuning.searches_per_second", terminate)
    assert run("index", "runs/latest", *many_items, "--recall", 0.9) == 143
    assert manifest(folder) == before
    assert [path.name for path in (folder / "runs/model").iterdir() if "partial" in path.name] == []


def test_a_catalogue_that_is_slow_to_compare_gets_a_hint(folder, capsys, monkeypatch):
    monkeypatch.setattr("serving.jobs.build_index._MANY_ITEMS", 100)
    assert run("index", "runs/latest") == 0
    assert (
        "120 items; for a faster, approximate index run: towers index runs/latest --recall 0.99"
        in capsys.readouterr().out
    )


def test_index_says_when_the_tables_are_gone(folder, pristine, tmp_path, capsys):
    write_untrained(folder / "runs" / "moved", pristine / "data", SETTINGS)
    path = folder / "runs" / "moved" / "manifest.json"
    path.write_text(path.read_text().replace(str(pristine / "data"), str(tmp_path / "gone")))
    assert run("index", "runs/moved") == 2
    assert_one_line(capsys, "no such file, though the model was trained on it", "--interactions FILE")
    assert not (folder / "runs" / "moved" / "index").exists()


@pytest.mark.parametrize("command", [["index"], ["recommend", "--output", "c.parquet"], ["serve", "--port", "0"]])
def test_a_folder_that_is_no_bundle_is_one_line(folder, capsys, command):
    assert run(command[0], "runs/nothing", *command[1:]) == 2
    assert_one_line(capsys, "runs/nothing")
    assert not (folder / "c.parquet").exists()


def test_recommend_makes_the_index_and_the_file(folder, capsys):
    assert run("recommend", "runs/latest", "--output", "out/candidates.parquet", "--k", 7) == 0
    said = capsys.readouterr().out
    frame = pd.read_parquet("out/candidates.parquet")
    assert frame.columns.tolist() == ["user_id", "item_id", "score", "rank"]
    assert (frame.groupby("user_id").size() == 7).all()
    assert f"{len(frame):,} recommendations for {frame['user_id'].nunique()} users" in said
    assert (folder / "runs/model/index").is_dir()


def test_recommend_counts_whom_it_does_not_know(folder, capsys):
    pd.DataFrame({"user": [1001, 5, 6]}).to_csv("who.csv", index=False)
    assert run("recommend", "runs/latest", "--output", "c.parquet", "--users", "who.csv", "--with-fallback") == 0
    assert "2 users are unknown and got popular items" in capsys.readouterr().out
    frame = pd.read_parquet("c.parquet")
    assert frame["user_id"].unique().tolist() == [1001, 5, 6]
    assert frame.groupby("user_id")["fallback"].first().isna().to_dict() == {1001: True, 5: False, 6: False}


def test_recommend_only_what_fits(folder, pristine, capsys):
    where = ["--where", "price_max=20", "--where", "tags=red", "--where", "tags=blue"]
    assert run("recommend", "runs/latest", "--output", "c.parquet", "--k", 50, *where) == 0
    products = pd.read_csv(pristine / "data" / "products.csv").set_index("product")
    fits = (products["price"] <= 20) & products["tags"].str.contains("red|blue")
    frame = pd.read_parquet("c.parquet")
    assert set(frame["item_id"]) <= set(products.index[fits])
    clicks = pd.read_csv(pristine / "data" / "clicks.csv").groupby("user")["product"].agg(set)
    for user, items in frame.groupby("user_id")["item_id"]:
        assert set(items) == set(products.index[fits]) - clicks.get(user, set())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("price", "--where price: expected NAME=VALUE"),
        ("colour=red", "no column to filter by"),
        ("price=x", "a number"),
    ],
)
def test_recommend_refuses_a_condition_that_cannot_be(folder, capsys, condition, message):
    assert run("recommend", "runs/latest", "--output", "c.parquet", "--where", condition) == 2
    assert_one_line(capsys, message)
    assert not (folder / "c.parquet").exists()


def test_recommend_into_a_folder_is_one_line(folder, capsys):
    assert run("recommend", "runs/latest", "--output", "runs") == 2
    assert_one_line(capsys, "is a folder; give a file to write as --output")


@pytest.mark.parametrize("k", ["0", "-5", "ten"])
def test_recommend_needs_a_sensible_k(folder, capsys, k):
    assert run("recommend", "runs/latest", "--output", "c.parquet", "--k", k) == 2
    assert_one_line(capsys, "--k")


@pytest.mark.parametrize("command", [["recommend", "--output", "c.parquet"], ["serve", "--port", "0"]])
def test_an_index_of_other_weights_is_refused(folder, pristine, capsys, command):
    assert run("index", "runs/latest") == 0
    shutil.move("runs/model/index", "index")
    shutil.rmtree("runs/model")
    write_untrained(folder / "runs" / "model", pristine / "data", SETTINGS, seed=1)
    shutil.move("index", "runs/model/index")
    capsys.readouterr()
    assert run(command[0], "runs/latest", *command[1:]) == 2
    assert_one_line(capsys, "built with other weights", "towers index runs/")
    assert not (folder / "c.parquet").exists()
    assert run("index", "runs/latest") == 0
    assert run("recommend", "runs/latest", "--output", "c.parquet", "--k", 1) == 0


def test_a_port_in_use_is_found_before_anything_is_loaded(folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run("serve", "runs/latest", "--port", taken.getsockname()[1]) == 2
    assert_one_line(capsys, "is already in use; choose another with --port")
    assert not (folder / "runs/model/index").exists()


def test_settings_of_the_folder_are_read_and_their_mistakes_told(folder, capsys):
    (folder / "serving.toml").write_text("prot = 1\n")
    assert run("serve", "runs/latest") == 2
    assert_one_line(capsys, "serving.toml: prot: no such setting")


@pytest.mark.parametrize("command", [("serve",), ("recommend", "--output", "c.parquet"), ("search", "red lamp")])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(folder, monkeypatch, capsys, command):
    monkeypatch.setattr("serving.search.faiss_index.faiss.get_num_gpus", lambda: 0)
    (folder / "serving.toml").write_text('device = "cuda"\n')
    assert run(command[0], "runs/gone", *command[1:]) == 2
    assert_one_line(capsys, 'device = "cuda": FAISS finds no GPU; use "cpu" or "auto", or run `towers doctor`')


def test_ctrl_c_in_the_middle_leaves_no_file(folder, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("serving.jobs.recommend_all._table", interrupt)
    assert run("recommend", "runs/latest", "--output", "out/c.parquet") == 130
    assert list((folder / "out").iterdir()) == []


def test_duplicates_are_written_in_groups_and_told(folder, pristine, capsys):
    products = pd.read_csv(pristine / "data" / "products.csv")
    copies = pd.concat([products, products[:3].assign(product=["a-copy", "b-copy", "c-copy"])])
    copies.to_csv("products.csv", index=False)
    assert run("index", "runs/latest", "--items", "products.csv") == 0
    capsys.readouterr()
    assert run("duplicates", "runs/latest", "--threshold", 0.9, "--output", "d.parquet", "--pairs", "p.parquet") == 0
    said = capsys.readouterr().out
    groups, pairs = pd.read_parquet("d.parquet"), pd.read_parquet("p.parquet")
    assert f"d.parquet: {len(groups)} items in {groups['group'].nunique()} groups" in said
    assert f"p.parquet: {len(pairs):,} pairs" in said
    assert "Cosine with the nearest other item" in said
    vectors = Recommender.open(folder / "runs/latest").snapshot.index.vectors
    above = np.triu(vectors.astype(float) @ vectors.T.astype(float) >= 0.9, 1).sum()
    assert len(pairs) == above > 0
    # A copy has no id that the model knows; but two of the same text, price and tags are alike to it.
    assert (pairs["score"] >= 0.9).all()
    clicks = pd.read_csv(pristine / "data" / "clicks.csv")["product"].value_counts()
    for _, group in groups.groupby("group"):
        assert group["place"].tolist() == list(range(1, len(group) + 1))
        assert group["interactions"].tolist() == [clicks.get(item, 0) for item in group["item_id"]]
        assert group["interactions"].is_monotonic_decreasing
        assert set(group["nearest_id"]) <= set(group["item_id"])
    both = pd.concat([pairs, pairs.rename(columns={"item_id": "other_id", "other_id": "item_id"})])
    best = both.groupby("item_id")["score"].max()
    assert groups.set_index("item_id")["score"].to_dict() == best.to_dict()


def test_nothing_alike_is_an_empty_table_and_a_hint(folder, capsys):
    assert run("duplicates", "runs/latest", "--threshold", 0.9999) == 0
    assert "120 items: 0 in 0 groups of near-duplicates at threshold 0.9999" in capsys.readouterr().out
    assert len(pd.read_parquet("duplicates.parquet")) == 0


def test_clusters_are_written_with_their_names_and_told(folder, pristine, capsys):
    assert run("clusters", "runs/latest", "--clusters", 6, "--output", "c.parquet") == 0
    said = capsys.readouterr().out
    table = pd.read_parquet("c.parquet")
    products = pd.read_csv(pristine / "data" / "products.csv")
    assert sorted(table["item_id"]) == sorted(products["product"])
    sizes = table["cluster"].value_counts().sort_index()
    assert sizes.is_monotonic_decreasing
    assert len(sizes) == 6
    words = set(" ".join(products["title"]).split()) | set("|".join(products["tags"]).split("|"))
    for cluster, name in table.groupby("cluster")["name"].unique().items():
        assert len(name) == 1
        assert set(name[0].split(", ")) <= words
        assert f"{sizes[cluster]:8,}" in said
        assert name[0] in said
    assert "c.parquet: 120 items in 6 clusters" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clusters", "runs/latest", "--clusters", "121"], "expected at most the number of items, 120"),
        (["clusters", "runs/latest", "--output", "runs"], "runs is a folder; give a file to write"),
        (["duplicates", "runs/latest", "--pairs", "runs"], "runs is a folder; give a file to write"),
        (["duplicates", "runs/latest", "--threshold", "1.5"], "--threshold"),
        (["duplicates", "nowhere"], "nowhere: no such bundle"),
    ],
)
def test_what_cannot_be_compared_is_one_line(folder, capsys, words, said):
    assert run(*words) == 2
    assert_one_line(capsys, said)


def test_ctrl_c_while_comparing_leaves_the_old_file(folder, capsys, monkeypatch):
    assert run("duplicates", "runs/latest", "--threshold", 0.9) == 0
    before = (folder / "duplicates.parquet").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("serving.jobs.duplicates._Search._among", interrupt)
    assert run("duplicates", "runs/latest", "--threshold", 0.8) == 130
    assert (folder / "duplicates.parquet").read_bytes() == before
    assert not list(folder.glob(".*.partial"))
