"""The promises that hold from one end to the other, kept by the real command line on a small real shop.

Commands start loaded, which saves the seconds of imports and nothing else; the demo's and the service's start cold.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.files import sha256
from features.tables.table_files import read_frame
from features.tables.tables import read_tables
from tests.running import ask, free_port, quicker, served, start, towers, write_small_shop
from towers.bundle.bundle import ModelBundle
from towers.cli.main import main
from training.evaluation.report import EvaluationReport

WEIGHTS = "model.safetensors"
EVERY_STEP = ("--set", "training.checkpoint_seconds=0")
UNTUNED = ("--baseline-minutes", "0")
"""For trainings whose report nobody reads."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, warm: Path) -> Path:
    """A folder with tables and what `towers init` makes of them, but for fewer epochs and narrower towers."""
    folder = tmp_path_factory.mktemp("shop")
    write_small_shop(folder / "data")
    flags = [word for name in ("interactions", "items", "users") for word in (f"--{name}", f"data/{name}.parquet")]
    assert towers(folder, "init", *flags).returncode == 0
    quicker(folder / "run.toml", epochs=3, batch_size=256, embedding_dim=32)
    settings = (folder / "run.toml").read_text()
    assert "time_bias = true" in settings
    # The clock goes on between two answers; with a clock that stands still test_agreement.py compares these, too.
    (folder / "run.toml").write_text(settings.replace("time_bias = true", "time_bias = false"))
    return folder


@pytest.fixture(scope="module")
def trained(shop: Path, warm: Path) -> Path:
    """The folder after `towers train run.toml`, recorded in MLflow as by default."""
    ended = towers(shop, "train", "run.toml", program=warm)
    assert ended.returncode == 0, ended.stderr
    is_ahead = not EvaluationReport.read(shop / "runs" / "run-1" / "report.json").unbeaten
    assert ("towers serve runs/run-1" in ended.stdout) == is_ahead
    assert ("Not ahead of every baseline" in ended.stdout) == ("--set" in ended.stdout) == (not is_ahead)
    return shop


@pytest.fixture(scope="module")
def answers(trained: Path, warm: Path) -> Path:
    """The folder with the index and `candidates.parquet`, too."""
    ended = towers(trained, "recommend", "runs/latest", "--output", "candidates.parquet", "--k", "20", program=warm)
    assert ended.returncode == 0, ended.stderr
    return trained


@pytest.fixture
def beside(shop: Path, tmp_path: Path) -> Path:
    """A folder with the same settings and tables, and nothing trained yet."""
    shutil.copy(shop / "run.toml", tmp_path)
    (tmp_path / "data").symlink_to(shop / "data")
    return tmp_path


def weights_of(folder: Path) -> str:
    return sha256(folder / "runs" / "latest" / WEIGHTS)


def by_brute_force(folder: Path, k: int) -> dict[int, tuple[list[str], np.ndarray]]:
    """The k best items of each user and their scores, from the bundle and the tables alone, in plain numpy."""
    bundle = ModelBundle.open(folder / "runs" / "latest")
    tables = read_tables(bundle.config.features, bundle.tables_folder)
    assert tables.users is not None
    item_ids = tables.catalog.frame["item_id"].to_list()
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    events = pd.read_parquet(folder / "data" / "interactions.parquet").drop_duplicates()
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    histories = {user_id: [row_of[item] for item in items] for user_id, items in events.groupby("user_id")["item_id"]}
    items = bundle.encode_items(tables.catalog)
    offsets = np.cumsum([0, *map(len, histories.values())])
    flat = np.concatenate(list(histories.values()))
    people = tables.users.frame.set_index("user_id").loc[list(histories)].reset_index()
    users = bundle.encode_users(
        items[flat],
        offsets,
        people,
        request_times=np.full(len(histories), int(time.time())),
        event_times=events["timestamp"].to_numpy(np.int64),
    )
    found = {}
    for user_id, vector in zip(histories, users, strict=True):
        scores = items.astype(np.float64) @ vector.astype(np.float64)
        scores[histories[user_id]] = -np.inf
        best = np.lexsort((np.arange(len(items)), -scores))[:k]
        found[int(user_id)] = ([item_ids[row] for row in best], scores[best])
    return found


def assert_alike(
    item_ids: list[str], scores: Sequence[float], expected_ids: list[str], expected_scores: Sequence[float]
) -> None:
    """To the item; where two scores are closer than single precision can tell, either order will do."""
    np.testing.assert_allclose(scores, expected_scores, atol=2e-6)
    expected = dict(zip(expected_ids, expected_scores, strict=True))
    for item_id, other_id, score in zip(item_ids, expected_ids, scores, strict=True):
        assert item_id == other_id or abs(expected.get(item_id, 2) - score) < 4e-6


@pytest.mark.slow
def test_the_service_answers_a_hundred_users_as_brute_force_does_and_as_the_file_says(answers):
    expected = by_brute_force(answers, 20)
    file = read_frame(answers / "candidates.parquet")
    listed = dict(iter(file.groupby("user_id")))
    assert listed.keys() == expected.keys()
    for user_id, (item_ids, scores) in expected.items():
        assert_alike(listed[user_id]["item_id"].to_list(), listed[user_id]["score"].to_list(), item_ids, scores)
        assert listed[user_id]["rank"].to_list() == list(range(1, 21))
    with served(answers) as address:
        for user_id in list(expected)[::3][:100]:
            answer = ask(f"{address}/recommendations/{user_id}?k=20")
            items = answer["items"]
            assert_alike([item["item_id"] for item in items], [item["score"] for item in items], *expected[user_id])
            assert answer["fallback"] is None


def test_whoever_posts_what_the_tables_say_of_a_user_gets_that_users_answer(answers):
    events = pd.read_parquet(answers / "data" / "interactions.parquet").drop_duplicates()
    people = pd.read_parquet(answers / "data" / "users.parquet").set_index("user_id")
    with served(answers) as address:
        for user_id in people.index[:10]:
            mine = events[events["user_id"] == user_id].sort_values("timestamp", kind="stable")
            person = {name: str(value) for name, value in people.loc[user_id].dropna().items()}
            body = {"history": mine["item_id"].to_list(), "times": mine["timestamp"].to_list()}
            body |= {"attributes": person, "k": 20}
            posted, known = ask(f"{address}/recommendations", body), ask(f"{address}/recommendations/{user_id}?k=20")
            ranked = [
                ([item["item_id"] for item in one["items"]], [item["score"] for item in one["items"]])
                for one in (posted, known)
            ]
            assert_alike(*ranked[0], *ranked[1])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained, beside, warm):
    assert towers(beside, "train", "run.toml", *UNTUNED, "--set", "training.track=false", program=warm).returncode == 0
    assert weights_of(beside) == weights_of(trained)
    ended = towers(
        beside,
        "train",
        "run.toml",
        *UNTUNED,
        *("--set", "training.track=false", "--set", "training.seed=1"),
        program=warm,
    )
    assert ended.returncode == 0
    assert weights_of(beside) != weights_of(trained)
    # The newest is the latest, and the older one is still there.
    assert (beside / "runs" / "latest").readlink() == Path("run-2")
    assert sha256(beside / "runs" / "run-1" / WEIGHTS) == weights_of(trained)
    assert "seed = 1" in (beside / "runs" / "latest" / "run.toml").read_text()


def in_the_second_epoch(folder: Path, process: subprocess.Popen[str]) -> None:
    """Return when the first epoch is over and another checkpoint was written since."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r" +1 ", line):
            break
    checkpoint = next((folder / "runs").glob(".run-1.training/checkpoint.safetensors"))
    written = checkpoint.stat().st_mtime_ns
    while checkpoint.stat().st_mtime_ns == written:
        assert process.poll() is None, "training ended before it could be stopped"
        time.sleep(0.001)


@pytest.mark.slow
def test_a_training_that_is_killed_and_resumed_ends_in_the_very_same_weights(trained, beside, warm):
    process = start(beside, "train", "run.toml", *EVERY_STEP, program=warm)
    in_the_second_epoch(beside, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (beside / "runs" / "run-1").exists()
    assert not (beside / "runs" / "latest").exists()

    ended = towers(beside, "train", "run.toml", "--resume", *UNTUNED, *EVERY_STEP, program=warm)
    assert ended.returncode == 0, ended.stderr
    assert not re.search(r"^ +1 +[0-9.]+ ", ended.stderr, re.MULTILINE), "it began again"
    assert weights_of(beside) == weights_of(trained)
    assert sorted(path.name for path in (beside / "runs").iterdir()) == ["latest", "run-1"]


@pytest.mark.slow
def test_sigterm_saves_says_so_in_one_line_and_resumes_exactly(trained, beside, warm):
    process = start(beside, "train", "run.toml", *EVERY_STEP, program=warm)
    in_the_second_epoch(beside, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.split("\n")[-3:] == [
        "stopped; the same command with --resume continues from here (in Python: resume=True)",
        "terminated",
        "",
    ]
    assert [run.info.status for run in recorded(beside)] == ["KILLED"]

    ended = towers(beside, "train", "run.toml", "--resume", *UNTUNED, program=warm)
    assert ended.returncode == 0, ended.stderr
    assert weights_of(beside) == weights_of(trained)
    assert [run.info.status for run in recorded(beside)] == ["FINISHED"]


def recorded(folder: Path) -> Sequence[Any]:
    """The runs in a folder's store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = (found for found in client.search_experiments() if found.name == "two-towers")
    return client.search_runs([experiment.experiment_id])


def test_mlflow_has_the_run_with_settings_measures_and_the_bundle(trained):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{trained}/mlflow.db")
    (run,) = recorded(trained)
    assert run.info.status == "FINISHED"
    assert re.fullmatch(r"run-1 \(data, \d{4}-\d\d-\d\d \d\d:\d\d\)", run.info.run_name)
    assert (run.data.params["training.epochs"], run.data.params["towers.embedding_dim"]) == ("3", "32")
    assert run.data.tags["interactions"] == sha256(trained / "data" / "interactions.parquet")
    assert {"ndcg_at_10", "recall_at_100", "baseline/EASE/ndcg_at_10"} <= run.data.metrics.keys()
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "epoch/loss")] == [1, 2, 3]
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) > 4
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "plots",
        "report.html",
        "report.json",
    }
    pictures = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "plots")}
    assert {"metrics.svg", "leads.svg", "quality_by_epoch.svg", "loss_by_epoch.svg", "item_map.svg"} <= pictures
    assert run.data.tags["mlflow.note.content"] == (trained / "runs" / "run-1" / "README.md").read_text()[:8000]
    data = {used.dataset.name: used.dataset for used in run.inputs.dataset_inputs}
    assert sorted(data) == ["data interactions", "data items", "data users"]
    assert run.data.tags["interactions"].startswith(data["data interactions"].digest)
    profile = json.loads(data["data interactions"].profile)
    assert profile["num_rows"] == len(pd.read_parquet(trained / "data" / "interactions.parquet"))
    assert {column["name"] for column in json.loads(data["data users"].schema)["mlflow_colspec"]} > {"user_id"}


def test_the_bundle_is_a_registered_model_of_the_run(trained):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{trained}/mlflow.db")
    (run,) = recorded(trained)
    (version,) = client.search_model_versions("name = 'two-towers'")
    assert (version.run_id, version.tags["bundle"]) == (run.info.run_id, "run-1")
    assert version.description == (trained / "runs" / "run-1" / "README.md").read_text()[:5000]
    (kept,) = trained.glob("mlartifacts/models/*/artifacts/artifacts/run-1")
    files = {path.name for path in kept.iterdir()}
    assert {"manifest.json", "run.toml", WEIGHTS, "report.html"} <= files
    assert (kept / WEIGHTS).read_bytes() == (trained / "runs" / "run-1" / WEIGHTS).read_bytes()


def test_training_goes_on_with_one_warning_when_the_tracking_server_is_away(trained, beside, warm):
    away = f"http://127.0.0.1:{free_port()}"
    ended = towers(beside, "train", "run.toml", *UNTUNED, MLFLOW_TRACKING_URI=away, program=warm)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("MLflow") == 1
    assert weights_of(beside) == weights_of(trained)
    assert not (beside / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.epoch=3", "training.epoch: no such setting; did you mean 'epochs'?"),
        ("training.epochs=some", "training.epochs: input should be a valid integer, found 'some'"),
        ("training.epochs=0", "training.epochs: input should be greater than or equal to 1, found 0"),
        ("epochs=3", "--set epochs=3: expected table.key=value"),
    ],
)
def test_a_setting_that_is_wrong_is_one_line_and_nothing_is_begun(beside, monkeypatch, capsys, setting, words):
    monkeypatch.chdir(beside)
    assert main(["train", "run.toml", "--set", setting]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert sorted(path.name for path in beside.iterdir()) == ["data", "run.toml"]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_gpu_that_is_not_there_is_refused_before_the_tables_are_read(beside, monkeypatch, capsys, command):
    monkeypatch.chdir(beside)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (beside / "data").unlink()
    assert main([command, "run.toml", "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --device cuda: torch 2.")
    assert error.endswith("; leave --device out, or see `towers doctor`\n")
    assert sorted(path.name for path in beside.iterdir()) == ["run.toml"]


def test_there_is_nothing_to_resume_where_nothing_was_stopped(beside, monkeypatch, capsys):
    monkeypatch.chdir(beside)
    assert main(["train", "run.toml", "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no unfinished run with these settings and a checkpoint; train without --resume" in error
    assert not (beside / "runs").exists()
