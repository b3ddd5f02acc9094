"""Queries to ranked items: search, re-ranking, then rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int64

from features.sequences.ragged import Ragged
from serving.catalog.ids import IdMap
from serving.deadline import watched
from serving.recommend.request import RecommendRequest
from serving.recommend.reranking import RerankedHits, RerankStage
from serving.recommend.rules import BoostTier, Rules, Slate, boost_tiers, build_slate, depth_of
from serving.recommend.state import ServingState
from serving.recommend.users import QueryBatch
from serving.search.results import AllowedItems, Hits, ScoredRows, cosines


@dataclass(frozen=True)
class Retrieval:
    """Finds the items of one batch of queries.

    Attributes:
        state: The items.
        indexed_items: The items of the index alone, whose rows a re-ranker was trained with.
        queries: The users, items or texts to find items for.
        request: The parameters of the request.
        rerank: Re-ranks the best candidates. None: they are not re-ranked.
        now: The time of the request in Unix seconds.
    """

    state: ServingState
    indexed_items: IdMap
    queries: QueryBatch
    request: RecommendRequest
    rerank: RerankStage | None
    now: Callable[[], float]

    def run(self) -> tuple[Hits, RerankedHits | None]:
        """Return the items of each query, and the re-ranked candidates, if any."""
        excluded, request = self.queries.excluded, self.request
        if request.exclude:
            excluded = excluded.and_each(np.array(self.state.items.rows(request.exclude)[0], dtype=np.int64))
        allowed = self.state.filters.allowed(request.where)
        if request.rules is not None:
            reranked = None
            if self.rerank is not None:
                reranked = self._reranked(self.rerank, self._search(self.rerank.num_candidates, excluded, allowed))
            return self._slates(excluded, reranked).after(request.offset), reranked
        if self.rerank is None:
            return self._search(request.depth, excluded, allowed).after(request.offset), None
        hits = self._search(max(request.depth, self.rerank.num_candidates), excluded, allowed)
        reranked = self._reranked(self.rerank, hits)
        return reranked.merged_into(hits).first(request.depth).after(request.offset), reranked

    def _search(
        self,
        depth: int,
        excluded: Ragged,
        allowed: AllowedItems | None,
        closed: Bool[np.ndarray, " items"] | None = None,
        queries: QueryBatch | None = None,
    ) -> Hits:
        """Return the `depth` best items of each query: the nearest, or the most popular for unknown users.

        Args:
            depth: Number of items.
            excluded: The rows that each query must not get.
            allowed: The items that a filter lets through. None: all.
            closed: Items that no query gets though the filter lets them through. None: none.
            queries: Which queries. None: all of them.
        """
        queries = self.queries if queries is None else queries
        search = self.state.search.search
        if queries.is_known.all():
            return search(queries.vectors, depth, excluded, allowed, closed)
        known = np.flatnonzero(queries.is_known)
        nearest: Iterator[ScoredRows] = iter(())
        if len(known):
            hits = search(queries.vectors[known], depth, excluded.take(known), allowed, closed)
            nearest = map(hits.of, range(len(known)))
        may = None if allowed is None else allowed.mask
        if closed is not None:
            may = ~closed if may is None else may & ~closed
        return Hits.join(
            [
                next(nearest) if is_known else self.state.popularity.best(depth, excluded.row(query), may)
                for query, is_known in watched(enumerate(queries.is_known.tolist()))
            ]
        )

    def _reranked(self, rerank: RerankStage, hits: Hits) -> RerankedHits:
        return rerank.apply(self.queries, hits, self.state.embeddings, self._rows_of_index, int(self.now()))

    def _rows_of_index(self, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Return the rows of items in the index as it was built; -1 for items that came later."""
        if rows.max(initial=0) < len(self.indexed_items):
            return rows
        ids = self.state.items.ids
        return self.indexed_items.places([ids[row] for row in rows.tolist()])

    @cached_property
    def _rules(self) -> Rules:
        return self.request.rules or Rules()

    @cached_property
    def _sections(self) -> tuple[list[BoostTier], list[BoostTier]]:
        """The items that are not demoted, then those that are, by what boosts add to their score."""
        return boost_tiers(self._rules, self.request.where, self.state.filters)

    @cached_property
    def _pinned(self) -> list[int]:
        """The rows of pinned items that may be recommended, in the order given."""
        tiers = [tier for section in self._sections for tier in section]
        rows = dict.fromkeys(self.state.items.rows(self._rules.pin)[0])
        return [row for row in rows if any(tier.allows(row) for tier in tiers)]

    def _slates(self, excluded: Ragged, reranked: RerankedHits | None) -> Hits:
        """Return the items of each query by the rules; the first searches are made for all queries at once."""
        depth, beyond = depth_of(self._rules, self.request.depth), 0 if reranked is None else reranked.most
        first = [self._search(depth + beyond, excluded, tier.allowed) for tier in self._sections[0]]
        found = []
        for query in watched(range(len(self.queries))):
            best = [hits.of(query) for hits in first]
            found.append(self._slate(query, excluded.take(np.array([query])), best, depth, reranked))
        return Hits.join(found)

    def _slate(
        self, query: int, excluded: Ragged, first: list[ScoredRows], depth: int, reranked: RerankedHits | None
    ) -> ScoredRows:
        """Return the items of one query by the rules.

        Args:
            query: Position of the query.
            excluded: What it must not get.
            first: The best items of each tier of the first section.
            depth: How many of them were searched for, apart from those that re-ranking needs beyond.
            reranked: What was re-ranked.
        """
        one = self.queries.take(np.array([query]))
        beyond = 0 if reranked is None else reranked.most

        def ranked(
            found: ScoredRows, tier: BoostTier, depth: int, closed: np.ndarray | None, decided: np.ndarray
        ) -> ScoredRows:
            if reranked is None:
                return found
            masks = [None if tier.allowed is None else tier.allowed.mask, None if closed is None else ~closed]

            def may(rows: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
                is_open = np.isin(rows, decided, invert=True)
                return np.asarray(np.logical_and.reduce([is_open, *(mask[rows] for mask in masks if mask is not None)]))

            return reranked.relevance(query, found, may, depth)

        def more(
            tier: BoostTier, closed: np.ndarray | None, depth: int, decided: Int64[np.ndarray, " decided"]
        ) -> ScoredRows:
            hits = self._search(depth + beyond, excluded.and_each(decided), tier.allowed, closed, one)
            return ranked(hits.of(0), tier, depth, closed, decided)

        slate = Slate(self.request.depth, self._rules, self.state.filters, self.state.embeddings)
        for row in self._pinned:
            if row not in excluded.values:
                slate.pin(row)
        nothing = np.zeros(0, np.int64)
        best = [ranked(found, tier, depth, None, nothing) for tier, found in zip(self._sections[0], first, strict=True)]
        scale = 1.0 if one.is_known[0] else 1 / (self.state.popularity.greatest_share or 1.0)
        build_slate(slate, self._sections, best, depth, more, scale)
        rows = np.array(slate.rows, dtype=np.int64)
        return rows, self._scores(one, rows)

    def _scores(self, one: QueryBatch, rows: Int64[np.ndarray, " items"]) -> Float32[np.ndarray, " items"]:
        """Return one query's scores of some items."""
        if not one.is_known[0]:
            return self.state.popularity.shares(rows)
        return cosines(self.state.vectors[rows], one.vectors).astype(np.float32)
