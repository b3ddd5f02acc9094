"""The kinds of re-rankers: one entry per kind. CONTRIBUTING.md says how to add one.

This file imports nothing, because the command line lists the kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RerankerKind:
    """A kind of re-ranker.

    Attributes:
        name: Its name for `towers train-ranker --kind`.
        summary: What it does, for `towers train-ranker --help`.
        reranker: `module:class` of the `Reranker`; see `towers.rerankers.opening.OpenableReranker`.
        reads: Data about items that it needs when serving, which `towers index` stores: their statistics, nothing but
            the texts of the catalogue, or precomputed embeddings of the tokens of these texts.
        num_candidates: Default number of candidates to re-rank.
        eval_queries: Default maximum number of held-out queries to evaluate it on.
        model: What `--model` must name. None: it needs no pretrained model.
        max_tokens: Default maximum tokens of a text, or of a pair of texts. None: it reads no texts.
        can_fine_tune: Whether its model can be fine-tuned first, on `--train-queries`.
    """

    name: str
    summary: str
    reranker: str
    reads: Literal["statistics", "texts", "tokens"]
    num_candidates: int
    eval_queries: int
    model: str | None = None
    max_tokens: int | None = None
    can_fine_tune: bool = False


RERANKER_KINDS: dict[str, RerankerKind] = {
    kind.name: kind
    for kind in (
        RerankerKind(
            "learned",
            "a small network over popularity, co-occurrence and similarity features, trained on held-out data",
            "towers.rerankers.learned:LearnedRanker",
            "statistics",
            200,
            10_000,
        ),
        RerankerKind(
            "cross-encoder",
            "reads the text of the query, or history, together with that of each candidate; the slowest",
            "towers.rerankers.text:CrossEncoderRanker",
            "texts",
            50,
            500,
            model="a cross-encoder",
            max_tokens=128,
            can_fine_tune=True,
        ),
        RerankerKind(
            "late-interaction",
            "compares token embeddings of both; those of the items are precomputed; --model is a bi-encoder",
            "towers.rerankers.text:LateInteractionRanker",
            "tokens",
            100,
            2_000,
            model="a bi-encoder of sentence-transformers",
            max_tokens=32,
        ),
    )
}
"""By name."""
