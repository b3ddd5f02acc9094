"""Batches of queries for the search, and user profiles encoded as the model's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.config import FeatureSettings
from features.errors import DataError
from features.feature_kinds import FeatureKind
from features.messages import shown
from features.sequences.ragged import Ragged, offsets_of
from features.sequences.sequences import UNKNOWN_TIME, Sequences
from features.values.cells import refuse_large
from serving.catalog.ids import ExternalId, IdMap
from serving.deadline import watched
from serving.recommend.request import UserProfile
from towers.bundle.bundle import ModelBundle


@dataclass(frozen=True)
class QueryBatch:
    """The users, items or texts that items are searched for in one call.

    Attributes:
        vectors: Their unit vectors, `[queries, dim]`, and behind them their weights of recent popularity, none for
            items and texts, if the model reads it; undefined where `is_known` is False.
        history: The rows of each one's history, oldest first.
        excluded: The rows that each user must not get, whatever the request.
        is_known: For which of them the model knows anything, `[queries]`; the others get popular items.
        times: The time of each event of `history` in Unix seconds, `[events]`; None if no time is known.
        words: The text of each query; None for queries without text.
    """

    vectors: Float32[np.ndarray, "queries dim"]
    history: Ragged
    excluded: Ragged
    is_known: Bool[np.ndarray, " queries"]
    times: Int64[np.ndarray, " events"] | None = None
    words: Sequence[str] | None = None

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.is_known)

    @classmethod
    def unknown(cls, num_users: int, dim: int) -> QueryBatch:
        """Return the queries of users without any known feature."""
        nothing = Ragged.empty(num_users)
        return cls(np.zeros((num_users, dim), np.float32), nothing, nothing, np.zeros(num_users, dtype=bool))

    def take(self, queries: np.ndarray) -> QueryBatch:
        """Return the queries at the given positions, in that order."""
        times = None if self.times is None else Ragged(self.history.offsets, self.times).take(queries).values
        words = None if self.words is None else [self.words[query] for query in queries.tolist()]
        history, excluded = self.history.take(queries), self.excluded.take(queries)
        return QueryBatch(self.vectors[queries], history, excluded, self.is_known[queries], times, words)

    @classmethod
    def join(cls, one: QueryBatch, other: QueryBatch, order: Int64[np.ndarray, " queries"]) -> QueryBatch:
        """Return the queries of two batches as one, in the given order of positions."""
        times = None
        if one.times is not None or other.times is not None:
            times = np.concatenate([one.known_times, other.known_times])
        words = None
        if one.words is not None or other.words is not None:
            words = [text for part in (one, other) for text in part.words or [""] * len(part)]
        vectors, is_known = (
            np.concatenate(pair) for pair in ((one.vectors, other.vectors), (one.is_known, other.is_known))
        )
        history, excluded = one.history.join(other.history), one.excluded.join(other.excluded)
        return cls(vectors, history, excluded, is_known, times, words).take(order)

    @property
    def known_times(self) -> Int64[np.ndarray, " events"]:
        """The time of each event of `history`, `UNKNOWN_TIME` where none is known."""
        return np.full(len(self.history.values), UNKNOWN_TIME) if self.times is None else self.times


@dataclass(frozen=True)
class EncodedProfiles:
    """User profiles as input of the model.

    Attributes:
        histories: Their histories, without items that are not in the catalogue and without user ids. Times are None if
            no profile has any.
        attributes: One row per profile, with the columns of the users table; None if no profile has any.
        is_known: Which profiles have anything that the model reads, `[users]`.
        unknown_items: Items of each history that are not in the catalogue, without repeats.
        unknown_values: Values of each profile's attributes that the model did not see in training, by column.
    """

    histories: Sequences
    attributes: pd.DataFrame | None
    is_known: Bool[np.ndarray, " users"]
    unknown_items: list[tuple[ExternalId, ...]]
    unknown_values: list[Mapping[str, tuple[str, ...]]]

    @classmethod
    def of(
        cls, profiles: Sequence[UserProfile], items: IdMap, kinds: Mapping[str, FeatureSettings], bundle: ModelBundle
    ) -> EncodedProfiles:
        """Encode user profiles.

        Args:
            profiles: The profiles.
            items: The ids of the catalogue.
            kinds: The attributes that the model reads, with their settings.
            bundle: The model.

        Raises:
            DataError: The model does not read an attribute, its value has the wrong type, or a history and its times
                differ in length.
        """
        rows = [items.places(one.history) for one in watched(profiles)]
        given = [_cells(one.attributes, kinds) for one in watched(profiles)]
        unknown = [_unknown(one, mine) for one, mine in watched(zip(profiles, rows, strict=True))]
        is_known = np.array([bool((mine >= 0).any()) for mine in rows], dtype=bool)
        attributes = _frame(given, kinds) if any(given) else None
        unknown_values: list[Mapping[str, tuple[str, ...]]] = [{}] * len(profiles)
        if attributes is not None:
            is_known |= bundle.knows(attributes)
            unknown_values = [*bundle.unknown_values(attributes)]
        histories = Sequences(
            np.full(len(profiles), None),
            offsets_of(np.array([len(mine) for mine in rows], dtype=np.int64)),
            np.concatenate([np.zeros(0, np.int64), *rows]),
            _times(profiles),
            is_ordered=True,
        )
        return cls(
            histories.keep(histories.item_rows >= 0) if any(unknown) else histories,
            attributes,
            is_known,
            unknown,
            unknown_values,
        )


def attribute_schema(kinds: Mapping[str, FeatureSettings]) -> dict[str, Any]:
    """Return the JSON schema of each attribute of a profile, by name."""
    return {
        column: {"anyOf": [*settings.definition.request_schemas, {"type": "null"}]}
        for column, settings in kinds.items()
    }


def _times(profiles: Sequence[UserProfile]) -> Int64[np.ndarray, " events"] | None:
    """Return the times of all events of all profiles; None if no profile has times."""
    for one in profiles:
        if one.times is not None and len(one.times) != len(one.history):
            raise DataError(
                f"times: expected one for each of the {len(one.history)} items of history, found {len(one.times)}"
            )
    if all(one.times is None for one in profiles):
        return None
    each = [[UNKNOWN_TIME] * len(one.history) if one.times is None else one.times for one in profiles]
    return np.array([time for times in each for time in times], dtype=np.int64)


def _unknown(one: UserProfile, rows: np.ndarray) -> tuple[ExternalId, ...]:
    if rows.min(initial=0) >= 0:
        return ()
    return tuple(dict.fromkeys(item for item, row in zip(one.history, rows.tolist(), strict=True) if row < 0))


def _frame(given: Sequence[Mapping[str, Any]], kinds: Mapping[str, FeatureSettings]) -> pd.DataFrame:
    """Return the cells of all profiles as rows of the users table."""
    columns = {}
    for name in dict.fromkeys(name for cells in given for name in cells):
        is_number = kinds[name].definition.content in ("numbers", "times")
        columns[name] = pd.Series([cells.get(name) for cells in given], dtype="float64" if is_number else "object")
    return pd.DataFrame(columns)


def _cells(attributes: Mapping[str, Any], kinds: Mapping[str, FeatureSettings]) -> dict[str, Any]:
    """Return the attributes of a profile as cells of the users table."""
    unknown = [name for name in attributes if name not in kinds]
    if unknown:
        known = ", ".join(map(repr, kinds)) or "none"
        raise DataError(f"attributes: the model does not read {shown(unknown[0])}; it reads {known}")
    return {name: _cell(name, kinds[name].definition, value) for name, value in attributes.items() if value is not None}


def _cell(name: str, kind: FeatureKind, value: Any) -> Any:
    """Return a value as a cell of the users table."""
    refuse_large(f"attributes.{name}", value)
    cell = kind.parse(value)
    if cell is None:
        raise DataError(f"attributes.{name}: expected {kind.expected}, found {shown(value)}")
    return cell
