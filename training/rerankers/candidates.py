"""Candidates of the retriever for queries with known targets, to train and evaluate re-rankers on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float32

from features.columns import texts_written
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Queries
from features.sequences.timeline import Timeline
from features.sequences.trend import STEPS, ItemTrend
from features.tables.tables import Tables
from towers.bundle.bundle import ModelBundle
from towers.rerankers.reranker import Shortlist

_BLOCK = 512


def shortlists(
    bundle: ModelBundle, tables: Tables, questions: Queries, num_candidates: int
) -> Iterator[tuple[Shortlist, Bool[np.ndarray, " candidates"]]]:
    """Yield the shortlist of each query, as a service makes it, and which candidates are targets.

    Args:
        bundle: The model.
        tables: The catalogue and the users.
        questions: Users, request times and target items.
        num_candidates: How long a shortlist is.
    """
    vectors = bundle.encode_items(tables.catalog)
    seen_items = SeenItems.of(bundle.config.features.recommend_seen)
    trend = None
    if bundle.config.towers.trend:
        timeline = Timeline.of(tables.interactions.sequences(tables.catalog))
        assert timeline is not None, "a model that reads recent popularity was trained with times"
        trend = bundle.trend(timeline, len(vectors))
    for start in range(0, len(questions), _BLOCK):
        block = questions.take(np.arange(start, min(start + _BLOCK, len(questions))))
        people = _user_vectors(bundle, tables, block, vectors)
        scores = people[:, : vectors.shape[1]] @ vectors.T
        if trend is not None:
            _add_trend(scores, people[:, vectors.shape[1] :], trend, block)
        people = people[:, : vectors.shape[1]]
        excluded = seen_items.excluded(block.history, block.times)
        scores[excluded.row_of_value, excluded.values] = -np.inf
        words = _words(bundle, tables, block)
        for place in range(len(block)):
            found = _shortlist(bundle, block, place, people[place], scores[place], vectors, num_candidates)
            shortlist, is_answer = found
            yield replace(shortlist, words=words[place]), is_answer


def _add_trend(
    scores: Float32[np.ndarray, "questions items"],
    weights: Float32[np.ndarray, "questions tail"],
    trend: ItemTrend,
    questions: Queries,
) -> None:
    """Add the recent popularity of items at the time of each question to scores, in place."""
    assert questions.times is not None, "a model that reads recent popularity was trained with times"
    moments, place = np.unique(trend.moments(questions.times), return_inverse=True)
    for numbers, weight in zip(trend.numbers(moments), weights.T, strict=False):
        scores += numbers[place] * (weight[:, None] / np.float32(STEPS))


def _words(bundle: ModelBundle, tables: Tables, questions: Queries) -> list[str]:
    """Return the text of each query; empty if users have histories."""
    columns = {column: bundle.config.features.user[column] for column in bundle.config.asked_by}
    if tables.users is None or not columns:
        return [""] * len(questions)
    return texts_written(tables.users.attributes_of(questions.history.user_ids), columns) or [""] * len(questions)


def _user_vectors(
    bundle: ModelBundle, tables: Tables, questions: Queries, vectors: Float32[np.ndarray, "items width"]
) -> Float32[np.ndarray, "questions width"]:
    past = questions.history.last(bundle.config.features.max_history)
    reads_time = bundle.config.reads_time
    return bundle.encode_users(
        vectors[past.item_rows],
        past.offsets,
        attributes=None if tables.users is None else tables.users.attributes_of(past.user_ids),
        user_ids=past.user_ids,
        request_times=questions.times if reads_time else None,
        event_times=past.times if reads_time else None,
    )


def _shortlist(
    bundle: ModelBundle,
    questions: Queries,
    place: int,
    user_vector: Float32[np.ndarray, " width"],
    scores: Float32[np.ndarray, " items"],
    vectors: Float32[np.ndarray, "items width"],
    num_candidates: int,
) -> tuple[Shortlist, Bool[np.ndarray, " candidates"]]:
    history = questions.history
    mine = slice(history.offsets[place], history.offsets[place + 1])
    rows = _best(scores, num_candidates)
    answers = questions.target_rows[questions.target_offsets[place] : questions.target_offsets[place + 1]]
    has_times = bundle.config.reads_time and history.times is not None
    shortlist = Shortlist(
        user_vector=user_vector,
        history_rows=history.item_rows[mine].astype(np.int64),
        history_vectors=vectors[history.item_rows[mine]],
        history_times=history.times[mine] if has_times and history.times is not None else None,
        now=None if questions.times is None else int(questions.times[place]),
        rows=rows,
        vectors=vectors[rows],
        scores=scores[rows],
    )
    return shortlist, np.isin(rows, answers)


def _best(scores: Float32[np.ndarray, " items"], most: int) -> np.ndarray:
    """Return the rows of the highest scores, best first, equal ones in order; none of -inf."""
    rows = np.argpartition(-scores, most)[:most] if most < len(scores) else np.arange(len(scores))
    rows = rows[scores[rows] > -np.inf]
    return rows[np.lexsort((rows, -scores[rows]))].astype(np.int64)
