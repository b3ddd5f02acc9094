"""The commands of training: what stands in them and elsewhere is the same."""

from __future__ import annotations

import inspect

import pytest

import towers
from towers.api.model import Model
from training import commands
from training.tasks.evaluate import evaluate_run
from training.tasks.train import train_and_bundle


def default(function, name):
    return inspect.signature(function).parameters[name].default


@pytest.mark.parametrize(
    ("command", "door", "task"),
    [(commands.train, towers.train, train_and_bundle), (commands.evaluate, Model.evaluate, evaluate_run)],
    ids=["train", "evaluate"],
)
def test_baselines_get_the_same_time_by_command_and_in_python(command, door, task):
    options = {option.name: option.default for option in command.params}
    name = "baseline_minutes"
    assert options[name] == default(door, name) == default(task, name)
