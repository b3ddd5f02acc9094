"""`towers train --continue`: another bundle that knows what is new, and the old one is not changed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from features.errors import DataError
from features.files import sha256
from features.shop import generate_shop
from tests.running import start
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from towers.api.model import open_model
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import verify
from towers.process import Stopped
from training.commands import train
from training.tasks import continue_training
from training.tasks.continue_training import continue_and_bundle

NEW_USERS, NEW_ITEMS = 8, 5
RUN = """\
[features]
interactions = "data/interactions.parquet"
items = "data/items.parquet"
max_history = 20
[features.columns]
timestamp = "timestamp"
[features.item]
item_id.kind = "id"
title.kind = "text"
category.kind = "category"
[features.user]
user_id.kind = "id"

[towers]
embedding_dim = 8
num_layers = 1
num_heads = 2

[training]
epochs = 1
checkpoint_seconds = 0
track = false
"""
TODAY = Path("data/today.parquet")


def run(*words: str) -> Result:
    return CliRunner().invoke(train, words, catch_exceptions=True)


def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Interactions until today, those of today, with users and items that were not there before, and the catalogue."""
    shop = generate_shop(0, 150, 100, 1_500)
    events = shop.interactions
    is_today = np.arange(len(events)) >= 0.9 * len(events)
    users, items = (events[is_today][name].unique() for name in ("user_id", "item_id"))
    is_new = events["user_id"].isin(users[:NEW_USERS]) | events["item_id"].isin(items[:NEW_ITEMS])
    return events[~is_today & ~is_new], events[is_today], shop.items


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables, a run.toml and `runs/run-1`; not to be changed."""
    folder = tmp_path_factory.mktemp("continued")
    (folder / "data").mkdir()
    for frame, name in zip(tables(), ("interactions", "today", "items"), strict=True):
        frame.to_parquet(folder / "data" / f"{name}.parquet", index=False)
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        result = run("run.toml")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def continued(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The same with `runs/run-2`, which continues it, and what was printed; not to be changed."""
    folder = tmp_path_factory.mktemp("continued-once")
    copy(trained, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        result = run("--continue", "runs/latest", "--interactions", str(TODAY))
    assert result.exit_code == 0, result.output
    return folder, result


def copy(trained: Path, folder: Path) -> None:
    """Copy the folder; the copied bundle still reads the tables of the first one."""
    shutil.copytree(trained, folder, symlinks=True, dirs_exist_ok=True)


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    copy(trained, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digests(bundle: Path) -> dict[str, str]:
    return {str(path.relative_to(bundle)): sha256(path) for path in sorted(bundle.rglob("*")) if path.is_file()}


def test_new_users_and_items_join_and_the_old_run_stays(trained, continued, monkeypatch):
    folder, result = continued
    monkeypatch.chdir(folder)
    assert digests(folder / "runs" / "run-1") == digests(trained / "runs" / "run-1")
    assert (folder / "runs" / "latest").resolve() == folder / "runs" / "run-2"
    first, second = (ModelBundle.open(folder / "runs" / name) for name in ("run-1", "run-2"))
    old, today, _ = tables()
    for column, side in (("user_id", "users"), ("item_id", "items")):
        known, knows = (getattr(one.featurizer, side).sparse[column].vocabulary.values for one in (first, second))
        assert knows[: len(known)].equals(known)
        assert set(known) <= set(map(str, old[column])) | set(old[column])
        assert len(knows) > len(known)
    assert second.manifest.digests["continued_weights"] == first.weights_digest
    assert f"continued from run-1, version {first.version}" in (folder / "runs/run-2/README.md").read_text()
    assert re.search(r"Continued from run-1, whose model has\s+N@10\s+0\.\d{4}\s+on\s+the\s+same", result.output)
    num_new = len(set(today["user_id"]) - set(old["user_id"]))
    assert num_new >= NEW_USERS
    assert f"{num_new} new users; 5 epochs\n" in result.stderr


def test_a_new_user_gets_recommendations_and_a_new_item_is_one(continued, monkeypatch):
    folder, _ = continued
    monkeypatch.chdir(folder)
    model = open_model("runs/run-2")
    old, today, _ = tables()
    [user] = [int(one) for one in today["user_id"].unique() if one not in set(old["user_id"])][:1]
    assert model.recommend([user], k=5)["rank"].tolist() == [1, 2, 3, 4, 5]
    history = model.history(user, k=100)["item_id"].tolist()
    assert sorted(set(history)) == sorted(set(today["item_id"][today["user_id"] == user]))
    new_items = set(today["item_id"]) - set(old["item_id"])
    listed = model.recommend(old["user_id"].unique().tolist(), k=50)["item_id"]
    assert new_items & set(listed)


def test_continuing_without_anything_new_keeps_every_weight(continued, tmp_path, monkeypatch):
    folder, _ = continued
    copy(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    result = run("--continue", "runs/run-2", "--set", "continuation.epochs=0")
    assert result.exit_code == 0, result.output
    assert "0 new interactions to train on, 0 new users; the weights stay as they are" in result.stderr
    second, third = (ModelBundle.open(Path(f"runs/run-{number}")) for number in (2, 3))
    assert third.version == second.version
    assert third.config.features == second.config.features
    catalog = second.read_tables().catalog
    assert np.array_equal(second.encode_items(catalog), third.encode_items(catalog))


def test_python_and_repeated_rows_give_the_same_model(continued, here):
    version = verify(continued[0] / "runs" / "run-2").version
    old, today, _ = tables()
    repeated = pd.concat([old.tail(300), today, today.head(20)])
    newer = open_model("runs/run-1").update(repeated, progress=False)
    assert newer.path == Path("runs/run-2")
    assert newer.version == version
    repeated.to_parquet("data/repeated.parquet", index=False)
    result = run("--continue", "runs/run-1", "--interactions", "data/repeated.parquet")
    assert "note: 320 duplicate interactions merged" in result.stderr
    assert verify(Path("runs/latest")).version == version


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "towers.embedding_dim=16"), r"towers\.embedding_dim: cannot change in a training that goes on"),
        (("--preset", "large"), r"towers\.\w+: cannot change in a training that goes on"),
        (("--set", "features.max_history=5"), r"features\.max_history: cannot change"),
        (("--set", "training.validation=users"), r"training\.validation: cannot change"),
        (("--set", "features.prepare=always"), r"--continue reads all interactions into memory"),
        (("--output", "runs/run-1"), r"runs/run-1: the run that is continued, which stays as it is"),
        (("run.toml",), r"run\.toml: not with --continue, whose settings are those of runs/latest"),
        (("--interactions", "data/nothing.parquet"), r"nothing\.parquet: no such file"),
        (("--resume",), r"no unfinished run with these settings"),
        (
            ("--baseline-minutes", "1"),
            r"--baseline-minutes: not with --continue, which fits no baselines; leave it out",
        ),
    ],
)
def test_what_does_not_fit_ends_in_one_line(here, words: tuple[str, ...], message: str):
    result = run("--continue", "runs/latest", *words)
    assert isinstance(result.exception, DataError), result.output
    with pytest.raises(DataError, match=message):
        raise result.exception
    assert sorted(path.name for path in (here / "runs").iterdir() if path.name != "inputs") == ["latest", "run-1"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda frame: frame.drop(columns="timestamp"), r"/new\.parquet: lacks the column 'timestamp' of "),
        (lambda frame: frame.rename(columns={"item_id": "sku"}), r"/new\.parquet: lacks the column 'item_id' of "),
        (lambda frame: frame.astype({"user_id": str}), r"/new\.parquet: column 'user_id' is of type "),
        (lambda frame: frame.assign(colour="red"), r"/new\.parquet: has a column 'colour' which "),
        (lambda frame: frame.assign(item_id="none"), r"^the interactions: column 'item_id', new\.parquet, row 1: "),
    ],
    ids=["no times", "another name", "another type", "one more", "unknown item"],
)
def test_a_table_that_does_not_fit_is_named_and_nothing_of_it_is_kept(here, changed, message: str):
    changed(tables()[1]).to_parquet("data/new.parquet", index=False)
    result = run("--continue", "runs/latest", "--interactions", "data/new.parquet")
    assert isinstance(result.exception, DataError), result.output
    with pytest.raises(DataError, match=message):
        raise result.exception
    assert "\n" not in str(result.exception)
    assert sorted(path.name for path in (here / "runs").rglob("*.parquet") if "inputs" in path.parts) == []


def test_what_an_error_advises_can_be_set(here):
    today = tables()[1]
    today.assign(item_id=today["item_id"].where(np.arange(len(today)) > 3, "none")).to_parquet("data/new.parquet")
    words = ("--continue", "runs/latest", "--interactions", "data/new.parquet", "--set", "continuation.epochs=0")
    assert "unknown_items = " in str(run(*words).exception)
    result = run(*words, "--set", "features.unknown_items=drop")
    assert result.exit_code == 0, result.output
    assert "4 interactions of items that are not in the catalogue left out" in result.stderr


def test_days_follow_each_other_under_one_name_and_each_costs_what_is_new(here):
    old, today, _ = tables()
    days = [today[place::3] for place in range(3)]
    total = len(old.drop_duplicates())
    for number, day in enumerate(days, start=2):
        day.to_parquet("data/day.parquet", index=False)
        result = run(
            "--continue", "runs/latest", "--interactions", "data/day.parquet", "--set", "continuation.epochs=1"
        )
        assert result.exit_code == 0, result.output
        Path("data/day.parquet").unlink()
        found = int(re.search(r"(\d+) new interactions? to train on", result.stderr)[1])
        assert 0 < found <= len(day) + old["user_id"].nunique()  # and what was held out before
        known = len(ModelBundle.open(Path(f"runs/run-{number}")).read_tables().interactions.frame)
        assert known - total == pytest.approx(len(day), abs=3)  # but for duplicates
        total = known
    model = open_model("runs/latest")
    user = int(days[-1]["user_id"].iloc[-1])
    wanted = set(pd.concat([old, today]).query("user_id == @user")["item_id"])
    assert set(model.history(user, k=1000)["item_id"]) == wanted
    assert len(model.recommend([user], k=5)) == 5


def test_what_arrives_late_or_not_at_all_is_said_and_moves_nothing(here):
    old, today, _ = tables()
    late = today[today["user_id"].isin(old["user_id"])]
    late.assign(timestamp=late["timestamp"] - 10**9).to_parquet("data/late.parquet", index=False)
    today[:0].to_parquet("data/empty.parquet", index=False)
    for name, note in (
        ("late", r"note: \d+ added interactions older than what was trained on"),
        ("empty", "^(?!.*older)"),
    ):
        result = run("--continue", "runs/run-1", "--interactions", f"data/{name}.parquet")
        assert result.exit_code == 0, result.output
        assert "note: 0 new interactions to train on, 0 new users; the weights stay as they are" in result.stderr
        assert re.search(note, result.stderr, re.DOTALL)
        vectors = [
            ModelBundle.open(Path(path)).model.item_tower.embeddings.rows("item_id")
            for path in ("runs/run-1", "runs/latest")
        ]
        assert vectors[0].equal(vectors[1][: len(vectors[0])])


def test_what_was_taken_in_without_an_epoch_is_still_to_be_trained_on(continued, here):
    words = ("--continue", "runs/latest", "--interactions", str(TODAY))
    new = re.search(r"\d+ new interactions to train on, \d+ new users", continued[1].stderr)[0]
    assert new in run(*words, "--set", "continuation.epochs=0").stderr
    result = run("--continue", "runs/latest", "--set", "continuation.epochs=1")
    assert new.split(",")[0] in result.stderr
    assert "0 new interactions to train on" in run("--continue", "runs/latest").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"run\.toml: missing; name the settings, or the run to go on with: --continue runs/latest"),
        (("run.toml", "--items", "data/items.parquet"), r"--items: only with --continue"),
    ],
)
def test_flags_of_one_way_are_refused_in_the_other(here, words: tuple[str, ...], message: str):
    with pytest.raises(DataError, match=message):
        raise run(*words).exception


def test_a_bundle_that_kept_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path / "data")
    write_untrained(tmp_path / "runs" / "untrained", tmp_path / "data", SETTINGS)
    with pytest.raises(DataError, match="keeps nothing to continue from"):
        raise run("--continue", "runs/untrained").exception


def test_a_stopped_one_resumes_to_the_same_weights(continued, here, monkeypatch, request):
    request.addfinalizer(
        partial(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
    )

    def stop_at_third(tracker: object):
        return lambda step, loss: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None

    given = {"tables": {"interactions": TODAY}, "output": None, "device": "cpu"}
    with monkeypatch.context() as patched:
        patched.setattr(continue_training, "report_steps", stop_at_third)
        with pytest.raises(Stopped):
            continue_and_bundle(Path("runs/latest"), (), resume=False, **given)
    assert not Path("runs/run-2").exists()
    assert Path("runs/latest").resolve().name == "run-1"
    path = continue_and_bundle(Path("runs/latest"), (), resume=True, **given)
    assert verify(path).version == verify(continued[0] / "runs" / "run-2").version
    assert not list(Path("runs").glob(".*"))


def test_a_killed_one_leaves_the_old_run_and_resumes(continued, here, warm):
    words = ("train", "--continue", "runs/latest", "--interactions", str(TODAY))
    before = digests(here / "runs" / "run-1")
    process = start(here, *words, program=warm)
    checkpoint, deadline = here / "runs" / ".run-2.training" / "checkpoint.safetensors", time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert digests(here / "runs" / "run-1") == before
    if not (here / "runs" / "run-2").exists():
        assert run(*words[1:], "--resume").exit_code == 0
    assert verify(here / "runs" / "run-2").version == verify(continued[0] / "runs" / "run-2").version
