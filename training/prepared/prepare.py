"""The tables of a run with interactions that are sorted on disk: prepared where they are not, opened where they are."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from features.config import FeaturesConfig
from features.errors import DataError
from features.files import atomic_folder
from features.ids import ITEM_ID
from features.locations.table_path import table_path
from features.sequences.sequences import Sequences
from features.tables.event_blocks import EventBlocks
from features.tables.table_files import approximate_rows
from features.tables.tables import Interactions, Tables, data_digests, read_tables, unchanged_tables
from towers.bundle.sealed_folder import MANIFEST
from towers.process import available_cores
from training.prepared.folder import FORMAT, ITEMS, PreparedFolder, PreparedInteractions, seal_prepared
from training.prepared.sorting import SHARD_EVENTS, Sorted, write_sorted

PREPARED_FROM = 20_000_000
"""Rows of interactions from which on they are prepared, unless the settings say otherwise."""
MOST_SHARDS_LOG2 = 11


def prepared_folder(settings: Path) -> Path:
    """Return where the interactions of a run.toml are prepared, unless another folder is named."""
    return settings.with_suffix(".prepared")


def training_tables(config: FeaturesConfig, settings: Path) -> Tables:
    """Return the tables of a run, with interactions on disk where there are many of them.

    Args:
        config: The `[features]` table.
        settings: Path of run.toml; the paths in it are relative to its folder.

    Raises:
        DataError: As of `read_tables`.
        BundleError: What was prepared is damaged.
    """
    if are_prepared(config, settings.parent):
        return prepared_tables(config, settings.parent, prepared_folder(settings))
    return read_tables(config, settings.parent)


def tables_as_they_are(config: FeaturesConfig, settings: Path) -> Tables:
    """Return the same tables, and write nothing: what is to be on disk has to be there.

    Args:
        config: The `[features]` table.
        settings: Path of run.toml; the paths in it are relative to its folder.

    Raises:
        DataError: As of `read_tables`, or the interactions are to be prepared and are not.
        BundleError: What was prepared is damaged.
    """
    if not are_prepared(config, settings.parent):
        return read_tables(config, settings.parent)
    where = prepared_folder(settings)
    found = PreparedFolder.open(where, _digest(config, data_digests(config, settings.parent)))
    if found is None:
        raise DataError(
            f"{where}: no interactions prepared of these tables and settings; run `towers prepare {settings}` first"
        )
    return _opened(config, settings.parent, found)


def prepared_tables(config: FeaturesConfig, folder: Path, output: Path, *, again: bool = False) -> Tables:
    """Return the tables of a run with interactions that are read from disk.

    What lies in `output` is used if it was made of the same tables with the same settings, else it is replaced as a
    whole. A process that prepares the same waits for another one that does.

    Args:
        config: The `[features]` table.
        folder: What the paths in it are relative to.
        output: The folder of the prepared interactions.
        again: Whether to prepare them even if what is there fits.

    Raises:
        DataError: As of `read_tables`; there is not enough disk; or `output` is something else.
        BundleError: What is there is damaged.
    """
    if config.interactions is None:
        raise DataError("there are no interactions to prepare; name the table under [features] interactions")
    digest = _digest(config, data_digests(config, folder))
    with _alone(output):
        found = None if again else PreparedFolder.open(output, digest)
        if found is None:
            digest = _prepare(config, folder, output)
            found = PreparedFolder.open(output, digest)
            assert found is not None, "it was written just now"
        else:
            click.echo(f"{output}: prepared already, {said_of(found.sequences)}", err=True)
    return _opened(config, folder, found)


def _opened(config: FeaturesConfig, folder: Path, found: PreparedFolder) -> Tables:
    blocks = EventBlocks(config, folder, found.readings)
    blocks.was_read(found.ids_are_text, found.item_ids)
    interactions = PreparedInteractions(pd.DataFrame(), found.sequences.is_ordered, found.sequences)
    return replace(blocks.tables(interactions), notes=found.notes, readings=found.readings)


def are_prepared(config: FeaturesConfig, folder: Path) -> bool:
    """Return whether the interactions are read from disk; arguments as of `data_digests`."""
    if config.interactions is None or config.prepare == "never":
        return False
    if config.prepare == "always":
        return True
    try:
        return approximate_rows(table_path(folder, config.interactions)) >= PREPARED_FROM
    except DataError:
        return False  # which `read_tables` reports, with all else that is wrong


def _prepare(config: FeaturesConfig, folder: Path, output: Path) -> str:
    """Prepare the interactions, and return the digest of what they were made of."""
    _refuse_other(output)
    with atomic_folder(output) as place:
        with unchanged_tables(config, folder) as digests:
            written, tables, ids_are_text = _sorted_into(place, config, folder)
        digest = _digest(config, digests)
        seal_prepared(place, digest, written, tables, ids_are_text)
    return digest


def _sorted_into(place: Path, config: FeaturesConfig, folder: Path) -> tuple[Sorted, Tables, tuple[bool, bool]]:
    """Write the sorted arrays, and return what was written, what was read with it, and which ids are text."""
    blocks = EventBlocks(config, folder)
    num_rows = approximate_rows(blocks.path)
    with (
        _bar("reading", num_rows) as reading,
        _bar("writing", num_rows) as writing,
    ):
        written = write_sorted(
            blocks,
            place,
            num_shards=2 << min(MOST_SHARDS_LOG2, (num_rows // SHARD_EVENTS).bit_length()),
            memory_bytes=int(config.prepare_memory_gb * 1e9),
            threads=available_cores(),
            on_read=lambda rows: _move(reading, rows),
            on_written=lambda events: _move(writing, int(writing.n) + events),
        )
        shutil.rmtree(place / "sorting", ignore_errors=True)
        tables = blocks.tables(Interactions(pd.DataFrame(), written.is_ordered), written.notes)
        if config.items is None:
            pq.write_table(pa.table({ITEM_ID: pa.array(tables.catalog.frame[ITEM_ID])}), place / ITEMS)
    return written, tables, blocks.ids_are_text


def _digest(config: FeaturesConfig, digests: Mapping[str, str]) -> str:
    """Return a digest of all that the arrays depend on."""
    settings = config.model_dump(mode="json", include={"columns", "min_rating", "unknown_items", "missing_ids"})
    return hashlib.sha256(json.dumps([FORMAT, settings, dict(digests)], sort_keys=True).encode()).hexdigest()


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Let no other process prepare the same folder in this block; what a killed one left is removed first.

    Where nothing can be written, nothing is prepared either, and what is there is used without a lock.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        opened = output.with_name(f".{output.name}.lock").open("w")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        yield
        return
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo(f"{output}: waiting for another process that prepares it", err=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for ending in ("partial", "old"):
            for left in output.parent.glob(f".{output.name}.*.{ending}"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def _refuse_other(output: Path) -> None:
    if output.exists() and not (output / MANIFEST).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists and holds no prepared interactions; name another folder, or remove it")


def said_of(sequences: Sequences) -> str:
    """Return how many interactions there are, and of how many users."""
    return f"{sequences.num_events:,} interactions of {len(sequences):,} users"


def _bar(what: str, total: int) -> tqdm[Any]:
    return tqdm(total=total, desc=f"{what} interactions", unit=" rows", unit_scale=True, leave=False, disable=None)


def _move(bar: tqdm[Any], rows: int) -> None:
    bar.update(rows - bar.n)
