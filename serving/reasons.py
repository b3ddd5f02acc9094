"""Why an item is recommended: "because you liked ...", by leaving one item of the history out at a time.

What an item of someone's history contributed to a recommendation is its score less the score that it would have had
from the same history without that item. That is a statement about the model, not about how alike two items are: an
item may be like another and yet weigh nothing, as the model reads histories. Of two items that say the same, neither
is missed much, and both contribute little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64, Int64

from features.sequences import Sequences, offsets_of
from serving.hits import cosines

MOST_WEIGHED = 50
"""How many items of a history are left out in turn: those that somebody had last."""


def contributions(
    history: Sequences,
    item_vectors: Float32[np.ndarray, "items width"],
    encode: Callable[[Sequences], Float32[np.ndarray, "histories width"]],
) -> tuple[Int64[np.ndarray, " weighed"], Float64[np.ndarray, "weighed items"]]:
    """Return the items of one user's history, newest first, and what each contributed to the score of each item.

    Args:
        history: Of one user.
        item_vectors: Of the items that are recommended.
        encode: Returns the vector that the same user would have with each of several histories.
    """
    weighed = _newest_items(history)
    vectors = encode(_without_each(history, weighed))
    scores = cosines(vectors[:, None], item_vectors[None])
    return weighed, scores[0] - scores[1:]


def most(contributed: Float64[np.ndarray, " weighed"], num_reasons: int) -> Int64[np.ndarray, " reasons"]:
    """Return the positions of the greatest contributions, none of which is negative or nothing."""
    order = np.argsort(-contributed, kind="stable")[:num_reasons]
    return order[contributed[order] > 0]


def _newest_items(history: Sequences) -> Int64[np.ndarray, " weighed"]:
    newest_first = history.item_rows[::-1]
    return newest_first[np.sort(np.unique(newest_first, return_index=True)[1])[:MOST_WEIGHED]].astype(np.int64)


def _without_each(history: Sequences, items: np.ndarray) -> Sequences:
    """Return the history as it is, and then without each of some items."""
    kept = np.concatenate([np.ones((1, history.num_events), bool), history.item_rows != items[:, None]])
    _, events = np.nonzero(kept)
    return replace(
        history,
        user_ids=np.repeat(history.user_ids, len(kept)),
        offsets=offsets_of(np.count_nonzero(kept, axis=1)),
        item_rows=history.item_rows[events],
        times=None if history.times is None else history.times[events],
    )
