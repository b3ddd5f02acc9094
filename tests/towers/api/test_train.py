from __future__ import annotations

import signal
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

from features.config import FeaturesConfig
from features.errors import DataError
from tests.test_house import ROOT, TOP_PACKAGES
from tests.towers.api.conftest import QUICK
from towers.api.errors import plain_errors
from towers.api.model import open_model
from towers.api.tables import as_overrides, by_full_name, to_arrow
from towers.api.train import train
from towers.bundle.manifest import verify
from towers.config import TowersConfig
from training.commands import init
from training.commands import train as train_command
from training.config import TrainingConfig
from training.tasks import train as task

SET = [word for value in as_overrides(by_full_name(QUICK)) for word in ("--set", value)]


def frames_of_ours(raised):
    """The files of ours that a traceback goes through."""
    packages = [str(ROOT / package) for package in TOP_PACKAGES]
    return {Path(entry.path).name for entry in raised.traceback if str(entry.path).startswith(tuple(packages))}


def command(function, *words):
    result = CliRunner().invoke(function, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_dataframes_and_the_commands_give_one_model(model, interactions, items, users, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, table in {"interactions": interactions, "items": items, "users": users}.items():
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
    command(init, *(f"--{name}={name}.parquet" for name in ("interactions", "items", "users")))
    command(train_command, "run.toml", *SET)
    assert verify(tmp_path / "runs" / "latest").version == model.version


def test_its_tables_are_kept_with_the_runs(model, folder):
    [kept] = (folder / "runs" / "inputs").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == [
        "interactions.parquet",
        "items.parquet",
        "run.toml",
        "users.parquet",
    ]
    assert model.bundle.tables_folder == kept
    assert (folder / "runs" / "latest").resolve() == model.path.resolve()


@pytest.mark.slow
def test_a_run_toml_reads_other_tables_where_they_are_given(model, interactions, items, users, capsys):
    fewer = interactions[interactions["user_id"] % 2 == 0]
    other = train(fewer, settings=model.path / "run.toml", items=items, users=users, output="runs/half", epochs=1)
    assert other.version != model.version
    assert other.recommender.snapshot.manifest.num_interactions < len(interactions)
    said = capsys.readouterr()
    assert "interactions of" in said.err, "progress is printed, as by the command"
    assert "two towers" in said.out


@pytest.fixture
def hears_ctrl_c():
    """Whatever has started the tests: a shell lets what it runs in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_leaves_what_resume_continues_from(model, interactions, items, users, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    items.to_parquet(tmp_path / "items.parquet", index=False)
    given = {
        "interactions": pa.Table.from_pandas(interactions, preserve_index=False),
        "items": "items.parquet",
        "users": users,
        "settings": {"training": {"epochs": 9}},
        **QUICK,
    }
    real = task.report_epochs

    def interrupting(tracker):
        tell = real(tracker)
        return lambda progress, measured: (tell(progress, measured), signal.raise_signal(signal.SIGINT))

    with monkeypatch.context() as patched:
        patched.setattr(task, "report_epochs", interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(**given)
    assert "resume=True" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name != "inputs"] == [".run-1.training"]
    resumed = train(**given, resume=True, progress=False)
    assert (resumed.version, str(resumed.path)) == (model.version, "runs/run-1"), "a table's kind does not matter"


def mixed(frame):
    frame["price"] = frame["price"].astype(object)
    frame.iloc[3, frame.columns.get_loc("price")] = "cheap"
    return frame


BAD = {
    "an id that is none": (
        lambda events, items: {
            "interactions": events.assign(user_id=events["user_id"] + 0.5 * (events.index == 5)),
            "user_column": "user_id",
        },
        r"^interactions: column 'user_id', row 6: expected ids as whole numbers or text, found \d+\.5; save the ids as",
    ),
    "no column of users": (
        lambda events, items: {"interactions": events[["item_id"]]},
        r"^the interactions have no column that looks like user_id among item_id; say user_column=NAME",
    ),
    "cells of two types": (
        lambda events, items: {"interactions": events, "items": mixed(items.copy())},
        r"^items: column 'price', row 4: expected float as in the rows before, found str \('cheap'\); give .* one type",
    ),
    "a name twice": (
        lambda events, items: {"interactions": pd.concat([events, events[["item_id"]]], axis=1)},
        r"^interactions: the column name 'item_id' occurs twice; rename or remove one of them$",
    ),
    "cells that are no values": (
        lambda events, items: {"interactions": events.assign(what=[object()] * len(events))},
        r"^interactions: column 'what': cells of type object cannot be stored .*; leave the column out",
    ),
    "no rows": (
        lambda events, items: {"interactions": events.head(0)},
        r"^interactions: no rows below the column names; expected at least one$",
    ),
    "an item twice": (
        lambda events, items: {
            "interactions": events,
            "items": pd.concat([items, items.head(1).assign(price=-1.0)], ignore_index=True),
        },
        r"^items: column 'item_id', row 101: the id .* stood in row 1 already .*; keep one row per id$",
    ),
    "a path that leads nowhere": (
        lambda events, items: {"interactions": "events.csv"},
        r"events.csv: no such file; check the path",
    ),
    "no tables": (lambda events, items: {}, r"^no tables: give interactions"),
    "a setting that does not exist": (
        lambda events, items: {"interactions": events, "epoch": 3},
        r"^epoch: no such setting of run.toml; did you mean 'epochs'\?$",
    ),
    "a setting of another type": (
        lambda events, items: {"interactions": events, "epochs": "three"},
        r"run.toml: training.epochs: input should be a valid integer, found 'three'$",
    ),
    "a loss that nobody added": (
        lambda events, items: {"interactions": events, "loss": "hinge"},
        r"^\[training\] loss: expected one of softmax, found 'hinge'; in Python, add your own to towers.LOSSES first$",
    ),
    "a value that no setting has": (
        lambda events, items: {"interactions": events, "min_rating": None},
        r"^features.min_rating: expected a number, a text, a boolean or a list, found None",
    ),
}


@pytest.mark.parametrize(("made", "said"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_in_one_line(made, said, interactions, items, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=said) as raised:
        train(**made(interactions, items), progress=False)
    assert frames_of_ours(raised) <= {"errors.py"}, "the entrance, and nothing of our depths"
    assert raised.value.__cause__ is None
    left = [path for path in tmp_path.rglob("*") if path.name not in ("runs", "inputs")]
    assert [path for path in left if path.name.startswith(".")] == []


def test_the_whole_traceback_is_kept_where_it_is_wanted(monkeypatch):
    @plain_errors
    def outer():
        def inner():
            raise DataError("no")

        inner()

    monkeypatch.setenv("TOWERS_TRACEBACK", "1")
    with pytest.raises(DataError, match="no") as raised:
        outer()
    assert raised.traceback[-1].name == "inner"


def test_what_is_no_table_is_refused():
    with pytest.raises(DataError, match=r"^items: expected a DataFrame or a path, found int; give one of them$"):
        to_arrow("items", 3)


def test_a_named_index_is_a_column_and_another_is_none(items):
    assert to_arrow("items", items.set_index("item_id")).column_names[0] == "item_id"
    assert to_arrow("items", items.sample(frac=1, random_state=0)).column_names == list(items.columns)


def test_no_name_stands_for_two_settings():
    names = [name for kind in (FeaturesConfig, TowersConfig, TrainingConfig) for name in kind.model_fields]
    assert len(names) == len({*names})


def test_settings_are_written_as_the_command_line_takes_them():
    given = {"training": {"epochs": np.int64(3)}, "towers.matryoshka_dims": (8, 16), "features.title": 'a "name"'}
    texts = [text.partition("=")[::2] for text in as_overrides(given)]
    assert {name: tomllib.loads(f"value = {text}")["value"] for name, text in texts} == {
        "training.epochs": 3,
        "towers.matryoshka_dims": [8, 16],
        "features.title": 'a "name"',
    }


def test_a_model_that_is_open_is_opened_again(model):
    assert open_model(model.bundle).version == model.version
