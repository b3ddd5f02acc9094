"""Encodes users as queries: the vector, history and text to search items with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.columns import texts_written
from features.sequences.ragged import Ragged
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Sequences
from serving.catalog.ids import ExternalId
from serving.observability.timings import timed
from serving.recommend.request import UserProfile
from serving.recommend.state import ServingState
from serving.recommend.users import EncodedProfiles, QueryBatch
from serving.recommend.vector_cache import UserVectorCache
from serving.search.micro_batching import MicroBatcher, MicroBatching, is_wanted
from serving.search.vectors import ItemVectors
from serving.snapshot.encoding import attribute_columns, encode_users
from towers.bundle.bundle import ModelBundle

# Vectors that depend on the time of the request are cached: of so many users, for so many seconds; not those of large
# requests.
_CACHED_USERS = 100_000
_CACHED_SECONDS = 60.0
_FEW_USERS = 100
_NO_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Unknown(NamedTuple):
    """What a profile named that the model does not know.

    Attributes:
        items: Items of the history that are not in the catalogue.
        values: Values of attributes that training did not see, by column.
    """

    items: tuple[ExternalId, ...] = ()
    values: Mapping[str, tuple[str, ...]] = _NO_VALUES


class QueryEncoder:
    """Makes the queries of users; safe to use from several threads.

    Args:
        bundle: The model.
        seen_items: Which items of a history are not recommended again.
        clock: Returns the time of the request in Unix seconds.

    Attributes:
        attributes: The columns of users that the model reads, with their settings.
    """

    def __init__(self, bundle: ModelBundle, seen_items: SeenItems, clock: Callable[[], float] = time.time) -> None:
        self.attributes = {column: bundle.config.features.user[column] for column in attribute_columns(bundle)}
        self._bundle = bundle
        self._seen_items = seen_items
        self._clock = clock
        self._cache = UserVectorCache(_CACHED_USERS, _CACHED_SECONDS)
        self._batcher: MicroBatcher[Sequences, np.ndarray] | None = None
        self._batched_vectors: ItemVectors | None = None

    def encode(
        self, state: ServingState, users: Sequence[ExternalId | UserProfile]
    ) -> tuple[QueryBatch, list[Unknown]]:
        """Return the queries of users, and what each profile named that is unknown."""
        rows = [None if isinstance(user, UserProfile) else state.users.row(user) for user in users]
        if None not in rows:
            return self.known(state, np.array(rows, dtype=np.int64)), [Unknown()] * len(rows)
        if all(row is None and not isinstance(user, UserProfile) for user, row in zip(users, rows, strict=True)):
            return QueryBatch.unknown(len(rows), state.vectors.shape[1]), [Unknown()] * len(rows)
        # A user who is not in the tables is treated like an empty profile.
        profiles = [
            user if isinstance(user, UserProfile) else UserProfile()
            for user, row in zip(users, rows, strict=True)
            if row is None
        ]
        encoded = EncodedProfiles.of(profiles, state.items, self.attributes, self._bundle)
        queries = self._of_profiles(state, encoded)
        unknown = list(map(Unknown, encoded.unknown_items, encoded.unknown_values))
        if len(profiles) == len(users):
            return queries, unknown
        known = self.known(state, np.array([row for row in rows if row is not None], dtype=np.int64))
        is_profile = np.array([row is None for row in rows])
        order = np.empty(len(rows), dtype=np.int64)
        order[~is_profile], order[is_profile] = np.split(np.arange(len(rows)), [len(known)])
        others = iter(unknown)
        return QueryBatch.join(known, queries, order), [next(others) if row is None else Unknown() for row in rows]

    def known(self, state: ServingState, user_rows: Int64[np.ndarray, " users"]) -> QueryBatch:
        """Return the queries of known users."""
        store = state.user_store
        histories = store.histories(user_rows)
        vectors = self._vectors_of(state, user_rows, histories)
        is_known = self._is_known(store.is_known(user_rows, histories), vectors)
        words = self._words(store.attributes(user_rows)) if self._bundle.config.asked_by else None
        times = histories.times if self._bundle.config.reads_time else None
        return self._queries(vectors, histories, is_known, times, words)

    def history_and_attributes(
        self, state: ServingState, user: ExternalId | UserProfile
    ) -> tuple[Sequences, pd.DataFrame | None]:
        """Return what the model reads of one user."""
        row = None if isinstance(user, UserProfile) else state.users.row(user)
        if row is None:
            profile = user if isinstance(user, UserProfile) else UserProfile()
            encoded = EncodedProfiles.of([profile], state.items, self.attributes, self._bundle)
            return encoded.histories, encoded.attributes
        rows = np.array([row])
        return state.user_store.histories(rows), state.user_store.attributes(rows)

    def vectors(
        self, state: ServingState, histories: Sequences, attributes: pd.DataFrame | None
    ) -> Float32[np.ndarray, "users dim"]:
        """Return the unit vectors of users with these histories and attributes, a row each."""
        return encode_users(self._bundle, state.vectors, histories, attributes, now=self._now())

    def forget(self, user_row: int) -> None:
        """Encode a user again at the next request."""
        self._cache.forget(user_row)

    def enable_micro_batching(self, state: ServingState, most: int, mode: MicroBatching) -> None:
        """Encode users of concurrent requests together where that pays, if their profile is only a history.

        Args:
            state: Whose item vectors are read; users of another state are encoded one by one.
            most: Maximum number of users that are encoded together.
            mode: `auto`: if trials show that it pays.
        """

        def encode_each(each: Sequence[Sequences]) -> list[np.ndarray]:
            return list(self.vectors(state, _joined(each), None)[:, None])

        past = np.arange(min(len(state.items), 50))
        trial = [Sequences(np.array([None]), np.array([0, len(past)]), past, None, is_ordered=True)] * most
        if is_wanted(mode, encode_each, trial):
            self._batcher, self._batched_vectors = MicroBatcher(encode_each, most), state.vectors

    def _of_profiles(self, state: ServingState, encoded: EncodedProfiles) -> QueryBatch:
        histories = encoded.histories
        if not encoded.is_known.any():
            vectors = np.zeros((len(histories), state.vectors.shape[1]), dtype=np.float32)
        elif (
            self._batcher is None
            or self._batched_vectors is not state.vectors
            or len(histories) > 1
            or encoded.attributes is not None
        ):
            vectors = self.vectors(state, histories, encoded.attributes)
        else:
            with timed("encode"):
                vectors = self._batcher(histories, histories.times is None)
        is_known = self._is_known(encoded.is_known, vectors)
        return self._queries(vectors, histories, is_known, histories.times, self._words(encoded.attributes))

    def _queries(
        self,
        vectors: Float32[np.ndarray, "users dim"],
        histories: Sequences,
        is_known: Bool[np.ndarray, " users"],
        times: Int64[np.ndarray, " events"] | None,
        words: list[str] | None,
    ) -> QueryBatch:
        """Return the queries of users; `times` is what of the times of their events a re-ranker reads."""
        excluded = self._seen_items.excluded(histories, int(self._clock()))
        history = Ragged(histories.offsets, histories.item_rows)
        return QueryBatch(vectors, history, excluded, is_known, times, words)

    def _vectors_of(
        self, state: ServingState, user_rows: Int64[np.ndarray, " users"], histories: Sequences
    ) -> Float32[np.ndarray, "users dim"]:
        """Return known users' vectors; those that depend on the time of the request come from a cache for a while."""
        store = state.user_store
        if not self._bundle.config.reads_time or len(user_rows) > _FEW_USERS:
            return store.vectors(user_rows, histories, self._now())
        pasts = [store.row_generation + histories.items_of(user).tobytes() for user in range(len(histories))]
        return self._cache.of(
            user_rows, pasts, lambda users: store.vectors(user_rows[users], histories.take(users), self._now())
        )

    def _is_known(
        self, is_known: Bool[np.ndarray, " users"], vectors: Float32[np.ndarray, "users dim"]
    ) -> Bool[np.ndarray, " users"]:
        """Return which users the model knows anything about; a model without histories may encode a user as zeros."""
        return is_known if self._bundle.config.towers.reads_history else is_known & vectors.any(axis=1)

    def _words(self, attributes: pd.DataFrame | None) -> list[str] | None:
        """Return the text of each query; None for models whose users are not queries, or without text."""
        columns = [column for column in self._bundle.config.asked_by if attributes is not None and column in attributes]
        if attributes is None or not columns:
            return None
        return texts_written(attributes, {column: self._bundle.config.features.user[column] for column in columns})

    def _now(self) -> int | None:
        return int(self._clock()) if self._bundle.config.reads_time else None


def _joined(each: Sequence[Sequences]) -> Sequences:
    """Return the histories of several users as one."""
    times = None if each[0].times is None else np.concatenate([one.times for one in each if one.times is not None])
    rows = Ragged.of([one.item_rows for one in each])
    return Sequences(np.full(len(each), None), rows.offsets, rows.values, times, is_ordered=True)
