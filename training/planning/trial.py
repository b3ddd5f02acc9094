"""A trial of real training steps: how long they take, and how much memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate, count

import torch
from torch.profiler import ProfilerActivity, profile

from features.sequences.batches import EntityFeatures, SequenceBatch
from training.loop.processes import OneProcess, encode_items
from training.loop.trainer import Trainer, prefetched

SECONDS = 10.0
"""Longest time of the steps of a trial, at least one step apart."""
ENOUGH_STEPS = 200
"""Steps after which a trial ends earlier."""


@dataclass(frozen=True)
class Trial:
    """What some steps took, in one process.

    Attributes:
        steps: How many were timed.
        seconds: How long these took, batches included.
        batches: Batches of an epoch.
        step_bytes: Most memory that a step takes for a while: activations and gradients.
        catalogue_bytes: Most memory that encoding all items takes, as validation does after each epoch.
        catalogue_seconds: How long that takes.
        negative_bytes: Memory of cross-batch and hard negatives.
    """

    steps: int
    seconds: float
    batches: int
    step_bytes: int
    catalogue_bytes: int
    catalogue_seconds: float
    negative_bytes: int

    @property
    def steps_per_second(self) -> float:
        """Steps, or batches, a second."""
        return self.steps / self.seconds

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch without its validation."""
        return self.batches / self.steps_per_second


def run_trial(trainer: Trainer, item_features: EntityFeatures, seconds: float = SECONDS) -> Trial:
    """Train for a few seconds with a trainer that is not used afterwards.

    The first step is not timed, because it allocates what later ones use again; the memory of the second is measured.

    Args:
        trainer: A new one.
        item_features: Features of the catalogue, which validation encodes.
        seconds: Longest time, those of the first two steps included; one step is timed in any case.
    """
    began = time.perf_counter()
    trainer.model.train()
    with closing(prefetched(_batches(trainer))) as batches:
        trainer.step(next(batches))
        batch = next(batches)
        step_bytes = peak_bytes(lambda: trainer.step(batch))
        steps, timed = 0, time.perf_counter()
        for batch in batches:
            trainer.step(batch).item()
            steps += 1
            if steps == ENOUGH_STEPS or time.perf_counter() - began >= seconds:
                break
        elapsed = time.perf_counter() - timed
    trainer.model.eval()
    timed = time.perf_counter()
    catalogue_bytes = peak_bytes(lambda: _encode(trainer, item_features))
    return Trial(
        steps=steps,
        seconds=elapsed,
        batches=trainer.batches.num_batches(0),
        step_bytes=step_bytes,
        catalogue_bytes=catalogue_bytes,
        catalogue_seconds=time.perf_counter() - timed,
        negative_bytes=sum(tensor.nbytes for tensor in trainer.negatives.state().values()),
    )


def _batches(trainer: Trainer) -> Iterator[SequenceBatch]:
    """Yield the batches of one epoch after another: small tables have a few in each."""
    for epoch in count():
        yield from trainer.batches.epoch(epoch)


@torch.no_grad()
def _encode(trainer: Trainer, item_features: EntityFeatures) -> None:
    encode_items(trainer.model, item_features, OneProcess())


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the lines of the profiler from the standard error, to which it writes below Python."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def peak_bytes(compute: Callable[[], object]) -> int:
    """Return the most memory on a CPU that a computation takes beyond what was there before, in bytes.

    These are the tensors that torch allocates in this thread and for the backward pass.
    """
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        compute()
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    changes = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((int(event.nbytes()) for event in changes), initial=0))
