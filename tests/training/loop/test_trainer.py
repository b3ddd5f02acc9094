"""The training loop: it learns what can be learned, repeats to the bit, and resumes as if never stopped."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from features.config import ColumnSettings, FeaturesConfig, FeatureSettings
from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from towers.config import TowersConfig
from towers.model.feature_tower import unit
from towers.model.two_tower import TwoTower
from towers.process import Stopped
from training.config import RunConfig, TrainingConfig
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.loop import hard_negatives as hard_negatives_module
from training.loop import negatives as negatives_module
from training.loop.build import TrainingData, build, loss_precision
from training.loop.checkpoint import Checkpoint
from training.loop.hard_negatives import mine_hard_negatives
from training.loop.losses import LOSSES
from training.loop.negatives import AllItems, MixedSampler, Negatives
from training.loop.trainer import Progress, Trainer, random_states, set_random_states

NUM_ITEMS = 30
SAMPLED = {"negatives": "sampled", "uniform_negatives": 8, "in_batch_negatives": 8}
STRATEGIES: dict[str, dict[str, Any]] = {
    "all": {"negatives": "all"},
    "sampled": SAMPLED,
    "classic": {**SAMPLED, "log_q": "all"},
    "hard": {**SAMPLED, "hard_negatives": 2, "hard_negatives_interval": 2, "hard_negatives_skip": 1},
    "remembered": {**SAMPLED, "cross_batch_negatives": 100},
    "chunks": {"negatives": "all", "gradient_cache_chunk": 16},
    "hard and remembered": {**SAMPLED, "hard_negatives": 2, "cross_batch_negatives": 100},
    "prefixes, a bit of everything": {
        **SAMPLED, "hard_negatives": 2, "cross_batch_negatives": 100, "gradient_cache_chunk": 16, "prefixes": [4, 8]
    },
    "tables of 16 bits": {**SAMPLED, "hard_negatives": 2, "embedding_dtype": "float16"},
    "trend": {"negatives": "all", "trend": [0.0001, 0.001], "prefixes": [4]},
    "trend, a bit of everything": {
        **SAMPLED, "hard_negatives": 2, "cross_batch_negatives": 100, "gradient_cache_chunk": 16, "trend": [0.0001]
    },
}  # fmt: skip


def config_of(
    *,
    prefixes: list[int] | None = None,
    trend: list[float] | None = None,
    embedding_dtype: Literal["float32", "float16"] = "float32",
    **training: Any,
) -> RunConfig:
    settings = {"batch_size": 64, "warmup_steps": 5, "epochs": 3, "checkpoint_seconds": 0.0, **training}
    return RunConfig(
        features=FeaturesConfig(
            interactions="none.parquet",
            columns=ColumnSettings(timestamp="time"),
            max_history=10,
            item={"item_id": FeatureSettings(kind="id"), "name": FeatureSettings(kind="text")},
            user={"team": FeatureSettings(kind="category")},
        ),
        towers=TowersConfig(
            embedding_dim=16,
            embedding_dtype=embedding_dtype,
            num_layers=1,
            num_heads=2,
            dropout=0.1,
            matryoshka_dims=prefixes or [],
            trend=trend or [],
        ),
        training=TrainingConfig(**settings),
    )


def circle(num_users: int = 60) -> Sequences:
    """Everybody walks round a circle of items from a place of his own: the next item is the one after the last."""
    starts = np.random.default_rng(0).integers(NUM_ITEMS, size=num_users)
    rows = (starts[:, None] + np.arange(12)) % NUM_ITEMS
    times = np.tile(np.arange(12), num_users)
    return Sequences(np.arange(num_users), offsets_of(np.full(num_users, 12)), rows.ravel(), times, is_ordered=True)


def data_of(config: RunConfig, *, strangers: bool = False) -> TrainingData:
    """The circle; with strangers, the catalogue begins and ends with an item that nobody had."""
    sequences = circle()
    items = pd.DataFrame({"item_id": np.arange(NUM_ITEMS), "name": [f"thing {n}" for n in range(NUM_ITEMS)]})
    if strangers:
        new = pd.DataFrame({"item_id": [98, 99], "name": ["something else", "thing 7"]})
        items = pd.concat([new[:1], items, new[1:]], ignore_index=True)
        sequences = replace(sequences, item_rows=sequences.item_rows + 1)
    catalog = Catalog(items)
    users = Users(pd.DataFrame({"user_id": sequences.user_ids, "team": ["red", "blue"] * 30}))
    featurizer = Featurizer.fit(Schema.from_config(config.features), catalog, users, sequences)
    return TrainingData.prepare(sequences, catalog, users, featurizer)


def trainer_of(config: RunConfig, *, strangers: bool = False, **options: Any) -> Trainer:
    data = data_of(config, strangers=strangers)
    return Trainer(build(config, data, torch.device("cpu")), quiet=True, **options)


def weights_of(model: TwoTower) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("strategy", ["all", "sampled", "hard and remembered"])
def test_the_next_step_on_a_circle_is_learned(strategy: str) -> None:
    trainer = trainer_of(config_of(**STRATEGIES[strategy], learning_rate=5e-3), steps=250)
    model = trainer.fit()
    data = trainer.data
    towers = TwoTowerRecommender(model, data.featurizer, data.item_features, data.users, 10)
    vectors = towers.item_vectors
    history = vectors[[4, 5, 6, 7]]
    user = model.user_vectors(history, torch.tensor([0, 4]), data.user_features.take(torch.tensor([0])))
    scores = vectors @ user[0]
    scores[[4, 5, 6, 7]] = -1.0  # what somebody had is never held against him, and is not recommended either
    assert int(scores.argmax()) == 8


def test_targets_are_the_next_items_or_any() -> None:
    def orders(targets: str) -> list[list[int]]:
        batches = trainer_of(config_of(targets=targets)).batches
        walks = []
        for epoch in range(2):
            (of_first,) = (
                batch.item_rows[batch.offsets[place] : batch.offsets[place + 1]].tolist()
                for batch in batches.epoch(epoch)
                for place in (batch.users == 0).nonzero()[:, 0].tolist()
            )
            walks.append(of_first)
        return walks

    walk = circle().items_of(0).tolist()
    assert orders("next") == [walk[-11:]] * 2
    first, second = orders("any")
    assert {*first, *second} <= set(walk)
    assert first != sorted(first, key=walk.index)
    assert first != second


def test_any_target_does_not_go_with_the_clock() -> None:
    with pytest.raises(ValidationError, match="set time_bias = false"):
        RunConfig.model_validate(
            {
                "features": {"interactions": "events.csv"},
                "towers": {"time_bias": True},
                "training": {"targets": "any"},
            }
        )


def test_the_beginnings_of_vectors_learn_the_next_step_as_well() -> None:
    configs = [config_of(prefixes=prefixes, learning_rate=5e-3) for prefixes in ([4, 8], [])]
    with_prefixes, without = (right_by_width(trainer_of(config, steps=150)) for config in configs)
    assert min(with_prefixes.values()) >= 0.8
    assert without[4] < 0.7


def right_by_width(trainer: Trainer) -> dict[int, float]:
    """Share of the places on the circle from which so many of the first numbers tell the next step after four."""
    model, data = trainer.fit(), trainer.data
    items = model.item_vectors(data.item_features)
    places = (torch.arange(NUM_ITEMS)[:, None] + torch.arange(4)) % NUM_ITEMS
    someone = data.user_features.take(torch.zeros(NUM_ITEMS, dtype=torch.long))
    users = model.user_vectors(items[places.flatten()], torch.arange(NUM_ITEMS + 1) * 4, someone)
    right = {}
    for width in (4, 8, 16):
        scores = unit(users[:, :width]) @ unit(items[:, :width]).T
        best = scores.scatter(1, places, -1.0).argmax(1)
        right[width] = (best == (places[:, -1] + 1) % NUM_ITEMS).float().mean().item()
    return right


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (weights_of(trainer_of(config_of(seed=seed), steps=12).fit()) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize(
    ("strategy", "stop_after"),
    [
        *(("all", step) for step in (1, 12, 25)),  # an epoch has 12 steps
        *(("sampled", step) for step in (12, 25)),
        *(("hard", step) for step in (7, 12, 13)),
        *(("remembered", step) for step in (1, 13)),
        ("hard and remembered", 13),
        ("classic", 7),
        ("chunks", 7),
        ("prefixes, a bit of everything", 13),
        ("tables of 16 bits", 13),
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(
    tmp_path: Path, strategy: str, stop_after: int
) -> None:
    config = config_of(**STRATEGIES[strategy])

    class KilledError(Exception):
        pass

    def die(step: int, loss: float) -> None:
        if step == stop_after + 1:  # the checkpoint of step `stop_after` is the last that was written
            raise KilledError

    def quality(model: TwoTower) -> float:
        return model.log_scale.item()

    expected = trainer_of(config, validate=quality)
    expected_weights = weights_of(expected.fit())
    with pytest.raises(KilledError):
        trainer_of(config, validate=quality, checkpoint=tmp_path / "c", on_step=die).fit()
    resumed = trainer_of(config, validate=quality, checkpoint=tmp_path / "c")
    resumed.resume()
    assert resumed.progress.step == stop_after
    assert same(weights_of(resumed.fit()), expected_weights)
    assert resumed.progress.step == expected.progress.step
    assert resumed.progress.best == expected.progress.best
    kept = ("epoch", "step", "loss", "validation_ndcg_at_10")
    assert [[one.get(name) for name in kept] for one in resumed.progress.epochs] == [
        [one.get(name) for name in kept] for one in expected.progress.epochs
    ]


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, "between steps"),
        (signal.SIGTERM, "between steps"),
        (signal.SIGTERM, "at the last judgement"),
    ],
)
def test_a_signal_ends_a_training_after_a_checkpoint_that_it_goes_on_from(
    number: signal.Signals, when: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # What a shell starts in the background, these tests perhaps, ignores Ctrl-C.
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.default_int_handler)))
    config = config_of(epochs=2, negatives="all", checkpoint_seconds=3600)
    whole = trainer_of(config, validate=lambda model: 0.5).fit()
    path, sent = tmp_path / "checkpoint", []

    def send() -> None:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    def validate(model: TwoTower) -> float:
        if when == "at the last judgement" and stopped.progress.epoch == 1:
            send()
        return 0.5

    def on_step(step: int, loss: float) -> None:
        if when == "between steps" and step == 3:
            send()

    stopped = trainer_of(config, checkpoint=path, validate=validate, on_step=on_step)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as ended:
        stopped.fit()
    assert ended.value.signal == number
    assert signal.getsignal(number) == before
    assert stopped.progress.step == (3 if when == "between steps" else stopped.batches.num_batches(0) * 2)
    resumed = trainer_of(config, checkpoint=path, validate=lambda model: 0.5)
    resumed.resume()
    assert same(weights_of(resumed.fit()), weights_of(whole))


@pytest.mark.parametrize("strategy", ["all", "sampled"])
def test_items_that_nobody_had_are_not_learned_to_be_bad(strategy: str) -> None:
    """Two items without an interaction, at either end of the catalogue, change nothing that is learned."""
    config = config_of(**STRATEGIES[strategy])
    with_strangers, without = (
        weights_of(trainer_of(config, steps=20, strangers=strangers).fit()) for strangers in (True, False)
    )
    assert same(with_strangers, without)


def test_items_are_mined_anew_every_so_many_epochs_but_not_before_the_first() -> None:
    tables: list[torch.Tensor] = []
    trainer = trainer_of(config_of(**STRATEGIES["hard"], epochs=5), on_step=lambda step, loss: tables.append(table()))

    def table() -> torch.Tensor:
        assert trainer.negatives.hard is not None
        return trainer.negatives.hard.table

    random = torch.get_rng_state()
    trainer._mine_hard_negatives()
    assert torch.equal(torch.get_rng_state(), random)
    trainer.fit()
    epochs = [tables[step] for step in range(0, len(tables), 12)]
    assert len(epochs) == 5
    assert not len(epochs[0])
    assert epochs[1] is epochs[2]
    assert epochs[3] is epochs[4]
    assert not torch.equal(epochs[2], epochs[3])
    known = torch.from_numpy(trainer.data.train.item_rows).view(60, 12)
    assert not (epochs[3][:, :, None] == known[:, None, :]).any()


def test_users_of_whom_nothing_is_known_have_no_hard_items() -> None:
    trainer = trainer_of(config_of())
    batch = next(trainer.batches.epoch(0))
    table = mine_hard_negatives(trainer.model, [batch], trainer.item_features, trainer.user_features, per_user=2)
    is_asked = torch.isin(torch.arange(60), batch.users)
    assert (table[is_asked] >= 0).all()
    assert (table[~is_asked] == -1).all()


def test_of_too_many_items_others_are_searched_at_each_mining_and_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hard_negatives_module, "LEAST_POOL", 9)
    monkeypatch.setattr(hard_negatives_module, "MOST_PAIRS", 60 * 9)
    trainer = trainer_of(config_of(**STRATEGIES["hard"]))
    assert trainer.negatives.hard is not None
    mined = []
    for epoch in (1, 3, 1):
        trainer.progress.epoch = epoch
        trainer._mine_hard_negatives()
        mined.append(trainer.negatives.hard.table)
    pools = [set(table.unique().tolist()) - {-1} for table in mined]
    assert all(0 < len(pool) <= 9 for pool in pools)
    assert pools[0] != pools[1]
    assert torch.equal(mined[0], mined[2]), "the same epoch has the same pool, so that a run can be resumed"
    assert trainer.notes == hard_negatives_module.mining_notes(60, NUM_ITEMS) != []
    assert trainer_of(config_of()).notes == []


def test_a_memory_is_filled_after_the_warm_up_with_what_was_just_learned_from() -> None:
    trainer = trainer_of(config_of(**STRATEGIES["remembered"]))
    memory = trainer.negatives.memory
    assert memory is not None
    sizes = []
    for batch in trainer.batches.epoch(0):
        trainer.step(batch)
        sizes.append(len(memory.rows))
        last = batch.item_rows[batch.is_target]
        if len(sizes) > 5:
            assert memory.rows[-len(last) :].tolist() == last[-100:].tolist()
    assert sizes[:5] == [0] * 5
    assert 40 < sizes[5] <= 64
    assert sizes[-1] == 100
    assert not memory.vectors.requires_grad


def test_a_sample_is_drawn_where_one_is_asked_for_and_where_items_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(trainer_of(config_of()).negatives, AllItems)
    assert isinstance(trainer_of(config_of(hard_negatives=1)).negatives, MixedSampler)
    assert isinstance(trainer_of(config_of(cross_batch_negatives=1)).negatives, MixedSampler)
    monkeypatch.setattr(negatives_module, "FULL_SOFTMAX_ITEMS", NUM_ITEMS - 1)
    assert isinstance(trainer_of(config_of()).negatives, MixedSampler)
    assert isinstance(trainer_of(config_of(negatives="all")).negatives, AllItems)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"uniform_negatives": 0, "in_batch_negatives": 0},
            "uniform_negatives and in_batch_negatives are both 0",
        ),
        (
            {"negatives": "all", "cross_batch_negatives": 9},
            'cross_batch_negatives needs sampled negatives, found negatives = "all"',
        ),
        ({"negatives": "all", "hard_negatives": 9}, 'hard_negatives needs sampled negatives, found negatives = "all"'),
        ({"negatives": "all", "log_q": "none"}, 'log_q needs sampled negatives, found negatives = "all"; remove it'),
        ({"hard_negatives_skip": 2}, "hard_negatives_skip and hard_negatives_score_ratio need hard_negatives"),
        ({"hard_negatives_score_ratio": 0.9}, "hard_negatives_skip and hard_negatives_score_ratio need hard_negatives"),
        (
            {"gradient_cache_chunk": 999},
            "gradient_cache_chunk = 999 exceeds batch_size = 64 and has no effect; lower it",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**settings)


def test_training_stops_when_validation_no_longer_rises_and_keeps_the_best_weights() -> None:
    measured = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    seen: list[dict[str, torch.Tensor]] = []

    def quality(model: TwoTower) -> float:
        seen.append(weights_of(model))
        return next(measured)

    epochs: list[Progress] = []
    trainer = trainer_of(
        config_of(epochs=50, patience=2, lr_decays=0),
        validate=quality,
        on_epoch=lambda progress, values: epochs.append(Progress(**vars(progress))),
    )
    best = weights_of(trainer.fit())
    assert len(seen) == 4  # 0.5 is the best; two epochs without a better one
    assert same(best, seen[1])
    assert [epoch.best for epoch in epochs] == [0.1, 0.5, 0.5, 0.5]
    assert trainer.progress.best_step == epochs[1].step


def test_learning_rates_are_lowered_before_training_is_given_up() -> None:
    measured = iter([0.5, 0.4, 0.6, 0.3, 0.2, 0.1])
    rates: list[float] = []

    def quality(model: TwoTower) -> float:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return next(measured)

    trainer = trainer_of(
        config_of(epochs=50, patience=1, lr_decays=2, learning_rate=1.0, warmup_steps=0), validate=quality
    )
    trainer.fit()
    # Lowered after 0.4, which is no better than 0.5, and after 0.3; given up after 0.2.
    np.testing.assert_allclose(rates, [1.0, 1.0, 0.3, 0.3, 0.09])
    assert trainer.progress.best == 0.6


def test_embedding_tables_learn_in_the_backward_pass_at_the_rate_of_the_schedule() -> None:
    config = config_of(warmup_steps=10, embedding_learning_rate=0.5)
    trainer = trainer_of(config, steps=1)
    weights = trainer.model.item_tower.embeddings
    assert weights is not None
    before = {name: value.clone() for name, value in weights.state_dict().items()}
    trainer.fit()
    moves = {name: (value - before[name]).abs().max().item() for name, value in weights.state_dict().items()}
    # Row-wise Adagrad's first step moves a row by the rate times its direction, at most sqrt(width) = 4 in one number.
    assert all(0 < move <= 0.5 / 10 * 4 + 1e-6 for move in moves.values())


def test_a_user_tower_never_sees_the_event_it_has_to_predict() -> None:
    trainer = trainer_of(config_of())
    trainer.model.eval()
    batch = next(trainer.batches.epoch(0))
    assert trainer.loss(batch).item() > 1.0  # untrained: if the target leaked through, the loss could not be tested
    seen: list[torch.Tensor] = []
    tower = trainer.model.user_tower

    def watch(module: torch.nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        seen.extend(given[:2])

    with torch.no_grad():
        handle = tower.register_forward_hook(watch)
        trainer.loss(batch)
        handle.remove()
    events, offsets = seen
    vectors = trainer.model.item_vectors(trainer.item_features)
    for user, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        own = batch.item_rows[batch.offsets[user] : batch.offsets[user + 1]]
        torch.testing.assert_close(events[begin:end], vectors[own[:-1]])


def test_a_checkpoint_has_the_random_state_of_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU draws dropout itself; one that goes on from a checkpoint of a CPU keeps its own state."""
    gpu, state = torch.device("cuda"), torch.tensor([1, 2], dtype=torch.uint8)
    set_to: list[torch.Tensor] = []
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device: state)
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device: set_to.append(state))
    on_gpu, on_cpu = random_states(gpu), random_states(torch.device("cpu"))
    assert (on_gpu.keys(), on_cpu.keys()) == ({"torch", "cuda"}, {"torch"})
    for states in (on_gpu, on_cpu):
        set_random_states(states, gpu)
    set_random_states(on_gpu, torch.device("cpu"))
    assert set_to == [state]


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint to resume from; train without --resume"):
        Checkpoint.load(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"not a checkpoint at all")
    with pytest.raises(DataError, match="the checkpoint cannot be read"):
        Checkpoint.load(tmp_path / "broken")


def test_bfloat16_is_used_where_the_processor_has_it_and_when_asked_for() -> None:
    cpu = torch.device("cpu")
    has = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    assert loss_precision("auto", cpu) == (torch.bfloat16 if has else torch.float32)
    assert loss_precision("bfloat16", cpu) == torch.bfloat16
    assert loss_precision("float32", cpu) == torch.float32


def test_a_schedule_that_is_known_beforehand_is_followed() -> None:
    rates: list[float] = []
    trainer = trainer_of(
        config_of(learning_rate=1.0, warmup_steps=0),
        steps=5,
        decay_steps=[2, 4],
        on_step=lambda step, loss: rates.append(trainer.optimizer.param_groups[0]["lr"]),
    )
    trainer.fit()
    np.testing.assert_allclose(rates, [1.0, 1.0, 0.3, 0.3, 0.09])
    assert trainer.progress.best_step == 5


def hinge_loss(
    users: torch.Tensor,
    positives: torch.Tensor,
    items: torch.Tensor,
    scale: torch.Tensor,
    negatives: Negatives,
    *,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The mean distance by which negatives come within 0.2 of the positive; masked pairs do not count."""
    allowed = torch.ones(len(users), len(items), dtype=torch.bool)
    allowed[negatives.forbidden.positives, negatives.forbidden.negatives] = False
    margins = (0.2 - (users * positives).sum(-1, keepdim=True) + users @ items.T).clamp(min=0)
    return (margins * allowed).sum() / allowed.sum()


def test_a_loss_is_added_by_a_function_and_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "hinge", hinge_loss)
    config = config_of(prefixes=[8], negatives="all", learning_rate=5e-3, loss="hinge")
    losses: list[float] = []
    trainer = trainer_of(config, steps=120, on_step=lambda step, loss: losses.append(loss))
    assert trainer.loss_function is hinge_loss
    trainer.fit()
    assert losses[-1] < losses[0] / 2
