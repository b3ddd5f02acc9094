"""The map of the items as the page draws it: coloured by a column, with a user's items and recommendations on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.messages import cut
from features.values.cells import text_of
from serving.http.page.cards import Card
from serving.http.page.columns import CatalogColumns
from serving.recommend.recommender import Recommender
from towers.item_map import Colouring, drawn_at

_MAX_TITLE = 48


@dataclass(frozen=True)
class Point:
    """An item on the map.

    Attributes:
        x: From the left, 0 to `towers.item_map.WIDTH`.
        y: From the top, 0 to `towers.item_map.HEIGHT`.
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
        texts = {name: [text_of(cell) for cell in cells[name]] for name in columns.groups}
        colours = Colouring.of(texts, len(known.shown), column)
        titles, ids = recommender.indexed.titles, recommender.indexed.items.ids
        names = [str(ids[row]) if titles is None else titles[row] for row in known.shown.tolist()]
        points = [
            _point(place, cut(name, _MAX_TITLE))
            for place, name in zip(known.positions[known.shown], names, strict=True)
        ]
        ground = [(value, [points[place] for place in places]) for value, places in colours.groups]
        marked = (
            [
                _point(known.positions[row], card.title, card)
                for card in cards
                if (row := recommender.indexed.items.row(card.item_id)) is not None
            ]
            for cards in (past, found)
        )
        return cls(colours.column, ground, *marked)


def _point(place: np.ndarray, title: str, card: Card | None = None) -> Point:
    return Point(*drawn_at(place), title, card)
