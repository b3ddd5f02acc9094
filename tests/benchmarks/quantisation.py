"""What is lost by keeping less of each vector, as bytes, bits or a prefix: recall and memory, with re-scoring or not.

    python tests/benchmarks/quantisation.py runs/latest

The vectors are those of a bundle's items, the questions those of its users (of its items where it has no users), and
the truth is the comparison of whole vectors. Without re-scoring the 128 best of the cheap comparison are compared again
with their whole vectors (`FIRST_LEVEL` in `serving/search/index_config.py`); with it, as many times more as is proposed
there. Random vectors stand in where no bundle is named: the worst case, since nothing in them can be left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from serving.jobs.open import open_recommender
from serving.search.faiss_index import ItemIndex
from serving.search.index_config import IndexConfig, candidates
from serving.search.tuning import sample_of

CUTOFFS = (10, 100)
KINDS = ("sq8", "sq4", "rabitq", "matryoshka")
"""A byte, 4 bits, 1 to 4 bits of each number; and the first numbers only, where a model was trained for it."""
RANDOM_ITEMS, RANDOM_WIDTH = 5_000, 64


def plans(num_items: int, width: int, prefixes: list[int]) -> list[IndexConfig]:
    """Return the structures that keep less of each vector, at their standard effort."""
    kinds = [kind for kind in KINDS if kind != "matryoshka" or prefixes]
    return [plan for kind in kinds for plan in candidates(num_items, width, kind, prefixes)]


def recalls(index: ItemIndex, queries: np.ndarray, rescored: int) -> list[float]:
    """Return the share of the true best k that an index finds, for each k."""
    searched = index.with_effort(index.plan.model_copy(update={"oversampling": rescored}))
    return [searched.search(queries, k).share_of(searched.scan(queries, k)) for k in CUTOFFS]


def measure(vectors: np.ndarray, queries: np.ndarray, prefixes: list[int]) -> list[str]:
    """Return the table, a line for each way of keeping less."""
    whole = vectors.nbytes / len(vectors)
    heads = [f"R@{k} {when}" for when in ("as is", "re-scored") for k in CUTOFFS]
    lines = [f"{'kept':30}{'bytes an item':>15}{'of float32':>12}" + "".join(f"{head:>16}" for head in heads)]
    for plan in plans(*vectors.shape, prefixes):
        index = ItemIndex.build(vectors, plan)
        share = (plan.prefix or vectors.shape[1]) / vectors.shape[1] * plan.bits / 32
        found = [recall for times in (1, plan.oversampling) for recall in recalls(index, queries, times)]
        numbers = f"{whole * share:15,.0f}{share:12.3f}" + "".join(f"{one:16.4f}" for one in found)
        lines.append(f"{plan!s:30}{numbers}")
    return lines


def main(arguments: list[str]) -> None:
    """Print the table of a bundle, or of random vectors."""
    if arguments:
        recommender = open_recommender(Path(arguments[0]))
        vectors, prefixes = recommender.snapshot.index.vectors, recommender.bundle.config.towers.matryoshka_dims
        users = recommender.snapshot.user_vectors
        queries = sample_of(vectors if users is None or not len(users) else users)
    else:
        drawn = np.random.default_rng(0).normal(size=(RANDOM_ITEMS + 500, RANDOM_WIDTH))
        drawn = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        vectors, queries, prefixes = drawn[500:], drawn[:500], []
    print("\n".join(measure(np.asarray(vectors), queries, list(prefixes))))


if __name__ == "__main__":
    main(sys.argv[1:])
