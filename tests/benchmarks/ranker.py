"""What re-ranking gains and costs, by kind of re-ranker: N@10 of the retrieval order and after it, and milliseconds.

    python tests/benchmarks/ranker.py [--task next-item] [--kinds learned] [--folder evaluation/ranker]
        [--set training.epochs=6 ...] [--users 6040] [--slow 300] [--model FOLDER] [--learn 2000]
    python tests/benchmarks/ranker.py --task search --kinds late-interaction cross-encoder

`next-item`: MovieLens-1M without each user's last interaction, which is asked for at its time. `search`: the abstracts
of its films, their titles taken out, are searched for with the titles of `ASKED` of them; the other titles and their
films are the pairs that can be learned from, and what retrieves is MiniLM as it is.

Of these tables `towers init`, `train` and `index` make a bundle, as anybody's would be made, and of that for each kind
`towers train-ranker` and `index` another; the rankers are made with what that training held out. Then a `Recommender`
is asked, with each. N@10 is over the whole catalogue; the interval is the paired bootstrap's over questions, relative
to retrieval alone on the same questions. The milliseconds are those of one request in one thread, everything included
that is done for it. `--slow` is how many questions a cross-encoder is asked; `--model` is a folder of
sentence-transformers, the MiniLM that the test packages bring unless another is named; `--learn 0` leaves a
cross-encoder as it is.

A bundle that is in the folder already is judged as it is. Ends with status 1 if the bar is missed: the learned ranker's
N@10 over 200 candidates 5 % above retrieval alone, 99 of 100 re-rankings in less than 20 ms.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from serving.observability.timings import begin, spent
from serving.recommend.recommender import Recommender
from serving.recommend.reranking import RerankStage
from serving.recommend.response import RecommendResponse
from serving.search.faiss_index import set_num_threads
from serving.snapshot.snapshot import Snapshot
from tests.benchmarks.encoding import packaged_model, public_items
from tests.benchmarks.quality import towers
from tests.benchmarks.text_search import without
from towers.bundle.bundle import ModelBundle
from towers.rerankers.manifest import has_ranker, read_ranker_manifest
from towers.warnings_filter import quiet_imports
from training.evaluation.metrics import bootstrap_interval

LENGTHS = (50, 100, 200)
GAIN, MILLISECONDS = 0.05, 20.0
K = 10
ASKED = 500
"""Titles that are searched for."""


@dataclass(frozen=True)
class Question:
    """What is asked, and what should be found.

    Attributes:
        who: The user, or the words.
        item: The answer.
        time: When it is asked, in Unix seconds.
    """

    who: int | str
    item: int
    time: float = 0.0


@dataclass(frozen=True)
class Judged:
    """How one way of answering did.

    Attributes:
        name: What it is.
        ndcg: N@10 by question; of the first of them, if fewer.
        seconds: How long the re-ranking of each request took.
        whole_seconds: How long each request took.
    """

    name: str
    ndcg: np.ndarray
    seconds: np.ndarray
    whole_seconds: np.ndarray


def main() -> None:
    """Make what is missing, ask everyone, and print the table."""
    given = arguments()
    quiet_imports()
    torch.set_num_threads(1)
    set_num_threads(1)
    folder = given.folder / given.task
    (folder / "data").mkdir(parents=True, exist_ok=True)
    questions = hide_last(folder) if given.task == "next-item" else hide_titles(folder)
    order = np.random.default_rng(0).permutation(len(questions))[: given.users]
    questions = [questions[place] for place in order]
    make = make_recommender if given.task == "next-item" else make_search
    make(folder, given)
    bundle = ModelBundle.open(folder / "runs" / "plain")
    snapshot = Snapshot.open(bundle)
    runs = [judge("retrieval alone", Recommender(bundle, snapshot), questions)]
    for kind in given.kinds:
        runs += judge_kind(kind, folder, given, questions)
    print("\n".join(table(runs)))
    sys.exit(0 if "learned" not in given.kinds or holds(runs) else 1)


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("next-item", "search"), default="next-item")
    parser.add_argument(
        "--kinds", nargs="+", choices=("learned", "cross-encoder", "late-interaction"), default=["learned"]
    )
    parser.add_argument("--folder", type=Path, default=Path("evaluation/ranker"))
    parser.add_argument("--set", action="append", dest="overrides", default=[], metavar="table.key=value")
    parser.add_argument("--users", "--queries", type=int, help="Ask so many questions only.")
    parser.add_argument("--slow", type=int, default=300, help="Questions for a cross-encoder.")
    parser.add_argument("--model", type=Path, help="Folder of a model. [default: the packaged MiniLM]")
    parser.add_argument("--learn", type=int, default=2000, help="From how many a cross-encoder learns; 0: none.")
    return parser.parse_args()


def hide_last(folder: Path, data: Path | None = None) -> list[Question]:
    """Write the tables without each user's last interaction into a folder, and return what was hidden."""
    data = data or Path(os.environ.get("TOWERS_DATA") or Path(__file__).parents[3] / "shared" / "data") / "ml-1m"
    if not data.is_dir():
        sys.exit(f"{data}: no such folder; set TOWERS_DATA to the folder of the public data sets")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    events = pd.read_parquet(data / "interactions.parquet").dropna(subset=["position"])
    last = events.groupby("user_id")["position"].idxmax()
    events.drop(last).to_parquet(folder / "data" / "interactions.parquet")
    items = pd.read_parquet(data / "items.parquet")
    items[items["item_id"].isin(events["item_id"])].to_parquet(folder / "data" / "items.parquet")
    pd.read_parquet(data / "users.parquet").to_parquet(folder / "data" / "users.parquet")
    hidden = events.loc[last].ffill()
    asked = zip(hidden["user_id"].tolist(), hidden["item_id"].tolist(), hidden["timestamp"].tolist(), strict=True)
    return [Question(int(user), int(item), float(time)) for user, item, time in asked]


def hide_titles(folder: Path) -> list[Question]:
    """Write abstracts, titles and which belongs to which into a folder, and return the titles left out."""
    frame = public_items("ml-1m").dropna(subset=["abstract"]).reset_index(drop=True)
    pairs = list(zip(frame["title"].astype(str), frame["abstract"].astype(str), strict=True))
    ids = frame["item_id"].tolist()
    texts = [without(title, abstract) for title, abstract in pairs]
    hidden = np.zeros(len(frame), dtype=bool)
    hidden[np.random.default_rng(1).permutation(len(frame))[:ASKED]] = True
    shown = frame[~hidden]
    tables = {
        "documents": pd.DataFrame({"document_id": ids, "text": texts}),
        "queries": pd.DataFrame({"query_id": shown["item_id"], "text": shown["title"].astype(str)}),
        "pairs": pd.DataFrame({"query_id": shown["item_id"], "document_id": shown["item_id"]}),
    }
    for name, one in tables.items():
        one.to_parquet(folder / "data" / f"{name}.parquet", index=False)
    return [Question(pairs[place][0], int(ids[place])) for place in np.flatnonzero(hidden)]


def make_recommender(folder: Path, given: argparse.Namespace) -> None:
    """Make the bundle of the recommender, if it is not there."""
    tables = ("interactions", "items", "users")
    _make(folder, tables, given.overrides or ["training.epochs=6"])


def make_search(folder: Path, given: argparse.Namespace) -> None:
    """Make the bundle of the search, if it is not there: titles and abstracts as MiniLM reads them."""
    text = '{kind = "text", encoder = "minilm", frozen_dim = 384}'
    encoder = f"features.encoders.minilm={{model = '{(given.model or packaged_model()).resolve()}'}}"
    settings = [encoder, f"features.item.text={text}", f"features.user.text={text}", "towers.embedding_dim=384"]
    _make(folder, ("documents", "queries", "pairs"), [*settings, "training.epochs=1", *given.overrides])


def _make(folder: Path, tables: Sequence[str], overrides: Sequence[str]) -> None:
    if not (folder / "runs" / "plain" / "manifest.json").exists():
        towers("init", *(f"--{table}=data/{table}.parquet" for table in tables), "--force", folder=folder)
        words = [word for override in overrides for word in ("--set", override)]
        towers("train", "run.toml", "--output", "runs/plain", *words, folder=folder)
    if not (folder / "runs" / "plain" / "index").exists():
        towers("index", "runs/plain", folder=folder)


def judge_kind(kind: str, folder: Path, given: argparse.Namespace, questions: Sequence[Question]) -> list[Judged]:
    """Return how a kind of ranker did, made if it is not there; nothing where it was not written."""
    path = folder / "runs" / kind
    if not has_ranker(path):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(folder / "runs" / "plain", path)
        towers("train-ranker", f"runs/{kind}", "--kind", kind, *_words(kind, given), folder=folder)
        if not has_ranker(path):
            return []
        towers("index", f"runs/{kind}", folder=folder)
    bundle = ModelBundle.open(path)
    snapshot, sealed = Snapshot.open(bundle), read_ranker_manifest(bundle)
    lengths = LENGTHS if kind == "learned" else (sealed.num_candidates,)
    questions = questions[: given.slow] if kind == "cross-encoder" else questions
    found = []
    for length in lengths:
        reranking = RerankStage.open(bundle, snapshot, length, budget_seconds=None)
        found.append(judge(f"{kind}, {length}", Recommender(bundle, snapshot, rerank=reranking), questions))
    return found


def _words(kind: str, given: argparse.Namespace) -> list[str]:
    if kind == "learned":
        return []
    model = ["--model", str((given.model or packaged_model()).resolve())]
    if kind == "late-interaction":
        return [*model, "--max-tokens", "128"]  # the beginning of an abstract says what all of them say
    return [*model, "--train-queries", str(given.learn)] if given.learn else model


def judge(name: str, recommender: Recommender, questions: Sequence[Question]) -> Judged:
    """Ask every question."""
    now = [0.0]
    recommender._clock = lambda: now[0]
    ask: Callable[[int | str, int], RecommendResponse] = (
        recommender.search if isinstance(questions[0].who, str) else recommender.recommend  # type: ignore[assignment]
    )
    gains, seconds, whole = (np.zeros(len(questions)) for _ in range(3))
    for place, question in enumerate(tqdm(questions, desc=name, disable=None, leave=False)):
        now[0] = question.time
        begin()
        began = perf_counter()
        answer = ask(question.who, K)
        whole[place] = perf_counter() - began
        seconds[place] = spent().get("rerank", 0.0)
        found = [item.rank for item in answer.items if item.item_id == question.item]
        gains[place] = 1 / np.log2(1 + found[0]) if found else 0.0
    return Judged(name, gains, seconds, whole)


def table(runs: list[Judged]) -> list[str]:
    """Return the table: N@10, the gain over the first on the same questions with its interval, and milliseconds."""
    costs = f"{'re-rank':>8s} {'p99':>6s} {'all':>7s} {'p99, ms':>7s}"
    head = f"{'':24s} {'asked':>6s} {'N@10':>7s} {'alone':>7s} {'gain':>7s} {'95 % interval':>18s} {costs}"
    lines = ["one thread; intervals over the questions, of one training", head]
    for run in runs:
        before = runs[0].ndcg[: len(run.ndcg)]
        low, high = (float(bound[0]) / before.mean() for bound in bootstrap_interval((run.ndcg - before)[:, None]))
        gain = f"{run.ndcg.mean() / before.mean() - 1:+7.1%} {f'{low:+.1%} to {high:+.1%}':>18s}"
        spans = [
            f"{1e3 * np.quantile(one, share):.2f}" for one in (run.seconds, run.whole_seconds) for share in (0.5, 0.99)
        ]
        lines.append(
            f"{run.name:24s} {len(before):6,d} {run.ndcg.mean():7.4f} {before.mean():7.4f} "
            f"{gain if run is not runs[0] else '':26s} {spans[0]:>8s} {spans[1]:>6s} {spans[2]:>7s} {spans[3]:>7s}"
        )
    return lines


def holds(runs: list[Judged]) -> bool:
    """Return whether the bar is met by the learned ranker over 200 candidates."""
    run = next((run for run in runs if run.name == f"learned, {LENGTHS[-1]}"), runs[0])
    gain = run.ndcg.mean() / runs[0].ndcg.mean() - 1
    return bool(gain >= GAIN and 1e3 * np.quantile(run.seconds, 0.99) < MILLISECONDS)


if __name__ == "__main__":
    main()
