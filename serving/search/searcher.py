"""The interface of search engines, implemented by FAISS indexes, micro-batching and the index of live updates."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32

from features.sequences.ragged import Ragged
from serving.search.results import AllowedItems, Hits


class Searcher(Protocol):
    """Finds the items whose vectors have the greatest inner product with a query.

    An implementation over a vector database keeps the vectors there, pushes `AllowedItems.conditions` down instead of
    using their mask, and scores what it found with `serving.search.results.rank`.
    """

    @property
    def is_exact(self) -> bool:
        """Whether results are exact, as with brute force."""

    def __len__(self) -> int:
        """Return the number of rows, deleted ones included."""

    def search(
        self,
        queries: Float32[np.ndarray, "users dim"],
        k: int,
        excluded: Ragged | None = None,
        allowed: AllowedItems | None = None,
        closed: Bool[np.ndarray, " items"] | None = None,
    ) -> Hits:
        """Return the min(k, number of allowed items) best items of each user, best first.

        Each user has one order of the allowed items, of which every result is a part: it depends neither on `k` nor on
        the other queries.

        Args:
            queries: Unit vectors of users.
            k: Number of items for each user, at least 0.
            excluded: Rows that must not be found, one row of `Ragged` for each user, in any order, repeats allowed.
            allowed: The items that a filter lets through. None: all.
            closed: Items to leave out of the allowed ones without changing the order of the others, `[items]`.
        """


class ItemSearch(Searcher, Protocol):
    """A searcher that can also check whether earlier results are still valid."""

    def confirms(self, query: Float32[np.ndarray, " dim"], rows: np.ndarray, least: np.float32) -> bool:
        """Return whether rows that the index found are still a user's best.

        Args:
            query: The user's unit vector.
            rows: The rows that were found, best first.
            least: The score of the last of them.
        """


class UncheckedSearch:
    """A `Searcher` as an `ItemSearch` that confirms no earlier results, so that every request is searched.

    Args:
        searcher: Finds the items.
    """

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self.search = searcher.search

    @property
    def is_exact(self) -> bool:
        """Whether results are exact."""
        return self._searcher.is_exact

    def __len__(self) -> int:
        """Return the number of rows, deleted ones included."""
        return len(self._searcher)

    def confirms(self, query: Float32[np.ndarray, " dim"], rows: np.ndarray, least: np.float32) -> bool:
        """Return False: nothing is known of earlier results."""
        return False
