"""From "who is asking" to "these items": the one place where ids and rows meet.

The service and the nightly file ask the same `Recommender`, so that they can't disagree. Whoever the model knows
nothing about is answered with what is popular, and the answer says so.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.errors import DataError
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.values.cells import texts_written
from serving.catalog.filters import Filters
from serving.catalog.ids import ExternalId, IdMap
from serving.catalog.popularity import ItemPopularity
from serving.deadline import watched
from serving.live.delta import LiveFilters, LivePopularity, LiveUsers, Overlay
from serving.live.delta_index import DeltaIndex
from serving.observability.timings import timed
from serving.recommend.explanations import contributions, most
from serving.recommend.known_users import KnownUsers
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.reranking import RerankedHits, RerankStage
from serving.recommend.response import Reason, Recommendation, RecommendResponse
from serving.recommend.rules import BoostTier, Rules, Slate, boost_tiers, build_slate, depth_of
from serving.recommend.text_query import query_vector
from serving.recommend.users import Barred, EncodedProfiles, QueryBatch
from serving.recommend.vector_cache import UserVectorCache
from serving.search.faiss_index import Device, ItemIndex
from serving.search.micro_batching import MicroBatcher, MicroBatching, is_wanted
from serving.search.results import AllowedItems, Hits, ScoredRows, cosines
from serving.snapshot.encoding import attribute_columns, encode_users
from serving.snapshot.manifest import IndexManifest
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle
from towers.bundle.private_copies import PrivateCopies
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import said_of
from towers.bundle.trust import DEFAULT_TRUST, Trust

# Vectors that look at the clock are remembered, of so many users, for so long; not where many are asked about at once.
_REMEMBERED_USERS = 100_000
_REMEMBERED_SECONDS = 60.0
_FEW_USERS = 100
_NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class _Unknown(NamedTuple):
    """What was said of someone that is not known."""

    items: tuple[ExternalId, ...] = ()
    values: Mapping[str, tuple[str, ...]] = _NOTHING


class Recommender:
    """A model and its snapshot, ready to answer; safe to use from several threads.

    Attributes:
        model: The model's version.
        recommend_seen: Whether items come back to people who had them.
        users: The known users.
        items: The catalogue.
        attributes: What the model reads of users beside their history, by column of the users' table.
        filters: The columns of the catalogue that answers can be filtered by; `filters.of({"brand": "Acme"})` is a
            `RecommendRequest.where`.
        titles: What to call each item; None where the catalogue has no titles.
        index: The search.
        known: What the users had, and their vectors.
        popularity: The items by how often they were had.
        index_version: The version of the index.
        position: The last record of the log of live writes that is in the answers; None where there is no log.
        reranking: What puts the first candidates into a better order; None where nothing does.
    """

    filters: Filters | LiveFilters
    index: ItemIndex | DeltaIndex
    known: KnownUsers | LiveUsers
    popularity: ItemPopularity | LivePopularity

    def __init__(
        self,
        bundle: ModelBundle,
        snapshot: Snapshot,
        *,
        device: Device = "cpu",
        recommend_seen: bool | None = None,
        filter_columns: Sequence[str] | None = None,
        reranking: RerankStage | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bundle = bundle
        self.snapshot = snapshot
        features = bundle.config.features
        self.model = bundle.version
        self.recommend_seen = features.recommend_seen if recommend_seen is None else recommend_seen
        self.items = self._base_items = IdMap(snapshot.catalog.item_ids)
        self.users = IdMap(snapshot.histories.user_ids)
        self.filters = Filters(snapshot.catalog, features.item, filter_columns)
        self.attributes = {column: features.user[column] for column in attribute_columns(bundle)}
        has_titles = features.title is not None and features.title in snapshot.catalog.frame
        self.titles = snapshot.catalog.titles(features.title) if has_titles else None
        index = snapshot.index.to(device)
        self.index = index
        self.known = KnownUsers(bundle, snapshot, index)
        self.popularity = ItemPopularity(snapshot.interactions)
        self.index_version = snapshot.seal.version
        self.position: int | None = None
        self.reranking = reranking
        listed = snapshot.shortlists
        is_answer = listed is not None and listed.with_seen == self.recommend_seen and reranking is None
        self._shortlists = listed if is_answer else None
        self._clock = clock
        self._remembered = UserVectorCache(_REMEMBERED_USERS, _REMEMBERED_SECONDS, clock)
        self._together: MicroBatcher[Sequences, np.ndarray] | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: Device = "cpu",
        recommend_seen: bool | None = None,
        filter_columns: Sequence[str] | None = None,
        rerank: Callable[[ModelBundle, Snapshot], RerankStage | None] = lambda bundle, snapshot: None,
        copies: PrivateCopies | None = None,
        trust: Trust = DEFAULT_TRUST,
    ) -> Recommender:
        """Return the retriever of a bundle and the index inside it.

        Args:
            path: The bundle.
            device: Where the index searches.
            recommend_seen: Whether items come back to people who had them. None: as the model was trained.
            filter_columns: The columns of the catalogue that answers can be filtered by. None: all.
            rerank: Opens what puts the first candidates into a better order. Nothing does, unless said otherwise.
            copies: Where all files are copied to, and read from then on. None: they are read where they lie, and must
                not be written to while they are used.
            trust: What the operator trusts the bundle with.

        Raises:
            BundleError: One of them is missing or damaged, or they do not belong together.
            DataError: The catalogue has no column that is to be filtered by.
        """
        bundle = ModelBundle.open(path, copies=copies, trust=trust)
        try:
            snapshot = Snapshot.open(bundle)
            return cls(
                bundle,
                snapshot,
                device=device,
                recommend_seen=recommend_seen,
                filter_columns=filter_columns,
                reranking=rerank(bundle, snapshot),
            )
        except (BundleError, DataError):
            raise
        except ValueError as error:
            raise BundleError(str(error)) from error
        except Exception as error:  # what its files say fits together in no way that a program could foresee
            remedy = IndexManifest.remedy(path)
            raise BundleError(f"{path}: its index cannot be used ({said_of(error)}); {remedy}") from error

    def overlaid(self, overlay: Overlay) -> Recommender:
        """Return this retriever with what arrived since its index was made."""
        other = copy.copy(self)
        other.items, other.users, other.titles = overlay.items, overlay.users, overlay.titles
        other.filters, other.index, other.known = overlay.filters, overlay.index, overlay.known
        other.popularity, other.position = overlay.popularity, overlay.position
        other._together = None  # it works with the vectors of the index alone
        return other

    def recommend(self, who: ExternalId | UserProfile, wanted: RecommendRequest | int) -> RecommendResponse:
        """Return what to recommend to someone; what is popular where the model knows nothing of them.

        Args:
            who: A user's id as in the tables, or its text ("42" finds the user 42), or somebody described.
            wanted: What the answer must be, or just how many items.

        Raises:
            DataError: An attribute is not one that the model reads, or its value is of the wrong type; the times of a
                history are not as many as its items.
        """
        return self.recommend_many([who], wanted)[0]

    def recommend_many(
        self, whom: Sequence[ExternalId | UserProfile], wanted: RecommendRequest | int
    ) -> list[RecommendResponse]:
        """Return what to recommend to each of several, looked up or found in one search.

        Args:
            whom: Who they are, as for `recommend`.
            wanted: What each answer must be, or just how many items.

        Raises:
            DataError: As `recommend` does.
        """
        wanted = RecommendRequest.of(wanted)
        answers = [self._listed(who, wanted) for who in watched(whom)]
        others = [who for who, answer in zip(whom, answers, strict=True) if answer is None]
        searched = iter(self._searched(others, wanted) if others else ())
        return [answer or next(searched) for answer in answers]

    def _listed(self, who: ExternalId | UserProfile, wanted: RecommendRequest) -> RecommendResponse | None:
        """Return someone's answer where it was found before and nothing has happened since that could change it."""
        if self._shortlists is None or isinstance(who, UserProfile) or not wanted.is_plain:
            return None
        row = self.users.row(who)
        if row is None or not self.known.is_as_indexed(row):
            return None
        best = self._shortlists.best(row, wanted.depth)
        assert self.snapshot.user_vectors is not None, "lists are made with them"
        if best is None or not self.index.confirms(self.snapshot.user_vectors[row], best[0], best[1][-1]):
            return None
        rows, scores = best
        return RecommendResponse(
            self._recommendations(rows[wanted.offset :], scores[wanted.offset :], wanted.offset + 1)
        )

    def _searched(self, whom: Sequence[ExternalId | UserProfile], wanted: RecommendRequest) -> list[RecommendResponse]:
        """Return what to recommend to each of several, found in one search."""
        asking, unknown = self._asking(whom)
        hits, moved = self._found(asking, self._had(asking), wanted, self.reranking)
        answers = []
        for user, is_known in watched(enumerate(asking.is_known.tolist())):
            items = self._recommendations(*hits.of(user), wanted.offset + 1)
            if wanted.reasons:
                items = self._with_reasons(whom[user], is_known, items, hits.of(user)[0], wanted.reasons)
            reranked = None if moved is None else moved.was(user)
            answers.append(RecommendResponse(items, None if is_known else "popular", *unknown[user], reranked))
        return answers

    def recommend_rows(
        self, user_rows: Int64[np.ndarray, " users"], wanted: RecommendRequest | int
    ) -> tuple[Hits, Bool[np.ndarray, " users"]]:
        """Return what to recommend to each of many known users, and which of them were answered by what is popular.

        Args:
            user_rows: Positions in `users`.
            wanted: What each answer must be, or just how many items.
        """
        asking = self._known(user_rows)
        return self._found(asking, self._had(asking), RecommendRequest.of(wanted), self.reranking)[0], ~asking.is_known

    def similar(self, item_id: ExternalId, wanted: RecommendRequest | int) -> RecommendResponse | None:
        """Return the items most like one, without itself; None if there is no such item."""
        row = self.items.row(item_id)
        if row is None:
            return None
        wanted = RecommendRequest.of(wanted)
        itself = Barred(np.array([row]), np.array([0, 1]))
        asking = QueryBatch(self.index.vectors[itself.rows], itself, np.array([True]))
        hits, _ = self._found(asking, itself, wanted)
        return RecommendResponse(self._recommendations(*hits.of(0), wanted.offset + 1))

    def search(self, text: str, wanted: RecommendRequest | int) -> RecommendResponse:
        """Return the items nearest to what is written; what is popular where the model knows none of the words.

        Args:
            text: Any words, whether an item has them or not.
            wanted: What the answer must be, or just how many items.

        Raises:
            DataError: The model reads no texts.
        """
        wanted = RecommendRequest.of(wanted)
        with timed("encode"):
            vector = query_vector(self.bundle, text)
        asking = QueryBatch(vector, Barred.nothing(1), np.array([vector.any()]), words=[text])
        reranking = self.reranking if self.reranking is not None and self.reranking.reads_words else None
        hits, moved = self._found(asking, asking.had, wanted, reranking)
        items = self._recommendations(*hits.of(0), wanted.offset + 1)
        reranked = None if moved is None else moved.was(0)
        return RecommendResponse(items, None if asking.is_known[0] else "popular", reranked=reranked)

    def popular(self, wanted: RecommendRequest | int) -> Hits:
        """Return the items that were had most often, as the answer to someone unknown."""
        asking = QueryBatch.nobody(1, self.index.width)
        return self._found(asking, asking.had, RecommendRequest.of(wanted))[0]

    def history(self, user_id: ExternalId, k: int) -> list[Recommendation] | None:
        """Return the k newest items that someone had, newest first; None if there is no such user.

        `rank` counts back from the newest, and the score is 0.
        """
        row = self.users.row(user_id)
        if row is None:
            return None
        newest = self.known.histories(np.array([row])).items_of(0)[::-1][:k]
        return self._recommendations(newest, np.zeros(len(newest), dtype=np.float32))

    def _asking(self, whom: Sequence[ExternalId | UserProfile]) -> tuple[QueryBatch, list[_Unknown]]:
        """Return people as the search takes them, and what was said of each that is not known."""
        rows = [None if isinstance(who, UserProfile) else self.users.row(who) for who in whom]
        if None not in rows:
            return self._known(np.array(rows, dtype=np.int64)), [_Unknown()] * len(rows)
        if all(row is None and not isinstance(who, UserProfile) for who, row in zip(whom, rows, strict=True)):
            return QueryBatch.nobody(len(rows), self.index.width), [_Unknown()] * len(rows)
        # Nothing is known of someone whom the tables do not have, as of someone who is described by nothing.
        strangers = [
            who if isinstance(who, UserProfile) else UserProfile()
            for who, row in zip(whom, rows, strict=True)
            if row is None
        ]
        described = EncodedProfiles.of(strangers, self.items, self.attributes, self.bundle)
        asking = self._described(described)
        unknown = list(map(_Unknown, described.unknown_items, described.unknown_values))
        if len(strangers) == len(whom):
            return asking, unknown
        known = self._known(np.array([row for row in rows if row is not None], dtype=np.int64))
        is_stranger = np.array([row is None for row in rows])
        order = np.empty(len(rows), dtype=np.int64)
        order[~is_stranger], order[is_stranger] = np.split(np.arange(len(rows)), [len(known)])
        others = iter(unknown)
        return QueryBatch.join(known, asking, order), [next(others) if row is None else _Unknown() for row in rows]

    def _known(self, user_rows: Int64[np.ndarray, " users"]) -> QueryBatch:
        """Return known users as the search takes them."""
        histories = self.known.histories(user_rows)
        vectors = self._vectors_of(user_rows, histories)
        had = Barred(histories.item_rows, histories.offsets)
        is_known = self._is_known(self.known.is_known(user_rows, histories), vectors)
        words = self._words(self.known.attributes(user_rows)) if self.bundle.config.asked_by else None
        return QueryBatch(vectors, had, is_known, histories.times, words)

    def _described(self, described: EncodedProfiles) -> QueryBatch:
        """Return described people as the search takes them."""
        histories = described.histories
        if described.is_known.any():
            vectors = self._encoded(histories, described.attributes)
        else:
            vectors = np.zeros((len(histories), self.index.width), dtype=np.float32)
        had = Barred(histories.item_rows, histories.offsets)
        is_known = self._is_known(described.is_known, vectors)
        return QueryBatch(vectors, had, is_known, histories.times, self._words(described.attributes))

    def _words(self, attributes: pd.DataFrame | None) -> list[str] | None:
        """Return what each of several queries asks in words; None where users are no queries, or say nothing."""
        columns = [column for column in self.bundle.config.asked_by if attributes is not None and column in attributes]
        if attributes is None or not columns:
            return None
        return texts_written(attributes, {column: self.bundle.config.features.user[column] for column in columns})

    def _is_known(
        self, is_known: Bool[np.ndarray, " users"], vectors: Float32[np.ndarray, "users width"]
    ) -> Bool[np.ndarray, " users"]:
        """Return of whom the model knows anything; one that reads no history may know nothing of somebody with one."""
        return is_known if self.bundle.config.towers.reads_history else is_known & vectors.any(axis=1)

    def _encoded(self, histories: Sequences, attributes: pd.DataFrame | None) -> Float32[np.ndarray, "users width"]:
        """Return the vectors of people who are described; of one alone together with those of other threads."""
        if self._together is None or len(histories) > 1 or attributes is not None:
            return encode_users(self.bundle, self.index, histories, attributes, now=self._now())
        with timed("encode"):
            return self._together(histories, histories.times is None)

    def _encode_each(self, each: Sequence[Sequences]) -> list[np.ndarray]:
        """Return the vector of each of several people, of whom nothing is known but what they had."""
        times = None if each[0].times is None else np.concatenate([one.times for one in each if one.times is not None])
        histories = Sequences(
            np.full(len(each), None),
            offsets_of(np.array([one.num_events for one in each])),
            np.concatenate([one.item_rows for one in each]),
            times,
            is_ordered=True,
        )
        return list(encode_users(self.bundle, self.index, histories, None, now=self._now())[:, None])

    def work_together(self, most: int, batching: MicroBatching) -> None:
        """Let what several threads do for one user each be done together, where that pays.

        Args:
            most: How many at once.
            batching: `auto`: if some trials say that it pays.
        """
        assert isinstance(self.index, ItemIndex), "what is laid over it is searched by its own means"
        self.index.search_together(most, batching)
        past = np.arange(min(len(self.items), 50))
        trial = [Sequences(np.array([None]), np.array([0, len(past)]), past, None, is_ordered=True)] * most
        if is_wanted(batching, self._encode_each, trial):
            self._together = MicroBatcher(self._encode_each, most)

    def _vectors_of(
        self, user_rows: Int64[np.ndarray, " users"], histories: Sequences
    ) -> Float32[np.ndarray, "users width"]:
        """Return users' vectors; those that are made at each request are remembered for a while."""
        if not self.bundle.config.reads_time or len(user_rows) > _FEW_USERS:
            return self.known.vectors(user_rows, histories, self._now())
        pasts = [self.known.numbering + histories.items_of(user).tobytes() for user in range(len(histories))]
        return self._remembered.of(
            user_rows, pasts, lambda users: self.known.vectors(user_rows[users], histories.take(users), self._now())
        )

    def forget(self, user_id: ExternalId) -> None:
        """Let a user's vector be made anew at the next request."""
        row = self.users.row(user_id)
        if row is not None:
            self._remembered.forget(row)

    def _now(self) -> int | None:
        """Return the time of asking, for models that look at the clock."""
        return int(self._clock()) if self.bundle.config.reads_time else None

    def _with_reasons(
        self,
        who: ExternalId | UserProfile,
        is_known: bool,
        items: list[Recommendation],
        rows: Int64[np.ndarray, " items"],
        num_reasons: int,
    ) -> list[Recommendation]:
        """Return someone's recommendations with what of their history spoke most for each."""
        history, attributes = self._evidence(who)
        if not (is_known and history.num_events and items):
            return [item._replace(because=()) for item in items]

        def encode(histories: Sequences) -> np.ndarray:
            same = None if attributes is None else attributes.iloc[np.zeros(len(histories), int)].reset_index(drop=True)
            return encode_users(self.bundle, self.index, histories, same, now=self._now())

        had, contributed = contributions(history, self.index.vectors[rows], encode, self.bundle.config.features.history)
        reasons = [
            tuple(self._reason(int(had[place]), amount) for place, amount in one)
            for one in watched(most(contributed, num_reasons))
        ]
        return [item._replace(because=because) for item, because in zip(items, reasons, strict=True)]

    def _reason(self, row: int, contribution: float) -> Reason:
        return Reason(self.items.ids[row], contribution, None if self.titles is None else self.titles[row])

    def _evidence(self, who: ExternalId | UserProfile) -> tuple[Sequences, pd.DataFrame | None]:
        """Return what the model knows of someone: what they had, and their attributes."""
        row = None if isinstance(who, UserProfile) else self.users.row(who)
        if row is None:
            person = who if isinstance(who, UserProfile) else UserProfile()
            described = EncodedProfiles.of([person], self.items, self.attributes, self.bundle)
            return described.histories, described.attributes
        rows = np.array([row])
        return self.known.histories(rows), self.known.attributes(rows)

    def _had(self, asking: QueryBatch) -> Barred:
        """Return what each must not get because of having had it."""
        return Barred.nothing(len(asking)) if self.recommend_seen else asking.had

    def _found(
        self, asking: QueryBatch, barred: Barred, wanted: RecommendRequest, reranking: RerankStage | None = None
    ) -> tuple[Hits, RerankedHits | None]:
        """Return what each gets, of all that is not barred, and what of it a reranker moved."""
        if wanted.exclude:
            barred = barred.and_all(np.array(self.items.rows(wanted.exclude)[0], dtype=np.int64))
        if wanted.rules is not None:
            moved = None
            if reranking is not None:
                shortlist = self._search(asking, barred, reranking.num_candidates, self.filters.eligible(wanted.where))
                moved = self._moved(reranking, asking, shortlist)
            return self._arranged(asking, barred, wanted, wanted.rules, moved).after(wanted.offset), moved
        depth = wanted.depth if reranking is None else max(wanted.depth, reranking.num_candidates)
        hits = self._search(asking, barred, depth, self.filters.eligible(wanted.where))
        if reranking is None:
            return hits.after(wanted.offset), None
        moved = self._moved(reranking, asking, hits)
        return moved.over(hits).first(wanted.depth).after(wanted.offset), moved

    def _moved(self, reranking: RerankStage, asking: QueryBatch, hits: Hits) -> RerankedHits:
        """Return the first of what was found in the order of a reranker."""
        return reranking.move(asking, hits, self.index.vectors, self._rows_of_index, int(self._clock()))

    def _rows_of_index(self, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Return what rows were when the index was made; -1 for items that came since."""
        num_items = len(self.snapshot.catalog)
        if rows.max(initial=0) < num_items:
            return rows
        before = [-1 if (at := self._base_items.row(self.items.ids[row])) is None else at for row in rows.tolist()]
        return np.array(before, dtype=np.int64)

    def _arranged(
        self, asking: QueryBatch, barred: Barred, wanted: RecommendRequest, rules: Rules, moved: RerankedHits | None
    ) -> Hits:
        """Return what each gets by the rules; the first searches are made for all at once."""
        tiers = boost_tiers(rules, wanted.where, self.filters)
        pinned = np.array(
            [
                row
                for row in dict.fromkeys(self.items.rows(rules.pin)[0])
                if any(part.allows(row) for tier in tiers for part in tier)
            ],
            dtype=np.int64,
        )
        depth, beyond = depth_of(rules, wanted.depth), 0 if moved is None else moved.most
        first = [self._search(asking, barred, depth + beyond, part.eligible) for part in tiers[0]]
        found = []
        for user in watched(range(len(asking))):
            one, own = asking.take(np.array([user])), barred.take(np.array([user]))
            places = Slate(wanted.depth, rules, self.filters, self.index.vectors)
            for row in pinned[np.isin(pinned, own.rows, invert=True)].tolist():
                places.pin(row)
            scale = 1.0 if asking.is_known[user] else 1 / (self.popularity.greatest_share or 1.0)
            more = partial(self._more, one, own, beyond, partial(_by_relevance, moved, user))
            best = [
                _by_relevance(moved, user, part, depth, hits.of(user))
                for part, hits in zip(tiers[0], first, strict=True)
            ]
            build_slate(places, tiers, best, depth, more, scale)
            rows = np.array(places.rows, dtype=np.int64)
            found.append((rows, self._scores(one, rows)))
        return Hits.join(found)

    def _more(
        self,
        one: QueryBatch,
        barred: Barred,
        beyond: int,
        by_relevance: Callable[..., ScoredRows],
        part: BoostTier,
        closed: Bool[np.ndarray, " items"] | None,
        depth: int,
        decided: Int64[np.ndarray, " decided"],
    ) -> ScoredRows:
        """Return more of the best for one user, as `rules.Search` does."""
        hits = self._search(one, barred.and_all(decided), depth + beyond, part.eligible, closed)
        return by_relevance(part, depth, hits.of(0), closed, decided)

    def _scores(self, one: QueryBatch, rows: Int64[np.ndarray, " items"]) -> Float32[np.ndarray, " items"]:
        """Return one user's scores of some items."""
        if not one.is_known[0]:
            return self.popularity.shares(rows)
        return cosines(self.index.vectors[rows], one.vectors).astype(np.float32)

    def _search(
        self,
        asking: QueryBatch,
        barred: Barred,
        depth: int,
        eligible: AllowedItems | None,
        closed: Bool[np.ndarray, " items"] | None = None,
    ) -> Hits:
        """Return the `depth` best items of each: the nearest, or the most popular where the model knows nothing.

        Args:
            asking: Who asks.
            barred: What each must not get.
            depth: How many items.
            eligible: The items that a filter lets through. None: all.
            closed: Items that nobody gets though the filter lets them through. None: none.
        """
        if asking.is_known.all():
            return self.index.search(asking.vectors, depth, barred.rows, barred.offsets, eligible, closed)
        known = np.flatnonzero(asking.is_known)
        answers: Iterator[ScoredRows] = iter(())
        if len(known):
            mine = barred.take(known)
            nearest = self.index.search(asking.vectors[known], depth, mine.rows, mine.offsets, eligible, closed)
            answers = map(nearest.of, range(len(known)))
        may = None if eligible is None else eligible.mask
        if closed is not None:
            may = ~closed if may is None else may & ~closed
        return Hits.join(
            [
                next(answers) if is_known else self.popularity.best(depth, barred.of(user), may)
                for user, is_known in watched(enumerate(asking.is_known.tolist()))
            ]
        )

    def _recommendations(self, rows: np.ndarray, scores: np.ndarray, first_rank: int = 1) -> list[Recommendation]:
        ids, titles = self.items.ids, self.titles
        pairs = enumerate(zip(rows.tolist(), scores.tolist(), strict=True), start=first_rank)
        return [
            Recommendation(ids[row], score, rank, None if titles is None else titles[row])
            for rank, (row, score) in pairs
        ]


def _by_relevance(
    moved: RerankedHits | None,
    user: int,
    part: BoostTier,
    depth: int,
    found: ScoredRows,
    closed: Bool[np.ndarray, " items"] | None = None,
    decided: Sequence[int] | Int64[np.ndarray, " decided"] = (),
) -> ScoredRows:
    """Return the best of a part, what a reranker moved among them where it moved it; see `Moved.relevance`."""
    if moved is None:
        return found

    def may(rows: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        allowed = np.isin(rows, decided, invert=True)
        for mask in (None if part.eligible is None else part.eligible.mask, None if closed is None else ~closed):
            allowed = allowed if mask is None else allowed & mask[rows]
        return allowed

    return moved.relevance(user, found, may, depth)
