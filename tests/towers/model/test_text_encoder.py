"""A pretrained model that is trained with the towers: where it begins, what is learned, and what is kept of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from features.config import EncoderSettings, FeaturesConfig
from features.encoders.encoder import PretrainedText
from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.featurizer.side_encoders import SideEncoders
from features.schema import Schema
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from tests.tiny_models import tiny_model
from towers.bundle.bundle import ModelBundle
from towers.config import TowersConfig
from towers.model.text_encoder import AttentionPooling, TextEncoder
from towers.model.two_tower import TwoTower

TEXTS = ["a red fox runs", "", "wooden chair", "the blue whale runs a small steel lamp", "cup"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def fitted(model_folder: Path, **settings) -> PretrainedText:
    chosen = {"trained_layers": "all", **settings}
    return PretrainedText.fit(EncoderSettings(model=str(model_folder), **chosen), TEXTS)


def encoded(pretrained: PretrainedText, encoder: TextEncoder, width: int = 16) -> torch.Tensor:
    tokens = pretrained.tokens(TEXTS, "document")
    flat = torch.tensor([token for one in tokens for token in one])
    return encoder(flat, torch.tensor([len(one) for one in tokens]), width)


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"pooling": "attention"}, {"trained_layers": 1}])
def test_it_begins_with_the_vectors_that_the_model_has_by_itself(model_folder, settings) -> None:
    pretrained = fitted(model_folder, **settings)
    encoder = TextEncoder(pretrained).eval()
    vectors = encoded(pretrained, encoder, 7).detach().numpy()
    np.testing.assert_allclose(vectors, pretrained.numbers(TEXTS, "document", 7), atol=2e-6)
    assert not vectors[1].any()


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"trained_layers": 1}, {"0/model/encoder/layer/1"}),
        ({"trained_layers": 2}, {"0/model/encoder/layer/0", "0/model/encoder/layer/1"}),
        ({"trained_layers": 1, "lora_rank": 3}, {"0/model/encoder/layer/1"}),
        ({"trained_layers": 1, "pooling": "attention"}, {"0/model/encoder/layer/1", "1/direction"}),
    ],
)
def test_what_is_chosen_is_learned_and_nothing_else_is_kept(model_folder, settings, trained) -> None:
    pretrained = fitted(model_folder, **settings)
    encoder = TextEncoder(pretrained)
    names = [name for name, _ in encoder.named_parameters()]
    assert {name if "direction" in name else "/".join(name.split("/")[:5]) for name in names} == trained
    assert set(encoder.state_dict()) == set(names)
    if settings.get("lora_rank"):
        assert {name.rpartition("/")[2] for name in names} == {"into", "out"}
    before = encoded(pretrained, encoder.eval()).detach()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        encoded(pretrained, encoder)[:, 0].sum().backward()
        optimizer.step()
    assert not torch.allclose(before, encoded(pretrained, encoder), atol=1e-3)
    again = TextEncoder(pretrained).eval()
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoded(pretrained, again), encoded(pretrained, encoder))


def test_computing_again_changes_no_gradient(model_folder) -> None:
    pretrained = fitted(model_folder)
    gradients = []
    for recomputes in (False, True):
        encoder = TextEncoder(pretrained).train()
        encoder.recomputes = recomputes
        torch.manual_seed(0)
        (encoded(pretrained, encoder) ** 2 * torch.arange(16)).sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.parametrize("layers", [1, "all"])
def test_in_training_dropout_disturbs_what_is_trained_and_nothing_below(model_folder, layers) -> None:
    encoder = TextEncoder(fitted(model_folder, trained_layers=layers)).train()
    disturbed = {name for name, one in encoder._model[0].named_modules() if "dropout" in name and one.training}
    kept = {name for name, one in encoder._model[0].named_modules() if "dropout" in name and not one.training}
    assert any("layer.1" in name for name in disturbed)
    assert any("layer.0" in name for name in (kept if layers == 1 else disturbed))
    assert bool(kept) == (layers == 1)
    encoder.eval()
    assert not any(one.training for one in encoder._model[0].modules())


def test_a_pooling_that_is_new_is_not_taken_for_pretrained(model_folder) -> None:
    encoder = TextEncoder(fitted(model_folder, trained_layers=1, pooling="attention"))
    pretrained = {*encoder.pretrained_parameters}
    assert {name for name, one in encoder.named_parameters() if one not in pretrained} == {"1/direction"}


def test_attention_pooling_is_a_softmax_over_the_tokens_that_are_there() -> None:
    pooling = AttentionPooling(3)
    with torch.no_grad():
        pooling.direction.copy_(torch.tensor([1.0, 0.0, 0.0]))
    tokens = torch.tensor([[[0.0, 1, 0], [np.log(3), 0, 1], [9, 9, 9]]], dtype=torch.float32)
    found = pooling({"token_embeddings": tokens, "attention_mask": torch.tensor([[1, 1, 0]])})["sentence_embedding"]
    # Scores 0 and ln 3: weights 1/4 and 3/4.
    torch.testing.assert_close(found, torch.tensor([[0.75 * np.log(3), 0.25, 0.75]], dtype=torch.float32))


def two_sides(model_folder: Path, user: str, **settings) -> tuple[TwoTower, Featurizer]:
    encoder = {"model": str(model_folder), "trained_layers": "all", **settings}
    config = FeaturesConfig.model_validate(
        {
            "interactions": "none.csv",
            "item": {"year": {"kind": "number"}, "title": {"kind": "text", "encoder": "one", "frozen_dim": 8}},
            "user": {"wish": {"kind": "text", "encoder": user, "frozen_dim": 8}},
            "encoders": {"one": encoder, "two": encoder},
        }
    )
    schema = Schema.from_config(config)
    pretrained = {name: PretrainedText.fit(own, TEXTS) for name, own in schema.encoders.items()}
    items = SideEncoders.fit(
        schema.item,
        pd.DataFrame({"year": [1.0, 2.0, 3.0], "title": ""}),
        pretrained,
        events=np.ones(3, np.int64),
    )
    users = SideEncoders.fit(
        schema.user, pd.DataFrame({"wish": [""]}), pretrained, "query", events=np.ones(1, np.int64)
    )
    featurizer = Featurizer(schema, items, users, pretrained)
    return TwoTower(TowersConfig(embedding_dim=8, num_heads=2), featurizer, 5), featurizer


def test_sides_that_name_one_encoder_share_its_weights_and_others_do_not(model_folder) -> None:
    siamese, _ = two_sides(model_folder, "one")
    apart, _ = two_sides(model_folder, "two")
    (shared,) = siamese.encoders.values()
    assert len([*shared.parameters()]) * 2 == len([*apart.encoders.parameters()])
    names = set(siamese.state_dict())
    assert {name.split(".")[1] for name in names if name.startswith("encoders")} == {"one"}


def test_texts_stand_among_the_numbers_where_those_of_a_model_that_is_not_trained_would(model_folder) -> None:
    model, featurizer = two_sides(model_folder, "one", document_prompt="the ")
    model.eval()
    items = pd.DataFrame({"year": [1.0, None, 2.5, 3.0, 2.0], "title": TEXTS})
    features = featurizer.items.encode(items)
    place = featurizer.pretrained["one"].numbers(TEXTS, "document", 8)
    expected = model.item_tower.dense(features.dense).detach().numpy() + 0.5 * place
    np.testing.assert_allclose(model.item_tower(features).detach().numpy(), expected, atol=1e-5)
    some = torch.tensor([3, 1, 3])
    np.testing.assert_allclose(model.item_tower(features.take(some)).detach().numpy(), expected[some], atol=1e-5)


def test_a_bundle_brings_back_what_was_learned_of_a_text(model_folder, tmp_path) -> None:
    write_shop(tmp_path / "data")
    features = {
        **SETTINGS["features"],
        "item": {"title": {"kind": "text", "encoder": "tiny", "frozen_dim": 8}},
        "encoders": {"tiny": {"model": str(model_folder), "trained_layers": 1, "lora_rank": 2}},
    }
    write_untrained(tmp_path / "model", tmp_path / "data", {**SETTINGS, "features": features})
    weights = load_file(tmp_path / "model" / "model.safetensors")
    learned = {name: value for name, value in weights.items() if name.startswith("encoders.tiny.")}
    assert learned
    assert sum(value.numel() for value in learned.values()) < 1_000
    bundle = ModelBundle.open(tmp_path / "model")
    vectors = bundle.encode_items(Bundled.catalog(["red lamp", "a fox"]))
    pretrained = bundle.featurizer.pretrained["tiny"]
    as_it_was = pretrained.numbers(["red lamp", "a fox"], "document", 8)
    unit = as_it_was / np.linalg.norm(as_it_was, axis=1, keepdims=True)
    assert np.abs(vectors[:, :8] - unit).max() > 1e-3  # corrections that are not zero, as `write_untrained` leaves them
    np.testing.assert_array_equal(vectors, bundle.encode_items(Bundled.catalog(["red lamp", "a fox"])))


class Bundled:
    @staticmethod
    def catalog(titles: list[str]):
        from features.tables.tables import Catalog

        return Catalog(pd.DataFrame({"item_id": range(len(titles)), "title": titles}))


def test_more_layers_than_there_are_cannot_be_trained(model_folder) -> None:
    with pytest.raises(
        DataError, match='trained_layers = 3 is more than the 2 layers of the model; lower it or say "all"'
    ):
        TextEncoder(fitted(model_folder, trained_layers=3))
