"""Bundles behind an alias of a real registry of MLflow, in SQLite: fetched, followed, taken back, and refused.

The last test is of a real server with two workers that follows an alias: under load, while things are written, models
are swapped, and a worker is killed.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import threading
import time
from http.client import HTTPConnection, HTTPException

import mlflow
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner

import towers
from features.errors import DataError
from serving.commands import deploy, rollback
from serving.config import ServingConfig
from serving.deploy import mlflow_registry as registry
from serving.deploy.mlflow_registry import Alias, fetch, fetched, follow, point_back, publish
from serving.http.app import create_app
from tests.serving.conftest import model_of
from tests.serving.deploy.test_swap import wait_for
from tests.serving.server.test_server import Served
from towers.bundle.manifest import BundleError
from towers.bundle.signature import make_key
from towers.tracking.logged_model import Examples

JSON = {"Content-Type": "application/json"}
CHAMPION = Alias("two-towers", "champion")
EXAMPLES = Examples(["p1", "p2"], user=1001)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A registry without a model; making one takes seconds."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        registry.make_client(registry.tracking_uri()).search_registered_models()
    return path


@pytest.fixture
def folder(template, two_models, tmp_path, monkeypatch):
    """A working folder with `mlflow.db`, `runs/one` and `runs/two`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(template, tmp_path)
    shutil.copytree(two_models, tmp_path / "runs")
    return tmp_path


def served():
    return CHAMPION.link.resolve().name


@pytest.mark.parametrize(
    "address", ["runs/latest", "models:/two-towers/3", "models:/@champion", "models:/..@champion", "models:/a@../b"]
)
def test_what_is_no_alias_is_taken_for_a_folder(address):
    assert Alias.parse(address) is None
    assert Alias.parse(str(CHAMPION)) == CHAMPION


def test_a_service_follows_an_alias_there_and_back(folder):
    one, two = (model_of(folder / "runs", name) for name in ("one", "two"))
    assert publish(folder / "runs" / "one", CHAMPION, EXAMPLES) == "1"
    client = create_app(fetched(CHAMPION).absolute(), ServingConfig(watch_seconds=0.05)).test_client()
    assert client.get("/recommendations/1001").headers["Towers-Model"] == one
    assert not fetch(CHAMPION), "it is there"

    assert publish(folder / "runs" / "two", CHAMPION, EXAMPLES) == "2"
    assert fetch(CHAMPION)
    wait_for(client, two)
    for version, model in (("1", one), ("2", two)):
        assert point_back(CHAMPION) == version
        assert fetch(CHAMPION)
        wait_for(client, model)

    registry.make_client(registry.tracking_uri()).set_registered_model_alias(
        CHAMPION.name, CHAMPION.alias, "1"
    )  # by whoever decides that
    assert fetch(CHAMPION)
    wait_for(client, one)
    assert sorted(path.name for path in CHAMPION.link.parent.iterdir()) == ["champion", "version-1", "version-2"]


def test_a_version_that_is_damaged_is_left_alone_and_the_log_says_so_once(folder, caplog):
    publish(folder / "runs" / "one", CHAMPION, EXAMPLES)
    make_key(folder / "key")
    with pytest.raises(BundleError, match=r"manifest.json: not signed"):
        fetch(CHAMPION, ServingConfig(trusted_keys=str(folder / "key.pub")))
    assert not CHAMPION.link.exists()
    fetch(CHAMPION)
    publish(folder / "runs" / "two", CHAMPION, EXAMPLES)
    (weights,) = (path for path in folder.glob("mlartifacts/**/model.safetensors") if is_of_two(path, folder))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="was changed after it was written"):
        fetch(CHAMPION)
    looks = iter((True, True, True, False))
    follow(CHAMPION, ServingConfig(watch_seconds=0), lambda: next(looks))
    told = [record.message for record in caplog.records if record.name == "serving.deploy.mlflow_registry"]
    assert len(told) == 1
    assert "version 2 of two-towers cannot be used; still serving the previous one" in told[0]
    assert served() == "version-1"
    assert sorted(path.name for path in CHAMPION.link.parent.iterdir()) == ["champion", "version-1"]


def is_of_two(path, folder):
    return path.read_bytes() == (folder / "runs" / "two" / "model.safetensors").read_bytes()


def test_what_was_fetched_before_is_served_where_the_registry_does_not_answer(folder, monkeypatch, caplog):
    publish(folder / "runs" / "one", CHAMPION, EXAMPLES)
    assert fetched(CHAMPION) == CHAMPION.link
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-pa55@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert fetched(CHAMPION) == CHAMPION.link
    assert "version-1, which was downloaded before" in caplog.text
    with pytest.raises(
        DataError, match=r"models:/other@champion: error from MLflow at http://me:\*\*\*@127.0.0.1:9: "
    ) as told:
        fetched(Alias("other", "champion"))
    assert "planted-pa55" not in f"{told.value} {caplog.text}"


def test_an_alias_that_is_not_there_is_told(folder):
    with pytest.raises(DataError, match=r"models:/two-towers@champion: error from MLflow at sqlite:.*not found"):
        fetched(CHAMPION)
    publish(folder / "runs" / "one", CHAMPION, EXAMPLES)
    with pytest.raises(DataError, match="no previous version is recorded"):
        point_back(CHAMPION)
    with pytest.raises(DataError, match="error from MLflow at "):
        fetched(Alias("two-towers", "challenger"))


def test_swap_and_rollback_take_an_alias_as_they_take_a_link(folder):
    for name in ("one", "two"):
        done = CliRunner().invoke(
            deploy, [str(folder / "runs" / name), "--link", str(CHAMPION)], catch_exceptions=False
        )
        assert done.output.startswith(f"{CHAMPION}: version ")
        assert f"towers rollback --link {CHAMPION}" in done.output
    done = CliRunner().invoke(rollback, ["--link", str(CHAMPION)], catch_exceptions=False)
    assert done.output == f"{CHAMPION}: version 1\n"
    fetch(CHAMPION)
    assert served() == "version-1"


def test_a_version_is_an_mlflow_model_that_answers_as_the_bundle(folder, monkeypatch):
    done = CliRunner().invoke(deploy, [str(folder / "runs" / "one"), "--link", str(CHAMPION)], catch_exceptions=False)
    assert done.exit_code == 0
    uri = registry.tracking_uri()
    version = registry.make_client(uri).get_model_version_by_alias(CHAMPION.name, CHAMPION.alias)
    assert version.tags["bundle"] == "one"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pyfunc.load_model(str(CHAMPION))
    model = towers.open(folder / "runs" / "one")
    users = pd.DataFrame({"user_id": [1003, 1001]})
    found = loaded.predict(users, params={"k": 3})
    for place, user in enumerate(users["user_id"]):
        expected = model.recommend(user, k=3)[["item_id", "score", "rank"]].reset_index(drop=True)
        own = found[found["request"] == place].drop(columns="request").reset_index(drop=True)
        pd.testing.assert_frame_equal(pd.DataFrame(own), pd.DataFrame(expected), check_dtype=False)
    example = loaded.input_example
    assert [*example["history"].iloc[0]] == model.recommender.snapshot.catalog.item_ids[:3].tolist()
    assert len(loaded.predict(example)) == 10
    assert [column.name for column in loaded.metadata.signature.inputs] == ["user_id", "history"]
    with pytest.raises(mlflow.exceptions.MlflowException, match="schema"):
        loaded.predict(pd.DataFrame({"user_id": ["x"]}))
    files = {path.name for path in folder.glob("mlartifacts/**/*") if path.is_file()}
    assert not {name for name in files if name.endswith((".pkl", ".pickle"))}


class Load:
    """Threads that read and write with hardly a pause, and what they found wrong.

    Attributes:
        wrong: Answers that should not have been.
        broken: Requests without an answer.
        models: Which models answered.
        acknowledged: How many events the service said that it took.
    """

    def __init__(self, port, expected):
        self.wrong, self.broken, self.models, self.acknowledged = [], 0, set(), 0
        self._port, self._expected, self._done = port, expected, threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._read, self._read, self._write)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, method, path, content=None):
        time.sleep(0.005)
        connection = HTTPConnection("127.0.0.1", self._port, timeout=20)
        body = None if content is None else json.dumps(content)
        try:
            connection.request(method, path, body, JSON)
            response = connection.getresponse()
            return response.status, response.headers, json.loads(response.read())
        except (OSError, HTTPException):
            self.broken += 1
            return None
        finally:
            connection.close()

    def _read(self):
        while not self._done.is_set():
            answer = self._ask("GET", "/recommendations/1001?k=5")
            if answer is None:
                continue
            status, headers, content = answer
            self.models.add(headers["Towers-Model"])
            if status != 200 or content["items"] != self._expected[headers["Towers-Model"]]:
                self.wrong.append(answer)

    def _write(self):
        """New users have something each; whichever worker is asked then must know of it."""
        for number in itertools.count():
            if self._done.is_set():
                return
            user_id, item_id = 9000 + number, f"p{number % 100}"
            written = self._ask("POST", "/events", {"events": [{"user_id": user_id, "item_id": item_id}]})
            if written is None:
                continue
            self.acknowledged += 1
            read = self._ask("GET", f"/recommendations/{user_id}?k=120")
            found = None if read is None else [item["item_id"] for item in read[2]["items"]]
            if written[0] != 200 or (read and (read[2]["fallback"] or item_id in found or len(found) != 119)):
                self.wrong.append((written, read))


def test_a_real_server_goes_over_there_and_back_under_load_and_survives_a_killed_worker(folder):
    expected = {}
    for name in ("one", "two"):
        answer = create_app(folder / "runs" / name, ServingConfig(watch_seconds=0)).test_client()
        content = answer.get("/recommendations/1001?k=5")
        expected[content.headers["Towers-Model"]] = content.json["items"]
    publish(folder / "runs" / "one", CHAMPION, EXAMPLES)
    flags = ("--workers", "2", "--live", "live.db")
    served = Served(folder, *flags, bundle=str(CHAMPION), TOWERS_WATCH_SECONDS="0.2")
    try:
        served.wait_until_ready(workers=2)
        with Load(served.port, expected) as load:
            for go in (lambda: publish(folder / "runs" / "two", CHAMPION, EXAMPLES), lambda: point_back(CHAMPION)):
                load.models.clear()
                go()
                wait_until(lambda: len(load.models) == 2, "no worker went over")
            assert (load.wrong, load.broken) == ([], 0)

            worker = next(one for one in workers_of(served) if "serving.server.follow_alias" not in one.cmdline())
            worker.kill()
            worker.wait(30)
            served.wait_until_ready(workers=2)
        assert load.wrong == []
        last = served.ask("/events", "POST", b'{"events": [{"user_id": 8999, "item_id": "p1"}]}', JSON)[1]["position"]
        # One whose answer was lost with the worker may have been taken.
        assert load.acknowledged <= last - 1 <= load.acknowledged + 1
        assert load.acknowledged > 10
        family = workers_of(served)
    finally:
        code, output = served.stop(signal.SIGTERM)
    assert code == 0, output
    assert "Traceback" not in output
    assert psutil.wait_procs(family, timeout=10)[1] == [], "something outlived the server"


def workers_of(served):
    return psutil.Process(served.process.pid).children()


def wait_until(holds, what):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
