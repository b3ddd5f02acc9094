"""The user tower for one user, beside the modules that it stands in for."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.featurizer.featurizer import Featurizer
from features.schema import Feature, Schema
from features.sequences.sequences import UNKNOWN_TIME, Sequences
from features.tables.tables import Catalog, Users
from towers.config import TowersConfig
from towers.model.history import NUM_SPANS, CausalAttention, time_spans
from towers.model.numpy_user_tower import NumpyUserTower, _first_seconds
from towers.model.two_tower import TwoTower

ITEMS = pd.DataFrame({"item_id": list("abcd")})
PEOPLE = pd.DataFrame({"user_id": [1, 2], "country": ["de", "fr"]})
TRAIN = Sequences(np.array([1, 2]), np.array([0, 2, 3]), np.array([0, 1, 2]), np.array([5, 6, 7]), is_ordered=True)
LENGTH, NOW = 12, 1_700_000_000
ARRANGEMENTS = list(product((1, 2, 3), (False, True), (False, True), (False, True)))
MOMENTS = st.one_of(st.just(UNKNOWN_TIME), st.integers(NOW - 10**9, NOW + 10))


def pair(blocks: int, time_bias: bool, has_features: bool, bag: bool = False) -> tuple[TwoTower, Featurizer]:
    """A model, its weights at random, and what makes features; `has_features`: of the user and of the request."""
    user = (Feature("user_id", "id"), Feature("country", "category")) if has_features else ()
    context = (Feature("time", "time"),) if has_features else ()
    schema = Schema(item=(Feature("item_id", "id"),), user=user, context=context)
    featurizer = Featurizer.fit(schema, Catalog(ITEMS), Users(PEOPLE), TRAIN)
    torch.manual_seed(blocks)
    config = TowersConfig(embedding_dim=16, num_layers=blocks, num_heads=2, time_bias=time_bias, sum_residual=bag)
    model = TwoTower(config, featurizer, LENGTH).eval()
    with torch.no_grad():
        for parameter in model.user_tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model, featurizer


MODELS = {arrangement: pair(*arrangement) for arrangement in ARRANGEMENTS}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ARRANGEMENTS),
    st.integers(0, LENGTH),
    st.lists(MOMENTS, min_size=LENGTH, max_size=LENGTH) | st.none(),
    st.sampled_from([None, NOW]),
    st.integers(0, 2**32 - 1),
)
def test_it_is_the_tower_up_to_rounding(arrangement, length, moments, now, seed) -> None:
    model, featurizer = MODELS[arrangement]
    events = np.random.default_rng(seed).normal(size=(length, 16)).astype(np.float32)
    events /= np.linalg.norm(events, axis=1, keepdims=True)
    times = None if moments is None else np.array(moments[:length], dtype=np.int64)
    found = NumpyUserTower(model.user_tower, featurizer.unknown_user_features)(events, now, times)
    with torch.inference_mode():
        expected = model.user_vectors(
            torch.from_numpy(events),
            torch.tensor([0, length]),
            featurizer.user_features([None], None),
            request_times=None if now is None else torch.tensor([now]),
            event_times=None if times is None else torch.from_numpy(times),
        )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[0].numpy(), atol=2e-6)


@pytest.mark.parametrize("blocks", [1, 2])
def test_it_is_the_tower_where_attention_looks_at_one_token_alone(blocks) -> None:
    """The logits then lie too far apart for exponentials that share a factor."""
    model, featurizer = pair(blocks, False, False)
    with torch.no_grad():
        for block in model.user_tower.history.blocks:
            block.qkv.weight[:32].mul_(6)
    one = NumpyUserTower(model.user_tower, featurizer.unknown_user_features)
    for seed in range(5):
        events = np.random.default_rng(seed).normal(size=(LENGTH, 16)).astype(np.float32)
        with torch.inference_mode():
            expected = model.user_vectors(
                torch.from_numpy(events), torch.tensor([0, LENGTH]), featurizer.user_features([None], None)
            )
        np.testing.assert_allclose(one(events), expected[0].numpy(), atol=2e-4)


def test_what_a_gate_closes_altogether_is_nothing_and_no_warning() -> None:
    model, featurizer = pair(1, False, False)
    with torch.no_grad():
        model.user_tower.history.blocks[0].mix.up.weight.mul_(1e3)
    one = NumpyUserTower(model.user_tower, featurizer.unknown_user_features)
    assert np.isfinite(one(np.eye(3, 16, dtype=np.float32))).all()


def test_an_encoder_derived_from_the_transformer_is_left_as_it_is() -> None:
    model, _ = pair(1, False, False)
    assert NumpyUserTower.can_be(model.user_tower)

    class Other(CausalAttention):
        """Computes what it likes."""

    model.user_tower.history.__class__ = Other
    assert not NumpyUserTower.can_be(model.user_tower)


@pytest.mark.parametrize("history", ["mean", "attention-pooling", "hstu"])
def test_towers_that_are_no_transformers_are_left_as_they_are(history: str) -> None:
    _, featurizer = MODELS[1, False, False, False]
    tower = TwoTower(TowersConfig(embedding_dim=16, history_encoder=history), featurizer, LENGTH).user_tower
    assert not NumpyUserTower.can_be(tower)


def test_steps_of_time_begin_where_they_do_for_the_modules() -> None:
    first = torch.from_numpy(_first_seconds()[1:])
    steps = torch.arange(1, NUM_SPANS)
    assert (time_spans(torch.zeros_like(first), first) >= steps).all()  # a second is two steps, so the first has none
    assert (time_spans(torch.zeros_like(first), first - 1) < steps).all()
