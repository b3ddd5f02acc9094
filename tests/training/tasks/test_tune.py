"""`towers tune` as a person runs it: to its end, killed and continued, by two workers, and within a time."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from features.errors import DataError
from tests.running import SECONDS, start, towers, write_small_shop
from training.commands import tune
from training.config import read_run_config, with_settings
from training.tuning.space import settings_of

RUN = """\
[features]
interactions = "data/interactions.parquet"

[features.columns]
timestamp = "timestamp"

[towers]
embedding_dim = 8
num_layers = 1
num_heads = 1

[training]
epochs = 1
warmup_steps = 5
checkpoint_seconds = 0
track = false

[tune]
towers.dropout = { low = 0.0, high = 0.5 }
towers.history_encoder = ["transformer", "mean"]

[tune.training]
learning_rate = { low = 0.0005, high = 0.05, log = true }
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_small_shop(folder / "data", users=80, items=100, interactions=900)
    return folder / "data"


@pytest.fixture
def shop(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").symlink_to(tables)
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(tune, ["run.toml", *words], catch_exceptions=False)


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def results(folder: Path) -> list[tuple[int, dict[str, Any], float]]:
    return [(one["number"], one["params"], one["value"]) for one in report_of(folder)["trials"]]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A tuning of four trials that nothing interrupted, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "data").symlink_to(tables)
    (folder / "run.toml").write_text(RUN.replace("track = false", "track = true"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run("--trials", "4", "--seeds", "2")


def test_the_winner_is_a_run_toml_that_trains_alone_with_the_values_of_the_best_trial(whole):
    folder, said = whole
    found = report_of(folder / "runs" / "run-tuning")
    assert said.exit_code == 0
    assert [one["number"] for one in found["trials"]] == [0, 1, 2, 3]
    assert found["best"]["value"] == max(one["value"] for one in found["trials"])
    assert found["trials"][0]["is_default"]
    winner = folder / "runs" / "run-tuning" / "run.toml"
    written, original = read_run_config(winner), read_run_config(folder / "run.toml")
    interactions = winner.parent / str(written.features.interactions)
    assert interactions.resolve() == (folder / "data" / "interactions.parquet").resolve()
    expected = with_settings(original, settings_of(found["best"]["params"]), "trial")
    assert (written.towers, written.training) == (expected.towers, expected.training)
    assert "tune" not in tomllib.loads(winner.read_text(encoding="utf-8"))


def test_the_gain_is_said_with_its_interval_and_that_the_questions_chose_it(whole):
    folder, said = whole
    found = report_of(folder / "runs" / "run-tuning")
    for part in ("validation", "test"):
        tuned, default = found[part]["rows"]
        assert (tuned["name"], default["name"]) == ("tuned", "run.toml")
        assert default["lead"]["low"] <= default["lead"]["mean"] <= default["lead"]["high"]
        assert found[part]["seeds"] == [0, 1]
    assert "chosen on these questions" in said.stdout
    assert "On test, which chose nothing" in said.stdout


def test_the_page_needs_nothing_else_and_shows_every_trial(whole):
    folder, _ = whole
    page = (folder / "runs" / "run-tuning" / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert page.count("<polyline") == 1 + 4  # the best so far, and a path for each trial
    assert page.count("<circle") == 4
    assert "What decides the result" in page
    assert "logarithmic" in page


def test_trials_are_nested_in_one_mlflow_run(whole):
    folder, _ = whole
    with sqlite3.connect(folder / "mlflow.db") as store:
        runs = dict(store.execute("SELECT run_uuid, status FROM runs").fetchall())
        parents = store.execute("SELECT value FROM tags WHERE key = 'mlflow.parentRunId'").fetchall()
    assert len(runs) == 5
    assert {*runs.values()} == {"FINISHED"}
    assert len(parents) == 4
    assert len({*parents}) == 1
    assert list((folder / "mlartifacts").rglob("tuning/report.html"))


def test_a_finished_tuning_is_reported_again_without_another_training(whole, monkeypatch):
    folder, said = whole
    monkeypatch.chdir(folder)
    again = run("--trials", "4", "--seeds", "2")
    assert again.stdout == said.stdout
    assert "comparing" not in again.stderr


def test_a_killed_tuning_continues_to_the_same_result(shop, whole, warm):
    process = start(shop, "tune", "run.toml", "--trials", "4", program=warm)
    wait_for(shop / "runs" / "run-tuning" / "trials" / "0001" / "checkpoint.safetensors")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = shop / "runs" / "run-tuning"
    assert not (folder / "report.json").exists()
    said = run("--trials", "4")
    assert "continuing the tuning in runs/run-tuning" in said.stderr
    assert results(folder) == results(whole[0] / "runs" / "run-tuning")
    assert not list(folder.rglob("*.partial"))


def test_a_stopped_tuning_says_how_to_continue_and_has_the_best_so_far(shop, warm):
    process = start(shop, "tune", "run.toml", "--trials", "50", program=warm)
    folder = shop / "runs" / "run-tuning"
    wait_for(folder / "trials" / "0001" / "checkpoint.safetensors")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues from here" in said
    assert "Traceback" not in said
    assert read_run_config(folder / "run.toml").towers.embedding_dim == 8


def test_a_second_worker_joins_and_the_last_one_reports(shop, warm):
    first = start(shop, "tune", "run.toml", "--trials", "6", program=warm)
    wait_for(shop / "runs" / "run-tuning" / "trials" / "0000")
    second = towers(shop, "tune", "run.toml", "--trials", "6", program=warm)
    said, _ = first.communicate(timeout=SECONDS)
    assert (first.returncode, second.returncode) == (0, 0), said + second.stderr
    assert "joining the tuning in runs/run-tuning, which another worker is at" in second.stderr
    assert [said, second.stderr + second.stdout].count("") == 0
    assert ("another worker is still training" in said) != ("another worker is still training" in second.stderr)
    assert len(results(shop / "runs" / "run-tuning")) == 6


def test_time_that_is_over_before_the_first_trial_is_an_error_that_loses_nothing(shop):
    with pytest.raises(DataError, match=r"no time to train with run\.toml as it is.*raise --minutes"):
        run("--minutes", "0.00001")
    assert run("--trials", "1").stdout.startswith("Nothing better than run.toml as it is was found in 1 trials")


def test_values_that_do_not_fit_each_other_end_a_trial_and_not_the_tuning(shop):
    text = RUN.partition("[tune]")[0] + "[tune]\ntowers.embedding_dim = [8, 12]\ntowers.num_heads = [1, 4, 8]\n"
    (shop / "run.toml").write_text(text, encoding="utf-8")
    run("--trials", "8", "--set", "towers.num_heads=4")
    trials = report_of(shop / "runs" / "run-tuning")["trials"]
    assert len(trials) == 8
    assert {one["state"] for one in trials} == {"complete", "pruned"}
    for one in trials:
        fits = settings_of(one["params"])["towers.embedding_dim"] % settings_of(one["params"])["towers.num_heads"] == 0
        assert (one["state"] == "complete") == fits, one
        assert fits or "does not divide" in one["reason"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("towers.dropuot = [0.1, 0.2]", r"run\.toml: \[tune\].*no such setting; did you mean 'dropout'"),
        ("towers.dropout = { low = 0.0, hihg = 0.5 }", "hihg: no such setting; did you mean 'high'"),
    ],
)
def test_a_mistake_in_the_space_is_said_before_anything_is_written(shop, written: str, message: str):
    (shop / "run.toml").write_text(RUN.partition("[tune]")[0] + f"[tune]\n{written}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        run()
    assert sorted(path.name for path in shop.iterdir()) == ["data", "run.toml"]


def test_other_settings_are_another_tuning(shop):
    run("--trials", "1")
    with pytest.raises(DataError, match="began with other settings"):
        run("--trials", "2", "--set", "training.epochs=2")
