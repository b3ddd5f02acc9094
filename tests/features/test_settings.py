"""Mistakes in files of settings, and what is suggested instead."""

from pathlib import Path

import pytest

from features.errors import DataError
from features.settings import parse_settings, read_toml
from serving.config import ServingConfig
from training.config import RunConfig

TABLES = {"interactions": "sales.csv"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"epoch": 3}}, "training.epoch: no such setting; did you mean 'epochs'?"),
        ({"features": {**TABLES, "columns": {"user": "c"}}}, "no such setting; did you mean 'user_id'?"),
        ({"features": {**TABLES, "item": {"price": {"kind": "number", "decmal": ","}}}}, "did you mean 'decimal'?"),
        ({"features": {**TABLES, "epochs": 3}}, "features.epochs: no such setting; 'epochs' belongs in [training]"),
        ({"epochs": 3}, "epochs: no such setting; 'epochs' belongs in [training]"),
        ({"training": {"lora_rank": 3}}, "'lora_rank' belongs in [features.encoders.NAME]"),
        ({"training": {"colour": "red"}}, "training.colour: no such setting; remove it"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_one_that_may_have_been_meant(settings, message):
    with pytest.raises(DataError) as error:
        parse_settings(RunConfig, {"features": TABLES, **settings}, "run.toml")
    assert message in str(error.value)


def test_every_mistake_is_named_at_once():
    with pytest.raises(DataError, match=r"'threads'\?; wrkers: no such setting; did you mean 'workers'"):
        parse_settings(ServingConfig, {"thread": 3, "wrkers": 2}, "serving.toml")


@pytest.mark.parametrize("name", ["sales.csv", "SALES.CSV.GZ", "sales.parquet"])
def test_a_table_in_the_place_of_settings_is_named_as_one(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"PAR1\xff")
    with pytest.raises(DataError, match=r"not a table; `towers init --interactions .*` writes run.toml"):
        read_toml(tmp_path / name)


def test_a_misspelt_file_of_settings_is_answered_with_the_one_that_is_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"rum.toml: no such file; `towers init --interactions FILE` writes one"):
        read_toml(tmp_path / "rum.toml")
    (tmp_path / "run.toml").touch()
    with pytest.raises(DataError, match=r"rum.toml: no such file; did you mean 'run.toml'\?"):
        read_toml(tmp_path / "rum.toml")
