"""What `towers prepare` and training from disk take, against DuckDB's own sorted write and training from memory.

    python tests/benchmarks/prepare.py [--rows 10000000 30000000] [--items 1000000] [--memory-gb 2] [--text]

For each number of rows a table of random interactions is written (20 to 80 events a user, items by a power law, integer
or text ids). Then, each in a process of its own, with as many threads as there are cores:

- `duckdb`: distinct item ids to rows, a join, `ORDER BY user, time`, Parquet out;
- `prepare`: the whole of `towers prepare`;
- `disk`: so many steps of training of a small model on items' ids, on the CPU, from the prepared folder;
- `memory`: the same from the same arrays in memory.

Every process has the environment that the command line gives to commands that compute. Time is that of the processor,
user and system, so that neighbours on the machine do not count. Memory is the peak of what a process holds for itself
(`RssAnon`, sampled every 50 ms), and the peak with the mapped pages of files, which the kernel may take back at any
time (`VmHWM`).

The bars: `prepare` at least half the rows a second of `duckdb`; `disk` at least .95 of the steps a second of `memory`;
peak memory that grows by less than a tenth between the least and the most rows, and stays below 6 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from towers.process import prepared_environment

HERE = Path(__file__).parents[2]
BLOCK = 1 << 20


def write(path: Path, rows: int, items: int, *, is_text: bool) -> None:
    """Write interactions in a random order, block by block."""
    rng = np.random.default_rng(0)
    users = max(1, rows // 50)
    kind = pa.string() if is_text else pa.int64()
    schema = pa.schema([("user_id", kind), ("item_id", kind), ("timestamp", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, BLOCK):
            length = min(BLOCK, rows - start)
            user, item = rng.integers(0, users, length), (items * rng.random(length) ** 2).astype(np.int64)
            columns = [pa.array(user).cast(kind), pa.array(item).cast(kind)]
            times = pa.array(rng.integers(1_600_000_000, 1_700_000_000, length))
            writer.write_table(pa.Table.from_arrays([*columns, times], schema=schema))


def sort_with_duckdb(folder: Path, memory_gb: float) -> dict[str, float]:
    """Let DuckDB alone number the items, sort and write."""
    import duckdb

    settings = {"memory_limit": f"{memory_gb}GB", "temp_directory": str(folder / "spilled")}
    table, out = folder / "interactions.parquet", folder / "sorted.parquet"
    with duckdb.connect(":memory:", config=settings) as connection:
        connection.execute(
            f"CREATE TABLE items AS SELECT item_id, row_number() OVER (ORDER BY item_id) - 1 AS item_row "
            f"FROM (SELECT DISTINCT item_id FROM '{table}')"
        )
        connection.execute(
            f"COPY (SELECT user_id, item_row::INTEGER AS item_row, timestamp FROM '{table}' JOIN items USING (item_id) "
            f"ORDER BY user_id, timestamp) TO '{out}'"
        )
    out.unlink()
    return {}


def run_prepare(folder: Path, memory_gb: float) -> dict[str, float]:
    """Prepare the interactions."""
    from training.prepared.prepare import prepared_tables

    tables = prepared_tables(_features(memory_gb), folder, folder / "run.prepared", again=True)
    return {"events": len(tables.interactions)}


def run_train(folder: Path, memory_gb: float, *, steps: int, in_memory: bool) -> dict[str, float]:
    """Make so many steps of training, and say how long they took."""
    from dataclasses import replace

    import torch

    from features.featurizer.featurizer import Featurizer
    from features.schema import Schema
    from features.sequences.split import leave_one_out
    from towers.config import TowersConfig
    from training.config import RunConfig, TrainingConfig
    from training.loop.build import TrainingData, build
    from training.loop.trainer import Trainer
    from training.prepared.prepare import prepared_tables

    config = RunConfig(
        features=_features(memory_gb),
        towers=TowersConfig(embedding_dim=32, num_layers=1, num_heads=2),
        training=TrainingConfig(negatives="sampled", track=False, batch_size=2048),
    )
    tables = prepared_tables(config.features, folder, folder / "run.prepared")
    sequences = tables.interactions.sequences(tables.catalog)
    if in_memory:
        times = None if sequences.times is None else np.array(sequences.times)
        sequences = replace(sequences, item_rows=np.array(sequences.item_rows), times=times, folder=None)
    split = leave_one_out(sequences, len(tables.catalog), test=False)
    featurizer = Featurizer.fit(Schema.from_config(config.features), tables.catalog, None, split.train)
    data = TrainingData.prepare(split.train, tables.catalog, None, featurizer)
    trainer = Trainer(build(config, data, torch.device("cpu")), steps=steps, quiet=True)
    begun = time.process_time()
    trainer.fit()
    return {"steps_per_second": steps / (time.process_time() - begun)}


def _features(memory_gb: float) -> Any:
    from features.config import ColumnSettings, FeaturesConfig, FeatureSettings

    return FeaturesConfig(
        interactions="interactions.parquet",
        columns=ColumnSettings(timestamp="timestamp"),
        item={"item_id": FeatureSettings(kind="id")},
        max_history=50,
        prepare="always",
        prepare_memory_gb=memory_gb,
    )


def measured(what: str, folder: Path, memory_gb: float, steps: int) -> dict[str, float]:
    """Do one thing in this process and return what it took."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], _kilobytes("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begun, clock = time.process_time(), time.perf_counter()
    match what:
        case "duckdb":
            found = sort_with_duckdb(folder, memory_gb)
        case "prepare":
            found = run_prepare(folder, memory_gb)
        case _:
            found = run_train(folder, memory_gb, steps=steps, in_memory=what == "memory")
    spent, wall = time.process_time() - begun, time.perf_counter() - clock
    over.set()
    watcher.join()
    return {
        **found,
        "cpu_seconds": spent,
        "wall_seconds": wall,
        "own_gb": max(peak[0], _kilobytes("RssAnon")) / 1e6,
        "peak_gb": _kilobytes("VmHWM") / 1e6,
    }


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Measure all, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000, 30_000_000])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--memory-gb", type=float, default=2.0, help="limit of the sorts, prepare_memory_gb of ours")
    parser.add_argument("--text", action="store_true", help="ids as text")
    parser.add_argument("--folder", type=Path, help="where to write; the default is a temporary folder")
    parser.add_argument("--what", nargs="+", default=["duckdb", "prepare", "disk", "memory"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        what, folder = given.one
        print(json.dumps(measured(what, Path(folder), given.memory_gb, given.steps)))
        return
    for rows in given.rows:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            write(Path(folder) / "interactions.parquet", rows, given.items, is_text=given.text)
            for what in given.what:
                numbers = ["--memory-gb", str(given.memory_gb), "--steps", str(given.steps)]
                command = [sys.executable, __file__, "--one", what, folder, *numbers]
                environment = {**prepared_environment(os.environ), "PYTHONPATH": str(HERE)}
                done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{rows:>12,} {what:8} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                    continue
                said = json.loads(done.stdout.splitlines()[-1])
                rate = rows / said["cpu_seconds"]
                print(
                    f"{rows:>12,} {what:8} {said['cpu_seconds']:7.1f} s CPU {said['wall_seconds']:7.1f} s "
                    f"{rate:>10,.0f} rows/s  {said['own_gb']:5.2f} GB of its own, {said['peak_gb']:5.2f} GB with files"
                    + (f"  {said['steps_per_second']:.2f} steps/s" if "steps_per_second" in said else ""),
                    flush=True,
                )


if __name__ == "__main__":
    main()
