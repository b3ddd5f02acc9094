"""Reasons for a recommendation ("because you liked ..."), by leaving out one item of the history at a time.

The contribution of a history item is the score of the recommended item minus its score with the same history without
that item. It describes the model, not the similarity of two items: a similar item may have no influence. Of two
history items with the same information, leaving out one changes little, so both contribute little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64, Int64

from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from serving.deadline import watched
from serving.search.results import cosines

MOST_WEIGHED = 50
"""Maximum number of history items that are left out in turn: the newest ones."""


def contributions(
    history: Sequences,
    item_vectors: Float32[np.ndarray, "items width"],
    encode: Callable[[Sequences], Float32[np.ndarray, "histories width"]],
    most_read: int,
) -> tuple[Int64[np.ndarray, " weighed"], Float64[np.ndarray, "weighed items"]]:
    """Return the items of one user's history, newest first, and what each contributed to the score of each item.

    Args:
        history: The history of one user.
        item_vectors: Unit vectors of the recommended items.
        encode: Returns the unit vector of the same user for each of several histories.
        most_read: Maximum number of newest events of a history that the model reads.
    """
    weighed = _newest_items(history)
    vectors = encode(_without_each(history, weighed, most_read))
    scores = cosines(vectors[:, None], item_vectors[None])
    return weighed, scores[0] - scores[1:]


def most(contributed: Float64[np.ndarray, "weighed items"], num_reasons: int) -> list[list[tuple[int, float]]]:
    """Return the largest positive contributions to each item as positions and amounts."""
    order = np.argsort(-contributed, axis=0, kind="stable")[:num_reasons]
    amounts = np.take_along_axis(contributed, order, axis=0)
    each = zip(order.T.tolist(), amounts.T.tolist(), strict=True)
    return [[pair for pair in zip(*one, strict=True) if pair[1] > 0] for one in each]


def _newest_items(history: Sequences) -> Int64[np.ndarray, " weighed"]:
    newest_first = history.item_rows[::-1]
    return newest_first[np.sort(np.unique(newest_first, return_index=True)[1])[:MOST_WEIGHED]].astype(np.int64)


def _without_each(history: Sequences, items: np.ndarray, most_read: int) -> Sequences:
    """Return the newest events of the full history, then of the history without each of the items."""
    kept = [np.arange(history.num_events)[-most_read:]]
    kept += [np.flatnonzero(history.item_rows != item)[-most_read:] for item in watched(items)]
    events = np.concatenate(kept)
    return replace(
        history,
        user_ids=np.repeat(history.user_ids, len(kept)),
        offsets=offsets_of(np.array([len(some) for some in kept])),
        item_rows=history.item_rows[events],
        times=None if history.times is None else history.times[events],
    )
