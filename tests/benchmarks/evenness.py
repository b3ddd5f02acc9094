"""Whether training costs by the interaction, however long the histories are: seconds for a million of them.

    python tests/benchmarks/evenness.py [--data amazon-beauty ml-1m] [--rounds 3] [--epochs 3] [--threads 2]

Every data set is learned from with the same settings: as many sampled negatives, as many interactions a step, ids
alone. A model that pads its histories pays for the longest; here a user with seven interactions (Beauty's mean) costs
as much for each of them as one with a hundred. Counted are the interactions that are read: of each history the newest
200 (MovieLens-1M) or 50 (Beauty) and the one before them. Every training runs in a process of its own, by turns; its
first epoch warms up and does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from tests.benchmarks.ids_only import LENGTHS, TITLES, Measured, Task, is_there, measure, processor, read, run, spread
from towers.process import available_cores
from towers.warnings_filter import quiet_imports


def main() -> None:
    """Measure the data sets that are there, and print a line for each and how far they are apart."""
    given = _arguments()
    if given.ours:
        quiet_imports()
        print(json.dumps(asdict(measure(task_of(given.data[0], json.loads(given.ours))))))
        return
    tasks = {data: task_of(data, {}) for data in given.data if is_there(data)}
    training = {
        "epochs": given.epochs,
        "batch_size": given.batch_size,
        "uniform_negatives": given.negatives // 2,
        "in_batch_negatives": given.negatives - given.negatives // 2,
    }
    costs: dict[str, list[float]] = {data: [] for data in tasks}
    for turn in range(given.rounds):
        for data in [*tasks][:: -1 if turn % 2 else 1]:
            print(f"{data}, round {turn + 1} of {given.rounds}", file=sys.stderr, flush=True)
            words = [sys.executable, __file__, "--data", data, "--ours", json.dumps({**training, "seed": turn})]
            costs[data].append(1e6 * Measured(**run(words, given.threads)).epoch_seconds / tasks[data].num_events)
    if tasks:
        print("\n".join(_table(tasks, costs, given)))


def task_of(data: str, training: Mapping[str, Any]) -> Task:
    """Return what is learned, with the softmax over a sample."""
    return read(data, {}, {"negatives": "sampled", "track": False, **training})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["amazon-beauty", "ml-1m"], choices=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=3, help="How often each is trained.")
    parser.add_argument("--epochs", type=int, default=3, help="Of each training; the first is not counted.")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--negatives", type=int, default=2048, help="How many are drawn for a step.")
    parser.add_argument("--batch-size", type=int, default=2048, help="Interactions a step.")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.epochs < 2:
        parser.error("--epochs: expected at least 2, the first of which is not counted")
    return given


def _table(tasks: Mapping[str, Task], costs: Mapping[str, list[float]], given: argparse.Namespace) -> list[str]:
    """Return the cost of each data set, and its share of the cheapest's."""
    cheapest = min(float(np.mean(values)) for values in costs.values())
    lines = [
        f"{given.negatives:,} sampled negatives, {given.batch_size:,} interactions a step, {given.threads} threads",
        f"{processor()}; {given.rounds} rounds of {given.epochs} epochs\n",
        f"{'':16s}{'interactions':>14s}{'a history':>12s}{'seconds a million':>20s}{'of the cheapest':>18s}",
    ]
    for data, task in tasks.items():
        mean = task.num_events / len(task.split.train)
        cost = spread(costs[data], ".1f")
        share = float(np.mean(costs[data])) / cheapest
        lines.append(f"{TITLES[data]:16s}{task.num_events:14,}{mean:12.1f}{cost:>20s}{share:>18.2f}")
    return lines


if __name__ == "__main__":
    main()
