"""Names and data sets of runs."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from features.config import FeaturesConfig
from features.tables.tables import data_digests, read_tables
from towers.config import TowersConfig
from training.config import RunConfig
from training.presets import PRESETS, preset_settings
from training.runs.provenance import data_name, data_sets, preset_of, run_name


@pytest.fixture
def config(tmp_path) -> RunConfig:
    (tmp_path / "shop").mkdir()
    frame = pd.DataFrame({"user_id": [1, 1, 2], "item_id": ["a", "b", "a"], "timestamp": [5, 6, 9]})
    frame.to_csv(tmp_path / "shop" / "clicks.csv", index=False)
    pd.DataFrame({"item_id": ["a", "b"], "price": [1.5, None]}).to_csv(tmp_path / "shop" / "items.csv", index=False)
    tables = {"interactions": "shop/clicks.csv", "items": "shop/items.csv"}
    return RunConfig(features=FeaturesConfig(**tables, columns={"timestamp": "timestamp"}))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_recognised_by_its_settings(config: RunConfig, preset: str):
    names = dict(line.removeprefix("towers.").split("=") for line in preset_settings(preset))
    towers = TowersConfig(**{name: json.loads(value) for name, value in names.items()})
    assert preset_of(config.model_copy(update={"towers": towers})) == preset
    other = config.model_copy(update={"towers": towers.model_copy(update={"embedding_dim": 48})})
    assert preset_of(other) is None


def test_a_name_says_folder_data_and_time(config: RunConfig, tmp_path):
    named = run_name(config, tmp_path, "run-7")
    assert re.fullmatch(r"run-7 \((small, |base, |large, )?shop, \d{4}-\d\d-\d\d \d\d:\d\d\)", named)
    assert data_name(FeaturesConfig(interactions="clicks.csv"), tmp_path) == tmp_path.name


def test_data_sets_have_digest_columns_and_profile(config: RunConfig, tmp_path):
    digests = data_digests(config.features, tmp_path)
    clicks, items = data_sets(config.features, tmp_path, read_tables(config.features, tmp_path), digests)
    assert (clicks.dataset.name, items.dataset.name) == ("shop interactions", "shop items")
    assert digests["items"].startswith(items.dataset.digest)
    profile = json.loads(clicks.dataset.profile)
    assert (profile["num_rows"], profile["num_users"], profile["num_items"]) == (3, 2, 2)
    assert (profile["first_time"], profile["last_time"]) == (5, 9)
    assert json.loads(items.dataset.profile)["empty_cells"] == {"price": 1}
    columns = json.loads(items.dataset.schema)["mlflow_colspec"]
    assert {"name": "price", "type": "double", "required": False} in columns
    assert json.loads(items.dataset.source)["uri"] == str(tmp_path / "shop" / "items.csv")
