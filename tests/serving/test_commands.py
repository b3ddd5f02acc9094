from __future__ import annotations

import json
import shutil
import socket

import pandas as pd
import pytest

from tests.serving.conftest import SETTINGS, write_untrained
from towers.cli import main


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
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["latest", "model"]


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
    assert "2 users are unknown and got what is popular" in capsys.readouterr().out
    frame = pd.read_parquet("c.parquet")
    assert frame["user_id"].unique().tolist() == [1001, 5, 6]
    assert frame.groupby("user_id")["fallback"].first().isna().to_dict() == {1001: True, 5: False, 6: False}


def test_recommend_into_a_folder_is_one_line(folder, capsys):
    assert run("recommend", "runs/latest", "--output", "runs") == 2
    assert_one_line(capsys, "a folder; --output names the file")


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
    assert_one_line(capsys, "made from other weights", "towers index runs/latest")
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


def test_ctrl_c_in_the_middle_leaves_no_file(folder, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("serving.offline._table", interrupt)
    assert run("recommend", "runs/latest", "--output", "out/c.parquet") == 130
    assert list((folder / "out").iterdir()) == []
