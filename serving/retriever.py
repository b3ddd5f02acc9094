"""From "who is asking" to "these items": the one place where ids and rows meet.

The service and the nightly file ask the same `Retriever`, so that they can't disagree. Whoever the model knows nothing
about is answered with what is popular, and the answer says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.errors import DataError
from features.sequences import Sequences, offsets_of
from serving.filters import Filter, Filters
from serving.hits import Eligible, Hits
from serving.ids import ExternalId, IdMap
from serving.index import Device
from serving.snapshot import Snapshot, attribute_columns, encode_users
from towers.bundle import BundleError, ModelBundle

Fallback = Literal["popular"]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item of an answer.

    Attributes:
        item_id: The item, as the catalogue calls it.
        score: Higher is better. The cosine of user and item, -1 to 1; of a fallback the share of all interactions.
        rank: Its place, from 1.
        title: What to call it; None where the catalogue has no titles.
    """

    item_id: ExternalId
    score: float
    rank: int
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was recommended, and how it came about.

    Attributes:
        items: Best first.
        fallback: What answered in the model's place; None where the model did.
        unknown_items: Items of a given history that are not in the catalogue, and so were not heard.
    """

    items: list[Recommendation]
    fallback: Fallback | None = None
    unknown_items: tuple[ExternalId, ...] = ()


class Retriever:
    """A model and its snapshot, ready to answer; safe to use from several threads.

    Attributes:
        model: The model's version.
        recommend_seen: Whether items come back to people who had them.
        users: The known users.
        items: The catalogue.
        filters: The columns of the catalogue that answers can be filtered by; `filters.of({"brand": "Acme"})` is the
            `where` of the methods below.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        snapshot: Snapshot,
        *,
        device: Device = "cpu",
        recommend_seen: bool | None = None,
        filter_columns: Sequence[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bundle = bundle
        self.snapshot = snapshot
        features = bundle.config.features
        self.model = bundle.version
        self.recommend_seen = features.recommend_seen if recommend_seen is None else recommend_seen
        self.items = IdMap(snapshot.catalog.item_ids)
        self.users = IdMap(snapshot.histories.user_ids)
        self.filters = Filters(snapshot.catalog, features.item, filter_columns)
        self.attribute_columns = attribute_columns(bundle)
        has_titles = features.title is not None and features.title in snapshot.catalog.frame
        self._titles = snapshot.catalog.titles(features.title) if has_titles else None
        self._index = snapshot.index.to(device)
        self._clock = clock
        self._answerable = _answerable(snapshot)
        self._popular = np.lexsort((np.arange(len(self.items)), -snapshot.interactions))
        self._shares = (snapshot.interactions / max(1, snapshot.interactions.sum())).astype(np.float32)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: Device = "cpu",
        recommend_seen: bool | None = None,
        filter_columns: Sequence[str] | None = None,
    ) -> Retriever:
        """Return the retriever of a bundle and the index inside it.

        Raises:
            BundleError: One of them is missing or damaged, or they do not belong together.
            DataError: The catalogue has no column that is to be filtered by.
        """
        bundle = ModelBundle.open(path)
        try:
            snapshot = Snapshot.open(bundle)
            return cls(bundle, snapshot, device=device, recommend_seen=recommend_seen, filter_columns=filter_columns)
        except ValueError as error:
            raise error if isinstance(error, BundleError | DataError) else BundleError(str(error)) from error

    def recommend(self, user_id: ExternalId, k: int, where: Filter = ()) -> Answer:
        """Return k items for someone, if the catalogue allows it; what is popular for someone unknown.

        Args:
            user_id: As in the tables, or its text: "42" finds the user 42.
            k: How many items.
            where: What must hold of them.
        """
        row = self.users.row(user_id)
        if row is None:
            return self._popular_answer(k, where)
        hits, fallback = self.recommend_rows(np.array([row]), k, where)
        return Answer(self._recommendations(*hits.of(0)), "popular" if fallback[0] else None)

    def recommend_rows(
        self, user_rows: Int64[np.ndarray, " users"], k: int, where: Filter = ()
    ) -> tuple[Hits, Bool[np.ndarray, " users"]]:
        """Return k items for each of many known users, and which of them were answered by what is popular.

        Args:
            user_rows: Positions in `users`.
            k: How many items each.
            where: What must hold of them.
        """
        eligible = self.filters.eligible(where)
        histories = self.snapshot.histories.take(user_rows)
        seen, offsets = (None, None) if self.recommend_seen else (histories.item_rows, histories.offsets)
        hits = self._index.search(self._user_vectors(user_rows, histories), k, seen, offsets, eligible)
        fallback = ~self._answerable[user_rows]
        if fallback.any():
            found = [hits.of(user) for user in range(len(user_rows))]
            for user in np.flatnonzero(fallback).tolist():
                found[user] = self._most_popular(histories.items_of(user), k, eligible)
            hits = Hits.join(found)
        return hits, fallback

    def recommend_for(
        self,
        history: Sequence[ExternalId],
        attributes: Mapping[str, Any] | None = None,
        k: int = 10,
        times: Sequence[int] | None = None,
        where: Filter = (),
    ) -> Answer:
        """Return k items for someone described here and now.

        Args:
            history: What they had, oldest first. Unknown items are left aside and named in the answer.
            attributes: What is known of them, by column of the users' table. None, or a value of None: nothing.
            k: How many items.
            times: When they had them, in Unix seconds, one for each of the history; read by models that look at the
                clock. None: unknown.
            where: What must hold of the items.

        Raises:
            DataError: An attribute is not one that the model reads, or its value is of the wrong type; the times are
                not as many as the history.
        """
        if times is not None and len(times) != len(history):
            raise DataError(f"times: expected one for each of the {len(history)} items of history, found {len(times)}")
        rows, unknown = self.items.rows(history)
        person = self._person(attributes or {})
        item_rows = np.array(rows, dtype=np.int64)
        if not rows and person is None:
            return self._popular_answer(k, where, tuple(unknown))
        known_times = None
        if times is not None:
            is_known = [self.items.row(item_id) is not None for item_id in history]
            known_times = np.array(times, dtype=np.int64)[is_known]
        newest = slice(-self.bundle.config.features.history, None)
        vector = self.bundle.encode_users(
            self._index.vectors[item_rows[newest]],
            offsets_of(np.array([len(item_rows[newest])])),
            attributes=person,
            request_times=self._now(1),
            event_times=None if known_times is None else known_times[newest],
        )
        seen, offsets = (None, None) if self.recommend_seen else (item_rows, offsets_of(np.array([len(item_rows)])))
        hits = self._index.search(vector, k, seen, offsets, self.filters.eligible(where))
        return Answer(self._recommendations(*hits.of(0)), None, tuple(unknown))

    def similar(self, item_id: ExternalId, k: int, where: Filter = ()) -> Answer | None:
        """Return the k items most like one, without itself; None if there is no such item."""
        row = self.items.row(item_id)
        if row is None:
            return None
        itself = np.array([row])
        eligible = self.filters.eligible(where)
        hits = self._index.search(self._index.vectors[itself], k, itself, np.array([0, 1]), eligible)
        return Answer(self._recommendations(*hits.of(0)))

    def popular(self, k: int, where: Filter = ()) -> Hits:
        """Return the k items that were had most often, as the answer to someone unknown."""
        return Hits.join([self._most_popular(np.zeros(0, np.int64), k, self.filters.eligible(where))])

    def history(self, user_id: ExternalId, k: int) -> list[Recommendation] | None:
        """Return the k newest items that someone had, newest first; None if there is no such user.

        `rank` counts back from the newest, and the score is 0.
        """
        row = self.users.row(user_id)
        if row is None:
            return None
        newest = self.snapshot.histories.items_of(row)[::-1][:k]
        return self._recommendations(newest, np.zeros(len(newest), dtype=np.float32))

    def _user_vectors(self, user_rows: np.ndarray, histories: Sequences) -> Float32[np.ndarray, "users width"]:
        if self.snapshot.user_vectors is not None:
            return np.asarray(self.snapshot.user_vectors[user_rows])
        attributes = self.snapshot.attributes
        known = None if attributes is None else attributes.iloc[user_rows].reset_index(drop=True)
        return encode_users(self.bundle, self._index, histories, known, now=int(self._clock()))

    def _now(self, num_users: int) -> Int64[np.ndarray, " users"] | None:
        if not self.bundle.config.reads_time:
            return None
        return np.full(num_users, int(self._clock()), dtype=np.int64)

    def _most_popular(self, seen: np.ndarray, k: int, eligible: Eligible | None) -> tuple[np.ndarray, np.ndarray]:
        candidates = self._popular if eligible is None else self._popular[eligible.mask[self._popular]]
        candidates = candidates[: k + len(seen)]
        if not self.recommend_seen:
            candidates = candidates[~np.isin(candidates, seen)]
        return candidates[:k], self._shares[candidates[:k]]

    def _popular_answer(self, k: int, where: Filter, unknown_items: tuple[ExternalId, ...] = ()) -> Answer:
        return Answer(self._recommendations(*self.popular(k, where).of(0)), "popular", unknown_items)

    def _recommendations(self, rows: np.ndarray, scores: np.ndarray) -> list[Recommendation]:
        ids, titles = self.items.ids, self._titles
        pairs = enumerate(zip(rows.tolist(), scores.tolist(), strict=True), start=1)
        return [
            Recommendation(ids[row], score, rank, None if titles is None else titles[row])
            for rank, (row, score) in pairs
        ]

    def _person(self, attributes: Mapping[str, Any]) -> pd.DataFrame | None:
        """Return the attributes as a row of the users' table; None where nothing is known."""
        unknown = [name for name in attributes if name not in self.attribute_columns]
        if unknown:
            known = ", ".join(map(repr, self.attribute_columns)) or "none"
            raise DataError(f"attributes: the model does not read {unknown[0]!r}; it reads {known}")
        given = {name: value for name, value in attributes.items() if value is not None}
        if not given:
            return None
        kinds = self.bundle.config.features.user
        return pd.DataFrame({name: [_cell(name, kinds[name].kind, value)] for name, value in given.items()})


def _answerable(snapshot: Snapshot) -> Bool[np.ndarray, " users"]:
    """Return of which users anything is known that the model reads."""
    is_active = snapshot.histories.lengths > 0
    if snapshot.attributes is None:
        return is_active
    return np.asarray(is_active | snapshot.attributes.notna().to_numpy(dtype=bool).any(axis=1))


def _cell(name: str, kind: str, value: Any) -> Any:
    """Return a posted value as a cell of the users' table."""
    match kind:
        case "number":
            allowed, expected = _is_number(value), "a number"
        case "time":
            allowed, expected = _is_number(value) or isinstance(value, str), "a date or Unix seconds"
        case "vector":
            allowed, expected = isinstance(value, list) and all(map(_is_number, value)), "a list of numbers"
        case "categories":
            values = value if isinstance(value, list) else [value]
            allowed, expected = all(isinstance(one, str | int) for one in values), "texts"
        case _:
            allowed, expected = isinstance(value, str | int | float), "text or a number"
    if not allowed:
        raise DataError(f"attributes.{name}: expected {expected}, found {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
