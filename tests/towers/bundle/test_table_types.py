"""Bundles with embedding tables of 16 bits: half the bytes, and the vectors of the same weights in 32 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from serving.jobs.build_index import build_index
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import WEIGHTS
from towers.model.two_tower import TwoTower


def settings_with(dtype: str) -> dict[str, Any]:
    user = {**SETTINGS["features"]["user"], "user_id": {"kind": "id"}}
    towers = {**SETTINGS["towers"], "embedding_dtype": dtype}
    return {"features": {**SETTINGS["features"], "user": user}, "towers": towers}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("halves")
    write_shop(folder / "data")
    write_untrained(folder / "float16", folder / "data", settings_with("float16"))
    write_untrained(folder / "float32", folder / "data", settings_with("float32"))
    return ModelBundle.open(folder / "float16")


def tables_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: one for name, one in load_file(path / WEIGHTS).items() if ".collection." in name}


def test_tables_have_half_the_bytes_on_disk_and_in_memory(halves: ModelBundle) -> None:
    stored, whole = tables_of(halves.path), tables_of(halves.path.with_name("float32"))
    assert stored
    assert {name: 2 * one.nbytes for name, one in stored.items()} == {name: one.nbytes for name, one in whole.items()}
    weights = halves.model.state_dict()
    for name, table in stored.items():
        assert weights[name].dtype == torch.float16
        assert torch.equal(weights[name], table)


def test_vectors_are_those_of_the_same_weights_in_32_bits(halves: ModelBundle) -> None:
    config = halves.config
    towers = config.towers.model_copy(update={"embedding_dtype": "float32"})
    model = TwoTower(towers, halves.featurizer, config.features.max_history)
    model.load_state_dict(halves.model.state_dict())
    tables = halves.read_tables()
    vectors = halves.encode_items(tables.catalog)
    assert vectors.dtype == np.float32
    features = halves.featurizer.item_features(tables.catalog)
    with torch.inference_mode():
        np.testing.assert_array_equal(vectors, model.eval().item_vectors(features).numpy())


def test_an_index_is_built_with_them(halves: ModelBundle) -> None:
    build_index(halves, {})
    assert (halves.path / "index").is_dir()
