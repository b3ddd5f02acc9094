"""`towers drift`: the tables of the training are no drift, changed ones are, and bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from features.errors import DataError
from serving.commands import DRIFT_FOUND, drift
from serving.jobs.build_index import build_index
from tests.running import write_small_shop
from towers.bundle.bundle import ModelBundle
from training.commands import train

RUN = """\
[features]
interactions = "data/interactions.parquet"
items = "data/items.parquet"
recommend_seen = true

[features.item]
item_id = { kind = "id" }
title = { kind = "text" }
brand = { kind = "category" }
price = { kind = "number" }
launched = { kind = "time" }

[towers]
embedding_dim = 8
history_encoder = "mean"

[training]
epochs = 1
track = false
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model, `runs/run-1`, and its tables."""
    folder = tmp_path_factory.mktemp("shop")
    write_small_shop(folder / "data", users=80, items=150, interactions=900)
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        CliRunner().invoke(train, ["run.toml"], catch_exceptions=False)
        build_index(ModelBundle.open(folder / "runs" / "run-1"), {})
    return folder


@pytest.fixture
def here(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shop)
    return shop


def run(*words: str) -> Result:
    return CliRunner().invoke(drift, ["runs/run-1", *words], catch_exceptions=False)


def written(frame: pd.DataFrame, path: Path) -> str:
    frame.to_parquet(path, index=False)
    return str(path)


def found_in(folder: Path) -> set[tuple[str, str, str]]:
    content = json.loads((folder / "drift.json").read_text(encoding="utf-8"))
    return {(one["table"], one["column"], one["measure"]) for one in content["findings"] if one["is_drift"]}


def test_the_tables_of_the_training_are_no_drift(here: Path, tmp_path: Path):
    said = run("--output", str(tmp_path / "out"))
    assert (said.exit_code, said.stdout.splitlines()[0][:8]) == (0, "No drift")
    content = json.loads((tmp_path / "out" / "drift.json").read_text(encoding="utf-8"))
    psi = {(one["table"], one["column"]): one["today"] for one in content["findings"] if one["measure"] == "psi"}
    assert set(psi) == {
        *(("items", name) for name in ("brand", "price", "launched")),
        ("interactions", "item_id"),
    }
    assert set(psi.values()) == {0.0}


def test_what_changed_is_named_with_status_3_and_goes_to_prometheus(here: Path, tmp_path: Path):
    items = pd.read_parquet("data/items.parquet")
    events = pd.read_parquet("data/interactions.parquet")
    rng = np.random.default_rng(0)
    changed = items.assign(
        brand=items["brand"].where(rng.random(len(items)) < 0.7, "a new brand"),
        price=items["price"] * 3,
        title=items["title"].where(rng.random(len(items)) < 0.7, "zzyzx qwyjibo"),
    )
    today = events[events["item_id"].isin(items["item_id"][:60])]  # the others are no longer bought
    out = tmp_path / "out"
    said = run(
        *("--items", written(changed, tmp_path / "items.parquet")),
        *("--interactions", written(today, tmp_path / "events.parquet")),
        *("--output", str(out)),
    )
    assert said.exit_code == DRIFT_FOUND
    assert "items.brand" in said.stdout.splitlines()[0]
    assert {
        ("items", "brand", "known"),
        ("items", "price", "psi"),
        ("items", "title", "known"),
        ("interactions", "item_id", "psi"),
    } <= found_in(out)
    assert ("items", "launched", "psi") not in found_in(out)
    prometheus = (out / "drift.prom").read_text(encoding="utf-8")
    assert f"towers_drift_findings {float(len(found_in(out)))}" in prometheus
    assert 'towers_drift_psi{column="price",table="items"}' in prometheus
    page = (out / "drift.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert "items.price" in page


def test_interactions_with_items_that_the_model_does_not_know_are_drift(here: Path, tmp_path: Path):
    items, events = pd.read_parquet("data/items.parquet"), pd.read_parquet("data/interactions.parquet")
    new = items.head(30).assign(item_id=[f"new-{number}" for number in range(30)])
    later = events.assign(
        item_id=[new["item_id"][place % 30] if place % 3 == 0 else one for place, one in enumerate(events["item_id"])]
    )
    run(
        *("--items", written(pd.concat([items, new]), tmp_path / "items.parquet")),
        *("--interactions", written(later, tmp_path / "events.parquet")),
        *("--output", str(tmp_path / "out")),
    )
    assert ("interactions", "item_id", "known") in found_in(tmp_path / "out")


def test_an_old_index_is_drift(here: Path, tmp_path: Path):
    said = run("--index-hours", "0.0000001")
    assert said.exit_code == DRIFT_FOUND
    assert "index.age in hours" in said.stdout


def test_bad_input_is_one_line_and_writes_nothing(here: Path, tmp_path: Path):
    items = pd.read_parquet("data/items.parquet").rename(columns={"brand": "make"})
    with pytest.raises(DataError, match="no column 'brand', which the model reads"):
        run("--items", written(items, tmp_path / "items.parquet"), "--output", str(tmp_path / "out"))
    with pytest.raises(DataError, match="no such file"):
        run("--interactions", "nowhere.parquet", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
