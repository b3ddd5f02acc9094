"""The map of the items as the page draws it: coloured by a column, with a user's items and recommendations on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.messages import cut
from serving.http.page.cards import Card, text_of
from serving.http.page.columns import CatalogColumns
from serving.recommend.recommender import Recommender

WIDTH, HEIGHT = 1000, 700
"""Size of the map in its own units."""
NUM_COLOURS = 8
"""Number of values of a column that have a colour; the others share the last one."""
_MARGIN = 24
_MAX_TITLE = 48
_OTHER = "other"


@dataclass(frozen=True)
class Point:
    """An item on the map.

    Attributes:
        x: From the left, 0 to `WIDTH`.
        y: From the top, 0 to `HEIGHT`.
        title: Its title.
        card: What is shown of it elsewhere; None for the ground.
    """

    x: int
    y: int
    title: str
    card: Card | None = None


@dataclass(frozen=True)
class MapView:
    """A map.

    Attributes:
        column: The column that the points are coloured by; empty: none.
        ground: The values of the column and their items, the most frequent first, the items without a colour last.
        past: The items of the user's history.
        found: The items that were found.
    """

    column: str
    ground: Sequence[tuple[str, Sequence[Point]]]
    past: Sequence[Point]
    found: Sequence[Point]

    @classmethod
    def of(
        cls,
        recommender: Recommender,
        columns: CatalogColumns,
        column: str,
        past: Sequence[Card],
        found: Sequence[Card],
    ) -> MapView | None:
        """Return the map of an index; None if it was built without one.

        Args:
            recommender: Its snapshot has the positions.
            columns: The columns of the catalogue.
            column: The column to colour by; one that is no such column, or empty: the first that has few values.
            past: The items of the user's history.
            found: The items that were found.
        """
        known = recommender.snapshot.item_map
        if known is None:
            return None
        cells = recommender.indexed.filters.cells(known.shown)
        grouped = {name: _groups([text_of(cell) for cell in cells[name]]) for name in columns.groups}
        few = [name for name, groups in grouped.items() if len(set(groups)) > 1 and _OTHER not in groups]
        chosen = column if column in grouped else next(iter([*few, *grouped]), "")
        titles, ids = recommender.indexed.titles, recommender.indexed.items.ids
        names = [str(ids[row]) if titles is None else titles[row] for row in known.shown.tolist()]
        points = [
            _point(place, cut(name, _MAX_TITLE))
            for place, name in zip(known.positions[known.shown], names, strict=True)
        ]
        values = grouped.get(chosen, [""] * len(points))
        order = [value for value, _ in Counter(values).most_common() if value != _OTHER]
        by_value: dict[str, list[Point]] = {value: [] for value in [*order, *([_OTHER] if _OTHER in values else [])]}
        for value, point in zip(values, points, strict=True):
            by_value[value].append(point)
        marked = (
            [
                _point(known.positions[row], card.title, card)
                for card in cards
                if (row := recommender.indexed.items.row(card.item_id)) is not None
            ]
            for cards in (past, found)
        )
        return cls(chosen, list(by_value.items()), *marked)


def _point(place: np.ndarray, title: str, card: Card | None = None) -> Point:
    x, y = (_MARGIN + float(at) * (size - 2 * _MARGIN) for at, size in zip(place, (WIDTH, HEIGHT), strict=True))
    return Point(round(x), round(y), title, card)


def _groups(texts: Sequence[str]) -> list[str]:
    """Return the texts with few different ones: the first steps of paths, and else the most frequent texts."""
    if len(set(texts)) > NUM_COLOURS:
        texts = [text.partition(" > ")[0] for text in texts]
    kept = {text for text, _ in Counter(text for text in texts if text).most_common(NUM_COLOURS - 1)}
    if len({*texts}) <= NUM_COLOURS:
        kept = {text for text in texts if text}
    return [text if text in kept else _OTHER for text in texts]
