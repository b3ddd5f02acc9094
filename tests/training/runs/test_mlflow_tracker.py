"""Runs can be read back from a real store, and no store, slow or gone, ever stops a training run."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from towers.process import Stopped
from training.evaluation.details import CurvePoint, LearningCurve, ReportDetails
from training.evaluation.report import EvaluationReport
from training.evaluation.report_rows import Estimate, ReportRow
from training.runs import mlflow_tracker as tracking
from training.runs.mlflow_tracker import Tracker, flattened
from training.runs.progress import log_plots

ROOT = Path(__file__).parents[3]
PARAMS = {"features": {"max_history": 200, "item": {"genres": {"kind": "categories"}}}, "training": {"seed": 0}}


RUNS_AT_ONCE = 2
FIRST_RUNS = f"""
import os
from training.runs import mlflow_tracker as tracking

tracking.make_client("sqlite://")  # imports MLflow, once for all of them
children = []
while len(children) < {RUNS_AT_ONCE - 1}:
    child = os.fork()
    if child == 0:
        children = []
        break
    children.append(child)
with tracking.Tracker.start(enabled=True, experiment="made", run_name="first", params={{"a": 1}}) as tracker:
    tracker.log_metrics({{"loss": 1.0}}, step=0)
for child in children:
    os.waitpid(child, 0)
print(tracker.run_id)
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as the first runs of a new user make it, several processes at once; making one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    done = subprocess.run(
        [sys.executable, "-c", FIRST_RUNS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""  # not a word about migrations, GPUs or telemetry
    assert len({*done.stdout.split()} - {"None"}) == RUNS_AT_ONCE
    return folder / "mlflow.db"


@pytest.fixture
def folder(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(template, tmp_path)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Callable[..., Tracker]:
    def begin(**changes: object) -> Tracker:
        settings = {"enabled": True, "experiment": "shop", "run_name": "a run", "params": PARAMS} | changes
        return Tracker.start(**settings)

    return begin


def client(folder: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def history(folder: Path, tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client(folder).get_metric_history(tracker.run_id, name)]


def test_a_run_can_be_read_back(start: Callable[..., Tracker], folder: Path):
    with start(tags={"data.interactions": "0123abcd"}) as tracker:
        tracker.log_metrics({"loss": 0.5, "ndcg@10": 0.1}, step=1)
        tracker.log_metrics({"loss": 0.25}, step=2)
    run = client(folder).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert client(folder).get_experiment(run.info.experiment_id).name == "shop"
    assert run.data.params == {
        "features.max_history": "200",
        "features.item.genres.kind": "categories",
        "training.seed": "0",
    }
    assert run.data.tags["data.interactions"] == "0123abcd"
    assert run.data.tags["version.torch"].startswith("2.")
    assert history(folder, tracker, "loss") == [(1, 0.5), (2, 0.25)]
    assert history(folder, tracker, "ndcg_at_10") == [(1, 0.1)]


def test_the_bundle_is_kept_beside_the_store(start: Callable[..., Tracker], folder: Path):
    (folder / "my bundle").mkdir()
    (folder / "my bundle" / "manifest.json").write_text("{}")
    with start() as tracker:
        tracker.log_artifacts(folder / "my bundle", "bundle")
    (kept,) = folder.glob("mlartifacts/**/manifest.json")
    assert kept.parent.name == "bundle"
    assert [file.path for file in client(folder).list_artifacts(tracker.run_id, "bundle")] == ["bundle/manifest.json"]
    assert not (folder / "mlruns").exists()


def test_a_store_named_by_the_environment_is_used(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = tmp_path / "another place"
    there.mkdir()
    shutil.copy(template, there)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{there}/mlflow.db")
    with Tracker.start(enabled=True, experiment="other", run_name="x", params={}) as tracker:
        tracker.log_artifacts(there, "files")
    assert client(there).get_run(tracker.run_id).info.status == "FINISHED"
    assert (there / "mlartifacts").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another place"]
    experiment = client(there).get_experiment_by_name("other").experiment_id
    page = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{tracker.run_id}?workflowType=machine_learning"
    assert tracker.how_to_look == f"mlflow ui --backend-store-uri 'sqlite:///{there}/mlflow.db', then {page}"


@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (RuntimeError("broken\noff"), "FAILED", "RuntimeError: broken off"),
        (KeyboardInterrupt(), "KILLED", "SIGINT"),
        (Stopped(signal.SIGTERM), "KILLED", "SIGTERM"),
    ],
)
def test_a_run_that_breaks_off_is_marked_so_and_says_why(
    start: Callable[..., Tracker], folder: Path, error: BaseException, status: str, why: str
):
    tracker = start()

    def train() -> None:
        with tracker:
            tracker.log_metrics({"loss": 1}, step=3)
            raise error

    with pytest.raises(type(error)):
        train()
    run = client(folder).get_run(tracker.run_id)
    assert run.info.status == status
    assert (run.data.tags["ended_by"], run.data.tags["mlflow.note.content"]) == (why, f"**Not finished**: {why}")
    assert history(folder, tracker, "loss") == [(3, 1)]
    with start(run_id=tracker.run_id):
        pass
    assert "ended_by" not in client(folder).get_run(tracker.run_id).data.tags


def test_a_run_whose_process_was_killed_is_marked_so_by_the_next(start: Callable[..., Tracker], folder: Path):
    code = (
        "import os\n"
        "from training.runs.mlflow_tracker import Tracker\n"
        "Tracker.start(enabled=True, experiment='shop', run_name='lost', params={})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=False).returncode == -9
    experiment = client(folder).get_experiment_by_name("shop").experiment_id
    (lost,) = client(folder).search_runs([experiment])
    assert lost.info.status == "RUNNING"
    with start() as alive, start():
        found = client(folder).get_run(lost.info.run_id)
        assert (found.info.status, found.data.tags["ended_by"]) == ("KILLED", tracking.LOST)
        assert client(folder).get_run(alive.run_id).info.status == "RUNNING"


def test_runs_of_several_seeds_are_nested(start: Callable[..., Tracker], folder: Path):
    with start() as outer, outer.nested("seed 0", {"training": {"seed": 0}}) as inner:
        inner.log_metrics({"loss": 1.0}, step=0)
    assert client(folder).get_run(inner.run_id).data.tags["mlflow.parentRunId"] == outer.run_id
    assert "mlflow.parentRunId" not in client(folder).get_run(outer.run_id).data.tags


def test_a_run_says_what_it_cost_also_after_an_interruption(start: Callable[..., Tracker], folder: Path):
    with start() as first:
        time.sleep(0.2)
    before = client(folder).get_run(first.run_id).data.metrics
    assert 0.2 <= before["cost/seconds"] < 60
    assert 50 < before["cost/peak_memory_mib"] < 100_000
    with start(run_id=first.run_id):
        time.sleep(0.2)
    after = client(folder).get_run(first.run_id).data.metrics
    assert after["cost/seconds"] > before["cost/seconds"] + 0.2
    assert after["cost/cpu_seconds"] > before["cost/cpu_seconds"]


def test_an_interrupted_run_goes_on_as_the_same_run(start: Callable[..., Tracker], folder: Path):
    with start() as first:
        first.log_metrics({"loss": 0.5}, step=1)
    with start(run_id=first.run_id, params={"training": {"seed": 1}}) as second:
        assert client(folder).get_run(first.run_id).info.status == "RUNNING"
        second.log_metrics({"loss": 0.25}, step=2)
    assert second.run_id == first.run_id
    assert history(folder, second, "loss") == [(1, 0.5), (2, 0.25)]
    assert client(folder).get_run(first.run_id).data.params["training.seed"] == "0"


def test_a_run_that_the_store_has_lost_begins_anew(start: Callable[..., Tracker], folder: Path):
    with start(run_id="0" * 32) as tracker:
        pass
    assert tracker.run_id not in (None, "0" * 32)
    assert client(folder).get_run(tracker.run_id).info.status == "FINISHED"


def test_more_than_one_request_takes_is_cut_into_requests(start: Callable[..., Tracker], folder: Path):
    params = {f"setting {place}": place for place in range(250)} | {"a@b": "x" * 10_000}
    with start(params=params) as tracker:
        for step in range(2_500):
            tracker.log_metrics({"loss": step}, step)
    run = client(folder).get_run(tracker.run_id)
    assert len(run.data.params) == 251
    assert run.data.params["a_at_b"] == "x" * 6_000
    assert len(client(folder).get_metric_history(tracker.run_id, "loss")) == 2_500


ODD = {"a//b": 1, "../c": 2, "/d": 3, "n" * 300: 4, "n" * 299 + "m": 5, "über/ö@1": 6}


def test_names_that_mlflow_would_refuse_are_recorded_under_others(start, folder: Path, caplog):
    with start(params={"item": ODD}) as tracker:
        tracker.log_metrics({f"slice/{name}": value for name, value in ODD.items()}, step=1)
    run = client(folder).get_run(tracker.run_id)
    assert sorted(run.data.params.values()) == ["1", "2", "3", "4", "5", "6"]
    own = {name: value for name, value in run.data.metrics.items() if name.startswith("slice/")}
    assert sorted(own.values()) == [1, 2, 3, 4, 5, 6]
    assert caplog.records == []


def test_what_the_store_refuses_is_left_out_and_told_and_the_run_goes_on(
    start: Callable[..., Tracker], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(tracking, "_name", lambda name: name)
    with start(params={"fine": 1, "../bad": 2, "good": 3}) as tracker:
        tracker.log_metrics({"loss": 1, "../worse": 2, "speed": 3}, step=1)
    run = client(folder).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"fine": "1", "good": "3"}
    assert {"loss": 1.0, "speed": 3.0}.items() <= run.data.metrics.items()
    (line,) = warnings_of(caplog)
    assert "refuses '../bad', and records the rest; training continues (" in line


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FINISHED"), (KeyboardInterrupt, "KILLED")])
def test_no_run_is_left_running_by_what_goes_wrong_at_its_start(
    start: Callable[..., Tracker],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    status: str,
):
    def fail(self: object, *_: object, **__: object) -> None:
        raise error("odd")

    monkeypatch.setattr("mlflow.MlflowClient.log_batch", fail)
    with suppress(KeyboardInterrupt), start():
        pass
    (run,) = client(folder).search_runs([client(folder).get_experiment_by_name("shop").experiment_id])
    assert run.info.status == status


def test_the_pictures_of_a_report_are_files_of_the_run(start: Callable[..., Tracker], folder: Path):
    metrics = {"ndcg_at_10": Estimate(0.2, 0.1, 0.3), "recall_at_10": Estimate(0.3, 0.2, 0.4)}
    rows = (
        ReportRow("two towers", metrics, {}, None),
        ReportRow("EASE", metrics, {}, Estimate(0.1, 0.05, 0.15)),
    )
    curve = LearningCurve(0, (CurvePoint(1, 2.0, 0.1), CurvePoint(2, 1.0, 0.2)), 2)
    report = EvaluationReport(
        "time", "test", (500,), 1_000, (0,), rows, details=ReportDetails("A training", curves=(curve,))
    )
    with start() as tracker:
        log_plots(tracker, report)
    found = client(folder).list_artifacts(tracker.run_id, "plots")
    names = ["leads.svg", "loss_by_epoch.svg", "metrics.svg", "quality_by_epoch.svg"]
    assert sorted(Path(file.path).name for file in found) == names
    for name in names:
        (kept,) = (folder / "mlartifacts").rglob(f"plots/{name}")
        assert kept.read_text(encoding="utf-8") == report.plots()[name]


def test_steps_are_written_together(start: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "WRITE_SECONDS", 1_000.0)
    with start() as tracker:
        calls = []
        monkeypatch.setattr(tracker._client, "log_batch", lambda run_id, metrics: calls.append(len(metrics)))
        for step in range(400):
            tracker.log_metrics({"loss": step, "speed": step}, step)
    # The first step at once, so that the run shows in the list with a value; all others at the end, with three numbers
    # that say what the run cost.
    assert calls == [2, 798 + 3]


def test_the_machine_is_watched(start: Callable[..., Tracker], folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "SYSTEM_SECONDS", 0.05)
    with start() as tracker:
        time.sleep(0.5)
    names = client(folder).get_run(tracker.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(names)


def test_a_run_says_nothing_on_the_terminal(start: Callable[..., Tracker], capfd: pytest.CaptureFixture[str]):
    with start(experiment="new") as tracker:
        tracker.log_metrics({"loss": 1}, step=0)
    assert capfd.readouterr() == ("", "")


def test_tracking_that_is_off_does_not_even_import_mlflow(tmp_path: Path):
    code = (
        "import sys\n"
        "from training.runs.mlflow_tracker import Tracker\n"
        "with Tracker.start(enabled=False, experiment='e', run_name='r', params={}) as tracker:\n"
        "    tracker.log_metrics({'loss': 1.0}, step=0)\n"
        "    tracker.log_artifacts('nowhere', 'x')\n"
        "assert (tracker.run_id, tracker.how_to_look) == (None, None)\n"
        "assert 'mlflow' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_limits_are_set_while_a_run_is_recorded_and_those_of_the_user_stay(
    start: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    with start():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "4"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "4"


def test_settings_are_flattened():
    values = {"a": {"b": {"c": 1}, "d": [1, "x"]}, "e": None, "f": True}
    assert flattened(values) == {"a.b.c": "1", "a.d": '[1, "x"]', "e": "None", "f": "True"}


# A store that is not there


class FakeServer:
    """As much of the tracking server's REST interface as a run uses, and a switch to turn it off."""

    def __init__(self, port: int = 0) -> None:
        self.metrics: list[tuple[str, float, int]] = []
        self.statuses: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/api/2.0/mlflow/experiments/get-by-name"):
                    self.answer({"experiment": {"experiment_id": "1", "name": "shop", "lifecycle_stage": "active"}})
                elif self.path.startswith("/api/2.0/mlflow/runs/get"):
                    self.answer({"run": {"info": {"run_id": "r", "status": "RUNNING"}, "data": {}}})
                else:
                    self.send_error(404)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("runs/log-batch"):
                    outer.metrics += [
                        (metric["key"], metric["value"], int(metric.get("step", 0)))
                        for metric in body.get("metrics", [])
                    ]
                if self.path.endswith("runs/update"):
                    outer.statuses.append(body["status"])
                self.answer({"run": {"info": {"run_id": "r", "experiment_id": "1"}}, "run_info": {"run_id": "r"}})

            def answer(self, content: object) -> None:
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    fake = FakeServer()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{fake.port}")
    yield fake
    fake.stop()


def remote(run_name: str = "x") -> Tracker:
    return Tracker.start(enabled=True, experiment="shop", run_name=run_name, params=PARAMS)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(
        record.name == "training.runs.mlflow_tracker" for record in caplog.records if record.levelno >= logging.WARNING
    )
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_server_gets_the_values(server: FakeServer, caplog: pytest.LogCaptureFixture):
    with remote() as tracker:
        tracker.log_metrics({"loss": 0.5}, step=1)
        tracker.log_metrics({"loss": 0.25}, step=2)
    page = "#/experiments/1/runs/r?workflowType=machine_learning"
    assert tracker.how_to_look == f"http://127.0.0.1:{server.port}/{page}"
    assert [metric for metric in server.metrics if metric[0] == "loss"] == [("loss", 0.5, 1), ("loss", 0.25, 2)]
    assert server.statuses == ["FINISHED"]
    assert warnings_of(caplog) == []


def test_a_closed_port_costs_seconds_at_most_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:planted-pa55@127.0.0.1:{port}")
    began = time.monotonic()
    with remote() as tracker:
        for step in range(100):
            tracker.log_metrics({"loss": 0.5}, step)
        tracker.log_artifacts(tmp_path, "files")
    assert time.monotonic() - began < 5
    assert (tracker.run_id, tracker.how_to_look) == (None, None)
    (line,) = warnings_of(caplog)
    assert "planted-pa55" not in caplog.text
    assert line.startswith(f"MLflow at http://me:***@127.0.0.1:{port} does not record this run; training continues (")
    assert "\n" not in line
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_server_that_never_answers_costs_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with remote() as tracker:
            tracker.log_metrics({"loss": 0.5}, step=1)
        assert time.monotonic() - began < 12
    assert tracker.run_id is None
    assert len(warnings_of(caplog)) == 1


def test_a_server_that_goes_away_does_not_stop_training(
    server: FakeServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(tracking, "WRITE_SECONDS", 0.0)
    (tmp_path / "file").write_text("x")
    with remote() as tracker:
        tracker.log_metrics({"loss": 0.5}, step=1)
        server.stop()
        began = time.monotonic()
        for step in range(2, 1_000):
            tracker.log_metrics({"loss": 0.5}, step)
        tracker.log_artifacts(tmp_path, "files")
    assert time.monotonic() - began < 10
    assert len(warnings_of(caplog)) == 1
    server.__init__()  # so that the fixture has something to stop


def test_values_arrive_when_the_server_comes_back(
    server: FakeServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracking, "WRITE_SECONDS", 0.0)
    with remote() as tracker:
        tracker.log_metrics({"loss": 1}, step=1)
        server.stop()
        tracker.log_metrics({"loss": 2}, step=2)
        tracker.log_metrics({"loss": 3}, step=3)
        before = server.metrics
        server.__init__(server.port)
        tracker.log_metrics({"loss": 4}, step=4)  # within the pause: kept
        assert server.metrics == []
    assert [step for _, _, step in before] == [1]
    assert [step for name, _, step in server.metrics if name == "loss"] == [2, 3, 4]
    assert server.statuses == ["FINISHED"]
    assert len(warnings_of(caplog)) == 1


def test_only_the_newest_values_are_kept_while_a_server_is_away(server: FakeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "MAX_WAITING", 10)
    monkeypatch.setattr(tracking, "WRITE_SECONDS", 1_000.0)
    with remote() as tracker:
        for step in range(100):
            tracker.log_metrics({"loss": 1}, step)
    # Three of the ten are what the run cost.
    assert [step for name, _, step in server.metrics if name == "loss"] == [0, *range(93, 100)]
