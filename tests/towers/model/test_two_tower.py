"""The pair of towers: unit vectors, cold users and items, and the same result however users are grouped."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.schema import Feature, Schema
from features.sequences.batches import JaggedFeatures
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from towers.config import TowersConfig
from towers.model.embeddings import FeatureEmbeddings
from towers.model.history import HISTORY_ENCODERS, Moments, check_history_encoder
from towers.model.two_tower import TwoTower

ITEMS = pd.DataFrame({"item_id": list("abcd"), "title": ["red shirt", "blue shirt", "a fox", "red fox"]})
PEOPLE = pd.DataFrame({"user_id": [1, 2], "country": ["de", "fr"]})
SCHEMA = Schema(
    item=(Feature("item_id", "id"), Feature("title", "text")),
    user=(Feature("user_id", "id"), Feature("country", "category")),
    context=(Feature("time", "time"),),
)
TRAIN = Sequences(np.array([1, 2]), np.array([0, 2, 3]), np.array([0, 1, 2]), np.array([5, 6, 7]), is_ordered=True)


@pytest.fixture
def featurizer() -> Featurizer:
    return Featurizer.fit(SCHEMA, Catalog(ITEMS), Users(PEOPLE), TRAIN)


@pytest.fixture
def model(featurizer: Featurizer) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(TowersConfig(embedding_dim=8, num_layers=1), featurizer, 20).eval()


def test_vectors_have_unit_length(model: TwoTower, featurizer: Featurizer) -> None:
    items = model.item_vectors(featurizer.item_features(Catalog(ITEMS)))
    users = model.user_vectors(items[:3], torch.tensor([0, 2, 3]), featurizer.user_features([1, 2], PEOPLE))
    torch.testing.assert_close(items.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(users.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("prefixes", [[0], [8], [9], [4, 2], [4, 4], [-1]])
def test_prefixes_that_cannot_be_are_refused(prefixes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"matryoshka_dims = .* must ascend, .* below embedding_dim = 8"):
        TowersConfig(embedding_dim=8, matryoshka_dims=prefixes)


def test_each_prefix_has_a_temperature_of_its_own_and_nothing_else_of_the_model_changes(featurizer: Featurizer) -> None:
    models = []
    for prefixes in ([], [2, 4]):
        torch.manual_seed(0)
        models.append(TwoTower(TowersConfig(embedding_dim=8, matryoshka_dims=prefixes), featurizer, 20))
    without, with_prefixes = (dict(model.named_parameters()) for model in models)
    assert with_prefixes.keys() - without.keys() == {"prefix_log_scales"}
    assert all(torch.equal(value, with_prefixes[name]) for name, value in without.items())
    assert models[0].prefix_scales == {}
    # The temperature begins at 0.05 and may fall to 0.01.
    assert {width: scale.item() for width, scale in models[1].prefix_scales.items()} == pytest.approx({2: 20, 4: 20})
    with torch.no_grad():
        with_prefixes["prefix_log_scales"].add_(torch.tensor([0.0, 9.0]))
    assert {width: scale.item() for width, scale in models[1].prefix_scales.items()} == pytest.approx({2: 20, 4: 100})


def test_an_item_without_a_trained_id_stands_on_its_text(model: TwoTower, featurizer: Featurizer) -> None:
    twins = pd.DataFrame({"item_id": ["new", "newer"], "title": ["red fox", "red fox"]})
    other = pd.DataFrame({"item_id": ["newest"], "title": ["quite different"]})
    first, second = model.item_vectors(featurizer.item_features(Catalog(twins)))
    torch.testing.assert_close(first, second)
    assert first @ model.item_vectors(featurizer.item_features(Catalog(other)))[0] < 0.99


@pytest.mark.parametrize("width", [8, 12])
def test_items_known_by_fixed_text_alone_are_as_near_as_their_texts(width: int) -> None:
    titled = Schema(item=(Feature("title", "text", frozen_dim=8),))
    catalog = Catalog(ITEMS)
    featurizer = Featurizer.fit(titled, catalog, None, replace(TRAIN, item_rows=np.array([0, 1, 3])))
    model = TwoTower(TowersConfig(embedding_dim=width, num_layers=1), featurizer, 20).eval()
    features = featurizer.item_features(catalog)
    placed = functional.normalize(features.dense, dim=1)
    vectors = model.item_vectors(features)
    torch.testing.assert_close(vectors @ vectors.T, placed @ placed.T)


def test_a_user_without_history_is_told_by_attributes_and_an_unknown_id_adds_nothing(
    model: TwoTower, featurizer: Featurizer
) -> None:
    nothing = torch.zeros(0, 8)
    features = featurizer.user_features([98, 99, 97], pd.DataFrame({"country": ["de", "de", "fr"]}))
    first, second, third = model.user_vectors(nothing, torch.zeros(4, dtype=torch.long), features)
    torch.testing.assert_close(first, second)
    assert first @ third < 0.999


def test_users_are_encoded_alike_alone_and_together(model: TwoTower, featurizer: Featurizer) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(9, 8), dim=1)
    features = featurizer.user_features([1, 2, 3], pd.DataFrame({"country": ["de", None, "fr"]}))
    times = torch.tensor([10, 200_000, 3_000_000])
    together = model.user_vectors(vectors, torch.tensor([0, 6, 6, 9]), features, request_times=times)
    for user, (begin, end) in enumerate([(0, 6), (6, 6), (6, 9)]):
        alone = model.user_vectors(
            vectors[begin:end],
            torch.tensor([0, end - begin]),
            features.take(torch.tensor([user])),
            request_times=times[user : user + 1],
        )
        torch.testing.assert_close(alone[0], together[user], rtol=1e-4, atol=1e-5)


def test_the_time_of_the_request_changes_the_answer(model: TwoTower, featurizer: Featurizer) -> None:
    features = featurizer.user_features([1, 1], None)
    morning, evening = model.user_vectors(
        torch.zeros(0, 8),
        torch.zeros(3, dtype=torch.long),
        features,
        request_times=torch.tensor([6 * 3600, 20 * 3600]),
    )
    assert morning @ evening < 0.999


def test_every_prediction_of_a_pass_equals_the_vector_after_that_much_history(
    model: TwoTower, featurizer: Featurizer
) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    features = featurizer.user_features([1], PEOPLE[:1])
    states = model.user_tower(vectors, torch.tensor([0, 5]), features)
    assert len(states) == 6
    for seen in range(6):
        expected = model.user_vectors(vectors[:seen], torch.tensor([0, seen]), features)
        torch.testing.assert_close(states[seen], expected[0], rtol=1e-4, atol=1e-5)


class Gru(nn.Module):
    """A history encoder as CONTRIBUTING.md describes it: a recurrent network over each user's tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width)

    def forward(self, tokens: Tensor, offsets: Tensor, moments: Moments | None = None) -> Tensor:
        """Return the summary at each token."""
        packed, _ = self.gru(pack_sequence(tokens.split(offsets.diff().tolist()), enforce_sorted=False))
        return torch.cat(unpack_sequence(packed))


def test_a_history_encoder_is_added_by_a_class_and_an_entry(
    monkeypatch: pytest.MonkeyPatch, timeless: Featurizer
) -> None:
    monkeypatch.setitem(HISTORY_ENCODERS, "gru", lambda config, length: Gru(config.embedding_dim))
    config = TowersConfig(embedding_dim=8, history_encoder="gru")
    torch.manual_seed(0)
    model = TwoTower(config, timeless, 20).eval()
    assert isinstance(model.user_tower.history, Gru)
    vectors = functional.normalize(torch.randn(7, 8), dim=1)
    offsets, features = torch.tensor([0, 5, 5, 7]), timeless.user_features([1, 2, 3], None)
    states = model.user_tower(vectors, offsets, features)
    for user, first in ((0, 0), (1, 6), (2, 7)):
        begin, end = int(offsets[user]), int(offsets[user + 1])
        for seen in range(end - begin + 1):
            alone = features.take(torch.tensor([user]))
            expected = model.user_vectors(vectors[begin : begin + seen], torch.tensor([0, seen]), alone)
            torch.testing.assert_close(states[first + seen], expected[0], rtol=1e-4, atol=1e-5)
    states.sum().backward()
    assert all(parameter.grad is not None for parameter in model.user_tower.history.parameters())


def test_the_setting_accepts_the_history_encoders_of_the_table_and_none() -> None:
    names = [*HISTORY_ENCODERS, "none"]
    assert TowersConfig.model_fields["history_encoder"].examples == names, "as the reference lists them"
    for name in names:
        check_history_encoder(TowersConfig(history_encoder=name))
    with pytest.raises(
        DataError, match=r"expected one of mean, .*, hstu and none, found 'gru'; in Python, add your own to"
    ):
        check_history_encoder(TowersConfig(history_encoder="gru"))


@pytest.fixture
def timeless() -> Featurizer:
    """No hour and no weekday: what is seen of the time is seen by the history encoder."""
    return Featurizer.fit(replace(SCHEMA, context=()), Catalog(ITEMS), Users(PEOPLE), TRAIN)


@pytest.fixture
def timed(timeless: Featurizer) -> TwoTower:
    torch.manual_seed(0)
    model = TwoTower(TowersConfig(embedding_dim=8, num_layers=2, time_bias=True, time_dropout=0.5), timeless, 20)
    for parameter in model.parameters():
        if not parameter.any():  # what begins as zeros says nothing of the time
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_a_user_is_another_at_another_time_after_the_same_events(timed: TwoTower, timeless: Featurizer) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    features = timeless.user_features([1, 1], None)

    def user(request: int | None) -> torch.Tensor:
        return timed.user_vectors(
            vectors,
            torch.tensor([0, 5, 5]),
            features,
            request_times=None if request is None else torch.tensor([request, request]),
            event_times=torch.tensor([0, 10, 20, 1000, 1010]),
        )

    soon, late, never = user(1011), user(10**8), user(None)
    assert soon[0] @ late[0] < 0.9999
    assert soon[0] @ never[0] < 0.9999
    torch.testing.assert_close(soon[1], late[1])  # without events there is nothing to have been long ago


def test_each_prediction_of_a_pass_knows_its_own_time(timed: TwoTower, timeless: Featurizer) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    features = timeless.user_features([1], PEOPLE[:1])
    event_times = torch.tensor([0, 10, 20, 1000, 100_000])
    requests = torch.cat([event_times, torch.tensor([900_000])])
    states = timed.user_tower(vectors, torch.tensor([0, 5]), features, request_times=requests, event_times=event_times)
    for seen in range(6):
        expected = timed.user_vectors(
            vectors[:seen],
            torch.tensor([0, seen]),
            features,
            request_times=requests[seen : seen + 1],
            event_times=event_times[:seen],
        )
        torch.testing.assert_close(states[seen], expected[0], rtol=1e-4, atol=1e-5)


def test_training_hides_the_times_of_some_users_whole(timed: TwoTower, timeless: Featurizer) -> None:
    torch.manual_seed(3)
    config = TowersConfig(embedding_dim=8, num_layers=2, time_bias=True, time_dropout=0.5, dropout=0.0, id_dropout=0.0)
    model = TwoTower(config, timeless, 20).train()
    model.load_state_dict(timed.state_dict())
    vectors = torch.nn.functional.normalize(torch.randn(3, 8), dim=1).repeat(40, 1)
    offsets, features = torch.arange(41) * 3, timeless.user_features([1] * 40, None)
    times = {"request_times": torch.full((40,), 10**6), "event_times": torch.tensor([0, 100, 200]).repeat(40)}
    told, untold = (
        timed.user_vectors(vectors, offsets, features, **times),
        timed.user_vectors(vectors, offsets, features),
    )
    found = model.user_vectors(vectors, offsets, features, **times)
    as_told, as_untold = ((found - one).abs().amax(dim=1) < 1e-4 for one in (told, untold))
    assert (as_told ^ as_untold).all()
    assert 8 < as_untold.sum() < 32


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads = 3 does not divide embedding_dim = 64"):
        TowersConfig(num_heads=3)
    with pytest.raises(ValueError, match=r"time_bias is for history_encoder = .transformer. or .hstu., found 'mean'"):
        TowersConfig(history_encoder="mean", time_bias=True)
    with pytest.raises(
        ValueError, match=r"sum_residual is for history_encoder = .transformer. or .hstu., found 'none'"
    ):
        TowersConfig(history_encoder="none", sum_residual=True)


def test_a_model_for_training_and_one_for_inference_agree(featurizer: Featurizer) -> None:
    trained = TwoTower(TowersConfig(embedding_dim=8, num_layers=1), featurizer, 20, learning_rate=0.1).eval()
    plain = TwoTower(TowersConfig(embedding_dim=8, num_layers=1), featurizer, 20).eval()
    plain.load_state_dict(trained.state_dict())
    features = featurizer.item_features(Catalog(ITEMS))
    torch.testing.assert_close(trained.item_vectors(features), plain.item_vectors(features))


def test_hidden_ids_are_hidden_in_training_only(featurizer: Featurizer) -> None:
    config = TowersConfig(embedding_dim=8, num_layers=1, id_dropout=0.999)
    model = TwoTower(config, featurizer, 20)
    catalog = Catalog(pd.DataFrame({"item_id": ["a", "stranger"], "title": ["red fox", "red fox"]}))
    features = featurizer.item_features(catalog)
    known, stranger = model.train().item_vectors(features)
    torch.testing.assert_close(known, stranger)
    known, stranger = model.eval().item_vectors(features)
    assert known @ stranger < 0.999


def test_a_bag_of_n_rows_is_their_sum_over_the_root_of_n() -> None:
    embeddings = FeatureEmbeddings({"tags": 4, "brand": 3}, 2)
    tags, brands = embeddings.collection.state_dict().values()
    tags.copy_(torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    brands.copy_(torch.tensor([[0.0, 0.0], [7.0, 8.0], [9.0, 9.0]]))
    jagged = JaggedFeatures(("tags", "brand"), torch.tensor([1, 2, 3, 1]), torch.tensor([3, 0, 1, 0]))
    # The first has the tags 1 to 3, (1+3+5, 2+4+6) / sqrt(3), and brand 1; the second has nothing.
    expected = torch.tensor([[[9 / 3**0.5, 12 / 3**0.5], [7.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(embeddings(jagged), expected)


WRITTEN = Schema(item=(Feature("title", "text"), Feature("note", "text")), user=(Feature("words", "text"),))
NOTES = ITEMS.assign(note=["", "warm", "quick", "quick"])
ASKING = pd.DataFrame({"user_id": [1, 2], "words": ["red fox", "nothing of it"]})


def siamese(schema: Schema, *, shared: bool = True, learning_rate: float | None = None) -> tuple[TwoTower, Featurizer]:
    fitted = Featurizer.fit(schema, Catalog(NOTES), Users(ASKING), TRAIN, whole_catalog=True, shared_texts=shared)
    torch.manual_seed(0)
    model = TwoTower(
        TowersConfig(embedding_dim=64, history_encoder="none", shared_text_encoder=shared),
        fitted,
        20,
        learning_rate=learning_rate,
    )
    return model.eval(), fitted


def asked(model: TwoTower, featurizer: Featurizer, words: list[str]) -> torch.Tensor:
    features = featurizer.user_features([None] * len(words), pd.DataFrame({"words": words}))
    offsets = torch.zeros(len(words) + 1, dtype=torch.int64)
    return model.user_vectors(torch.zeros(0, 64), offsets, features).detach()


def test_shared_texts_are_the_same_vector_whoever_says_them() -> None:
    model, featurizer = siamese(WRITTEN)
    assert {name.split(".")[0] for name in model.state_dict()} == {"texts", "log_scale"}
    only_titles = NOTES.assign(note=None)
    items = model.item_vectors(featurizer.item_features(Catalog(only_titles))).detach()
    torch.testing.assert_close(asked(model, featurizer, ITEMS["title"].tolist()), items)
    apart, apart_featurizer = siamese(WRITTEN, shared=False)
    others = apart.item_vectors(apart_featurizer.item_features(Catalog(only_titles))).detach()
    assert (asked(apart, apart_featurizer, ITEMS["title"].tolist()) * others).sum(dim=1).abs().max() < 0.6


def test_without_a_history_what_somebody_had_changes_nothing() -> None:
    model, featurizer = siamese(WRITTEN)
    users = featurizer.user_features([1, 2], ASKING[["words"]])
    had = model.user_vectors(functional.normalize(torch.randn(3, 64), dim=1), torch.tensor([0, 1, 3]), users).detach()
    torch.testing.assert_close(had, asked(model, featurizer, ASKING["words"].tolist()))
    assert not model.user_vectors(torch.zeros(0, 64), torch.tensor([0, 0]), featurizer.user_features([1], None)).any()


def test_corrections_begin_at_nothing_and_one_step_moves_both_towers() -> None:
    fixed = replace(WRITTEN.item[0], frozen_dim=32)
    corrected = replace(fixed, trainable_residual=True)
    plain, plain_featurizer = siamese(Schema(item=(fixed,), user=(replace(fixed, name="words"),)))
    schema = Schema(item=(corrected,), user=(replace(corrected, name="words"),))
    model, featurizer = siamese(schema, learning_rate=0.1)
    catalog, before = Catalog(NOTES), plain.item_vectors(plain_featurizer.item_features(Catalog(NOTES))).detach()
    torch.testing.assert_close(model.item_vectors(featurizer.item_features(catalog)).detach(), before)
    torch.testing.assert_close(asked(model, featurizer, ["red fox"]), asked(plain, plain_featurizer, ["red fox"]))
    words = featurizer.user_features([None], pd.DataFrame({"words": ["azure garment"]}))
    item = model.item_vectors(featurizer.item_features(catalog))[1]
    likeness = model.user_vectors(torch.zeros(0, 64), torch.tensor([0, 0]), words)[0] @ item
    (1 - likeness).backward()
    after = model.item_vectors(featurizer.item_features(catalog)).detach()
    assert after[1] @ asked(model, featurizer, ["azure garment"])[0] > likeness.detach() + 0.05
    torch.testing.assert_close(after[3], before[3], atol=1e-6, rtol=0)
