"""`towers plan`: what a training will take, found before anything is trained or written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.parquet import memory_bytes
from training.config import RunConfig, read_run_config
from training.loop.build import TrainingData, build
from training.loop.fit import check_choices, fit_featurizer
from training.loop.trainer import Trainer
from training.planning.memory import process_memory
from training.planning.model_sizes import ModelSizes, model_sizes
from training.planning.plan import Disk, Plan
from training.planning.remedies import needs_of, remedies
from training.planning.trial import Trial, run_trial
from training.prepared.prepare import tables_as_they_are
from training.tasks.protocols import early_stopping_split


def plan_run(settings: Path, overrides: Sequence[str], *, processes: int = 1, memory: int | None = None) -> Plan:
    """Return what `towers train` of these settings will take on CPUs.

    Args:
        settings: Path of run.toml.
        overrides: `table.key=value` each.
        processes: Number of processes that torchrun would start.
        memory: Bytes of memory of all of them together. None: that of this machine.

    Raises:
        DataError: Something in the settings or the tables is wrong, the interactions have to be prepared first, or
            there are none.
    """
    config = read_run_config(settings, tuple(overrides))
    check_choices(config)
    tables = tables_as_they_are(config.features, settings)
    sequences = tables.interactions.sequences(tables.catalog)
    if not sequences.num_events:
        raise DataError(f"{settings}: there are no interactions, so nothing is trained and there is nothing to plan")
    train = early_stopping_split(config, sequences, len(tables.catalog)).train
    featurizer = fit_featurizer(config, tables, train)
    data = TrainingData.prepare(train, tables.catalog, tables.users, featurizer)
    each = (memory_bytes() if memory is None else memory) // processes

    def sizes_of(other: RunConfig) -> ModelSizes:
        fitted = featurizer if other.features == config.features else fit_featurizer(other, tables, train)
        return model_sizes(other, fitted, processes=processes, memory=each)

    sizes = sizes_of(config)
    data_bytes = resident_bytes() + train.item_rows.nbytes  # positions among known items come on top of catalogue rows
    trial = _trial(config, featurizer, data, data_bytes)
    found = tuple(process_memory(sizes, rank, data_bytes, trial) for rank in range(processes))
    needs = needs_of(sizes_of, config, train.num_events, data_bytes, trial)
    is_too_large = not sizes.fits or max(one.total for one in found) > each
    return Plan(
        interactions=train.num_events,
        users=len(train),
        items=len(tables.catalog),
        sizes=sizes,
        memory=found,
        available=each,
        trial=trial,
        disk=_disk(sizes, featurizer, trial),
        remedies=tuple(remedies(config, needs, each, processes)) if is_too_large else (),
        notes=(*tables.notes, *featurizer.notes),
    )


def _trial(config: RunConfig, featurizer: Featurizer, data: TrainingData, data_bytes: int) -> Trial | None:
    """Return what some steps take, if this machine has the memory for the model of one process."""
    alone = process_memory(model_sizes(config, featurizer), 0, data_bytes, None)
    if sum(alone.always.values()) > memory_bytes():
        return None
    return run_trial(Trainer(build(config, data, torch.device("cpu")), quiet=True), data.item_features)


def _disk(sizes: ModelSizes, featurizer: Featurizer, trial: Trial | None) -> Disk:
    """Return the room on disk; vocabularies and text encoders are measured by a copy that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        featurizer.save(Path(folder))
        fitted = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    negatives = 0 if trial is None else trial.negative_bytes
    return Disk(sizes.checkpoint_bytes + negatives, sizes.bundle_bytes + fitted, shutil.disk_usage(Path.cwd()).free)


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
