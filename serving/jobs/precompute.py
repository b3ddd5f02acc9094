"""Precomputes the recommendations of all known users."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from serving.recommend.recommender import Recommender
from serving.snapshot.precomputed import PrecomputedTopK

BLOCK = 1024


def precompute_top_k(
    recommender: Recommender, depth: int, progress: Callable[[int], object] = lambda num_users: None
) -> PrecomputedTopK:
    """Return the best `depth` items of every known user; none for users with no features that the model reads.

    Args:
        recommender: The recommender.
        depth: Number of items per user, limited to the size of the catalogue.
        progress: Called after each block with the number of users in it.
    """
    depth = min(depth, len(recommender.state.items))
    precomputed = PrecomputedTopK.empty(len(recommender.state.users), depth, recommender.seen_items)
    for users in blocks(len(recommender.state.users)):
        hits, is_fallback = recommender.recommend_rows(users, depth)
        precomputed.put(users, hits)
        precomputed.rows[users[is_fallback]] = -1
        progress(len(users))
    return precomputed


def blocks(num_users: int) -> Iterator[np.ndarray]:
    """Yield the rows of `BLOCK` users at a time."""
    return (np.arange(start, min(start + BLOCK, num_users)) for start in range(0, num_users, BLOCK))
