"""Re-ranking: puts the best candidates of a query into the order of a `Reranker`, within a time budget.

It comes before the rules (`serving.recommend.rules`), so that pins, boosts, limits and diversity still apply: the
candidate at a position of the new order gets the relevance that the retrieval order gives to this position.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from features.columns import item_texts
from serving import deadline
from serving.observability.timings import timed
from serving.recommend.users import QueryBatch
from serving.search.results import Hits, ScoredRows, merged
from serving.search.vectors import ItemVectors
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_folder import SealedFolder
from towers.rerankers.manifest import RankerManifest, has_ranker, open_ranker
from towers.rerankers.opening import ItemInputs, open_reranker
from towers.rerankers.reranker import Deadline, OutOfTimeError, Reranker, Shortlist, order_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RerankStage:
    """A re-ranker and its limits.

    Attributes:
        reranker: Scores the candidates.
        num_candidates: Number of best candidates that are re-ranked.
        budget_seconds: Time budget for all users of a request together. None: no limit.
        reads_words: Whether results of text searches are re-ranked, too.
    """

    reranker: Reranker
    num_candidates: int
    budget_seconds: float | None
    reads_words: bool = False

    @classmethod
    def open(
        cls, bundle: ModelBundle, snapshot: Snapshot, num_candidates: int | None, budget_seconds: float | None
    ) -> RerankStage | None:
        """Return the re-ranking of a bundle; None if it has no ranker, or none that fits the index.

        Args:
            bundle: The bundle.
            snapshot: Its index.
            num_candidates: Number of candidates to re-rank. None: as many as the ranker was trained for.
            budget_seconds: Time budget for a request. None: no limit.

        Raises:
            BundleError: The ranker is damaged, or was trained with other weights.
            DataError: A library that it needs is not installed.
        """
        if not has_ranker(bundle.path):
            return None
        sealed, folder = open_ranker(bundle)
        reranker = _opened(bundle, snapshot, sealed, folder)
        if reranker is None:
            _log.warning("not re-ranked: the index is older than the ranker; run: towers index %s", bundle.path)
            return None
        _warn_if_late(sealed, budget_seconds)
        reads_words = sealed.text is not None or bool(bundle.config.asked_by)
        return cls(reranker, num_candidates or sealed.num_candidates, budget_seconds, reads_words)

    def apply(
        self,
        queries: QueryBatch,
        hits: Hits,
        vectors: ItemVectors,
        known: Callable[[np.ndarray], np.ndarray],
        now: int | None,
    ) -> RerankedHits:
        """Re-rank the best candidates of each user, as far as the time budget goes.

        The popular items of unknown users are not re-ranked.

        Args:
            queries: The users.
            hits: The candidates of each user.
            vectors: The items' unit vectors by row.
            known: Converts rows to those of the index; -1 for items that arrived later.
            now: The time of the request in Unix seconds.
        """
        budgets = [seconds for seconds in (self.budget_seconds, deadline.left()) if seconds is not None]
        end = Deadline(min(budgets, default=None))
        found = []
        with timed("rerank"):
            for user in deadline.watched(range(len(queries))):
                rows, scores = (part[: self.num_candidates] for part in hits.of(user))
                moved = None
                if queries.is_known[user] and len(rows):
                    shortlist = _shortlist(queries, user, (rows, scores), vectors, known, now)
                    moved = self._moved(shortlist, (rows, scores), end)
                found.append(moved)
        return RerankedHits(found)

    def _moved(self, shortlist: Shortlist, found: ScoredRows, end: Deadline) -> ScoredRows | None:
        """Return the candidates in the new order; None if the time budget was exceeded."""
        try:
            end.check()
            order = order_of(self.reranker.scores(shortlist, end))
            end.check()
        except OutOfTimeError:
            return None
        return found[0][order], found[1][order]


@dataclass(frozen=True)
class RerankedHits:
    """The re-ranked candidates of several users.

    Attributes:
        found: By user: the candidates in the new order, each with its retrieval score. None: not re-ranked.
    """

    found: Sequence[ScoredRows | None]

    def was_reranked(self, user: int) -> bool:
        """Return whether a user's candidates were re-ranked."""
        return self.found[user] is not None

    @property
    def most(self) -> int:
        """The largest number of re-ranked candidates of any user."""
        return max((len(moved[0]) for moved in self.found if moved is not None), default=0)

    def merged_into(self, hits: Hits) -> Hits:
        """Return search results with the candidates first, in their new order, and all others after them."""
        return Hits.join([self._first(user, *hits.of(user)) for user in range(len(hits))])

    def relevance(
        self, user: int, found: ScoredRows, may: Callable[[np.ndarray], np.ndarray], depth: int
    ) -> ScoredRows:
        """Return the best of some items, with re-ranked ones at the relevance of their new positions.

        Args:
            user: Position of the user.
            found: The best of these items from a search: all of them, or `depth` + `most`, so that none is missing that
                comes before a re-ranked item, however far down that was moved.
            may: Returns which of the re-ranked items are among these items.
            depth: Maximum number of items to return.
        """
        moved = self.found[user]
        if moved is None:
            return found
        rows, scores = found
        is_other = np.isin(rows, moved[0], invert=True)
        mine = may(moved[0])
        rows, scores = merged([(moved[0][mine], _falling(moved[1])[mine]), (rows[is_other], scores[is_other])])
        return rows[:depth], scores[:depth]

    def _first(self, user: int, rows: Int64[np.ndarray, " rows"], scores: Float32[np.ndarray, " rows"]) -> ScoredRows:
        moved = self.found[user]
        if moved is None:
            return rows, scores
        is_other = np.isin(rows, moved[0], invert=True)
        return np.concatenate([moved[0], rows[is_other]]), np.concatenate([moved[1], scores[is_other]])


def _opened(bundle: ModelBundle, snapshot: Snapshot, sealed: RankerManifest, folder: SealedFolder) -> Reranker | None:
    """Return the re-ranker of a bundle; None if the index lacks the data about items that it reads."""
    items = ItemInputs(
        statistics=snapshot.item_statistics,
        tokens=snapshot.tokens,
        texts=lambda: item_texts(snapshot.catalog, bundle.config.features.item) or [""] * len(snapshot.catalog),
    )
    return open_reranker(bundle, sealed, folder, items)


def _warn_if_late(sealed: RankerManifest, budget_seconds: float | None) -> None:
    """Log a warning if the ranker's measured time exceeds the time budget."""
    if sealed.judgement is None or budget_seconds is None:
        return
    taken, given = sealed.judgement.milliseconds, 1000 * budget_seconds
    if taken > given:
        _log.warning(
            "most answers will not be re-ranked: the ranker takes %.0f ms for %d candidates, and rerank_budget_ms is "
            "%g; raise it, or lower rerank_candidates",
            taken,
            sealed.num_candidates,
            given,
        )


def _falling(scores: Float32[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
    """Return scores in strictly falling order, so that sorting by them keeps the new order."""
    falling = np.sort(scores)[::-1].copy()
    for place in np.flatnonzero(falling[1:] == falling[:-1]) + 1:
        falling[place] = min(falling[place], np.nextafter(falling[place - 1], np.float32(-np.inf)))
    return falling


def _shortlist(
    queries: QueryBatch,
    user: int,
    found: ScoredRows,
    vectors: ItemVectors,
    known: Callable[[np.ndarray], np.ndarray],
    now: int | None,
) -> Shortlist:
    history = queries.history.row(user)
    mine = slice(queries.history.offsets[user], queries.history.offsets[user + 1])
    return Shortlist(
        user_vector=queries.vectors[user, : vectors.shape[1]],
        history_rows=known(history),
        history_vectors=vectors[history],
        history_times=None if queries.times is None else queries.times[mine],
        now=now,
        rows=known(found[0]),
        vectors=vectors[found[0]],
        scores=found[1],
        words="" if queries.words is None else queries.words[user],
    )
