"""Whether `towers train-ranker` writes what gains nothing, and whether the gain that it reports is the true one.

    python tests/benchmarks/ranker_gate.py [--noise answers columns] [--times 20] [--users 400]

A bundle is trained on a small world, and then `train-ranker` run twenty times, each time with the held-out questions of
400 other users.

- `answers`: the items of all users are random, so nothing can be learned, and the true gain of any order is 0.
- `columns`: users go through the items in an order that the retriever learns, and a candidate is described by its
  score and 24 columns of noise, which are drawn again each time. The true gain is that of the re-ranker on the held-out
  questions of 3,000 more users.

Ends with status 1 if any re-ranker is written, or if the true gain is outside the reported interval more often than
once in 20.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from features.sequences.sequences import Queries
from features.tables.tables import Tables
from towers.bundle.bundle import ModelBundle
from towers.rerankers.candidate_features import RankFeatures
from towers.rerankers.manifest import has_ranker
from towers.rerankers.reranker import Deadline, Reranker, Shortlist
from towers.warnings_filter import quiet_imports
from training.evaluation.metrics import ndcg_of_lists
from training.rerankers.candidates import shortlists
from training.tasks.held_out import HeldOut
from training.tasks.train import train_and_bundle
from training.tasks.train_ranker import RANKER_TRAINERS, RankerChoice, TrainedRanker, train_bundle_ranker

NUM_ITEMS, NUM_CANDIDATES, NUM_COLUMNS, NUM_OTHERS = 200, 50, 24, 3_000
SETTINGS = """\
[features]
interactions = "clicks.parquet"
columns = { timestamp = "timestamp" }
max_history = 20

[towers]
embedding_dim = 16
num_layers = 1

[training]
epochs = 4
patience = 1
lr_decays = 0
batch_size = 2048
track = false
"""


@dataclass(frozen=True)
class Outcome:
    """One run of `train-ranker`: whether it wrote, what it reported to gain, and the true gain."""

    is_written: bool
    gain: float
    low: float
    high: float
    true_gain: float

    @property
    def holds(self) -> bool:
        """Whether the reported interval has the true gain."""
        return self.low <= self.true_gain <= self.high


def main() -> None:
    """Run each kind of noise and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", nargs="+", choices=("answers", "columns"), default=["answers", "columns"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--users", type=int, default=400, help="How many ask the questions of one run.")
    given = parser.parse_args()
    quiet_imports()
    missed = False
    for noise in given.noise:
        outcomes = []
        for seed, outcome in enumerate(outcomes_of(noise, given.times, given.users)):
            outcomes.append(outcome)
            said = f"gain {outcome.gain:+.4f}, {outcome.low:+.4f} to {outcome.high:+.4f}"
            written = "written" if outcome.is_written else "not written"
            print(f"{noise}, run {seed}: {said}; in truth {outcome.true_gain:+.4f}; {written}", flush=True)
        print(summary(noise, outcomes), flush=True)
        missed |= any(one.is_written for one in outcomes) or sum(not one.holds for one in outcomes) > given.times / 20
    sys.exit(int(missed))


def summary(noise: str, outcomes: Sequence[Outcome]) -> str:
    """Return one line on all runs of a kind of noise."""
    written, holding = sum(one.is_written for one in outcomes), sum(one.holds for one in outcomes)
    gain, true_gain = np.mean([one.gain for one in outcomes]), np.mean([one.true_gain for one in outcomes])
    return (
        f"{noise}: {written} of {len(outcomes)} written; the true gain within the interval {holding} times; "
        f"mean gain {gain:+.4f} reported, {true_gain:+.4f} in truth"
    )


def outcomes_of(noise: str, times: int, num_users: int) -> Iterator[Outcome]:
    """Draw a world, train a bundle on it, and yield what came of each re-ranker."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clicks_of(rows_of(noise, times * num_users + NUM_OTHERS, rng)).to_parquet(folder / "clicks.parquet")
        (folder / "run.toml").write_text(SETTINGS, encoding="utf-8")
        with quietly():
            path = train_and_bundle(folder / "run.toml", (), output=folder / "bundle", resume=False, device="cpu")
        bundle = ModelBundle.open(path)
        held_out = HeldOut.of(bundle)
        questions = held_out.questions().validation
        parts = rng.permutation(len(questions))
        others = questions.take(np.sort(parts[times * num_users :]))
        for seed in range(times):
            mine = questions.take(np.sort(parts[seed * num_users : (seed + 1) * num_users]))
            with quietly(), noisy_columns(rng) if noise == "columns" else contextlib.nullcontext():
                made = trained(path, with_questions(held_out, mine, seed))
                assert made.dataset is not None
                gain = made.gain(made.dataset)
                true_gain = 0.0 if noise == "answers" else gain_of(made.reranker, bundle, held_out.tables, others)
            yield Outcome(has_ranker(path), gain.mean, gain.low, gain.high, true_gain)
            shutil.rmtree(path / "ranker", ignore_errors=True)


def with_questions(held_out: HeldOut, questions: Queries, seed: int) -> HeldOut:
    """Return held-out data with some of its questions, for a training with a seed."""
    assert held_out.split is not None
    training = held_out.config.training.model_copy(update={"seed": seed})
    config = held_out.config.model_copy(update={"training": training})
    return replace(held_out, config=config, split=replace(held_out.split, validation=questions))


def rows_of(noise: str, num_users: int, rng: np.random.Generator) -> np.ndarray:
    """Return twelve different items of each user: any, or some from a place on a ring onwards."""
    if noise == "answers":
        return np.stack([rng.permutation(NUM_ITEMS)[:12] for _ in range(num_users)])
    steps = rng.integers(1, 9, (num_users, 12)).cumsum(axis=1)
    rows: np.ndarray = (rng.integers(0, NUM_ITEMS, num_users)[:, None] + steps) % NUM_ITEMS
    return rows


def clicks_of(rows: np.ndarray) -> pd.DataFrame:
    """Return the interactions as a table, one a minute."""
    users, places = np.indices(rows.shape)
    times = 1_700_000_000 + 60 * places.ravel()
    return pd.DataFrame({"user_id": users.ravel(), "item_id": rows.ravel(), "timestamp": times})


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what the commands say to themselves."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def noisy_columns(rng: np.random.Generator) -> Iterator[None]:
    """Let re-rankers read nothing of a candidate but its score and columns of noise, which stay the same."""
    noise = rng.normal(size=(NUM_ITEMS, NUM_COLUMNS)).astype(np.float32)

    def read(self: RankFeatures, shortlist: Shortlist) -> np.ndarray:
        return np.column_stack([shortlist.scores, noise[shortlist.rows]]).astype(np.float32)

    reads, names = RankFeatures.of, RankFeatures.names
    RankFeatures.of = read  # type: ignore[method-assign]
    RankFeatures.names = property(lambda self: ["score", *(f"noise_{one}" for one in range(NUM_COLUMNS))])  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        RankFeatures.of, RankFeatures.names = reads, names  # type: ignore[method-assign]


def trained(path: Path, held_out: HeldOut) -> TrainedRanker:
    """Run `towers train-ranker` with some held-out data, and return what it trained, written or not."""
    made: list[TrainedRanker] = []
    train = RANKER_TRAINERS["learned"]

    def listening(bundle: ModelBundle, found: HeldOut, choice: RankerChoice, num_candidates: int) -> TrainedRanker:
        made.append(train(bundle, held_out, choice, num_candidates))
        return made[0]

    RANKER_TRAINERS["learned"] = listening
    try:
        train_bundle_ranker(path, RankerChoice(num_candidates=NUM_CANDIDATES))
    finally:
        RANKER_TRAINERS["learned"] = train
    return made[0]


def gain_of(reranker: Reranker, bundle: ModelBundle, tables: Tables, questions: Queries) -> float:
    """Return what a re-ranker adds to N@10 for other questions."""
    gains = []
    one = np.ones(1, dtype=np.int64)
    for shortlist, is_answer in shortlists(bundle, tables, questions, NUM_CANDIDATES):
        order = np.argsort(-reranker.scores(shortlist, Deadline(None)), kind="stable")
        before, after = (ndcg_of_lists(found[None], one, 10)[0] for found in (is_answer, is_answer[order]))
        gains.append(after - before)
    return float(np.mean(gains))


if __name__ == "__main__":
    main()
