"""Champion and challenger, with a real MLflow server and a real service that follows the alias."""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.mlflow_server import mlflow_server
from tests.serving.conftest import write_untrained
from tests.serving.server.test_server import Served
from towers.bundle.manifest import verify
from towers.cli.main import main
from training.audit.comparison_report import PAGE, TABLE
from training.config import PromotionConfig, RunConfig
from training.evaluation.report import EvaluationReport

CHAMPION = "models:/two-towers@champion"
SETTINGS = {
    "features": {
        "interactions": "data/clicks.csv",
        "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
        "item": {"item_id": {"kind": "id"}},
    },
    "towers": {"embedding_dim": 16, "num_layers": 1, "num_heads": 2},
}
RUN = """
[features]
interactions = "data/clicks.csv"
columns = { user_id = "user", item_id = "item", timestamp = "time" }
item.item_id.kind = "id"
[towers]
embedding_dim = 16
num_layers = 1
num_heads = 2
[training]
epochs = 4
batch_size = 256
"""


def write_clicks(folder: Path) -> None:
    """400 users who mostly click on the same few of 60 items."""
    rng = np.random.default_rng(3)
    clicks = pd.DataFrame({"user": np.repeat(np.arange(1000, 1400), 8)})
    clicks["item"] = [f"p{number}" for number in np.minimum(59, rng.exponential(6, len(clicks))).astype(int)]
    clicks["time"] = 1_700_000_000 + rng.permutation(len(clicks)) * 60
    (folder / "data").mkdir()
    clicks.to_csv(folder / "data" / "clicks.csv", index=False)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A folder with two untrained bundles and a trained one, recorded by a real MLflow server."""
    folder = tmp_path_factory.mktemp("story")
    write_clicks(folder)
    (folder / "run.toml").write_text(RUN)
    for seed, name in enumerate(("first", "second")):
        write_untrained(folder / "runs" / name, folder, SETTINGS, seed)
    with mlflow_server(folder) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        patch.chdir(folder)
        assert main(["train", "run.toml", "--output", "runs/third", "--baseline-minutes", "0"]) == 0
        yield SimpleNamespace(folder=folder, address=address, client=mlflow.MlflowClient(address, address))


def runs_named(story, start: str) -> list:
    experiment = story.client.get_experiment_by_name("two-towers").experiment_id
    return [run for run in story.client.search_runs([experiment]) if run.info.run_name.startswith(start)]


@contextmanager
def service(folder: Path):
    served = Served(folder, "--workers", "1", bundle=CHAMPION, TOWERS_WATCH_SECONDS="0.2")
    try:
        served.wait_until_ready()
        yield served
    finally:
        code, output = served.stop(15)
    assert code == 0, output


def wait_for_model(served: Served, name: str) -> None:
    wanted, deadline = verify(Path("runs") / name).version, time.monotonic() + 60
    while True:
        with urlopen(f"http://127.0.0.1:{served.port}/recommendations/1001?k=3", timeout=20) as response:
            found = response.headers["Towers-Model"]
        if found == wanted:
            return
        assert time.monotonic() < deadline, f"{name} is not served"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_champion_is_challenged_replaced_and_brought_back(story, capsys):
    def champion() -> str:
        return story.client.get_model_version_by_alias("two-towers", "champion").tags["bundle"]

    assert main(["promote", "runs/first"]) == 0
    assert "promotion of first granted, there is no champion yet" in capsys.readouterr().out
    with service(story.folder) as served:
        wait_for_model(served, "first")

        assert main(["promote", "runs/second"]) == 3
        said = capsys.readouterr().out
        assert re.search(r"FAILS  N@10 .*, gain [-+]0\.\d+ \[-.* on \d+ questions; the interval must be above 0", said)
        assert champion() == "first"
        (refused,) = runs_named(story, "promote second")
        assert refused.info.status == "FINISHED"
        assert refused.data.tags["promotion"] == "refused"
        assert refused.data.tags["promotion.reasons"].startswith("N@10 ")
        assert refused.data.metrics["promotion/gain_low"] <= 0

        assert main(["promote", "runs/third", "--set", "promotion.max_size_mb=0.001"]) == 3
        assert "FAILS  size with index" in capsys.readouterr().out
        assert main(["promote", "runs/third", "--dry-run"]) == 0
        assert champion() == "first"

        assert main(["promote", "runs/third"]) == 0
        said = capsys.readouterr().out
        assert "promotion of third granted, against version-" in said
        assert f"towers rollback --link {CHAMPION}" in said
        wait_for_model(served, "third")
        version = story.client.get_model_version_by_alias("two-towers", "champion")
        assert (version.tags["bundle"], version.tags["promotion"]) == ("third", "granted")
        assert "gain +" in version.tags["promotion.reasons"]
        granted, *_ = runs_named(story, "promote third")
        assert granted.data.metrics["promotion/gain_low"] > 0
        assert granted.data.metrics["promotion/worse_slices"] == 0
        assert main(["promote", "runs/third"]) == 2
        assert "in service already" in capsys.readouterr().err

        assert main(["rollback", "--link", CHAMPION]) == 0
        wait_for_model(served, "first")
        assert "champion.rolled_back" in story.client.get_model_version("two-towers", version.version).tags


@pytest.mark.slow
def test_the_server_has_the_training_with_data_model_and_cost(story, capsys):
    (run,) = runs_named(story, "third (")
    assert run.info.status == "FINISHED"
    assert {"cost/seconds", "cost/cpu_seconds", "cost/peak_memory_mib", "ndcg_at_10"} <= run.data.metrics.keys()
    (data,) = run.inputs.dataset_inputs
    profile = json.loads(data.dataset.profile)
    assert (data.dataset.name, profile["num_users"], profile["num_rows"]) == ("data interactions", 400, 3200)
    model = story.client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert (model.status, model.tags["bundle"]) == ("READY", "third")
    registered = [
        one for one in story.client.search_model_versions("name = 'two-towers'") if one.run_id == run.info.run_id
    ]
    assert [version.source for version in registered] == [f"models:/{model.model_id}"]


@pytest.mark.slow
def test_bundles_and_evaluations_are_compared(story, capsys):
    assert main(["compare", "runs/third", "runs/first", "--output", "of-bundles"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"first is behind third by 0\.\d+ in N@10", said)
    table = pd.read_parquet("of-bundles/" + TABLE)
    whole = table[table["facet"] == "all"].set_index("metric")
    assert (whole["verdict"] == "behind").loc["ndcg_at_10"]
    assert np.allclose(whole["second"] - whole["first"], whole["gain"])
    assert whole.loc["ndcg_at_10", "low"] < whole.loc["ndcg_at_10", "gain"] < whole.loc["ndcg_at_10", "high"] < 0
    page = Path("of-bundles", PAGE).read_text()
    assert page.count("<h3>User ") == 20
    assert "first is behind third" in page
    unrecorded = ["--set", "training.track=false"]
    others = (("a", unrecorded), ("other", ["--protocol", "time", *unrecorded]))
    for name, flags in (("b", ["--set", "training.epochs=1"]), *others):
        assert main(["evaluate", "run.toml", "--output", name, "--baseline-minutes", "0", *flags]) == 0
    (run,) = runs_named(story, "evaluate leave-one-out")
    pictures = {Path(file.path).name for file in story.client.list_artifacts(run.info.run_id, "plots")}
    assert {"metrics.svg", "scores.svg", "item_map.svg"} <= pictures
    capsys.readouterr()
    assert main(["compare", "a", "b", "--output", "of-evaluations"]) == 0
    reports = [EvaluationReport.read(Path(name, "report.json")) for name in ("a", "b")]
    table = pd.read_parquet("of-evaluations/" + TABLE)
    for metric, row in table[table["facet"] == "all"].set_index("metric").iterrows():
        means = [report.rows[0].metrics[metric].mean for report in reports]
        assert np.allclose(means, [row["first"], row["second"]])
    assert main(["compare", "a", "other", "--output", "nothing"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "error: a and other: not evaluated on the same questions (protocol leave-one-out and time)" in line
    assert main(["compare", "a", "runs/first"]) == 2
    assert "is a bundle and a is not" in capsys.readouterr().err
    assert not Path("nothing").exists()


def test_limits_are_settings_of_the_run_file():
    run = RunConfig(**SETTINGS, promotion={"min_gain": -0.01, "guarded_facets": ["activity"]})
    assert run.promotion.min_gain == -0.01
    assert PromotionConfig().max_latency_ms == 50
