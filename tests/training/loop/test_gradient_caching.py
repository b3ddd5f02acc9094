"""Histories read in chunks: the same numbers, the same gradients, less kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from features.config import FeaturesConfig, FeatureSettings
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from towers.config import TowersConfig
from training.config import RunConfig, TrainingConfig
from training.loop.build import TrainingData, build
from training.loop.gradient_caching import _deal, encode_in_chunks
from training.loop.trainer import Trainer

WITHOUT_CHANCE = {"dropout": 0.0, "id_dropout": 0.0, "time_dropout": 0.0}


def trainer_of(towers: dict[str, Any] | None = None, **training: Any) -> Trainer:
    """A trainer of users with 1 to 9 events, attributes and times, who share the rows of their tables."""
    config = RunConfig(
        features=FeaturesConfig(
            interactions="none.parquet",
            max_history=6,
            item={"item_id": FeatureSettings(kind="id"), "name": FeatureSettings(kind="text")},
            user={"team": FeatureSettings(kind="category"), "age": FeatureSettings(kind="number")},
            context={"time": FeatureSettings(kind="time")},
        ),
        towers=TowersConfig(
            **{**WITHOUT_CHANCE, "embedding_dim": 8, "num_layers": 2, "num_heads": 2, **(towers or {})}
        ),
        training=TrainingConfig(**{"batch_size": 128, "warmup_steps": 0, **training}),
    )
    numbers = np.random.default_rng(0)
    lengths = numbers.integers(1, 10, 60)
    rows, times = numbers.integers(20, size=lengths.sum()), np.sort(numbers.integers(2**30, size=lengths.sum()))
    sequences = Sequences(np.arange(60), offsets_of(lengths), rows, times, is_ordered=True)
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(20), "name": [f"thing {n % 7}" for n in range(20)]}))
    users = Users(pd.DataFrame({"user_id": np.arange(60), "team": ["red", "blue"] * 30, "age": np.arange(60.0)}))
    featurizer = Featurizer.fit(Schema.from_config(config.features), catalog, users, sequences)
    data = TrainingData.prepare(sequences, catalog, users, featurizer)
    return Trainer(build(config, data, torch.device("cpu")), quiet=True)


def given_to_the_tower(trainer: Trainer, *, by_length: bool = False) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """What the user tower is given for a batch; the event vectors want gradients."""
    batch = next(trainer.batches.epoch(0))
    if by_length:
        users = batch.users.numpy()
        by_size = users[np.argsort(batch.offsets.diff().numpy(), kind="stable")]
        batch = trainer.batches._batch(trainer.train, by_size, None)
    is_input = torch.ones_like(batch.is_target)
    is_input[batch.offsets[1:] - 1] = False
    vectors = torch.randn(int(is_input.sum()), 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    offsets = batch.offsets - torch.arange(len(batch.offsets))
    assert batch.times is not None
    times = {"request_times": batch.times, "event_times": batch.times[is_input]}
    return (vectors, offsets, trainer.user_features.take(batch.users)), times


@contextmanager
def bytes_kept() -> Iterator[list[int]]:
    """Collect the bytes of what autograd keeps for later."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize("history", ["transformer", "hstu", "mean"])
def test_states_and_gradients_are_those_of_one_reading(history: str) -> None:
    trainer = trainer_of({"history_encoder": history, "time_bias": history != "mean"})
    tower = trainer.model.user_tower
    arguments, times = given_to_the_tower(trainer)
    wanted = [arguments[0], *(p for name, p in tower.named_parameters() if ".collection." not in name)]
    direction = torch.randn(len(times["request_times"]), 8, generator=torch.Generator().manual_seed(1))
    results = []
    for states in (tower(*arguments, **times), encode_in_chunks(tower, *arguments, **times, gradient_cache_chunk=17)):
        for group in (group for fused in trainer.table_optimizers for group in fused.param_groups):
            group["lr"] = 0.0  # tables learn while gradients pass
        gradients = torch.autograd.grad((states * direction).sum(), wanted, allow_unused=True)
        results.append([states, *(gradient for gradient in gradients if gradient is not None)])
    assert len(results[0]) == len(results[1]) > 5
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_steps_in_chunks_lead_to_the_weights_of_whole_steps_tables_included() -> None:
    trainers = [trainer_of(), trainer_of(gradient_cache_chunk=20)]
    before = {name: value.clone() for name, value in trainers[0].model.state_dict().items()}
    for trainer in trainers:
        for batch in trainer.batches.epoch(0):
            trainer.step(batch)
    whole, chunked = (trainer.model.state_dict() for trainer in trainers)
    for name, value in whole.items():
        torch.testing.assert_close(value, chunked[name], rtol=1e-3, atol=1e-4, msg=name)
    tables = [name for name in whole if "user_tower.attributes" in name and ".collection." in name]
    assert tables
    assert all(not torch.equal(before[name], whole[name]) for name in tables)


def test_dropout_is_the_same_when_a_chunk_is_read_again() -> None:
    trainer = trainer_of({"dropout": 0.5})
    tower = trainer.model.user_tower.train()
    (vectors, offsets, users), times = given_to_the_tower(trainer, by_length=True)
    parameters = [vectors, *tower.history.parameters()]
    direction = torch.randn(len(times["request_times"]), 8, generator=torch.Generator().manual_seed(1))
    results, random = [], []
    for remember in (False, True):
        torch.manual_seed(5)
        if remember:
            states = encode_in_chunks(tower, vectors, offsets, users, **times, gradient_cache_chunk=17)
        else:  # the same chunks, with everything kept: the random numbers are drawn once, in the same order
            states = torch.cat(
                [
                    tower(
                        vectors[chunk.events],
                        offsets[chunk.first : chunk.last + 1] - chunk.first_event,
                        users.take(torch.arange(chunk.first, chunk.last)),
                        request_times=times["request_times"][chunk.tokens],
                        event_times=times["event_times"][chunk.events],
                    )
                    for chunk in _deal(offsets.tolist(), 17)
                ]
            )
        gradients = torch.autograd.grad((states * direction).sum(), parameters)
        results.append([states, *gradients])
        random.append(torch.get_rng_state())
    assert torch.equal(*random)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # another mask would be far away


def test_only_a_chunk_is_kept() -> None:
    trainer = trainer_of({"embedding_dim": 8, "num_layers": 4})
    arguments, times = given_to_the_tower(trainer)
    with bytes_kept() as whole:
        trainer.model.user_tower(*arguments, **times)
    with bytes_kept() as chunked:
        encode_in_chunks(trainer.model.user_tower, *arguments, **times, gradient_cache_chunk=17)
    assert sum(chunked) < sum(whole) / 10


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(1, 15))
def test_chunks_are_as_large_as_allowed_and_leave_nobody_out(lengths: list[int], most: int) -> None:
    offsets = [0, *np.cumsum(lengths).tolist()]
    chunks = _deal(offsets, most)
    assert [user for chunk in chunks for user in range(chunk.first, chunk.last)] == list(range(len(lengths)))
    assert [event for chunk in chunks for event in range(offsets[-1])[chunk.events]] == list(range(offsets[-1]))
    sizes = [chunk.num_events + chunk.last - chunk.first for chunk in chunks]
    assert all(size <= most or chunk.last == chunk.first + 1 for size, chunk in zip(sizes, chunks, strict=True))
    firsts = [lengths[chunk.first] + 1 for chunk in chunks[1:]]
    assert all(size + first > most for size, first in zip(sizes, firsts, strict=False)), "the next one had no room"
