"""Making of re-rankers that read texts: a cross-encoder, pretrained or fine-tuned, and late interaction.

Neither is trained on the queries of its evaluation. A cross-encoder is fine-tuned on queries of the training data: that
the retriever was trained on their targets does not matter, because the cross-encoder does not read the retriever's
scores. The weight of its own score is chosen on held-out queries by cross-validation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch.nn import functional
from tqdm import tqdm

from features.encoders.folder import copy_model, find_model
from features.encoders.local import quiet_models
from features.errors import DataError
from features.sequences.sequences import Queries, Sequences
from features.tables.tables import Tables
from towers.bundle.bundle import ModelBundle
from towers.model.precision import fastest_precision
from towers.rerankers.manifest import MODEL, TextSettings
from towers.rerankers.reranker import MOST_CHARACTERS, Deadline, Shortlist
from towers.rerankers.text import (
    CrossEncoderRanker,
    LateInteractionRanker,
    TextRanker,
    asked_text,
    mixed,
    open_cross_encoder,
)
from towers.rerankers.token_embeddings import TokenReader, TokenVectors
from training.rerankers.candidates import shortlists
from training.rerankers.examples import RankingDataset
from training.rerankers.learned import FOLDS, assign_folds

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Weights of the text model's score that are tried."""
NEGATIVES = 7
"""Negatives per positive."""
QUESTIONS_A_STEP = 8
LEARNING_RATE = 5e-5
WARM_UP = 0.1
"""Fraction of warm-up steps; afterwards the learning rate falls linearly to zero."""

Save = Callable[[Path], None]


@dataclass(frozen=True)
class Comparison:
    """A training example of a cross-encoder.

    Attributes:
        asked: Text of the query, or of the history.
        candidates: The text of the answer, and after it those of items that are none.
    """

    asked: str
    candidates: Sequence[str]


def make_late_interaction(name: str, texts: Sequence[str], settings: TextSettings) -> tuple[TextRanker, Save]:
    """Return late interaction by a model of sentence-transformers, and what saves that.

    Args:
        name: Its folder, or its name on the hub.
        texts: What is written of each item.
        settings: Its weight, and how much of a history and of a text it reads.

    Raises:
        DataError: There is no such model.
    """
    folder = find_model(name)
    reader = TokenReader.open(folder, settings.max_tokens)
    with tqdm(total=len(texts), unit=" texts", desc="Reading", disable=None, leave=False) as bar:
        tokens = TokenVectors.of(reader, texts, progress=bar.update)
    return LateInteractionRanker(tokens, reader, settings), lambda into: copy_model(folder, into / MODEL)


def make_cross_encoder(
    name: str,
    texts: Sequence[str],
    settings: TextSettings,
    comparisons: Callable[[], Sequence[Comparison]] | None,
    seed: int,
) -> tuple[TextRanker, Save]:
    """Return a cross-encoder, and what saves it.

    Args:
        name: The folder of the model, or its name on the hub; any transformer where it is to learn.
        texts: What is written of each item.
        settings: Its weight, and how much of a history and of a text it reads.
        comparisons: Examples to fine-tune it on. None: no fine-tuning.
        seed: For what is random in it.

    Raises:
        DataError: There is no such model, or it judges no pairs and is not to learn that.
    """
    folder = find_model(name)
    is_one = judges_pairs(folder)
    if comparisons is None and not is_one:
        raise DataError(
            f"{folder}: not a cross-encoder but a plain transformer; fine-tune it with --train-queries 2000"
        )
    if comparisons is None:
        model = open_cross_encoder(folder, settings.max_tokens)
        return CrossEncoderRanker(model, texts, settings), lambda into: copy_model(folder, into / MODEL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_cross_encoder(folder, settings.max_tokens, with_new_head=not is_one)
        fit_cross_encoder(model, comparisons(), seed)
    return CrossEncoderRanker(model, texts, settings), lambda into: _save(model, into / MODEL)


def judges_pairs(folder: Path) -> bool:
    """Return whether the model in a folder is a cross-encoder, and not only a transformer that could become one."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kinds = content.get("architectures") or []
    return any(kind.endswith(("ForSequenceClassification", "ForCausalLM")) for kind in kinds)


def comparisons_of(
    bundle: ModelBundle,
    tables: Tables,
    questions: Queries,
    known: Sequences,
    texts: Sequence[str],
    *,
    history_items: int,
    num_candidates: int,
    seed: int,
) -> list[Comparison]:
    """Return training examples of queries: the target, and other retrieved items as negatives.

    Args:
        bundle: What retrieves.
        tables: The catalogue and the users.
        questions: Users or queries, and their target items.
        known: All interactions, held-out ones included; none of them is used as a negative.
        texts: What is written of each item.
        history_items: How many of the newest items of a history are read.
        num_candidates: How long the shortlists are.
        seed: Seed of the choice of negatives.
    """
    rng = np.random.default_rng(seed)
    place_of = {user_id: place for place, user_id in enumerate(known.user_ids.tolist())}
    found = shortlists(bundle, tables, questions, num_candidates)
    made = []
    for place, (shortlist, _) in enumerate(
        tqdm(found, total=len(questions), desc="Lessons", disable=None, leave=False)
    ):
        answer = int(questions.target_rows[questions.target_offsets[place]])
        had = known.items_of(place_of[questions.history.user_ids[place]])
        others = shortlist.rows[~np.isin(shortlist.rows, had)]
        asked = asked_text(shortlist, texts, history_items)
        if asked and texts[answer] and len(others):
            rows = [answer, *rng.choice(others, NEGATIVES, replace=len(others) < NEGATIVES).tolist()]
            made.append(Comparison(asked, [texts[row][:MOST_CHARACTERS] for row in rows]))
    return made


def fit_cross_encoder(model: CrossEncoder, comparisons: Sequence[Comparison], seed: int) -> None:
    """Fine-tune a cross-encoder in one epoch, with a softmax over each query's target and negatives.

    Raises:
        DataError: There is nothing to learn from.
    """
    if not comparisons:
        raise DataError("no training query has both a text and a target item with one; leave out --train-queries")
    order = np.random.default_rng(seed).permutation(len(comparisons))
    steps = np.array_split(order, -(-len(comparisons) // QUESTIONS_A_STEP))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, len(steps)))
    precision = fastest_precision(torch.device("cpu"))
    model.train()
    for chosen in tqdm(steps, desc="Learning", disable=None, leave=False):
        some = [comparisons[place] for place in chosen]
        pairs = [(one.asked, text) for one in some for text in one.candidates]
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            scores = model(model.preprocess(pairs))["scores"]
        logits = scores.float().view(len(some), -1)
        optimiser.zero_grad()
        functional.cross_entropy(logits, torch.zeros(len(some), dtype=torch.int64)).backward()
        optimiser.step()
        schedule.step()
    model.eval()


def scores_of(
    ranker: TextRanker, shares: Sequence[float]
) -> Callable[[Shortlist], Float32[np.ndarray, "candidates shares"]]:
    """Return a function of the scores of a shortlist's candidates, for each weight of the text model's score."""

    def read(shortlist: Shortlist) -> np.ndarray:
        opinions = ranker.opinions(shortlist, Deadline(None))
        return np.stack([mixed(shortlist.scores, *opinions, share) for share in shares], axis=1)

    return read


def choose_weight(
    dataset: RankingDataset, shares: Sequence[float], seed: int
) -> tuple[float, Float[np.ndarray, " questions"]]:
    """Return the best weight of the text model's score, and N@10 by query with the weight chosen on the other queries.

    Args:
        dataset: With a score for each share, as `scores_of` gives them.
        shares: The weights.
        seed: Deals the questions into parts.
    """
    everything = np.arange(len(dataset))
    found = np.stack([dataset.ndcg(everything, dataset.features[..., place]) for place in range(len(shares))])
    part, after = assign_folds(len(dataset), seed), np.zeros(len(dataset))
    for fold in range(FOLDS):
        in_fold = part == fold
        if in_fold.any():
            others = found[:, ~in_fold] if not in_fold.all() else found
            after[in_fold] = found[int(others.mean(axis=1).argmax()), in_fold]
    return shares[int(found.mean(axis=1).argmax())], after


def _rate(step: int, num_steps: int) -> float:
    warm = max(1, round(WARM_UP * num_steps))
    return min((step + 1) / warm, (num_steps - step) / max(1, num_steps - warm))


def _save(model: CrossEncoder, folder: Path) -> None:
    with quiet_models():
        model.save_pretrained(str(folder), create_model_card=False)
