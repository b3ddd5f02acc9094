"""Items as the page shows them: picture, title, some columns, score and reasons."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from features.values.cells import text_of
from serving.catalog.ids import ExternalId
from serving.http.page.columns import CatalogColumns
from serving.recommend.recommender import Recommender

NUM_TINTS = 8
"""Number of colours that stand in for a picture, by the first column that is shown."""
MAX_PICTURE_CHARACTERS = 16_384
"""Maximum length of a picture's address; pictures that are part of it (`data:`) are small drawings."""
# Only pictures: a document as data could hold scripts, though an `img` runs none.
_DRAWN = re.compile(r"data:image/(?:svg\+xml|png|jpeg|gif|webp|avif)[;,]")


@dataclass(frozen=True)
class Card:
    """An item as it is shown.

    Attributes:
        item_id: Its id, as in responses.
        title: Its title, or its id where the catalogue has no titles.
        picture: The address of its picture; None if there is none that the page may load.
        letters: The beginning of its title, shown where there is no picture.
        tint: Number of the colour behind them.
        facts: Name and text of the columns that are shown; empty cells are left out.
        rank: Its position from 1; None for items of a history.
        score: Its score; None for items of a history.
        because: Id and title of the history items that are the reasons.
        is_known: Whether it is in the catalogue.
    """

    item_id: str
    title: str
    picture: str | None = None
    letters: str = ""
    tint: int = 0
    facts: tuple[tuple[str, str], ...] = ()
    rank: int | None = None
    score: float | None = None
    because: tuple[tuple[str, str], ...] = ()
    is_known: bool = True


class Cards:
    """Makes cards of one catalogue's items.

    Args:
        recommender: Its state has the items.
        columns: The columns of the catalogue.
        shown: Names of the columns to show.
        picture_origins: Origins that pictures may be loaded from, besides the service's own.
    """

    def __init__(
        self, recommender: Recommender, columns: CatalogColumns, shown: Sequence[str], picture_origins: Sequence[str]
    ) -> None:
        self._state = recommender.state
        self._columns = columns
        self._shown = shown
        self._origins = frozenset(picture_origins)

    def of_response(self, items: Sequence[Mapping[str, Any]]) -> list[Card]:
        """Return the items of a response of the API as cards."""
        return [
            self._card(
                item["item_id"],
                cells,
                title=item.get("title"),
                rank=item["rank"],
                score=item["score"],
                because=tuple(
                    (str(reason["item_id"]), reason.get("title", str(reason["item_id"])))
                    for reason in item.get("because", ())
                ),
            )
            for item, cells in zip(items, self._cells([item["item_id"] for item in items]), strict=True)
        ]

    def of_ids(self, item_ids: Sequence[ExternalId]) -> list[Card]:
        """Return items as cards, those that are not in the catalogue included."""
        return [self._card(item_id, cells) for item_id, cells in zip(item_ids, self._cells(item_ids), strict=True)]

    def _cells(self, item_ids: Sequence[ExternalId]) -> list[dict[str, Any] | None]:
        """Return the cells of each item in the columns that are needed; None for unknown items."""
        rows = [self._state.items.row(item_id) for item_id in item_ids]
        known = np.array([row for row in rows if row is not None], dtype=np.int64)
        names = list(dict.fromkeys((*self._shown, *([self._columns.picture] if self._columns.picture else []))))
        frame = self._state.filters.cells(known)[names] if names else pd.DataFrame(index=range(len(known)))
        found = iter(frame.to_dict("records"))
        return [None if row is None else {str(name): cell for name, cell in next(found).items()} for row in rows]

    def _card(self, item_id: ExternalId, cells: dict[str, Any] | None, **more: Any) -> Card:
        own_id = str(item_id)
        row = self._state.items.row(item_id)
        titles = self._state.titles
        title = more.pop("title", None) or (own_id if titles is None or row is None else titles[row])
        texts = [(name, text_of(cells[name])) for name in self._shown if cells is not None]
        facts = tuple((name, text) for name, text in texts if text)
        group = facts[0][1] if facts else own_id
        return Card(
            own_id,
            title,
            self._picture(cells),
            title[:2].upper(),
            hashlib.blake2b(group.encode(), digest_size=1).digest()[0] % NUM_TINTS,
            facts,
            is_known=row is not None,
            **more,
        )

    def _picture(self, cells: dict[str, Any] | None) -> str | None:
        """Return the address of an item's picture if it is part of the catalogue, or of an origin that is allowed."""
        column = self._columns.picture
        address = None if cells is None or column is None else cells[column]
        if not isinstance(address, str) or len(address) > MAX_PICTURE_CHARACTERS:
            return None
        if _DRAWN.match(address):
            return address
        try:
            parts = urlsplit(address)
        except ValueError:
            return None
        is_own = not parts.scheme and not parts.netloc and address.startswith("/")
        return address if is_own or f"{parts.scheme}://{parts.netloc}" in self._origins else None
