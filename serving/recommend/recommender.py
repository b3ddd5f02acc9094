"""The core of the service: recommended items for a user, an item or a text. Converts ids to rows and back.

The service and `towers recommend` use the same `Recommender`, so their results agree. Users without
a history or attributes that the model reads get popular items, and the response says so.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from features.config import FeatureSettings
from features.errors import DataError, UnavailableError
from features.sequences.ragged import Ragged
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Sequences
from features.settings import RecommendSeen
from serving.catalog.ids import ExternalId
from serving.deadline import check, watched
from serving.observability.timings import timed
from serving.recommend.explanations import contributions, most
from serving.recommend.query_encoder import QueryEncoder
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.reranking import RerankedHits, RerankStage
from serving.recommend.response import Fallback, Reason, Recommendation, RecommendResponse
from serving.recommend.retrieval import Retrieval
from serving.recommend.state import IndexedState, ServingState
from serving.recommend.text_query import query_vector
from serving.recommend.users import QueryBatch
from serving.search.databases.settings import DatabaseSettings
from serving.search.faiss_index import Device
from serving.search.micro_batching import MicroBatching, micro_batched
from serving.search.results import Hits
from serving.search.searcher import Searcher, UncheckedSearch
from serving.snapshot.manifest import IndexManifest
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle
from towers.bundle.private_copies import PrivateCopies
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import said_of
from towers.bundle.trust import DEFAULT_TRUST, Trust


class Recommender:
    """A model and a state of items and users, ready to answer; safe to use from several threads.

    Attributes:
        bundle: The model.
        snapshot: The current tables, encoded by the model.
        model: Version of the model.
        index_version: Version of the index.
        indexed: The state of the index as it was built.
        state: The data that requests are answered from; `state.filters.parse({"brand": "Acme"})` is a
            `RecommendRequest.where`.
        seen_items: Which items of a user's history are not recommended again.
        rerank: Re-ranks the best candidates; None without a re-ranker.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        snapshot: Snapshot,
        *,
        device: Device = "cpu",
        recommend_seen: RecommendSeen | None = None,
        filter_columns: list[str] | None = None,
        rerank: RerankStage | None = None,
        database: DatabaseSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bundle = bundle
        self.snapshot = snapshot
        self.model, self.index_version = bundle.version, snapshot.manifest.version
        recommend_seen = bundle.config.features.recommend_seen if recommend_seen is None else recommend_seen
        self.seen_items = SeenItems.of(recommend_seen)
        self.rerank = rerank
        self.indexed = IndexedState.of(bundle, snapshot, device, filter_columns, database)
        self.state: ServingState = self.indexed
        self._encoder = QueryEncoder(bundle, self.seen_items, clock)
        self._clock = clock
        stored = snapshot.precomputed
        is_usable = stored is not None and stored.serves(self.seen_items) and rerank is None
        self._precomputed = stored if is_usable else None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: Device = "cpu",
        recommend_seen: RecommendSeen | None = None,
        filter_columns: list[str] | None = None,
        open_rerank: Callable[[ModelBundle, Snapshot], RerankStage | None] = lambda bundle, snapshot: None,
        database: DatabaseSettings | None = None,
        copies: PrivateCopies | None = None,
        trust: Trust = DEFAULT_TRUST,
    ) -> Recommender:
        """Return the recommender of a bundle and the index inside it.

        Args:
            path: The bundle.
            device: Where the index searches.
            recommend_seen: Which items of a user's history are recommended again. None: as the model was trained.
            filter_columns: The columns of the catalogue that requests may filter by. None: all.
            open_rerank: Returns the re-ranking stage, or None.
            database: The vector database to search in. None: the bundle's own index is searched.
            copies: Folder to which all files are copied before they are read. None: they are read in place, and must
                not be written to while they are used.
            trust: The permissions of the bundle.

        Raises:
            BundleError: The bundle or its index is missing or damaged, or they do not belong together.
            DataError: The catalogue lacks a column of `filter_columns`, or the database has no collection that fits.
            UnavailableError: The database does not answer, and the operator wants no other answer.
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
                rerank=open_rerank(bundle, snapshot),
                database=database,
            )
        except (BundleError, DataError, UnavailableError):
            raise
        except ValueError as error:
            raise BundleError(str(error)) from error
        except Exception as error:  # files that do not fit together may cause any kind of error
            remedy = IndexManifest.remedy(path)
            raise BundleError(f"{path}: its index cannot be used ({said_of(error)}); {remedy}") from error

    def with_state(self, state: ServingState) -> Recommender:
        """Return this recommender over another state of the same index."""
        other = copy.copy(self)
        other.state = state
        return other

    def with_clock(self, clock: Callable[[], float]) -> Recommender:
        """Return this recommender with another source of the time of a request, in Unix seconds."""
        other = copy.copy(self)
        other._encoder = QueryEncoder(self.bundle, self.seen_items, clock)
        other._clock = clock
        return other

    def with_parts(self, rerank: RerankStage | None = None, searcher: Searcher | None = None) -> Recommender:
        """Return this recommender with another re-ranking stage, or another searcher over the same vectors.

        Args:
            rerank: Re-ranks the best candidates. None: as before.
            searcher: Finds the items; its rows are those of `state.vectors`. None: as before.
        """
        other = copy.copy(self)
        if rerank is not None:
            other.rerank, other._precomputed = rerank, None
        if searcher is not None:
            other.indexed = replace(self.indexed, search=UncheckedSearch(searcher))
            other.state = other.indexed
        return other

    def enable_micro_batching(self, most: int, mode: MicroBatching) -> None:
        """Combine searches and encodings of concurrent requests for one user each, where that pays.

        Args:
            most: Maximum number of requests that are combined.
            mode: `auto`: if trials show that it pays.
        """
        search = micro_batched(self.indexed.search, self.indexed.vectors, most, mode)
        self.indexed = replace(self.indexed, search=search)
        self.state = self.indexed
        self._encoder.enable_micro_batching(self.indexed, most, mode)

    def recommend(self, user: ExternalId | UserProfile, request: RecommendRequest | int) -> RecommendResponse:
        """Return recommendations for one user; popular items if the model knows nothing about them.

        Args:
            user: An id as in the tables, or its text ("42" finds the user 42), or a profile.
            request: The parameters, or just the number of items.

        Raises:
            DataError: The model does not read an attribute, its value has the wrong type, or a history and its times
                differ in length.
        """
        # Not `recommend_many` of one: nearly all that a service is asked comes through here.
        request = RecommendRequest.of(request)
        check()
        return self._looked_up(user, request) or self._searched([user], request)[0]

    def recommend_many(
        self, users: Sequence[ExternalId | UserProfile], request: RecommendRequest | int
    ) -> list[RecommendResponse]:
        """Return recommendations for each of several users: precomputed ones, or from one search.

        Args:
            users: As for `recommend`.
            request: The parameters, or just the number of items.

        Raises:
            DataError: As `recommend` does.
        """
        request = RecommendRequest.of(request)
        looked_up = [self._looked_up(user, request) for user in watched(users)]
        others = [user for user, response in zip(users, looked_up, strict=True) if response is None]
        searched = iter(self._searched(others, request) if others else ())
        return [response or next(searched) for response in looked_up]

    def recommend_rows(
        self, user_rows: Int64[np.ndarray, " users"], request: RecommendRequest | int
    ) -> tuple[Hits, Bool[np.ndarray, " users"]]:
        """Return recommendations for each of many known users, and which of them got popular items.

        Args:
            user_rows: Rows of `state.users`.
            request: The parameters, or just the number of items.
        """
        queries = self._encoder.known(self.state, user_rows)
        hits, _ = self._found(queries, RecommendRequest.of(request), self.rerank)
        return hits, ~queries.is_known

    def similar(self, item_id: ExternalId, request: RecommendRequest | int) -> RecommendResponse | None:
        """Return the items most similar to one, without itself; None if there is no such item."""
        row = self.state.items.row(item_id)
        if row is None:
            return None
        request = RecommendRequest.of(request)
        itself = Ragged.of([np.array([row])])
        vectors = self._searched_vectors(self.state.embeddings[itself.values])
        queries = QueryBatch(vectors, itself, itself, np.array([True]))
        hits, _ = self._found(queries, request)
        return RecommendResponse(self._recommendations(*hits.of(0), request.offset + 1))

    def search(self, text: str, request: RecommendRequest | int) -> RecommendResponse:
        """Return the items most relevant to a text; popular items if the model knows none of its words.

        Args:
            text: The text.
            request: The parameters, or just the number of items.

        Raises:
            DataError: The model has no text features.
        """
        request = RecommendRequest.of(request)
        with timed("encode"):
            vector = self._searched_vectors(query_vector(self.bundle, text))
        nothing = Ragged.empty(1)
        queries = QueryBatch(vector, nothing, nothing, np.array([vector.any()]), words=[text])
        rerank = self.rerank if self.rerank is not None and self.rerank.reads_words else None
        hits, reranked = self._found(queries, request, rerank)
        items = self._recommendations(*hits.of(0), request.offset + 1)
        fallback: Fallback | None = None if queries.is_known[0] else "popular"
        return RecommendResponse(items, fallback, reranked=None if reranked is None else reranked.was_reranked(0))

    def popular(self, request: RecommendRequest | int) -> Hits:
        """Return the most popular items, as the result of one unknown user."""
        queries = QueryBatch.unknown(1, self.state.vectors.shape[1])
        return self._found(queries, RecommendRequest.of(request))[0]

    def history(self, user_id: ExternalId, k: int) -> list[Recommendation] | None:
        """Return the k newest items of a user's history, newest first; None if there is no such user.

        `rank` counts back from the newest, and the score is 0.
        """
        row = self.state.users.row(user_id)
        if row is None:
            return None
        newest = self.state.user_store.histories(np.array([row])).items_of(0)[::-1][:k]
        return self._recommendations(newest, np.zeros(len(newest), dtype=np.float32))

    def forget(self, user_id: ExternalId) -> None:
        """Encode a user again at the next request."""
        row = self.state.users.row(user_id)
        if row is not None:
            self._encoder.forget(row)

    @property
    def attributes(self) -> dict[str, FeatureSettings]:
        """The columns of users that the model reads, with their settings."""
        return self._encoder.attributes

    def _looked_up(self, user: ExternalId | UserProfile, request: RecommendRequest) -> RecommendResponse | None:
        """Return a user's precomputed recommendations, if they are still valid."""
        if self._precomputed is None or isinstance(user, UserProfile) or not request.is_plain:
            return None
        state = self.state
        row = state.users.row(user)
        if row is None or not state.user_store.is_unchanged(row):
            return None
        best = self._precomputed.best(row, request.depth)
        assert self.snapshot.user_vectors is not None, "precomputed recommendations require users' vectors"
        if best is None or not state.search.confirms(self.snapshot.user_vectors[row], best[0], best[1][-1]):
            return None
        rows, scores = best
        page = slice(request.offset, None)
        return RecommendResponse(self._recommendations(rows[page], scores[page], request.offset + 1))

    def _searched(
        self, users: Sequence[ExternalId | UserProfile], request: RecommendRequest
    ) -> list[RecommendResponse]:
        """Return recommendations for each of several users from one search."""
        queries, unknown = self._encoder.encode(self.state, users)
        hits, reranked = self._found(queries, request, self.rerank)
        responses = []
        for place, is_known in watched(enumerate(queries.is_known.tolist())):
            items = self._recommendations(*hits.of(place), request.offset + 1)
            if request.reasons:
                items = self._with_reasons(users[place], is_known, items, hits.of(place)[0], request.reasons)
            was_reranked = None if reranked is None else reranked.was_reranked(place)
            responses.append(RecommendResponse(items, None if is_known else "popular", *unknown[place], was_reranked))
        return responses

    def _searched_vectors(self, vectors: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows searched"]:
        """Return unit vectors as queries for which recent popularity has no weight."""
        more = self.state.vectors.shape[1] - vectors.shape[1]
        return np.pad(vectors, ((0, 0), (0, more))) if more else vectors

    def _found(
        self, queries: QueryBatch, request: RecommendRequest, rerank: RerankStage | None = None
    ) -> tuple[Hits, RerankedHits | None]:
        wanted = rerank if request.rerank else None
        return Retrieval(self.state, self.indexed.items, queries, request, wanted, self._clock).run()

    def _with_reasons(
        self,
        user: ExternalId | UserProfile,
        is_known: bool,
        items: list[Recommendation],
        rows: Int64[np.ndarray, " items"],
        num_reasons: int,
    ) -> list[Recommendation]:
        """Return a user's recommendations with the items of the history that contributed most to each."""
        history, attributes = self._encoder.history_and_attributes(self.state, user)
        if not (is_known and history.num_events and items):
            return [item._replace(because=()) for item in items]

        def encode(histories: Sequences) -> np.ndarray:
            same = None if attributes is None else attributes.iloc[np.zeros(len(histories), int)].reset_index(drop=True)
            return self._encoder.vectors(self.state, histories, same)

        most_read = self.bundle.config.features.max_history
        history_rows, contributed = contributions(history, self.state.vectors[rows], encode, most_read)
        reasons = [
            tuple(self._reason(int(history_rows[place]), amount) for place, amount in one)
            for one in watched(most(contributed, num_reasons))
        ]
        return [item._replace(because=because) for item, because in zip(items, reasons, strict=True)]

    def _reason(self, row: int, contribution: float) -> Reason:
        titles = self.state.titles
        return Reason(self.state.items.ids[row], contribution, None if titles is None else titles[row])

    def _recommendations(self, rows: np.ndarray, scores: np.ndarray, first_rank: int = 1) -> list[Recommendation]:
        ids, titles = self.state.items.ids, self.state.titles
        found = rows.tolist()
        columns = (
            [ids[row] for row in found],
            scores.tolist(),
            range(first_rank, first_rank + len(found)),
            [None] * len(found) if titles is None else [titles[row] for row in found],
            [None] * len(found),
        )
        return [*map(Recommendation._make, zip(*columns, strict=True))]
