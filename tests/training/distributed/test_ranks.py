"""Several processes train as one does: the same losses and gradients, from checkpoints of any number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing

from features.errors import DataError
from tests.training.distributed import scenarios
from training.loop.checkpoint import Checkpoint
from training.loop.processes import OneProcess

SIZE = 2


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes found, which start once for all tests: importing torchrec takes them seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(scenarios.run_all, args=(SIZE, folder), nprocs=SIZE)
    return folder, [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(SIZE)]


Together = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("strategy", scenarios.LOSSES)
def test_the_gathered_loss_is_that_of_the_whole_batch_to_the_last_digits(strategy: str, together: Together) -> None:
    expected = scenarios.gathered_loss(strategy, OneProcess())
    for found in together[1]:
        loss, items, users, scale = found["losses"][strategy]
        np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
        for gradient, wanted in zip((items, users, scale), expected[1:], strict=True):
            np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_a_process_without_users_takes_part_all_the_same(together: Together) -> None:
    expected = scenarios.gathered_loss("all", OneProcess(), events=1)
    for found in together[1]:
        for values, wanted in zip(found["few users"], expected, strict=True):
            np.testing.assert_allclose(values, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", scenarios.TRAININGS)
def test_the_losses_of_a_training_are_those_of_one_process(name: str, together: Together) -> None:
    expected = scenarios.losses_of(name)
    for found in together[1]:
        np.testing.assert_allclose(found["trainings"][name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", scenarios.RESUMED)
def test_a_resumed_training_ends_with_the_weights_of_one_that_lost_no_process(
    strategy: str, together: Together
) -> None:
    assert together[1][0]["resumptions"][strategy]["resumed is exact"]


@pytest.mark.parametrize("strategy", scenarios.RESUMED)
def test_a_checkpoint_is_read_by_another_number_of_processes_and_with_another_division(
    strategy: str, together: Together
) -> None:
    folder, (first, _) = together[0] / strategy, together[1]
    assert first["resumptions"][strategy]["other division is exact"]
    assert first["resumptions"][strategy]["from one is exact"]
    alone = scenarios.training(strategy, folder / "two", None)
    alone.resume()
    assert alone.progress.step == 13
    expected = torch.load(folder / "after-13.pt", weights_only=True)
    assert all(torch.equal(weight, expected[name]) for name, weight in alone.model.state_dict().items())
    alone.checkpoint = None
    alone.fit()
    assert alone.progress.step == 30


def test_only_the_newest_parts_of_a_checkpoint_are_kept(together: Together) -> None:
    folder = together[0] / scenarios.RESUMED[0] / "two"
    named = Checkpoint.load_counters(folder / "checkpoint.safetensors")["parts"]
    assert [path.name for path in folder.glob("parts-*")] == [named]


@pytest.mark.parametrize("damage", ["removed", "cut off"])
def test_a_checkpoint_without_the_part_of_a_process_is_refused(together: Together, tmp_path: Path, damage: str) -> None:
    shutil.copytree(together[0] / scenarios.RESUMED[0] / "two", tmp_path / "two")
    part = next((tmp_path / "two").glob("parts-*/shard-00002*"))
    if damage == "removed":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=rf"{part.name}: expected [0-9,]+ bytes, found .*; put it back, or train without"
    ):
        Checkpoint.load(tmp_path / "two" / "checkpoint.safetensors")


def test_processes_with_other_settings_are_refused(together: Together) -> None:
    for found in together[1]:
        assert found["other settings"].startswith(
            "process 1 of 2 does not train the same as process 0: training.seed is 1, in process 0 0; give all the same"
        )
        assert "users is f00, in process 0 not there" in found["a table more"]
