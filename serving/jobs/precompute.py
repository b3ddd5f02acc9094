"""The best items of each user, found before anybody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from serving.recommend.recommender import Recommender
from serving.snapshot.precomputed import PrecomputedTopK

BLOCK = 1024


def precompute_top_k(
    retriever: Recommender, depth: int, progress: Callable[[int], object] = lambda num_users: None
) -> PrecomputedTopK:
    """Return what every known user gets, `depth` items each or all there are; nothing of whom nothing is known.

    Args:
        retriever: Who answers.
        depth: How many items each.
        progress: Called after each block with the number of users in it.
    """
    depth = min(depth, len(retriever.state.items))
    shortlists = PrecomputedTopK.empty(len(retriever.state.users), depth, retriever.seen_items)
    for users in blocks(len(retriever.state.users)):
        hits, is_fallback = retriever.recommend_rows(users, depth)
        shortlists.put(users, hits)
        shortlists.rows[users[is_fallback]] = -1
        progress(len(users))
    return shortlists


def blocks(num_users: int) -> Iterator[np.ndarray]:
    """Yield the rows of `BLOCK` users at a time."""
    return (np.arange(start, min(start + BLOCK, num_users)) for start in range(0, num_users, BLOCK))
