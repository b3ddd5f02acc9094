"""Graphs of a bundle's pretrained models: what they say, and what is beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from transformers import AutoTokenizer

from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from tests.tiny_models import tiny_model
from towers.bundle.bundle import ModelBundle
from towers.cli.main import main
from towers.export.sentence_transformers import SentenceTransformerAdapter

TEXTS = ["a red fox", "the blue whale runs a small steel lamp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_shop(folder / "data")
    tiny = {"model": str(tiny_model(folder))}
    encoders = {
        "still": tiny,
        "learned": {**tiny, "trained_layers": 1, "lora_rank": 2, "pooling": "attention"},
    }
    item = {"title": {"kind": "text", "encoder": "learned"}, "tags": {"kind": "text", "encoder": "still"}}
    features = {**SETTINGS["features"], "item": item, "encoders": encoders}
    write_untrained(folder / "bundle", folder / "data", {**SETTINGS, "features": features})
    return folder


@pytest.mark.parametrize("name", ["still", "learned"])
@pytest.mark.parametrize("flags", [[], ["--int8"]], ids=["whole", "rounded"])
def test_another_program_gets_the_same_vectors_from_the_folder_alone(folder, tmp_path, name, flags, capsys) -> None:
    expected = SentenceTransformerAdapter.of_encoder(ModelBundle.open(folder / "bundle"), name).encode_query(TEXTS)
    written = tmp_path / "written"
    assert main(["export", str(folder / "bundle"), "--encoder", name, "--output", str(written), *flags]) == 0
    assert f"{name} written; its vectors have cosines of" in capsys.readouterr().out
    described = json.loads((written / "graph.json").read_text())
    prompted = [described["prompts"]["query"] + text for text in TEXTS]
    tokens = AutoTokenizer.from_pretrained(str(written))(prompted, padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(written / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run([described["output"]], {key: tokens[key].astype(np.int64) for key in described["inputs"]})
    if flags:
        assert ((found * expected).sum(axis=1) / np.linalg.norm(found, axis=1)).min() > 0.95
    else:
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_which_model_is_meant_must_be_said_where_there_are_several(folder, tmp_path, capsys) -> None:
    assert main(["export", str(folder / "bundle"), "--output", str(tmp_path / "written")]) == 2
    assert "give --encoder the name of a pretrained model in it; there is learned, still" in capsys.readouterr().err
    assert not (tmp_path / "written").exists()
