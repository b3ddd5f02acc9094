"""A bundle before sentence-transformers' own evaluator, and as its models are called."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from features.errors import DataError
from features.ids import ITEM_ID
from features.tables.tables import Catalog
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from tests.tiny_models import WORDS, tiny_model
from towers.bundle.bundle import ModelBundle
from towers.export.sentence_transformers import SentenceTransformerAdapter

TEXTS = [f"{first} {second}" for first in WORDS[:4] for second in WORDS[6:10]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """Items whose title two models read, one as it is and one that is trained."""
    folder = tmp_path_factory.mktemp("sentences")
    write_shop(folder / "data")
    tiny = {"model": str(tiny_model(folder))}
    features = {
        **SETTINGS["features"],
        "item": {
            "item_id": {"kind": "id"},
            "title": {"kind": "text", "encoder": "trained", "frozen_dim": 16},
            "tags": {"kind": "text", "encoder": "still"},
        },
        "encoders": {"still": tiny, "trained": {**tiny, "trained_layers": 1}},
    }
    write_untrained(folder / "model", folder / "data", {**SETTINGS, "features": features})
    return ModelBundle.open(folder / "model")


@pytest.mark.parametrize("name", ["towers", "still", "trained"])
def test_the_evaluator_finds_what_numpy_finds(bundle, name, tmp_path) -> None:
    model = (
        SentenceTransformerAdapter.of_towers(bundle)
        if name == "towers"
        else SentenceTransformerAdapter.of_encoder(bundle, name)
    )
    queries, relevant = TEXTS[::3], {str(place): {str(place)} for place in range(0, 16, 3)}
    evaluator = InformationRetrievalEvaluator(
        {str(3 * place): text for place, text in enumerate(queries)},
        {str(place): text[::-1] if place % 2 else text for place, text in enumerate(TEXTS)},
        relevant,
        accuracy_at_k=[3],
        write_csv=False,
    )
    found = evaluator(model)
    documents = model.encode([text[::-1] if place % 2 else text for place, text in enumerate(TEXTS)])
    scores = model.encode(queries, prompt_name="query") @ documents.T
    rank = (scores > scores[np.arange(6), np.arange(0, 16, 3)][:, None] + 1e-6).sum(axis=1)
    assert found["cosine_accuracy@3"] == pytest.approx((rank < 3).mean())


def test_vectors_are_those_of_the_item_tower_for_an_item_of_which_nothing_else_is_known(bundle) -> None:
    model = SentenceTransformerAdapter.of_towers(bundle)
    frame = pd.DataFrame({ITEM_ID: [None, None], "title": ["red lamp", "a fox"], "tags": ["red lamp", None]})
    expected = bundle.encode_items(Catalog(frame))
    np.testing.assert_allclose(model.encode("red lamp"), expected[0], atol=1e-6)
    np.testing.assert_allclose(model.encode([{"title": "a fox"}])[0], expected[1], atol=1e-6)


def test_it_is_asked_as_models_of_sentence_transformers_are(bundle) -> None:
    model = SentenceTransformerAdapter.of_encoder(bundle, "still")
    whole = model.encode(TEXTS)
    assert whole.shape == (16, 16)
    cut = model.encode(TEXTS, batch_size=3, convert_to_tensor=True, truncate_dim=4, normalize_embeddings=True)
    assert isinstance(cut, torch.Tensor)
    np.testing.assert_allclose(cut, whole[:, :4] / np.linalg.norm(whole[:, :4], axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(model.similarity(whole, whole), whole @ whole.T, atol=1e-5)
    prompts = [model.encode_query("a"), model.encode("a", prompt_type="query"), model.encode_document("a")]
    np.testing.assert_array_equal(prompts[0], prompts[1])
    assert not np.allclose(prompts[0], prompts[2])  # the tiny model has a prompt for queries


def test_what_is_not_there_is_told(bundle) -> None:
    with pytest.raises(DataError, match="no pretrained model is called 'other'; there is still, trained"):
        SentenceTransformerAdapter.of_encoder(bundle, "other")
