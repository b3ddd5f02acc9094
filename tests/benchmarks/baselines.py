"""The baselines of `towers evaluate` without a model: their figures on public data, or time and memory at any size.

    python tests/benchmarks/baselines.py run.toml [--protocol time] [--seed 0] [--minutes 15]
    python tests/benchmarks/baselines.py --users 200000 --items 100000 [--events 50] [--minutes 15]

With a run.toml, such as `towers init` writes it for one of the folders that TOWERS_DATA names, the tables are read and
split as `towers evaluate` does. Otherwise interactions are made up: items by a long-tailed popularity that moves with
time, and half of the time an item that follows the one before. The notes have what was chosen and left out; the table
has the test figures, the seconds that each evaluation took, and at the end stands the highest memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from features.columns import item_texts
from features.sequences.sequences import Sequences
from features.sequences.split import Split, leave_one_out
from features.tables.tables import read_tables
from training.config import read_run_config
from training.evaluation.baselines.suite import Budget, fit_baselines
from training.evaluation.baselines.tuning import sample
from training.evaluation.evaluate import cutoffs_of, evaluate
from training.tasks.evaluate import MOST_CELLS
from training.tasks.protocols import split_by, usual_protocol

SECONDS_A_YEAR = 365 * 86_400


def main() -> None:
    """Fit and evaluate all baselines."""
    given = _arguments()
    split, texts = _read(given) if given.settings else _made_up(given.users, given.items, given.events)
    budget = Budget(seconds=60 * given.minutes)
    recommenders, _ = fit_baselines(split, texts=texts, budget=budget, say=lambda line: print(line, flush=True))
    assert split.test is not None, "every protocol of towers evaluate holds out a test part"
    questions = sample(split.test, len(split.candidates), most_cells=MOST_CELLS)
    has_history = questions.history.lengths > 0
    print(
        f"\n{split.name}: {len(questions):,} of {len(split.test):,} questions, {has_history.sum():,} with a history\n"
    )
    metrics = (
        ("recall_at_20", "recall_at_50", "ndcg_at_100") if split.name == "users" else ("recall_at_10", "ndcg_at_10")
    )
    print(f"{'':30s}{''.join(f'{name:>15s}' for name in metrics)}{'with history':>15s}{'seconds':>10s}", flush=True)
    for recommender in recommenders:
        begun = time.perf_counter()
        result = evaluate(
            recommender, questions, split.candidates, seen_items=split.seen_items, cutoffs=cutoffs_of(split.name)
        )
        numbers = [result.means[name] for name in metrics]
        numbers.append(float(result.per_question[metrics[-1]][has_history].mean()))
        cells = "".join(f"{number:15.4f}" for number in numbers)
        print(f"{recommender.name:30s}{cells}{time.perf_counter() - begun:10.0f}", flush=True)
    print(f"\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB at most")


def _read(given: argparse.Namespace) -> tuple[Split, list[str] | None]:
    config = read_run_config(given.settings, (f"training.seed={given.seed}",))
    tables = read_tables(config.features, given.settings.parent)
    sequences = tables.interactions.sequences(tables.catalog)
    protocol = given.protocol or usual_protocol(config, sequences)
    return split_by(protocol, sequences, len(tables.catalog), config), item_texts(tables.catalog, config.features.item)


def _made_up(num_users: int, num_items: int, mean_events: int) -> tuple[Split, list[str]]:
    """Return leave-one-out of interactions at random, and three words of each item."""
    rng = np.random.default_rng(0)
    lengths = 5 + rng.geometric(1 / max(1, mean_events - 4), num_users) - 1
    offsets = np.append(0, np.cumsum(lengths))
    times = rng.integers(0, SECONDS_A_YEAR, offsets[-1])
    times = times[np.lexsort((times, np.repeat(np.arange(num_users), lengths)))]
    # The most popular tenth of the catalogue is another one at the end of the year than at its beginning.
    shift = (times / SECONDS_A_YEAR * num_items / 10).astype(np.int64)
    items = (np.minimum(rng.zipf(1.2, len(times)), num_items) + shift) % num_items
    follows = np.flatnonzero(rng.random(len(items)) < 0.5)
    follows = follows[follows > 0]
    items[follows] = (items[follows - 1] * 7 + 1) % num_items
    sequences = Sequences(np.arange(num_users), offsets, items, times, is_ordered=True)
    words = rng.integers(0, 5_000, (num_items, 3))
    return leave_one_out(sequences, num_items), [" ".join(f"word{word}" for word in row) for row in words.tolist()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="?", type=Path, metavar="run.toml")
    parser.add_argument("--protocol")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=50, help="Mean number of interactions of a user.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
