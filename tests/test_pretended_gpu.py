"""On a GPU that is pretended: training, evaluation, encoding and search keep their tensors on one device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomlkit
import torch

from features.config import EncoderSettings
from features.encoders.local import LocalModel
from features.sequences.split import leave_one_out
from features.sequences.timeline import Timeline
from serving.search.brute_force import BruteForce
from serving.search.results import ExcludedPairs
from serving.search.vectors import HalfVectors
from tests.benchmarks.gpu.trainings import kinds, losses_of, trainer_of
from tests.pretended_gpu import CPU, GpuTensor, pretended_gpu
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from tests.serving.vectors import ragged, some_allowed, unit_vectors
from tests.tiny_models import tiny_model
from tests.training.loop import test_continuation, test_fine_tuning
from tests.training.loop.test_trainer import NUM_ITEMS, circle
from towers.bundle.bundle import ModelBundle
from towers.cli.main import main
from training.config import RunConfig
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.loop.continuation import continue_fit
from training.loop.trainer import Trainer
from training.tasks import continue_training, train

pytestmark = pytest.mark.slow

KINDS = [
    "all",
    "hard and remembered",
    "prefixes, a bit of everything",
    "tables of 16 bits",
    "trend",
    "trend, a bit of everything",
    "transformer with times",
    "hstu",
    "mean",
    "attention pooling",
    "spectral",
]
TEXTS = ["a red fox runs", "", "wooden chair", "the blue whale runs a small steel lamp", "cup"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles `model` and, looking at the clock, `timed`."""
    folder = tmp_path_factory.mktemp("bundles")
    write_shop(folder / "data")
    write_untrained(folder / "model", folder / "data", SETTINGS)
    write_untrained(
        folder / "timed", folder / "data", {**SETTINGS, "towers": {**SETTINGS["towers"], "time_bias": True}}
    )
    return folder


def as_computed(losses: list[float]) -> Any:
    """Return what equals these losses but for rounding, which grows from step to step."""
    return pytest.approx(losses, rel=1e-4, abs=1e-6)


def test_what_would_fail_on_a_gpu_fails() -> None:
    with pretended_gpu() as gpu:
        there, here = torch.ones(3, device=gpu), torch.ones(3)
        assert there.is_cuda
        for wrong in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[torch.zeros(1, dtype=torch.long, device=gpu)],
            lambda: there.index_select(0, torch.zeros(1, dtype=torch.long)),
            lambda: there.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
        ):
            with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
                wrong()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert isinstance(there[torch.tensor([0, 1])], GpuTensor)
        assert (there * torch.tensor(2.0)).cpu().numpy().tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_scores_are_those_of_a_cpu(name: str) -> None:
    config = kinds()[name]
    num_steps = 14 if config.training.hard_negatives else 5  # which are mined after 12
    here = trainer_of(config, CPU, num_steps)
    expected = losses_of(here)
    questions = leave_one_out(circle(), NUM_ITEMS).validation
    scores = recommender(here).scores(questions)
    with pretended_gpu() as gpu:
        there = trainer_of(config, gpu, num_steps)
        assert losses_of(there) == as_computed(expected)
        assert isinstance(there.model.log_scale.data, GpuTensor)
        np.testing.assert_allclose(recommender(there).scores(questions), scores, atol=1e-4)


def recommender(trainer: Trainer) -> TwoTowerRecommender:
    data = trainer.data
    timeline = Timeline.of(data.train)
    return TwoTowerRecommender(trainer.model, data.featurizer, data.item_features, data.users, 10, timeline)


@pytest.mark.parametrize(("first", "then"), [("gpu", "gpu"), ("cpu", "gpu"), ("gpu", "cpu")])
def test_a_training_goes_on_from_a_checkpoint_of_either_device(first: str, then: str, tmp_path: Path) -> None:
    config, path = kinds()["hard and remembered"], tmp_path / "checkpoint.safetensors"
    expected = losses_of(trainer_of(config, CPU, 16))
    with pretended_gpu() as gpu:
        devices = {"gpu": gpu, "cpu": CPU}
        before = losses_of(trainer_of(config, devices[first], 16, path), until=13)
        going_on = trainer_of(config, devices[then], 16, path)
        going_on.resume()
        assert before + losses_of(going_on) == as_computed(expected)


@pytest.mark.parametrize("ids_only", [False, True])
def test_a_training_is_continued_with_new_items(ids_only: bool) -> None:
    config = without_dropout(test_continuation.settings(2, ids_only=ids_only, loss_precision="float32"))
    tables, train = test_continuation.tables_of(config), test_continuation.after()
    origin = test_continuation.origin_of(config, steps=10)
    expected = continue_fit(config, tables, train, origin, device=CPU)
    with pretended_gpu() as gpu:
        found = continue_fit(config, tables, train, origin, device=gpu)
        assert weights_are_close(found.model.state_dict(), expected.model.state_dict())
        states = found.table_states, expected.table_states
        assert states[0] is not None
        assert states[1] is not None
        assert weights_are_close(states[0], states[1])


def test_text_encoders_learn_with_the_towers(model_folder: Path) -> None:
    for encoder in ({}, {"lora_rank": 2, "pooling": "attention"}):
        found = []
        with pretended_gpu() as gpu:
            for device in (CPU, gpu):
                trainer = test_fine_tuning.trainer_of(model_folder, steps=3, encoder=encoder, device=device)
                torch.manual_seed(0)  # of the model's own dropout, which a real GPU draws itself
                found.append(losses_of(trainer))
        assert found[1] == as_computed(found[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_texts_are_encoded(model_folder: Path, precision: Any) -> None:
    def vectors(device: torch.device) -> np.ndarray:
        model = LocalModel(model_folder, EncoderSettings(model=str(model_folder), precision=precision), "digest")
        model.device = device
        found = np.zeros((len(TEXTS), model.width), np.float32)
        for places, some in model.encode(TEXTS, "document"):
            found[places] = some
        return found

    with pretended_gpu() as gpu:
        np.testing.assert_allclose(vectors(gpu), vectors(CPU), atol=1e-5 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("name", ["model", "timed"])
def test_a_bundle_encodes_items_and_users(name: str, bundles: Path) -> None:
    def vectors(device: torch.device) -> list[np.ndarray]:
        bundle = ModelBundle.open(bundles / name, str(device))
        tables = bundle.read_tables()
        items = bundle.encode_items(tables.catalog)
        histories = tables.interactions.sequences(tables.catalog)
        assert tables.users is not None
        attributes = tables.users.attributes_of(histories.user_ids)
        times = {"request_times": np.full(len(histories), 1_700_000_000), "event_times": histories.times}
        users = bundle.encode_users(items[histories.item_rows], histories.offsets, attributes, **times)
        one = bundle.encode_users(items[:3], np.array([0, 3]), attributes[:1])
        return [items, users, one]

    expected = vectors(CPU)
    with pretended_gpu() as gpu:
        for found, own in zip(vectors(gpu), expected, strict=True):
            np.testing.assert_allclose(found, own, atol=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.7, None])
def test_exact_search_finds_the_same_rows(share: float | None) -> None:
    vectors, queries = unit_vectors(3000), unit_vectors(23, seed=1)
    vectors[10:60] = vectors[3]  # more ties than are fetched
    allowed = None if share is None else some_allowed(3000, share)

    def rows(device: torch.device, items: Any, excluded: list[Any] | None) -> list[list[int]]:
        pairs = ExcludedPairs.of(ragged(excluded) if excluded else None, len(queries), len(vectors), allowed)
        needed = np.minimum(12, (len(vectors) if allowed is None else len(allowed)) - pairs.counts)
        found = BruteForce(items, str(device)).best(queries, np.arange(len(queries)), needed, pairs, allowed)
        return [some.tolist() for some, _ in found]

    with pretended_gpu() as gpu:
        for excluded in (None, [np.arange(user * 20) for user in range(23)]):
            assert rows(gpu, vectors, excluded) == rows(CPU, vectors, excluded)
        half = HalfVectors(vectors.astype(np.float16))
        assert rows(gpu, half, None) == rows(CPU, half, None)


def test_the_command_trains_evaluates_and_writes_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shop(tmp_path)
    (tmp_path / "run.toml").write_text(tomlkit.dumps(SETTINGS))
    monkeypatch.chdir(tmp_path)
    settings = ["training.epochs=2", "training.track=false", "training.hard_negatives=2", "towers.trend=[1]"]
    flags = [word for one in settings for word in ("--set", one)]
    with pretended_gpu() as gpu:
        for task in (train, continue_training):
            monkeypatch.setattr(task, "choose_device", lambda _: gpu)
        assert main(["train", "run.toml", "--no-baselines", "--output", "first", *flags]) == 0
        clicks = pd.read_csv("clicks.csv")
        clicks.assign(time=clicks["time"] + 10**6)[:300].to_csv("today.csv", index=False)
        more = ["--continue", "first", "--interactions", "today.csv", "--output", "second", "--set", flags[3]]
        assert main(["train", *more]) == 0
    for name in ("first", "second"):
        bundle = ModelBundle.open(Path(name))
        assert {one.device for one in bundle.model.state_dict().values()} == {CPU}
        assert bundle.report["rows"]
        assert f"seconds on {gpu.type}" in Path(name, "report.html").read_text(encoding="utf-8")


def without_dropout(config: RunConfig) -> RunConfig:
    towers = config.towers.model_copy(update={"dropout": 0.0, "id_dropout": 0.0, "time_dropout": 0.0})
    return config.model_copy(update={"towers": towers})


def weights_are_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name].cpu(), one, atol=1e-4) for name, one in expected.items()
    )
