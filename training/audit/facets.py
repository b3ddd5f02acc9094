"""The facets that divide an evaluation into slices: table columns, and properties derived from the interactions.

A `Facet` says to which of its values each item (or user, or answer) belongs: `language` to `fr`, `price` to
`over 10 to 25`, `tags` to several at once. Facets come from the columns by themselves: words and codes by value,
numbers and dates by quarters of the catalogue, texts by length, or by value where they come again and again. An empty
cell is a value of its own, `(missing)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from features.columns import numbers_of, texts_of, values_of
from features.config import FeatureSettings
from features.inference.inference import as_feature
from features.schema import Feature
from features.sequences.ragged import offsets_of, ragged_arange
from features.values.cells import is_missing
from features.values.text import words

MISSING = "(missing)"
"""Label of missing values."""
OTHER = "(other)"
"""Label of rare values, which are merged."""
POPULARITY = "popularity"
EMPTY_CELLS = "empty cells"
ITEM_AGE = "item age"
ACTIVITY = "activity"
PAUSE = "pause"
HEAD, TORSO = 0.5, 0.8
"""Shares of all interactions: the items that hold the first half are the head, those up to four fifths the torso."""
ACTIVITY_EDGES = (1, 5, 20, 50, 200)
"""Least number of known interactions of each group of users."""
AGE_EDGES_DAYS = (1, 7, 30, 90, 365)
"""Least age in days of each group of items."""
PAUSE_EDGES_DAYS = (1, 7, 30)
"""Least days since a user's newest interaction of each group."""

_FEW_NUMBERS = 6
# Rows for each different text, from which on it is a value and not a text.
_FEW_TEXTS = 4
_QUARTERS = (0.25, 0.5, 0.75)
_SECONDS_PER_HOUR, _SECONDS_PER_DAY = 3_600, 86_400


@dataclass(frozen=True)
class Facet:
    """One way to cut.

    Attributes:
        name: Such as `language`.
        labels: Labels of its values, in display order.
        offsets: Where the values of each entity (item, user or answer) begin, `[entities + 1]`.
        codes: Places in `labels`, one entity after the other, none twice for one entity, `[memberships]`.
    """

    name: str
    labels: tuple[str, ...]
    offsets: Int[np.ndarray, "entities_plus_1"]
    codes: Int[np.ndarray, "memberships"]

    @classmethod
    def single(cls, name: str, labels: Sequence[str], codes: Int[np.ndarray, "entities"]) -> Facet:
        """Return the facet of entities that have one value each."""
        return cls(name, tuple(labels), np.arange(len(codes) + 1), codes.astype(np.int64))

    @property
    def entities(self) -> Int[np.ndarray, "memberships"]:
        """Whose each of `codes` is."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, entities: Int[np.ndarray, "chosen"]) -> Facet:
        """Return the facet of the entities at the given positions, in that order; repeats are welcome."""
        lengths = np.diff(self.offsets)[entities]
        codes = self.codes[ragged_arange(self.offsets[:-1][entities], lengths)]
        return Facet(self.name, self.labels, offsets_of(lengths), codes)

    def without_empty(self) -> Facet:
        """Return the facet without unused values."""
        there = np.bincount(self.codes, minlength=len(self.labels)) > 0
        labels = tuple(label for label, is_there in zip(self.labels, there, strict=True) if is_there)
        return Facet(self.name, labels, self.offsets, (np.cumsum(there) - 1)[self.codes])

    def pooled(self, kept: Bool[np.ndarray, "labels"]) -> Facet:
        """Return the facet whose values that are not kept are one, `(other)`; the same facet if all are."""
        if kept.all():
            return self
        new_code = np.where(kept, np.cumsum(kept) - 1, kept.sum())
        pairs = np.unique(self.entities * (len(self.labels) + 1) + new_code[self.codes])
        entities, codes = np.divmod(pairs, len(self.labels) + 1)
        labels = [label for label, is_kept in zip(self.labels, kept, strict=True) if is_kept]
        return Facet(
            self.name, (*labels, OTHER), offsets_of(np.bincount(entities, minlength=len(self.offsets) - 1)), codes
        )


def column_facets(
    frame: pd.DataFrame, settings: Mapping[str, FeatureSettings], who: Literal["item", "user"]
) -> list[Facet]:
    """Return the facets of the columns of a table, those left out whose values would be nearly as many as rows.

    Args:
        frame: One row per entity; the column of ids is passed over.
        settings: How the model reads the columns. The others are read as `towers init` would propose, even if they
            know of the future: nothing is learned here.
        who: Whose table it is.
    """
    facets = []
    for name in frame.columns:
        column = frame[name].reset_index(drop=True)
        chosen = settings.get(name) or as_feature(name, column, who).settings
        if name != f"{who}_id" and chosen is not None:
            facets.append(_of_column(Feature(name, chosen.kind, chosen.separator), column))
    return [facet for facet in facets if len(facet.labels) > 1]


def popularity_facet(interactions: Int[np.ndarray, "items"], groups: Int[np.ndarray, "items"] | None = None) -> Facet:
    """Return the popularity class of each item: head, torso, tail, or no interactions.

    The head are the items that hold the first half of all interactions, the most frequent first; the torso those up to
    four fifths; the tail the rest. Items with equally many interactions are in the same class.

    Args:
        interactions: Of each item, in the training data.
        groups: Each group of items (each seed's) is divided by itself. None: there is one.

    Example:
        >>> facet = popularity_facet(np.array([2, 5, 0, 2, 1]))  # shares before them: 0.5, 0, ., 0.5, 0.9
        >>> [facet.labels[code] for code in facet.codes]
        ['torso', 'head', 'no interactions', 'torso', 'tail']
    """
    groups = np.zeros(len(interactions), dtype=np.int64) if groups is None else groups
    codes = np.full(len(interactions), 3)
    for group in np.unique(groups):
        rows = np.flatnonzero((groups == group) & (interactions > 0))
        counts, places, sizes = np.unique(-interactions[rows], return_inverse=True, return_counts=True)
        held = -counts * sizes
        before = (np.cumsum(held) - held) / max(1, held.sum())
        codes[rows] = np.digitize(before, [HEAD, TORSO])[places]
    return Facet.single(POPULARITY, ["head", "torso", "tail", "no interactions"], codes).without_empty()


def emptiness_facet(frame: pd.DataFrame, who: Literal["item", "user"]) -> Facet:
    """Return the number of empty columns in each row of a table."""
    columns = [frame[name] for name in frame.columns if name != f"{who}_id"]
    empty = sum((_is_empty(column) for column in columns), start=np.zeros(len(frame), dtype=np.int64))
    return Facet.single(EMPTY_CELLS, ["0", "1", "2", "3 or more"], np.minimum(empty, 3)).without_empty()


def activity_facet(history: Int[np.ndarray, "answers"]) -> Facet:
    """Return the length of the user's history at the time of the query."""
    labels = ["no history", *_ranges(ACTIVITY_EDGES)]
    return Facet.single(ACTIVITY, labels, np.digitize(history, ACTIVITY_EDGES)).without_empty()


def item_age_facet(ages: Float[np.ndarray, "answers"]) -> Facet:
    """Return the age of each target item at the time of its query.

    Args:
        ages: Seconds since its first interaction in the training data, NaN where it has none; below 0 where the first
            one came later, as for a query early in the data.
    """
    days = np.where(np.isnan(ages), -1, ages / _SECONDS_PER_DAY)
    named = [f"{label} days" for label in _ranges(AGE_EDGES_DAYS)]
    codes = np.where(days < 0, 0, 1 + np.digitize(days, AGE_EDGES_DAYS))
    return Facet.single(ITEM_AGE, ["not seen before", "under a day", *named], codes).without_empty()


def pause_facet(pauses: Float[np.ndarray, "answers"]) -> Facet:
    """Return the time between the user's last interaction and the query.

    Args:
        pauses: Seconds, NaN where nothing is known.
    """
    edges = [_SECONDS_PER_HOUR, *(days * _SECONDS_PER_DAY for days in PAUSE_EDGES_DAYS)]
    named = ["under an hour", "under a day", *(f"{label} days" for label in _ranges(PAUSE_EDGES_DAYS))]
    codes = np.where(np.isnan(pauses), 0, 1 + np.digitize(pauses, edges))
    return Facet.single(PAUSE, ["no history", *named], codes).without_empty()


def _comes_again(column: pd.Series) -> bool:
    """Return whether texts are names of a few things, such as the path of a category, rather than about one thing."""
    filled = column.dropna()
    return len(filled) >= _FEW_TEXTS * filled.nunique() > 0


def _is_empty(column: pd.Series) -> Bool[np.ndarray, "rows"]:
    return np.array([is_missing(cell) or (isinstance(cell, str) and not cell.strip()) for cell in column], dtype=bool)


def _of_column(feature: Feature, column: pd.Series) -> Facet:
    match feature.definition.content:
        case "values":
            return _by_value(feature, column)
        case "numbers" | "times":
            return _by_quarter(feature, column)
        case "texts":
            return _by_value(feature, column) if _comes_again(column) else _by_length(feature, column)
        case "vectors":
            known = np.array([not is_missing(cell) for cell in column], dtype=np.int64)
            return Facet.single(feature.name, [MISSING, "known"], known).without_empty()


def _by_value(feature: Feature, column: pd.Series) -> Facet:
    lengths, values = values_of(feature, column)
    codes, names = pd.factorize(np.array([*values, MISSING], dtype=object))
    order = _usual_order([str(name) for name in names])
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.arange(len(names))
    # An empty cell has the one value that no cell holds, the last.
    offsets = offsets_of(np.maximum(lengths, 1))
    filled = np.full(int(offsets[-1]), place[codes[-1]])
    has_values = np.repeat(lengths > 0, np.maximum(lengths, 1))
    filled[has_values] = place[codes[:-1]]
    return Facet(feature.name, tuple(str(names[at]) for at in order), offsets, filled).without_empty()


def _usual_order(names: Sequence[str]) -> list[int]:
    """Return the positions of labels in display order: numbers by size, words by the alphabet, missing values last."""
    pieces = [
        [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]
        for name in names
    ]
    return sorted(range(len(names)), key=lambda at: (names[at] == MISSING, pieces[at]))


def _by_quarter(feature: Feature, column: pd.Series) -> Facet:
    values = numbers_of(feature, column)
    known = values[np.isfinite(values)]
    said = _date if feature.definition.content == "times" else _number
    distinct = np.unique(known)
    if len(distinct) <= _FEW_NUMBERS:
        labels, codes = [said(value) for value in distinct], np.searchsorted(distinct, values)
    else:
        edges = np.unique(np.quantile(known, _QUARTERS, method="inverted_cdf"))
        edges = edges[edges < distinct[-1]]
        labels, codes = _spans([said(edge) for edge in edges]), np.searchsorted(edges, values)
    codes = np.where(np.isfinite(values), codes, len(labels))
    return Facet.single(feature.name, [*labels, MISSING], codes).without_empty()


def _by_length(feature: Feature, column: pd.Series) -> Facet:
    lengths = np.array([len(words(text)) for text in texts_of(feature, column)], dtype=np.int64)
    written = lengths[lengths > 0]
    edges = np.unique(np.quantile(written, _QUARTERS, method="inverted_cdf")) if len(written) else written
    labels = [f"{label} words" for label in _spans([f"{edge:,}" for edge in edges.tolist()])]
    codes = np.where(lengths > 0, 1 + np.searchsorted(edges, lengths), 0)
    return Facet.single(f"{feature.name} length", [MISSING, *labels], codes).without_empty()


def _spans(edges: Sequence[str]) -> list[str]:
    """Return what to call the spans between edges, each with its upper one.

    Example:
        >>> _spans(["10", "25"])
        ['up to 10', 'over 10 to 25', 'over 25']
    """
    if not edges:
        return ["all"]
    between = [f"over {low} to {high}" for low, high in pairwise(edges)]
    return [f"up to {edges[0]}", *between, f"over {edges[-1]}"]


def _ranges(edges: Sequence[int]) -> list[str]:
    """Return labels of the ranges that begin at edges.

    Example:
        >>> _ranges([1, 5])
        ['1 to 4', '5 or more']
    """
    between = [f"{low} to {high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise(edges)]
    return [*between, f"{edges[-1]} or more"]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
