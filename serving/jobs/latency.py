"""Latency of single recommendations in this process, as a worker of a service computes them, without HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from serving.recommend.recommender import Recommender
from serving.recommend.request import UserProfile
from serving.search.faiss_index import num_threads_set

MOST_REQUESTS = 300
"""Most requests that are timed."""
_WARM_UPS = 5
_K = 10
_SEED = 97


def request_milliseconds(recommender: Recommender, most: int = MOST_REQUESTS) -> Float[np.ndarray, " requests"]:
    """Return the milliseconds of ten recommendations for each of a sample of users, in one thread.

    A model that is asked by texts searches for titles; one without known users recommends from histories of one item.

    Args:
        recommender: Ready to answer.
        most: Most requests.
    """
    requests = list(_requests(recommender, most))
    taken = []
    with num_threads_set(1), threadpool_limits(limits=1):
        for request in requests[:_WARM_UPS]:
            request()
        for request in requests:
            began = time.perf_counter()
            request()
            taken.append(1000 * (time.perf_counter() - began))
    return np.array(taken)


def _requests(recommender: Recommender, most: int) -> Iterator[Callable[[], object]]:
    catalog, config = recommender.snapshot.catalog, recommender.bundle.config
    rng = np.random.default_rng(_SEED)
    users, items = recommender.snapshot.histories.user_ids, catalog.item_ids
    if config.asked_by:
        titles = catalog.titles(config.features.title)
        for row in rng.choice(len(titles), min(most, len(titles)), replace=False):
            yield lambda row=row: recommender.search(titles[row], _K)  # type: ignore[misc]
    elif len(users):
        for user in rng.choice(len(users), min(most, len(users)), replace=False):
            yield lambda user=user: recommender.recommend(users[user : user + 1].tolist()[0], _K)  # type: ignore[misc]
    else:
        for row in rng.choice(len(items), min(most, len(items)), replace=False):
            yield lambda row=row: recommender.recommend(UserProfile(items[row : row + 1].tolist()), _K)  # type: ignore[misc]
