"""Encoders of items, users and texts: their vectors on the device and on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks.gpu.lines import Line, difference, measured
from tests.benchmarks.gpu.run import Run, SkippedError, seconds_of

if TYPE_CHECKING:
    import torch

NEAR, ROUNDED = 1e-4, 5e-2
"""Largest difference of a number of a unit vector, in float32 and in bfloat16."""


def encoding(run: Run) -> Iterator[Line]:
    """The bundle of the training on the CPU, opened on both: vectors of items and of users with their histories."""
    from towers.bundle.bundle import ModelBundle

    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, device in run.devices.items():
        bundle = ModelBundle.open(run.shop / "runs" / "cpu", device)
        tables = bundle.read_tables()
        histories = tables.interactions.sequences(tables.catalog).last(bundle.config.features.max_history)
        attributes = None if tables.users is None else tables.users.attributes_of(histories.user_ids)
        items = bundle.encode_items(tables.catalog)
        now = np.full(len(histories), 2_000_000_000)

        def users(bundle: Any = bundle, items: Any = items, given: Any = (histories, attributes, now)) -> np.ndarray:
            events, own, times = given
            vectors: np.ndarray = bundle.encode_users(
                items[events.item_rows],
                events.offsets,
                own,
                events.user_ids,
                request_times=times,
                event_times=events.times,
            )
            return vectors

        found[name] = items, users()
        where = "device" if name == "device" else "CPU"
        yield measured(f"users encoded on the {where}", len(histories) / seconds_of(device, users, 1), "users/s")
    for place, what in enumerate(("items", "users")):
        yield difference(f"vectors of {what}", found["device"][place], found["cpu"][place], NEAR)


def texts(run: Run) -> Iterator[Line]:
    """A frozen encoder of texts on both, in float32 and bfloat16, and one that is trained with the towers."""
    if find_spec("sentence_transformers") is None:
        raise SkippedError("sentence-transformers is not installed; the extra `text` brings it")
    import torch

    from features.encoders.local import quiet_models
    from tests.tiny_models import tiny_model

    with tempfile.TemporaryDirectory() as folder, quiet_models():
        model = run.text_model or tiny_model(Path(folder))
        device, cpu = torch.device(run.device), torch.device("cpu")
        written = _texts(run.sizes.texts)
        expected = _encoded(model, "float32", cpu, written)
        for precision, most in (("float32", NEAR), ("bfloat16", ROUNDED)):
            found = _encoded(model, precision, device, written)
            yield difference(f"vectors of texts in {precision}", found, expected, most)
        for where, name in ((device, "device"), (cpu, "CPU")):
            seconds = seconds_of(run.device, lambda where=where: _encoded(model, "float32", where, written), 1)
            yield measured(f"texts encoded on the {name}, with loading", len(written) / seconds, "texts/s")
        yield from _trained(Path(folder), device, cpu, run.sizes.steps)


def _texts(count: int) -> list[str]:
    from tests.tiny_models import WORDS

    drawn = np.random.default_rng(0)
    return [" ".join(drawn.choice(WORDS, drawn.integers(1, 30))) for _ in range(count)]


def _encoded(folder: Path, precision: Any, device: torch.device, written: list[str]) -> np.ndarray:
    """Return the vectors of texts by a model on a device, which it would choose by itself otherwise."""
    from features.config import EncoderSettings
    from features.encoders.local import LocalModel

    model = LocalModel(folder, EncoderSettings(model=str(folder), precision=precision), "")
    model.device = device
    vectors = np.zeros((len(written), model.width), np.float32)
    for places, some in model.encode(written, "document"):
        vectors[places] = some
    return vectors


def _trained(folder: Path, device: torch.device, cpu: torch.device, num_steps: int) -> Iterator[Line]:
    """Compare the losses of trainings with an encoder of texts that learns, all of it or by low-rank corrections."""
    import torch

    from tests.benchmarks.gpu.trainings import LOSS, losses_of
    from tests.tiny_models import tiny_model
    from tests.training.loop.test_fine_tuning import trainer_of

    model = tiny_model(folder / "trained", dropout=0.0)
    for name, encoder in (("all layers", {}), ("LoRA, pooling by attention", {"lora_rank": 2, "pooling": "attention"})):
        found = []
        for where in (device, cpu):
            torch.manual_seed(0)
            found.append(losses_of(trainer_of(model, steps=num_steps, encoder=dict(encoder), device=where)))
        yield difference(f"texts that are trained, {name}: losses", *found, LOSS, relative=True)
