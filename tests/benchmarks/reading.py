"""How long it takes to read a large CSV file that needs no care, in processor seconds, against another checkout.

    python tests/benchmarks/reading.py [--rows 1000000] [--rounds 6] [--against FOLDER]

The file has the columns of MovieLens 1M (ids, rating, date, position, few cells empty), made up. With `--against` each
round also reads it with the packages of that folder, in turn, each in a process of its own; the ratio is of the least.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

HERE = Path(__file__).parents[2]


def write(path: Path, rows: int) -> None:
    """Write the file."""
    rng = np.random.default_rng(0)
    days = pa.array(rng.integers(11_000, 12_000, rows), mask=rng.random(rows) < 4e-4).cast(pa.int32())
    table = pa.table(
        {
            "user_id": rng.integers(1, 6041, rows),
            "item_id": rng.integers(1, 3953, rows),
            "rating": rng.integers(1, 6, rows),
            "timestamp": days.cast(pa.date32()),
            "position": pa.array(rng.integers(0, 2000, rows), mask=rng.random(rows) < 6e-4),
        }
    )
    pacsv.write_csv(table, path)


def measure(path: Path, times: int = 3) -> float:
    """Return the least processor seconds of reading the file with the packages that this process imports."""
    from features.tables.table_files import read_frame

    spent = []
    for _ in range(times):
        begun = time.process_time()
        read_frame(path)
        spent.append(time.process_time() - begun)
    return min(spent)


def measured_with(folder: Path, path: Path) -> float:
    """Return what `measure` finds in a process that imports the packages of a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(path)], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(measure(given.measure))
        return
    folders = [HERE, *([given.against] if given.against else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "interactions.csv"
        write(path, given.rows)
        rounds = [[measured_with(one, path) for one in folders] for _ in range(given.rounds)]
    least = np.min(rounds, axis=0)
    print(f"{given.rows:,} rows: {least[0]:.3f} s")
    if given.against:
        print(f"{given.against}: {least[1]:.3f} s; ratio {least[0] / least[1]:.2f}")


if __name__ == "__main__":
    main()
