"""Interfaces of filters, users and popularity, implemented for an index alone and with live updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from features.sequences.sequences import Sequences
from serving.catalog.filters import ColumnSchema, ItemsByValue
from serving.search.conditions import Filter
from serving.search.results import AllowedItems, ScoredRows


class ItemFilters(Protocol):
    """The columns of the catalogue as conditions on items; safe to use from several threads."""

    @property
    def num_items(self) -> int:
        """Number of rows, those that are not live included."""

    def columns(self) -> dict[str, ColumnSchema]:
        """Return the schema of each column that can be filtered by."""

    def cells(self, rows: Int64[np.ndarray, " rows"]) -> pd.DataFrame:
        """Return items' cells in the columns that can be filtered by, one row each."""

    def parse(self, given: Mapping[str, Any], place: str = "filter") -> Filter:
        """Return the filter that a JSON object describes; `DataError` names what is wrong with it, and `place`."""

    def from_query(self, given: Mapping[str, Sequence[str]]) -> Filter:
        """Return the filter that parameters of a URL describe; `DataError` names what is wrong with them."""

    def mask(self, conditions: Filter) -> Bool[np.ndarray, " items"]:
        """Return which items meet all conditions; without conditions all live items do."""

    def allowed(self, conditions: Filter) -> AllowedItems | None:
        """Return the items that meet all conditions; None where there are no conditions."""

    def by_value(self, column: str, place: str) -> ItemsByValue:
        """Return the items by the values of a column; `DataError` names `place` if the column cannot be compared."""


class UserStore(Protocol):
    """The known users by row: their histories, vectors and attributes."""

    @property
    def row_generation(self) -> bytes:
        """Changes when rows of items are renumbered; while it is the same, a row stands for the same item."""

    def is_unchanged(self, row: int) -> bool:
        """Return whether a user's history and vector are those of the index."""

    def histories(self, rows: Int64[np.ndarray, " users"]) -> Sequences:
        """Return users' histories as rows of items, oldest first, with times where the tables have them."""

    def vectors(
        self, rows: Int64[np.ndarray, " users"], histories: Sequences, now: int | None
    ) -> Float32[np.ndarray, "users dim"]:
        """Return users' unit vectors; `now` is the time of the request, for models that read it."""

    def attributes(self, rows: Int64[np.ndarray, " users"]) -> pd.DataFrame | None:
        """Return the columns of users that the model reads, one row each; None if it reads none."""

    def is_known(self, rows: Int64[np.ndarray, " users"], histories: Sequences) -> Bool[np.ndarray, " users"]:
        """Return for which users there is a history or an attribute that the model reads."""


class PopularItems(Protocol):
    """The items by their number of interactions: the fallback for users without a vector."""

    def best(self, depth: int, excluded: np.ndarray, may: Bool[np.ndarray, " items"] | None = None) -> ScoredRows:
        """Return the `depth` most popular rows that are not excluded and that `may` allows, with their shares."""

    def shares(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
        """Return each row's share of the recent interactions, 0 to 1."""

    @property
    def greatest_share(self) -> float:
        """The greatest of these shares; 0 without items."""
