"""Parquet files that others wrote, whose sizes are looked at before they are read.

A few bytes can say that they are a billion values. What a file says of itself is compared with what is expected of it
and with the memory of the machine; a reader would first take the memory, and then see.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_BYTES = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4}
_MOST_BYTES = 16
_MOST_PARTS = 1_000_000


def read_parquet(path: Path, num_rows: int | None = None) -> pa.Table:
    """Return the table in a file.

    Args:
        path: The file.
        num_rows: How many rows it must have. None: any number.

    Raises:
        ValueError: It is no Parquet file, has another number of rows, or would not fit into memory.
        OSError: It cannot be read.
    """
    limits = {"thrift_string_size_limit": path.stat().st_size + 1, "thrift_container_size_limit": _MOST_PARTS}
    with pq.ParquetFile(path, **limits) as file:
        said = file.metadata
        if num_rows is not None and said.num_rows != num_rows:
            raise ValueError(f"{path.name} has {said.num_rows:,} rows, expected {num_rows:,}")
        needed, most = _needed(said), memory_bytes()
        if not 0 <= needed <= most:
            raise ValueError(f"{path.name} says it takes {needed:,} bytes, the memory of this machine is {most:,}")
    return pq.read_table(path, **limits)


def memory_bytes() -> int:
    """Return how much memory there is for this process and its neighbours: the machine's, or its container's."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP.read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _needed(said: pq.FileMetaData) -> int:
    """Return the approximate bytes of a file in memory, by its metadata; below 0 if that is invalid."""
    needed = int(said.num_rows)
    for group in map(said.row_group, range(said.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.num_values < 0 or column.total_uncompressed_size < 0:
                return -1
            width = _BYTES.get(column.physical_type, _MOST_BYTES)
            needed += int(column.num_values) * width + int(column.total_uncompressed_size)
    return needed
