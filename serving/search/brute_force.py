"""Every item compared with every user, by matrix products, on a CPU or a GPU: the measure for every other search.

It is what filters and whole catalogues are searched with where that is the fastest, and it needs no index: FAISS's GPU
indexes ignore filters, and its scan of a part of the items goes one row at a time. Memory is bounded by blocks of users
and items.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from serving import deadline
from serving.search.results import ROUNDING, SLACK, AllowedItems, ExcludedPairs, ScoredRows, rank
from serving.search.top_scores import Barred, scores_of, top_scores
from serving.search.vectors import ItemVectors, stored_array

# Scores held at a time: 64 MB.
_CELLS = 1 << 24
_MOST_USERS = 1024
# Users whose scores are computed together where the catalogue is large: fewer would make the product slower.
_FEWEST_USERS = 128
# With more than this share of the items eligible, all are compared and masked: reading in order beats picking.
_MASKED_SHARE = 0.3


class BruteForce:
    """The items' vectors on a device, for exact search.

    Attributes:
        vectors: Unit vectors by catalogue row, `[items, width]`.
        device: Where the products are computed.
    """

    def __init__(self, vectors: ItemVectors, device: str = "cpu") -> None:
        self.vectors = vectors
        self.device = device
        self._items = torch.from_numpy(stored_array(vectors)).to(device)

    def best(
        self,
        queries: Float32[np.ndarray, "users width"],
        users: np.ndarray,
        needed: np.ndarray,
        excluded: ExcludedPairs,
        allowed: AllowedItems | None = None,
    ) -> Iterator[ScoredRows]:
        """Yield the best items of some of the users, in their order.

        Args:
            queries: Unit vectors of all users.
            users: Positions of the users to search for.
            needed: Number of items for each of all users; at least as many are left after exclusions.
            excluded: The exclusions of all users.
            allowed: The items that a filter lets through. None: every item.
        """
        pool = _Pool.of(self._items, allowed)
        num_items = max(1, len(pool.items))
        size = deadline.PRODUCTS // (num_items * self.vectors.shape[1])
        for part in deadline.parts(len(users), size, min(_MOST_USERS, max(_FEWEST_USERS, _CELLS // num_items))):
            yield from self._block(queries, users[part], needed, excluded, pool)

    def _block(
        self, queries: np.ndarray, users: np.ndarray, needed: np.ndarray, excluded: ExcludedPairs, pool: _Pool
    ) -> Iterator[ScoredRows]:
        fetch = min(len(pool.items), int(needed[users].max(initial=0)) + SLACK)
        scores, places = self._top(queries[users], users, fetch, excluded, pool)
        rows = pool.rows_at(places)
        if np.isneginf(scores).any():
            rows = np.where(np.isneginf(scores), -1, rows)
        ranked_rows, ranked_scores = rank(self.vectors, queries[users], rows)
        for place, user in deadline.watched(enumerate(users.tolist())):
            most = int(needed[user])
            # Other items score no more than the last of these; if that is too close to the cut-off, there may be ties.
            if most and fetch < len(pool.items) and ranked_scores[place, most - 1] <= scores[place, -1] + ROUNDING:
                yield self._with_ties(queries[user : user + 1], user, most, excluded, pool)
            else:
                yield ranked_rows[place, :most], ranked_scores[place, :most]

    def _top(
        self, queries: np.ndarray, users: np.ndarray, fetch: int, excluded: ExcludedPairs, pool: _Pool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the highest scores of each user and their places in the pool, best first, block by block of items."""
        vectors = torch.from_numpy(queries).to(self.device)
        step = max(1, _CELLS // max(1, len(users)))
        scores = torch.zeros((len(users), 0), device=self.device)
        places = torch.zeros((len(users), 0), dtype=torch.int64, device=self.device)
        for start in range(0, len(pool.items), step):
            some, at = pool.top(vectors, users, slice(start, min(start + step, len(pool.items))), excluded, fetch)
            scores, order = torch.cat([scores, some], dim=1).topk(min(fetch, scores.shape[1] + some.shape[1]), dim=1)
            places = torch.cat([places, at + start], dim=1).gather(1, order)
        return scores.cpu().numpy(), places.cpu().numpy()

    def _with_ties(self, query: np.ndarray, user: int, most: int, excluded: ExcludedPairs, pool: _Pool) -> ScoredRows:
        """Return a user's best items where more items tie than were fetched, such as copies of an item."""
        users = np.array([user])
        scores = pool.scores(torch.from_numpy(query).to(self.device), users, excluded)[0].cpu().numpy()
        threshold = np.partition(scores, -most)[-most] - ROUNDING
        rows = pool.rows_at(np.flatnonzero(scores >= threshold))
        ranked_rows, ranked_scores = rank(self.vectors, query, rows[None])
        return ranked_rows[0, :most], ranked_scores[0, :most]


class _Pool:
    """The items to compare: all of them, perhaps with a mask, or only the allowed ones, gathered."""

    def __init__(self, items: Tensor, rows: np.ndarray | None, masked: Tensor | None) -> None:
        self.items = items
        self._rows = rows
        self._masked = masked

    @classmethod
    def of(cls, items: Tensor, allowed: AllowedItems | None) -> _Pool:
        if allowed is None:
            return cls(items, None, None)
        if allowed.share > _MASKED_SHARE:
            return cls(items, None, torch.from_numpy(~allowed.mask).to(items.device))
        rows = allowed.rows
        return cls(items.index_select(0, torch.from_numpy(rows).to(items.device)), rows, None)

    def rows_at(self, places: np.ndarray) -> np.ndarray:
        """Return the catalogue rows of places in the pool."""
        return places if self._rows is None else self._rows[places]

    def scores(self, queries: Tensor, users: np.ndarray, excluded: ExcludedPairs) -> Tensor:
        """Return the score of each item of the pool for each user, -inf where an item must not be found."""
        barred = self._barred(users, slice(0, len(self.items)), excluded)
        return scores_of(queries, self.items, self._masked, barred)

    def top(
        self, queries: Tensor, users: np.ndarray, part: slice, excluded: ExcludedPairs, count: int
    ) -> tuple[Tensor, Tensor]:
        """Return the `count` highest scores of each user in a part of the pool, and their places in the part."""
        closed = None if self._masked is None else self._masked[part]
        most = min(count, part.stop - part.start)
        return top_scores(queries, self.items[part], most, closed, self._barred(users, part, excluded))

    def _barred(self, users: np.ndarray, part: slice, excluded: ExcludedPairs) -> Barred | None:
        """Return the exclusions of the users in a part of the pool; None if there are none at all."""
        if not len(excluded.pairs):
            return None
        rows = [excluded.rows_of(user) for user in users.tolist()]
        lines = np.repeat(np.arange(len(users)), [len(some) for some in rows])
        places = np.concatenate(rows) if self._rows is None else np.searchsorted(self._rows, np.concatenate(rows))
        here = (places >= part.start) & (places < part.stop)
        lines, places = lines[here], places[here] - part.start
        return torch.from_numpy(lines).to(self.items.device), torch.from_numpy(places).to(self.items.device)
