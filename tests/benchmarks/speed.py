"""How fast ours learns beside RecTools' SASRec, and how good both are after as many epochs.

    make rivals
    python tests/benchmarks/speed.py [--data ml-1m amazon-beauty] [--rounds 3] [--epochs 2] [--threads 2]

The same for both: the interactions without each user's last two, the newest 200 (MovieLens-1M) or 50 (Beauty) items of
each history, vectors of 64, 2 blocks, 2 heads, dropout 0.2, the softmax over all items at every position, ids alone, an
optimiser of Adam's family, threads, environment and torch. RecTools takes 128 sequences a step, padded to the longest
history there may be. Ours takes as many interactions as 128 sequences hold on average, so that an epoch has as many
steps; a row of its own shows ours with the batch that it proposes by itself. What differs is printed below the figures.

Throughput says how fast an epoch is, not how good it makes the model, and N@10 after a few epochs compares learning
rates. So `--goals 0.03 0.05` also measures how many seconds of training each takes until validation N@10 first reaches
a goal: ours as it is trained for use, RecTools measured after each epoch, without the seconds of the measuring. Give
`--epochs` that are enough for both.

Every training runs in a process of its own, by turns, in another order each round. A position is one prediction, of any
item of a history but the first; padding does not count. The first epoch of each training warms up and does not count,
either. N@10 is that of validation, over all items, by the evaluation of this repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.tables.table_files import read_frame
from tests.benchmarks.ids_only import (
    LENGTHS,
    ROOT,
    TITLES,
    Measured,
    Task,
    is_there,
    measure,
    processor,
    read,
    run,
    spread,
)
from towers.process import available_cores
from towers.warnings_filter import quiet_imports
from training.config import TrainingConfig
from training.evaluation.evaluate import TableRecommender

RIVAL = ROOT / ".rivals" / "bin" / "python"
PROGRAM = Path(__file__).parent / "rivals" / "sasrec_rectools.py"
TOWERS = {"embedding_dim": 64, "num_layers": 2, "num_heads": 2, "dropout": 0.2}
SEQUENCES = 128
DIFFERENCES = (
    "what differs: ours has gated layers, unit vectors and a learned temperature, leaves a user's other items out of",
    "the negatives, does not pad, and trains embeddings by row-wise Adagrad at 0.1 and the rest by AdamW at 0.002;",
    "RecTools has dot products, pads to the longest history, and trains all by Adam at 0.001. So N@10 after as many",
    "epochs compares learning rates, not models; `--goals` measures the time to equal quality.",
)
FIGURES = ("positions/s", "times as fast", "seconds an epoch", "steps", "N@10", "MiB")


@dataclass(frozen=True)
class Contestant:
    """One row of the table: RecTools where `precision` is one of Lightning's, else ours."""

    name: str
    precision: str
    own_batch: bool = False

    @property
    def is_rival(self) -> bool:
        """Whether it is RecTools."""
        return self.precision in ("32-true", "bf16-mixed")


RIVALS = {
    "float32": Contestant("RecTools SASRec, float32", "32-true"),
    "bfloat16": Contestant("RecTools SASRec, bfloat16", "bf16-mixed"),
}
OURS = [
    Contestant("ours, float32", "float32"),
    Contestant("ours, bfloat16 in the loss", "bfloat16"),
    Contestant("ours, by itself", "auto", own_batch=True),
]


def main() -> None:
    """Measure each data set that is there, and print a table for each."""
    given = _arguments()
    if given.ours:
        quiet_imports()
        print(
            json.dumps(asdict(measure(task_of(given.data[0], **json.loads(given.ours)), after_each=bool(given.goals))))
        )
        return
    rivals = [RIVALS[name] for name in given.rival] if RIVAL.is_file() else []
    if not rivals:
        print(f"RecTools: left out, there is no {RIVAL.parents[1]}; `make rivals` makes it")
    for data in (data for data in given.data if is_there(data)):
        task = task_of(data, {"epochs": given.epochs})
        if given.goals:
            print("\n".join(time_to_quality(data, task, [*rivals, OURS[-1]], given)), flush=True)
            continue
        contestants = [*rivals, *OURS]
        rounds = [_round(turn, contestants, task, data, given) for turn in range(given.rounds)]
        print("\n".join(_table(data, task, contestants, rounds, given)), flush=True)
        if given.output is not None:
            given.output.mkdir(parents=True, exist_ok=True)
            found = [{name: asdict(measured) for name, measured in one.items()} for one in rounds]
            (given.output / f"speed-{data}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def task_of(data: str, training: Mapping[str, Any]) -> Task:
    """Return what is learned, with the softmax over all items."""
    fixed = {"negatives": "all", "track": False}
    return read(data, {"history_encoder": "transformer", **TOWERS}, {**fixed, **training})


def events_of_a_step(task: Task) -> int:
    """Return how many interactions as many sequences as RecTools takes hold on average."""
    lengths = task.split.train.last(task.config.features.max_history + 1).lengths
    return max(1, round(SEQUENCES * float(lengths.mean())))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["ml-1m", "amazon-beauty"], choices=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=3, help="How often each is trained.")
    parser.add_argument(
        "--epochs", type=int, default=2, help="Of each training; the first is not counted. With --goals: at most."
    )
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rival", nargs="+", choices=list(RIVALS), default=["float32"], help="RecTools' precision.")
    parser.add_argument("--goals", type=float, nargs="+", help="Instead: the seconds to these validation N@10.")
    parser.add_argument("--output", type=Path, help="Folder for every figure of every round, as JSON.")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.epochs < 2:
        parser.error("--epochs: expected at least 2, the first of which is not counted")
    return given


def time_to_quality(data: str, task: Task, contestants: Sequence[Contestant], given: argparse.Namespace) -> list[str]:
    """Return the seconds of training that each takes to each goal, in each round, as lines."""
    rounds = [_round(turn, contestants, task, data, given) for turn in range(given.rounds)]
    lines = [
        f"\n{TITLES[data]}: seconds of training to the first validation N@10 of a goal or more, measured after each",
        f"of at most {given.epochs} epochs, off the clock; {given.threads} threads of {processor()}",
        *DIFFERENCES,
        f"{'':28s}" + "".join(f"{goal:>18.3f}" for goal in given.goals) + f"{'best':>18s}",
    ]
    for name in (contestant.name for contestant in contestants):
        measured = [one[name] for one in rounds]
        reached = [[one.seconds_to(goal) for one in measured] for goal in given.goals]
        cells = [
            "not reached" if None in seconds else spread([one for one in seconds if one is not None], ",.0f")
            for seconds in reached
        ]
        best = spread([max(one.ndcg_after) for one in measured], ".4f")
        lines.append(f"{name:28s}" + "".join(f"{cell:>18s}" for cell in (*cells, best)))
    return lines


def _round(
    turn: int, contestants: Sequence[Contestant], task: Task, data: str, given: argparse.Namespace
) -> dict[str, Measured]:
    """Train each once, beginning with another one each round."""
    start = turn % len(contestants)
    found = {}
    for contestant in [*contestants[start:], *contestants[:start]]:
        print(f"{data}, round {turn + 1} of {given.rounds}: {contestant.name}", file=sys.stderr, flush=True)
        train = _train_rival if contestant.is_rival else _train_ours
        found[contestant.name] = train(contestant, turn, task, data, given)
    return found


def _train_ours(contestant: Contestant, seed: int, task: Task, data: str, given: argparse.Namespace) -> Measured:
    batch = TrainingConfig().batch_size if contestant.own_batch else events_of_a_step(task)
    training = {"epochs": given.epochs, "seed": seed, "loss_precision": contestant.precision, "batch_size": batch}
    words = [sys.executable, __file__, "--data", data, "--ours", json.dumps({"training": training})]
    return Measured(**run([*words, *_goals(given)], given.threads))


def _train_rival(contestant: Contestant, seed: int, task: Task, data: str, given: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        interactions, answers = Path(folder) / "interactions.parquet", Path(folder) / "answers.parquet"
        _interactions_of(task).to_parquet(interactions, index=False)
        words = {**TOWERS, "length": LENGTHS[data], "batch": SEQUENCES, "epochs": given.epochs}
        words |= {"threads": given.threads, "precision": contestant.precision, "seed": seed, "answers": answers}
        flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        each = ["--after-each"] if given.goals else []
        said = run([str(RIVAL), str(PROGRAM), str(interactions), *flags, *each], given.threads)

        def ndcg(file: Path) -> float:
            return task.ndcg(TableRecommender(contestant.name, read_frame(file), task.tables.catalog.item_ids))

        after = [ndcg(Path(f"{answers}.{epoch}")) for epoch in range(given.epochs)] if each else []
        return Measured(said["seconds"], said["steps"], said["peak_bytes"], ndcg(answers), after)


def _goals(given: argparse.Namespace) -> list[str]:
    return ["--goals", *map(str, given.goals)] if given.goals else []


def _interactions_of(task: Task) -> pd.DataFrame:
    """Return what is learned from as a table in the order of each user."""
    train = task.split.train
    return pd.DataFrame(
        {
            "user_id": train.user_ids[train.event_users],
            "item_id": task.tables.catalog.item_ids[train.item_rows],
            "position": np.arange(train.num_events) - train.offsets[:-1][train.event_users],
        }
    )


def _table(
    data: str,
    task: Task,
    contestants: Sequence[Contestant],
    rounds: Sequence[Mapping[str, Measured]],
    given: argparse.Namespace,
) -> list[str]:
    """Return the figures of all rounds as lines."""
    items, step = int(task.split.warm_items.sum()), events_of_a_step(task)
    lines = [
        f"\n{TITLES[data]}: {task.num_positions:,} positions an epoch, histories of {LENGTHS[data]}, {items:,} items",
        f"{step:,} interactions a step for {SEQUENCES} sequences; {given.threads} threads of {processor()}",
        f"{given.rounds} rounds of {given.epochs} epochs; after ± the standard deviation between rounds",
        *DIFFERENCES,
        "",
        f"{'':28s}" + "".join(f"{figure:>18s}" for figure in FIGURES),
    ]
    pace = {
        name: [task.num_positions / one[name].epoch_seconds for one in rounds] for name in (c.name for c in contestants)
    }
    first = next((contestant.name for contestant in contestants if contestant.is_rival), None)
    for name in pace:
        ratios = [ours / theirs for ours, theirs in zip(pace[name], pace[first], strict=True)] if first else None
        measured = [one[name] for one in rounds]
        cells = [
            spread(pace[name], ",.0f"),
            spread(ratios, ".2f") if ratios else "–",
            spread([one.epoch_seconds for one in measured], ".2f"),
            f"{measured[0].steps}",
            spread([one.ndcg for one in measured], ".4f"),
            f"{max(one.peak_bytes for one in measured) / 2**20:,.0f}",
        ]
        lines.append(f"{name:28s}" + "".join(f"{cell:>18s}" for cell in cells))
    return lines


if __name__ == "__main__":
    main()
