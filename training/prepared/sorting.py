"""Checked blocks of interactions to sorted arrays on disk, within a limit of memory: DuckDB sorts, and spills to disk.

| file | array |
|---|---|
| `item_rows.safetensors` | catalogue row of each event, int32, `[events]` |
| `times.safetensors` | Unix seconds of each event, int64, `[events]`; where the data has times |
| `offsets.safetensors` | where the events of each user begin, int64, `[users + 1]` |
| `user_ids.safetensors` | ids of the users, int64, `[users]`; or UTF-8 bytes, with `user_id_offsets.safetensors` |
| `items.parquet` | ids of the catalogue in the order of the rows; where no table of items is named |

Events are in the order of the hash of the user, and of time (or position). A shard is a range of hashes: as even as a
hash makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from features.errors import DataError, needing
from features.files import ArrayFile
from features.ids import ITEM_ID, USER_ID
from features.sequences.ragged import offsets_of
from features.tables.event_blocks import CODE, ROW, EventBlocks
from features.tables.tables import ordered_events
from features.values.distinct import column_cells

SHARD_EVENTS = 1 << 20
"""Events of a shard, about."""
_BATCH_ROWS = 1 << 19
_HASH = "user_hash"


@dataclass(frozen=True)
class Sorted:
    """What was written.

    Attributes:
        shards: Users and events of each shard that has some, in the order of the arrays.
        is_ordered: Whether a position or a time orders the events of a user.
        notes: What was repaired, block by block.
    """

    shards: list[tuple[int, int]]
    is_ordered: bool
    notes: list[str]


def write_sorted(
    blocks: EventBlocks,
    folder: Path,
    *,
    num_shards: int,
    memory_bytes: int,
    threads: int,
    on_read: Callable[[int], None] = lambda rows: None,
    on_written: Callable[[int], None] = lambda events: None,
) -> Sorted:
    """Sort interactions and write their arrays to a folder.

    Args:
        blocks: The interactions.
        folder: Where to write; DuckDB's temporary files are here, too, while it sorts.
        num_shards: Number of shards, a power of two.
        memory_bytes: Most memory that DuckDB may take; a few blocks come on top of it.
        threads: Threads of DuckDB.
        on_read: Called with the rows read so far.
        on_written: Called with the events of each block that is written.

    Raises:
        DataError: The tables are wrong, DuckDB is not installed, or the disk or the memory does not suffice.
    """
    with needing("tables larger than memory"):
        import duckdb

    def sort(checked: Iterator[pa.RecordBatch]) -> Sorted:
        first = next(checked)  # where there is none, reading says why
        reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], checked))
        order = ", ".join([_HASH, *_order(first.schema.names)])
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory_bytes >> 20}MiB",
            "temp_directory": str(folder / "sorting"),
            "threads": threads,
            "preserve_insertion_order": False,
        }
        with duckdb.connect(":memory:", config=settings) as connection:
            connection.register("events", reader)
            query = connection.sql(f"SELECT *, hash({USER_ID}) AS {_HASH} FROM events ORDER BY {order}")  # noqa: S608
            whole = _whole_users(query.to_arrow_reader(_BATCH_ROWS), num_shards)
            return _write(whole, blocks, folder, on_written)

    try:
        return blocks.read(sort, on_read)
    except duckdb.Error as error:
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"{blocks.path}: cannot be sorted ({said}); free disk space in {folder.parent}, or raise prepare_memory_gb "
            "under [features]"
        ) from None


def _write(
    frames: Iterator[tuple[int, pd.DataFrame]], blocks: EventBlocks, folder: Path, on_written: Callable[[int], None]
) -> Sorted:
    """Write events that come sorted, each with its shard; the users of a frame are whole."""
    notes: list[str] = []
    with ExitStack() as stack:
        arrays: _Arrays | None = None
        is_ordered = False
        for shard, frame in frames:
            # All blocks were read by now: nothing comes out of a sort before all went in.
            interactions = ordered_events(frame.rename(columns={CODE: ITEM_ID}), notes, is_sorted=True)
            if arrays is None:
                arrays = stack.enter_context(_Arrays.open(folder, interactions.frame, blocks.item_rows()))
            arrays.append(shard, interactions.frame)
            is_ordered = interactions.is_ordered
            on_written(len(frame))
        assert arrays is not None, "there are events"
        return Sorted(arrays.shards, is_ordered, notes)


def _whole_users(batches: Iterator[pa.RecordBatch], num_shards: int) -> Iterator[tuple[int, pd.DataFrame]]:
    """Yield the shard and the events of some users, all of each, in the order in which they come."""
    rest: list[pa.RecordBatch] = []
    for batch in batches:
        hashes = batch.column(_HASH).to_numpy()
        before = rest[-1].column(_HASH)[-1].as_py() if rest else None
        starts = np.flatnonzero(np.append(before is None or hashes[0] != before, hashes[1:] != hashes[:-1]))
        if len(starts) and starts[-1]:
            yield from _by_shard([*rest, batch.slice(0, starts[-1])], num_shards)
            rest = [batch.slice(starts[-1])]
        elif len(starts):
            yield from _by_shard(rest, num_shards)
            rest = [batch]
        else:
            rest.append(batch)
    yield from _by_shard(rest, num_shards)


def _by_shard(batches: list[pa.RecordBatch], num_shards: int) -> Iterator[tuple[int, pd.DataFrame]]:
    if not batches:
        return
    table = _untied(pa.Table.from_batches(batches))
    shards = table[_HASH].to_numpy() // np.uint64(2**64 // num_shards)
    cuts = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(shards)]
    table = table.drop_columns([_HASH, ROW])
    for start, end in pairwise(cuts):
        yield int(shards[start]), table.slice(start, end - start).to_pandas(types_mapper=pd.ArrowDtype)


def _untied(table: pa.Table) -> pa.Table:
    """Return events with those of one user and moment in the order of the table, and users of one hash apart.

    More columns to sort by would make DuckDB several times as slow, and few events are concerned.
    """
    hashes, rows = table[_HASH].to_numpy(), table[ROW].to_numpy()
    keys = [table[name].to_numpy() for name in _order(table.schema.names)]
    is_tie = hashes[1:] == hashes[:-1]
    is_other_user = is_tie & _changes(table[USER_ID])
    for key in [] if is_other_user.any() else keys:
        is_tie &= key[1:] == key[:-1]
    tied = np.flatnonzero(np.append(is_tie, False) | np.append(False, is_tie))
    if not len(tied):
        return table
    users = pd.factorize(table[USER_ID].take(tied).to_pandas())[0] if is_other_user.any() else np.zeros(len(tied))
    order = np.arange(len(rows))
    order[tied] = tied[np.lexsort([rows[tied], *(key[tied] for key in keys), users, hashes[tied]])]
    return table.take(order)


def _order(names: Sequence[str]) -> list[str]:
    """Return the column that orders the events of a user: the position, else the time, else none."""
    return [name for name in ("position", "timestamp") if name in names][:1]


def _changes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return for each cell but the first whether it differs from the one before."""
    found: np.ndarray = np.asarray(pc.not_equal(column[1:], column[:-1]))
    return found.astype(bool)


@dataclass
class _Arrays:
    """The files of the arrays while they are written."""

    files: dict[str, ArrayFile]
    item_rows: Int[np.ndarray, "codes"]
    is_text: bool
    shards: list[tuple[int, int]] = field(default_factory=list)
    _shard: int | None = None
    _num_events: int = 0
    _num_bytes: int = 0

    @classmethod
    def open(cls, folder: Path, frame: pd.DataFrame, item_rows: Int[np.ndarray, "codes"]) -> _Arrays:
        is_text = bool(pa.types.is_string(column_cells(frame[USER_ID]).type))
        kinds = {"item_rows": "I32", "offsets": "I64", "user_ids": "I8" if is_text else "I64"}
        kinds |= {"times": "I64"} if "timestamp" in frame else {}
        kinds |= {"user_id_offsets": "I64"} if is_text else {}
        files = {name: ArrayFile(folder / f"{name}.safetensors", name, kind) for name, kind in kinds.items()}
        for name in files.keys() & {"offsets", "user_id_offsets"}:
            files[name].append(np.zeros(1))
        return cls(files, item_rows, is_text)

    def __enter__(self) -> _Arrays:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()

    def append(self, shard: int, frame: pd.DataFrame) -> None:
        """Write the events of some users of a shard."""
        users = frame[USER_ID]
        starts = np.append(0, np.flatnonzero(_changes(column_cells(users))) + 1)
        self._append_users(users.iloc[starts])
        self.files["offsets"].append(self._num_events + np.append(starts[1:], len(users)))
        self.files["item_rows"].append(self.item_rows[frame[ITEM_ID].to_numpy(np.int64)])
        if "times" in self.files:
            self.files["times"].append(frame["timestamp"].to_numpy(np.int64))
        self._num_events += len(users)
        if shard != self._shard:
            self._shard = shard
            self.shards.append((0, 0))
        num_users, num_events = self.shards[-1]
        self.shards[-1] = num_users + len(starts), num_events + len(users)

    def _append_users(self, users: pd.Series) -> None:
        if not self.is_text:
            self.files["user_ids"].append(users.to_numpy(np.int64))
            return
        texts = [text.encode() for text in users]
        offsets = self._num_bytes + offsets_of(np.array([len(text) for text in texts], dtype=np.int64))
        self.files["user_ids"].append(np.frombuffer(b"".join(texts), dtype=np.int8))
        self.files["user_id_offsets"].append(offsets[1:])
        self._num_bytes = int(offsets[-1])


def texts_of(content: np.ndarray, offsets: Sequence[int]) -> np.ndarray:
    """Return texts from their UTF-8 bytes, `[texts]`."""
    whole = content.tobytes()
    found = np.empty(len(offsets) - 1, dtype=object)
    for place, (start, end) in enumerate(pairwise(offsets)):
        found[place] = whole[start:end].decode()
    return found
