"""What a second look gains and what it costs, on MovieLens-1M: each user's next item, before and after re-ranking.

    python tests/benchmarks/ranker.py [--folder evaluation/ranker] [--set training.epochs=6 ...] [--users 1000]
        [--late-interaction MODEL] [--cross-encoder MODEL] [--share 0.2]

Each user's last interaction is hidden; of the rest `towers init`, `train`, `train-ranker` and `index` make a bundle, as
anybody's would be made: the model stops early by the last item of that rest, and the ranker learns from it. Then a
`Retriever` is asked what each user has next, at the time of the hidden interaction, once as retrieval finds it and once
for each length of the shortlist. N@10 is over all items that anybody had; the interval is the paired bootstrap's over
users. The milliseconds are those of one request in one thread, the making of features included.

With the folder of a model of sentence-transformers the rerankers that read texts are asked as well, over 50 candidates;
`--share` is how much they count beside the retriever. They take long: give fewer --users.

A bundle that is in the folder already is judged as it is. Ends with status 1 if the bar is missed: with 200 candidates
N@10 5 % above retrieval alone, 99 of 100 re-rankings in less than 20 ms. The tables are read from the folder that
TOWERS_DATA names.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from features.cells import item_texts
from features.config import EncoderSettings
from features.encoders.local import load_model
from serving.index import set_num_threads
from serving.reranking import Reranking
from serving.retriever import Retriever
from serving.snapshot import Snapshot
from serving.stages import begin, spent
from tests.benchmarks.quality import towers
from towers.bundle import ModelBundle
from towers.quiet import quiet_imports
from towers.reranking import Reranker
from towers.text_rerankers import CrossEncoderRanker, LateInteractionRanker, TokenVectors, open_cross_encoder
from training.metrics import bootstrap_interval

LENGTHS = (50, 100, 200)
GAIN, MILLISECONDS = 0.05, 20.0
K = 10


@dataclass(frozen=True)
class Judged:
    """How one way of answering did.

    Attributes:
        name: What it is.
        ndcg: N@10 by user.
        seconds: How long the re-ranking of each request took.
        whole_seconds: How long each request took.
    """

    name: str
    ndcg: np.ndarray
    seconds: np.ndarray
    whole_seconds: np.ndarray


def main() -> None:
    """Make what is missing, ask everyone, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("evaluation/ranker"))
    parser.add_argument("--set", action="append", dest="overrides", default=[], metavar="table.key=value")
    parser.add_argument("--users", type=int, help="Ask so many users only.")
    parser.add_argument("--late-interaction", type=Path, metavar="MODEL", help="Folder of a bi-encoder.")
    parser.add_argument("--cross-encoder", type=Path, metavar="MODEL", help="Folder of a cross-encoder.")
    parser.add_argument("--share", type=float, default=0.2, help="How much these count. [default: 0.2]")
    given = parser.parse_args()
    data = Path(os.environ.get("TOWERS_DATA") or Path(__file__).parents[3] / "shared" / "data") / "ml-1m"
    if not data.is_dir():
        sys.exit(f"{data}: no such folder; set TOWERS_DATA to the folder of the public data sets")
    quiet_imports()
    torch.set_num_threads(1)
    set_num_threads(1)
    asked = hide_last(data, given.folder)
    bundle = make_bundle(given.folder, given.overrides or ["training.epochs=6"])
    asked = asked.iloc[: given.users]
    runs = judge_all(bundle, asked, given)
    print("\n".join(table(runs)))
    sys.exit(0 if holds(runs) else 1)


def hide_last(data: Path, folder: Path) -> pd.DataFrame:
    """Write the tables without each user's last interaction into a folder, and return what was hidden."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    events = pd.read_parquet(data / "interactions.parquet").dropna(subset=["position"])
    last = events.groupby("user_id")["position"].idxmax()
    events.drop(last).to_parquet(folder / "data" / "interactions.parquet")
    items = pd.read_parquet(data / "items.parquet")
    items[items["item_id"].isin(events["item_id"])].to_parquet(folder / "data" / "items.parquet")
    pd.read_parquet(data / "users.parquet").to_parquet(folder / "data" / "users.parquet")
    return events.loc[last].ffill()


def make_bundle(folder: Path, overrides: list[str]) -> ModelBundle:
    """Return the bundle in a folder, made if it is not there."""
    path = folder / "runs" / "one"
    if not (path / "manifest.json").exists():
        tables = [f"--{table}=data/{table}.parquet" for table in ("interactions", "items", "users")]
        towers("init", *tables, "--force", folder=folder)
        words = [word for override in overrides for word in ("--set", override)]
        towers("train", "run.toml", "--output", "runs/one", *words, folder=folder)
    if not (path / "ranker").exists():
        towers("train-ranker", "runs/one", folder=folder)
    bundle = ModelBundle.open(path)
    if not (path / "index" / "facts.safetensors").exists():
        towers("index", "runs/one", folder=folder)
    return bundle


def judge_all(bundle: ModelBundle, asked: pd.DataFrame, given: argparse.Namespace) -> list[Judged]:
    """Return how retrieval alone did, and each re-ranking."""
    snapshot = Snapshot.open(bundle)
    ways: dict[str, Reranking | None] = {"retrieval alone": None}
    for length in LENGTHS:
        ways[f"learned ranker, {length}"] = Reranking.open(bundle, snapshot, length, budget_seconds=None)
    for name, reranker in text_rerankers(bundle, snapshot, given).items():
        ways[f"{name}, {LENGTHS[0]}"] = Reranking(reranker, LENGTHS[0], budget_seconds=None)
    return [judge(name, bundle, snapshot, way, asked) for name, way in ways.items()]


def text_rerankers(bundle: ModelBundle, snapshot: Snapshot, given: argparse.Namespace) -> dict[str, Reranker]:
    """Return the rerankers that read texts, as far as models for them are given."""
    texts = item_texts(snapshot.catalog, bundle.config.features.item) or []
    found: dict[str, Reranker] = {}
    if given.late_interaction is not None:
        model = load_model(given.late_interaction, EncoderSettings(model=str(given.late_interaction)))
        found["late interaction"] = LateInteractionRanker(TokenVectors.of(model, texts), share=given.share)
    if given.cross_encoder is not None:
        found["cross-encoder"] = CrossEncoderRanker(open_cross_encoder(given.cross_encoder), texts, share=given.share)
    return found


def judge(
    name: str, bundle: ModelBundle, snapshot: Snapshot, reranking: Reranking | None, asked: pd.DataFrame
) -> Judged:
    """Ask what each user has next."""
    now = [0.0]
    retriever = Retriever(bundle, snapshot, reranking=reranking, clock=lambda: now[0])
    gains, seconds, whole = (np.zeros(len(asked)) for _ in range(3))
    for place, event in enumerate(tqdm(asked.itertuples(), total=len(asked), desc=name, disable=None, leave=False)):
        now[0] = float(event.timestamp)  # type: ignore[arg-type]
        begin()
        began = perf_counter()
        answer = retriever.recommend(int(event.user_id), K)  # type: ignore[call-overload]
        whole[place] = perf_counter() - began
        seconds[place] = spent().get("rerank", 0.0)
        found = [item.rank for item in answer.items if item.item_id == event.item_id]
        gains[place] = 1 / np.log2(1 + found[0]) if found else 0.0
    return Judged(name, gains, seconds, whole)


def table(runs: list[Judged]) -> list[str]:
    """Return the table: N@10, the gain over the first with its interval, and milliseconds."""
    before = runs[0].ndcg
    costs = f"{'re-rank':>8s} {'p99':>6s} {'all':>7s} {'p99, ms':>7s}"
    head = f"{'':24s} {'N@10':>7s} {'gain':>7s} {'95 % interval':>18s} {costs}"
    lines = [f"{len(before):,} users, one thread", head]
    for run in runs:
        low, high = (float(bound[0]) / before.mean() for bound in bootstrap_interval((run.ndcg - before)[:, None]))
        gain = f"{run.ndcg.mean() / before.mean() - 1:+7.1%} {f'{low:+.1%} to {high:+.1%}':>18s}"
        spans = [
            f"{1e3 * np.quantile(one, share):.2f}" for one in (run.seconds, run.whole_seconds) for share in (0.5, 0.99)
        ]
        lines.append(
            f"{run.name:24s} {run.ndcg.mean():7.4f} {gain if run is not runs[0] else '':26s} "
            f"{spans[0]:>8s} {spans[1]:>6s} {spans[2]:>7s} {spans[3]:>7s}"
        )
    return lines


def holds(runs: list[Judged]) -> bool:
    """Return whether the bar is met by the learned ranker over 200 candidates."""
    run = next(run for run in runs if run.name == f"learned ranker, {LENGTHS[-1]}")
    gain = run.ndcg.mean() / runs[0].ndcg.mean() - 1
    return bool(gain >= GAIN and 1e3 * np.quantile(run.seconds, 0.99) < MILLISECONDS)


if __name__ == "__main__":
    main()
