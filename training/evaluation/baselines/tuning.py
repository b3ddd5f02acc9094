"""The baselines of every evaluation: popularity, item-item cosine, EASE, iALS, and TF-IDF neighbours of item texts.

Each is fitted on the same `Sequences` as the model, in seconds, with hyperparameters chosen on validation queries.
A model that does not beat them is not worth serving. All of them can score for new users, from their history.
Items without training interactions get the score 0, except from the text baseline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, compress
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from features.sequences.split import Split
from features.values.text import words
from training.evaluation.baselines.ease import MAX_EASE_ITEMS, Ease, ease_weights, gram_matrix
from training.evaluation.baselines.ials import Ials, implicit_als
from training.evaluation.baselines.item_cosine import ItemCosine
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.baselines.text_neighbours import TextNeighbours, text_vectors
from training.evaluation.evaluate import ScoringModel, evaluate

MOST_QUESTIONS = 2_000
"""Maximum number of validation queries for tuning, a sample."""
MAX_EASE_TRIALS_ITEMS = 15_000
"""Most items for which several regularisations are tried: each costs the cube of the number of items."""
REGULARISATIONS = (10.0, 100.0, 300.0, 1_000.0)
"""Values tried for the regularisation of EASE."""
MAX_IALS_TRIALS_EVENTS = 3_000_000
"""Most interactions for which several settings are tried for iALS: seven fits, five seconds each for a million."""
IALS_TRIALS: dict[str, tuple[Any, ...]] = {
    "confidence": (1.0, 3.0, 10.0, 40.0),
    "regularisation": (1.0, 10.0),
    "factors": (64, 128, 256),
}
"""Values tried for iALS, one hyperparameter after the other."""
HALF_LIVES = (1.0, 2.0, 4.0, 16.0, math.inf)
"""Values tried for the half-life of the text neighbours, in events; inf weights all events alike."""

Trial = TypeVar("Trial", bound=ScoringModel)


def fit_baselines(split: Split, *, texts: Sequence[str] | None = None) -> tuple[list[ScoringModel], list[str]]:
    """Fit every baseline on the training data, with the hyperparameters that are best on the validation queries.

    Args:
        split: Training data and validation queries.
        texts: What is written of each item, `[items]`, as `item_texts` gives it; None: nothing is.

    Returns:
        The recommenders, and what a reader of the report should know about them, one line each.
    """
    num_items = len(split.candidates)
    recommenders: list[ScoringModel] = [
        PopularityBaseline.fit(split.train, num_items),
        ItemCosine.fit(split.train, num_items),
    ]
    chosen = [
        _ease(split),
        _ials(split),
        _text_neighbours(split, texts),
    ]
    recommenders += [recommender for recommender, _ in chosen if recommender is not None]
    return recommenders, [note for _, note in chosen if note]


def choose_ease(split: Split, *, regularisations: Sequence[float] = REGULARISATIONS) -> Ease:
    """Return EASE with the regularisation that has the best NDCG@10 on the validation questions."""
    num_items = len(split.candidates)
    item_rows, gram = gram_matrix(split.train, num_items)
    trials = (Ease(ease_weights(gram, value), item_rows, num_items, value) for value in regularisations)
    return _best(trials, len(regularisations), split)


def choose_ials(split: Split) -> Ials:
    """Return iALS with the settings that have the best NDCG@10 on the validation questions.

    One after the other: the confidence, which matters most, the regularisation, and the factors.
    """
    num_items = len(split.candidates)
    best = Ials.fit(split.train, num_items)
    for name, values in IALS_TRIALS.items():
        others = [replace(best.settings, **{name: value}) for value in values]
        trials = (Ials.fit(split.train, num_items, settings) for settings in others if settings != best.settings)
        best = _best(chain([best], trials), len(others), split)
    return best


def choose_text_neighbours(split: Split, texts: Sequence[str]) -> TextNeighbours:
    """Return the neighbours by text with the half-life that has the best NDCG@10 on the validation questions."""
    half_lives = HALF_LIVES if split.train.is_ordered else (math.inf,)
    vectors = text_vectors(texts, split.warm_items)
    return _best((TextNeighbours(vectors, value) for value in half_lives), len(half_lives), split)


def _ease(split: Split) -> tuple[Ease | None, str]:
    """Return EASE, tuned where that is affordable, and what the report says of it."""
    num_known = int(split.warm_items.sum())
    if num_known > MAX_EASE_ITEMS:
        return None, f"EASE is left out: {num_known:,} items are more than the {MAX_EASE_ITEMS:,} that it can take."
    if num_known > MAX_EASE_TRIALS_ITEMS or not _has_warm_answers(split):
        ease = Ease.fit(split.train, len(split.candidates))
        return (
            ease,
            f"EASE: regularisation {ease.regularisation:g}, not tuned {_reason(split, f'{num_known:,} items')}.",
        )
    ease = choose_ease(split)
    tried = ", ".join(f"{value:g}" for value in REGULARISATIONS)
    return ease, f"EASE: regularisation {ease.regularisation:g}, the best of {tried} on validation data."


def _ials(split: Split) -> tuple[Ials | None, str]:
    """Return iALS, tuned where that is affordable, and what the report says of it."""
    try:
        implicit_als()
    except ImportError as error:
        return None, f"iALS is left out: it needs the library implicit ({error}); pip install implicit adds it."
    num_events = split.train.num_events
    if num_events > MAX_IALS_TRIALS_EVENTS or not _has_warm_answers(split):
        ials = Ials.fit(split.train, len(split.candidates))
        return ials, f"iALS: {ials.settings}, not tuned {_reason(split, f'{num_events:,} interactions')}."
    ials = choose_ials(split)
    tried = "; ".join(f"{name} {', '.join(f'{value:g}' for value in values)}" for name, values in IALS_TRIALS.items())
    return ials, f"iALS: {ials.settings}, the best of {tried} on validation data."


def _text_neighbours(split: Split, texts: Sequence[str] | None) -> tuple[TextNeighbours | None, str]:
    """Return the neighbours by text, if there are texts, and what the report says of them."""
    if texts is None or not any(map(words, compress(texts, split.warm_items))):
        return None, ""
    neighbours = choose_text_neighbours(split, texts)
    found = (
        "all events count alike" if math.isinf(neighbours.half_life) else f"half-life {neighbours.half_life:g} events"
    )
    if not split.train.is_ordered:
        return neighbours, "TF-IDF: all events count alike, there being no order."
    tried = ", ".join(f"{value:g}" for value in HALF_LIVES)
    return neighbours, f"TF-IDF: {found}, the best of {tried} on validation data."


def _has_warm_answers(split: Split) -> bool:
    return bool(split.warm_items[split.validation.target_rows].any())


def _reason(split: Split, size: str) -> str:
    return f"at {size}" if _has_warm_answers(split) else "for answers that training has never seen"


def _best(trials: Iterable[Trial], count: int, split: Split) -> Trial:
    """Return the recommender with the best NDCG@10 on the validation questions, the first among equals."""
    questions = split.validation
    if len(questions) > MOST_QUESTIONS:
        chosen = np.random.default_rng(0).choice(len(questions), MOST_QUESTIONS, replace=False)
        questions = questions.take(np.sort(chosen))
    best, best_ndcg = None, -1.0
    for trial in tqdm(trials, total=count, desc="choosing settings", unit=" settings", leave=False, disable=None):
        result = evaluate(
            trial, questions, split.candidates, seen_items=split.seen_items, cutoffs=(10,), with_coverage=False
        )
        if result.means["ndcg_at_10"] > best_ndcg:
            best, best_ndcg = trial, result.means["ndcg_at_10"]
    assert best is not None, "nothing to try"
    return best
