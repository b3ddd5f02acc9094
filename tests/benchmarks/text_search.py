"""Does a pretrained model find more after a few thousand pairs, and beside BM25? Films by their titles, and back.

    TOWERS_DATA=folder python tests/benchmarks/text_search.py [--pairs 2000] [--epochs 3] [--hide] [--seeds 1]
        [--layers all] [--lora 0] [--pooling model | mean cls last attention] [--rate 5e-5] [--model FOLDER]

A query is the title of a film of MovieLens-1M, a document an abstract; and back. All films with an abstract are ranked;
`--pairs` of them are learned from, the others are asked for, both ways. `--hide` takes the titles out of the abstracts,
where most of them stand and words alone would find them.

Beside the model as it is and as it is after learning, with each of the poolings, stands BM25 as `bm25s` has it. The
titles' side and the abstracts' side share their weights. After ± stands half the 95 % interval (bootstrap over the films
asked for); `*` marks what is above all models as they are, and above BM25, with intervals apart.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from features.config import FeaturesConfig
from features.featurizer import Featurizer
from features.schema import Schema
from features.sequences import Sequences, offsets_of
from features.tables import Catalog, Users
from tests.benchmarks.encoding import films, packaged_model
from towers.config import TowersConfig
from towers.quiet import quiet_imports
from towers.two_tower import TwoTower
from training.config import RunConfig, TrainingConfig
from training.metrics import bootstrap_interval
from training.trainer import Trainer, TrainingData

CUTOFFS = (1, 10, 50)
LEARNED = "after learning"
Ranks = dict[str, np.ndarray]
"""Of each film asked for, how many come before it, by direction."""


def main() -> None:
    """Print recall of each, both ways."""
    given = arguments()
    quiet_imports()
    frame = films().dropna(subset=["abstract"]).reset_index(drop=True)
    titles = frame["title"].astype(str).tolist()
    abstracts = [
        without(title, str(abstract)) if given.hide else str(abstract)
        for title, abstract in zip(titles, frame["abstract"], strict=True)
    ]
    for seed in range(given.seeds):
        learned_from = np.zeros(len(titles), dtype=bool)
        learned_from[np.random.default_rng(seed).permutation(len(titles))[: given.pairs]] = True
        asked = np.flatnonzero(~learned_from)
        print(f"seed {seed}: {learned_from.sum():,} pairs to learn from, {len(asked):,} of {len(titles):,} asked for")
        found = {"BM25": ranks_of(bm25(abstracts, titles), bm25(titles, abstracts), asked)}
        spent = []
        for pooling in given.pooling:
            of_it = f", {pooling}" if len(given.pooling) > 1 else ""
            trainer = trainer_of(given, pooling, titles, abstracts, learned_from, seed)
            found[f"as it is{of_it}"] = ranks_of(*both_ways(trainer.model, trainer.data, titles, abstracts), asked)
            began = time.perf_counter()
            model = trainer.fit()
            spent.append(f"{time.perf_counter() - began:,.0f} seconds, {trainer.progress.step} steps")
            found[f"{LEARNED}{of_it}"] = ranks_of(*both_ways(model, trainer.data, titles, abstracts), asked)
        for line in table(found):
            print(line)
        print(f"learning took {'; '.join(spent)}")


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--hide", action="store_true")
    parser.add_argument("--layers", default="all")
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--pooling", nargs="+", default=["model"])
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--model", type=Path)
    return parser.parse_args()


def trainer_of(
    given: argparse.Namespace,
    pooling: str,
    titles: list[str],
    abstracts: list[str],
    learned_from: np.ndarray,
    seed: int,
) -> Trainer:
    """Return what learns from some of the pairs: both sides read by one model, and nothing else in the towers."""
    encoder = {
        "model": str(given.model or packaged_model()),
        "trained_layers": given.layers if given.layers == "all" else int(given.layers),
        "lora_rank": given.lora,
        "pooling": pooling,
        "precision": "bfloat16",
    }
    width = 384
    text = {"kind": "text", "encoder": "one", "fixed": width}
    features: dict[str, Any] = {"item": {"abstract": text}, "user": {"title": text}, "encoders": {"one": encoder}}
    batch = {"batch_events": given.batch, "in_batch_negatives": 8 * given.batch}
    config = RunConfig(
        features=FeaturesConfig.model_validate({"interactions": "in memory", **features}),
        towers=TowersConfig(width=width, history="none"),
        training=TrainingConfig(seed=seed, encoder_learning_rate=given.rate, warmup_steps=10, **batch),
    )
    rows = np.flatnonzero(learned_from)
    pairs = Sequences(rows, offsets_of(np.ones(len(rows), dtype=np.int64)), rows, times=None, is_ordered=True)
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(len(titles)), "abstract": abstracts}))
    users = Users(pd.DataFrame({"user_id": np.arange(len(titles)), "title": titles}))
    featurizer = Featurizer.fit(Schema.from_config(config.features), catalog, users, pairs)
    data = TrainingData.prepare(pairs, catalog, users, featurizer)
    trainer = Trainer(config, data, device=torch.device("cpu"), steps=1)
    trainer.steps = given.epochs * trainer.batches.num_batches(0)
    return trainer


@torch.no_grad()
def both_ways(
    model: TwoTower, data: TrainingData, titles: list[str], abstracts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of all abstracts for each title, and of all titles for each abstract."""
    model.eval()
    documents = model.item_vectors(data.featurizer.items.encode(pd.DataFrame({"abstract": abstracts})))
    queries = data.featurizer.users.encode(pd.DataFrame({"title": titles}))
    nothing = torch.zeros(len(titles) + 1, dtype=torch.int64)
    scores = (model.user_vectors(documents[:0], nothing, queries) @ documents.T).numpy()
    return scores, scores.T


def bm25(documents: list[str], queries: list[str]) -> np.ndarray:
    """Return the score of every document for each query."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for more when it is imported
    index = bm25s.BM25()
    index.index(bm25s.tokenize(documents, show_progress=False), show_progress=False)
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for place, words in enumerate(bm25s.tokenize(queries, return_ids=False, show_progress=False)):
        if words:
            scores[place] = index.get_scores(words)
    return scores


def ranks_of(there: np.ndarray, back: np.ndarray, asked: np.ndarray) -> Ranks:
    """Return how many come before the right one; of those that are even with it half, as if by lot."""
    found = {}
    for name, scores in (("title to abstract", there), ("abstract to title", back)):
        some = scores[asked]
        own = some[np.arange(len(asked)), asked][:, None]
        found[name] = (some > own).sum(axis=1) + ((some == own).sum(axis=1) - 1) // 2
    return found


def table(found: dict[str, Ranks]) -> list[str]:
    """Return the lines that are printed: recall at each cutoff, both ways."""
    lines = [f"{'':44}" + "".join(f"{f'R@{k}':>18}" for k in CUTOFFS)]
    for direction in next(iter(found.values())):
        others = [ranks[direction] for name, ranks in found.items() if not name.startswith(LEARNED)]
        highest = {k: max(interval(ranks, k)[1] for ranks in others) for k in CUTOFFS}
        for name, ranks in found.items():
            cells = []
            for k in CUTOFFS:
                low, high = interval(ranks[direction], k)
                mark = "*" if name.startswith(LEARNED) and low > highest[k] else " "
                cells.append(f"{(ranks[direction] < k).mean():.4f} ± {(high - low) / 2:.4f}{mark}")
            lines.append(f"{direction:18} {name:25}" + "".join(f"{cell:>18}" for cell in cells))
    return lines


def interval(ranks: np.ndarray, k: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval of recall at k."""
    low, high = bootstrap_interval((ranks < k).astype(np.float64)[:, None])
    return float(low[0]), float(high[0])


def without(title: str, abstract: str) -> str:
    """Return an abstract without the title in it, whatever its case.

    Example:
        >>> without("Toy Story", "Toy Story is a film. In toy story, toys live.")
        'It is a film. In It, toys live.'
    """
    return re.sub(rf"\b{re.escape(title)}\b", "It", abstract, flags=re.IGNORECASE)


if __name__ == "__main__":
    main()
