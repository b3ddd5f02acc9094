"""Which setting to change to what, so that a training fits into memory: computed, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

from features.errors import DataError
from training.config import RunConfig, with_settings
from training.loop.build import batch_size_of
from training.planning.memory import largest
from training.planning.model_sizes import ModelSizes
from training.planning.trial import Trial

MIN_COUNTS = (2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Minimum counts that are tried; for each, the vocabularies are made again."""

Needs = Callable[[RunConfig], int]
"""Bytes that the process with the most needs, by the settings."""


@dataclass(frozen=True)
class Remedy:
    """A change of one setting with which a training fits.

    Attributes:
        setting: Its name: `towers.embedding_dim`.
        value: The value with which it fits, the nearest to the present one.
        bytes: What the process with the most then needs.
    """

    setting: str
    value: Any
    bytes: int


def needs_of(
    sizes: Callable[[RunConfig], ModelSizes], config: RunConfig, num_events: int, data_bytes: int, trial: Trial | None
) -> Needs:
    """Return what the largest process needs, as a function of the settings.

    Memory of a step was measured for `config`: it is taken to be proportional to the dimensions and to the batch.

    Args:
        sizes: Sizes of the model of some settings.
        config: The settings of the trial.
        num_events: Interactions to train on.
        data_bytes: Libraries, tables and features.
        trial: What was measured. None: nothing was.
    """

    def needs(other: RunConfig) -> int:
        dims = other.towers.embedding_dim / config.towers.embedding_dim
        batch = batch_size_of(other.training, num_events) / batch_size_of(config.training, num_events)
        scaled = None
        if trial is not None:
            step_bytes, catalogue_bytes = trial.step_bytes * dims * batch, trial.catalogue_bytes * dims
            scaled = replace(trial, step_bytes=round(step_bytes), catalogue_bytes=round(catalogue_bytes))
        return largest(sizes(other), data_bytes, scaled).total

    return needs


def remedies(config: RunConfig, needs: Needs, memory: int, processes: int) -> Iterator[Remedy]:
    """Yield changes of one setting each with which the largest process needs no more than `memory` bytes."""
    for setting, values in (
        ("towers.embedding_dim", _smaller_dims(config, processes)),
        ("features.min_count", [count for count in MIN_COUNTS if count > config.features.min_count]),
        ("training.batch_size", _halves(config.training.batch_size)),
    ):
        found = _nearest(config, setting, values, needs, memory)
        if found is not None:
            yield found


def _smaller_dims(config: RunConfig, processes: int) -> list[int]:
    """Return the dimensions below those of the settings that heads, and processes that divide rows, can share."""
    parts = 4 * processes if config.training.table_sharding == "column-wise" else 4
    step = lcm(parts, config.towers.num_heads)
    return [*range(step, config.towers.embedding_dim, step)][::-1]


def _halves(value: int) -> list[int]:
    """Return a half, a quarter and so on, down to 1."""
    return [value >> shift for shift in range(1, value.bit_length())]


def _nearest(config: RunConfig, setting: str, values: list[Any], needs: Needs, memory: int) -> Remedy | None:
    """Return the first value that fits, by bisection; None if none does. Each needs less than the one before."""
    begin, end = 0, len(values)
    fitting = None
    while begin < end:
        middle = (begin + end) // 2
        try:
            needed = needs(with_settings(config, {setting: values[middle]}, setting))
        except DataError:  # such as a vector that is shorter than its Matryoshka prefix: so are those after it
            end = middle
            continue
        if needed <= memory:
            fitting, end = Remedy(setting, values[middle], needed), middle
        else:
            begin = middle + 1
    return fitting
