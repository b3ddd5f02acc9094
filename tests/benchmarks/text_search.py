"""Does a pretrained model find more after learning from a few thousand pairs, and beside BM25?

    TOWERS_DATA=folder python tests/benchmarks/text_search.py [--data ml-1m] [--hide] [--seeds 1] [--pairs 2000]
        [--epochs 2] [--layers 2] [--rate 1e-4] [--batch 64] [--tokens N] [--lora 0] [--pooling model]
        [--validate] [--model FOLDER]

`ml-1m`: a query is the title of a film, a document an abstract. `--hide` takes the titles out of the abstracts, where
most of them stand and words alone would find them. `amazon-beauty`: a query is a brand and a category, a document the
title of a product; any product of the brand in the category is right.

All documents are ranked. `--pairs` queries are learned from, each with one document; all others are asked for, both
ways. Each seed asks for the next of them; a query counts once, with its mean over the seeds that ask for it.
`--pooling mean cls last attention` learns with each in turn. Settings are to be chosen with `--validate`: it asks for
some of the pairs that every seed learns from otherwise, and for no other.

Beside the model as it is and after learning stands BM25 as `bm25s` has it. `--tokens` cuts texts for both. The queries'
side and the documents' side share their weights. After ± stands half the 95 % interval (bootstrap over the
queries asked for); `*` marks what is above all that was not learned with intervals apart. Below stand the differences
for the same queries; of several poolings, those to the first.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from features.config import EncoderSettings, FeaturesConfig
from features.encoders.encoder import PretrainedText
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from tests.benchmarks.encoding import packaged_model, public_items
from towers.config import TowersConfig
from towers.model.two_tower import TwoTower
from towers.warnings_filter import quiet_imports
from training.config import RunConfig, TrainingConfig
from training.evaluation.metrics import bootstrap_interval
from training.loop.build import TrainingData, build
from training.loop.trainer import Trainer

CUTOFFS = (1, 10, 50)
FOR_VALIDATION = 400
"""Queries that every seed learns from, unless settings are chosen by them."""
BM25, AS_IT_IS, LEARNED = "BM25", "as it is", "learned"
Ranks = dict[str, np.ndarray]
"""Of each query asked for, how many come before what is right, by direction."""


@dataclass(frozen=True)
class Search:
    """What is asked, and what there is to be found.

    Attributes:
        queries: Texts.
        documents: Texts.
        answered: The place of the query that each document answers, `[documents]`; -1 where it answers none.
        directions: What it is called to find documents by queries, and queries by documents.
    """

    queries: list[str]
    documents: list[str]
    answered: np.ndarray
    directions: tuple[str, str]

    def document_of(self, query: int, generator: np.random.Generator) -> int:
        """Return one of the documents that answer a query."""
        return int(generator.choice(np.flatnonzero(self.answered == query)))


def main() -> None:
    """Print recall of each, both ways."""
    given = arguments()
    quiet_imports()
    search = films(given.hide) if given.data == "ml-1m" else products()
    rounds: list[dict[str, Ranks]] = []
    asked: list[np.ndarray] = []
    for seed in range(given.seeds):
        learned_from, held_out = divided(len(search.queries), given.pairs, seed, validate=given.validate)
        print(
            f"seed {seed}: {len(learned_from):,} pairs to learn from, {len(held_out):,} queries asked for", flush=True
        )
        rounds.append(judged(given, search, learned_from, held_out, seed))
        asked.append(held_out)
        for line in table(together(rounds), np.concatenate(asked)):
            print(line, flush=True)


def together(rounds: Sequence[dict[str, Ranks]]) -> dict[str, Ranks]:
    """Return the ranks of all seeds, one after another."""
    return {
        name: {way: np.concatenate([one[name][way] for one in rounds]) for way in ranks}
        for name, ranks in rounds[0].items()
    }


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("ml-1m", "amazon-beauty"), default="ml-1m")
    parser.add_argument("--hide", action="store_true")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--layers", default="2")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--pooling", nargs="+", default=["model"])
    parser.add_argument("--model", type=Path, default=packaged_model())
    return parser.parse_args()


def divided(num_queries: int, pairs: int, seed: int, *, validate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the queries to learn from and those to ask for: with each seed the next, until all had their turn.

    Some are learned from by every seed, so that no choice of settings has seen what is asked for. Where settings are
    chosen, these are asked for, and the others learned from.
    """
    for_validation, others = np.split(np.random.default_rng(0).permutation(num_queries), [FOR_VALIDATION])
    num_asked = num_queries - pairs
    asked, learned_from = np.split(np.roll(others, -seed * num_asked), [num_asked])
    return (learned_from, for_validation) if validate else (np.concatenate([for_validation, learned_from]), asked)


def judged(
    given: argparse.Namespace, search: Search, learned_from: np.ndarray, asked: np.ndarray, seed: int
) -> dict[str, Ranks]:
    """Return the ranks by each contestant, after learning what is to be learned."""
    queries, documents = search.queries, search.documents
    found = {BM25: ranks_of(search, bm25(documents, queries), bm25(queries, documents), asked)}
    for pooling in given.pooling:
        of_it = "" if len(given.pooling) == 1 else f", {pooling}"
        if pooling != "attention":  # which is learned, and begins as the mean
            likeness = as_it_is(given, search, pooling)
            found[AS_IT_IS + of_it] = ranks_of(search, likeness, likeness.T, asked)
        trainer = trainer_of(given, search, learned_from, seed, pooling)
        began = time.perf_counter()
        model = trainer.fit()
        print(
            f"learning{of_it} took {time.perf_counter() - began:,.0f} seconds, {trainer.progress.step} steps",
            flush=True,
        )
        likeness = by_towers(model, trainer.data.featurizer, search)
        found[LEARNED + of_it] = ranks_of(search, likeness, likeness.T, asked)
    return found


def trainer_of(given: argparse.Namespace, search: Search, learned_from: np.ndarray, seed: int, pooling: str) -> Trainer:
    """Return what learns from some of the pairs: both sides read by one model, and nothing else in the towers."""
    encoder = {
        "model": str(given.model),
        "trained_layers": given.layers if given.layers == "all" else int(given.layers),
        "lora_rank": given.lora,
        "pooling": pooling,
        "max_tokens": given.tokens,
        "precision": "bfloat16",
    }
    width = 384
    text = {"kind": "text", "encoder": "one", "frozen_dim": width}
    features: dict[str, Any] = {"item": {"document": text}, "user": {"query": text}, "encoders": {"one": encoder}}
    batch = {"batch_size": given.batch, "in_batch_negatives": 8 * given.batch}
    config = RunConfig(
        features=FeaturesConfig.model_validate({"interactions": "in memory", **features}),
        towers=TowersConfig(embedding_dim=width, history_encoder="none"),
        training=TrainingConfig(
            seed=seed, text_encoder_learning_rate=given.rate, warmup_steps=10, symmetric_loss=True, **batch
        ),
    )
    generator = np.random.default_rng(seed)
    answers = np.array([search.document_of(query, generator) for query in learned_from])
    pairs = Sequences(learned_from, offsets_of(np.ones(len(answers), np.int64)), answers, times=None, is_ordered=True)
    catalog = Catalog(pd.DataFrame({"item_id": np.arange(len(search.documents)), "document": search.documents}))
    users = Users(pd.DataFrame({"user_id": np.arange(len(search.queries)), "query": search.queries}))
    featurizer = Featurizer.fit(Schema.from_config(config.features), catalog, users, pairs)
    data = TrainingData.prepare(pairs, catalog, users, featurizer)
    trainer = Trainer(build(config, data, torch.device("cpu")), steps=1)
    trainer.steps = given.epochs * trainer.batches.num_batches(0)
    return trainer


def as_it_is(given: argparse.Namespace, search: Search, pooling: str) -> np.ndarray:
    """Return the likeness of each query to each document by a model that learned nothing here."""
    settings = {"model": str(given.model), "pooling": pooling, "max_tokens": given.tokens, "precision": "bfloat16"}
    encoder = PretrainedText.fit(EncoderSettings.model_validate(settings), search.documents)
    likeness: np.ndarray = encoder.numbers(search.queries, "query") @ encoder.numbers(search.documents, "document").T
    return likeness


@torch.no_grad()
def by_towers(model: TwoTower, featurizer: Featurizer, search: Search) -> np.ndarray:
    """Return the same by the towers."""
    model.eval()
    documents = model.item_vectors(featurizer.items.encode(pd.DataFrame({"document": search.documents})))
    queries = featurizer.users.encode(pd.DataFrame({"query": search.queries}))
    nothing = torch.zeros(len(search.queries) + 1, dtype=torch.int64)
    likeness: np.ndarray = (model.user_vectors(documents[:0], nothing, queries) @ documents.T).numpy()
    return likeness


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


def ranks_of(search: Search, there: np.ndarray, back: np.ndarray, asked: np.ndarray) -> Ranks:
    """Return how many come before what is right; of those that are even with it half, as if by lot.

    Args:
        search: Says what is right: the best of the documents of a query, and the query of its first document.
        there: The score of each document for each query.
        back: The score of each query for each document.
        asked: The queries that are asked for.
    """
    is_right = search.answered == asked[:, None]
    first = is_right.argmax(axis=1)
    ways = (there[asked], is_right), (back[first], np.arange(len(search.queries)) == asked[:, None])
    return {
        direction: _before(scores, right) for direction, (scores, right) in zip(search.directions, ways, strict=True)
    }


def _before(scores: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    best = np.where(is_right, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores > best).sum(axis=1) + ((scores == best) & ~is_right).sum(axis=1) // 2).astype(np.int64)


def table(found: Mapping[str, Ranks], asked: np.ndarray) -> list[str]:
    """Return the lines that are printed: recall at each cutoff, both ways, and what learning adds.

    The intervals are over the queries; the spread between seeds is not in them.

    Args:
        found: The ranks by each contestant.
        asked: The query of each rank.
    """
    lines = [f"{'95 % intervals over the queries alone':38}" + "".join(f"{f'R@{k}':>22}" for k in CUTOFFS)]
    learned = [name for name in found if name.startswith(LEARNED)]
    others = [name for name in found if name not in learned]
    for way in next(iter(found.values())):
        shares = {name: _shares(ranks[way], asked) for name, ranks in found.items()}
        highest = np.max([bootstrap_interval(shares[name])[1] for name in others], axis=0)
        for name, share in shares.items():
            low, high = bootstrap_interval(share)
            marks = ["*" if name in learned and is_above else " " for is_above in low > highest]
            cells = [
                f"{mean:.4f} ± {half:.4f}{mark}"
                for mean, half, mark in zip(share.mean(axis=0), (high - low) / 2, marks, strict=True)
            ]
            lines.append(f"{way:20} {name:17}" + "".join(f"{cell:>22}" for cell in cells))
        beside = others if len(learned) == 1 else learned[:1]
        for name, other in [(name, other) for name in learned for other in beside if name != other]:
            difference = shares[name] - shares[other]
            ends = zip(difference.mean(axis=0), *bootstrap_interval(difference), strict=True)
            cells = [f"{mean:+.3f} ({low:+.3f}, {high:+.3f})" for mean, low, high in ends]
            lines.append(f"{name + ' above ' + other:38}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def _shares(ranks: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return for each query, once, in what share of its ranks it was found, `[queries, cutoffs]`."""
    times = np.bincount(asked)
    hits = np.stack([np.bincount(asked, ranks < k) for k in CUTOFFS], axis=1)
    shares: np.ndarray = hits[times > 0] / times[times > 0, None]
    return shares


def films(hide: bool) -> Search:
    """Return titles and abstracts of MovieLens-1M.

    Args:
        hide: Whether titles are taken out of the abstracts.
    """
    frame = public_items("ml-1m").dropna(subset=["abstract"])
    titles = [str(title) for title in frame["title"]]
    abstracts = [str(abstract) for abstract in frame["abstract"]]
    if hide:
        abstracts = [without(title, abstract) for title, abstract in zip(titles, abstracts, strict=True)]
    return Search(titles, abstracts, np.arange(len(titles)), ("title to abstract", "abstract to title"))


def products() -> Search:
    """Return brands with the last of their categories, and titles of products, of Amazon Beauty."""
    frame = public_items("amazon-beauty").dropna(subset=["title"])
    category = frame["categories"].str.rpartition("|")[2]
    asked, queries = pd.factorize((frame["brand"] + ", " + category).to_numpy())
    directions = ("query to title", "title to query")
    return Search([str(query) for query in queries], [str(title) for title in frame["title"]], asked, directions)


def without(title: str, abstract: str) -> str:
    """Return an abstract without the title in it, whatever its case.

    Example:
        >>> without("Toy Story", "Toy Story is a film. In toy story, toys live.")
        'It is a film. In It, toys live.'
    """
    return re.sub(rf"\b{re.escape(title)}\b", "It", abstract, flags=re.IGNORECASE)


if __name__ == "__main__":
    main()
