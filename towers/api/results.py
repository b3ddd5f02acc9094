"""Recommendations as a DataFrame that a notebook shows with titles, pictures and histories."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from features.tables.tables import Catalog

_PICTURE = re.compile(r"https?://\S+\.(jpe?g|png|gif|webp|avif|svg)(\?\S*)?", re.IGNORECASE)
_PICTURE_NAMES = ("image", "img", "picture", "photo", "thumbnail", "cover", "poster")
_ADDRESS = re.compile(r"https?://\S+", re.IGNORECASE)
_SAMPLE = 100
_CHARACTERS = 40
"""Of a cell in a terminal."""


@dataclass(frozen=True)
class Card:
    """An item as a notebook shows it.

    Attributes:
        title: Its title, or its id.
        score: The score, as text; empty in a history.
        picture: Address of a picture; None if there is none.
        because: Titles of the history items that are the reasons.
    """

    title: str
    score: str = ""
    picture: str | None = None
    because: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shelf:
    """What a notebook shows of one answer.

    Attributes:
        heading: What the items are for: a user, an item, a text.
        items: The items, best first.
        history: The newest items of the history; empty if there is none.
        label: What the items are called.
    """

    heading: str
    items: tuple[Card, ...]
    history: tuple[Card, ...] = ()
    label: str = "recommended"


class Recommendations(pd.DataFrame):
    """Recommended, similar or found items: a DataFrame, one row for each item, best first.

    What pandas makes of it, such as a selection of rows, is a plain DataFrame.

    Attributes:
        notes: What the caller should know, a sentence each: users that are unknown, items that were ignored.
    """

    _internal_names = [*pd.DataFrame._internal_names, "notes", "_shelves"]  # type: ignore[attr-defined]  # noqa: RUF012
    _internal_names_set = set(_internal_names)  # noqa: RUF012
    notes: tuple[str, ...]
    _shelves: Callable[[], Sequence[Shelf]]

    @classmethod
    def of(cls, frame: pd.DataFrame, notes: Sequence[str], shelves: Callable[[], Sequence[Shelf]]) -> Recommendations:
        """Return rows with notes, and what a notebook shows of them, which is made when it is shown."""
        made = cls(frame)
        made.notes = tuple(notes)
        made._shelves = shelves
        return made

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def __repr__(self) -> str:
        """Return the rows, with all columns, and the notes."""
        rows = {name: pd.get_option(f"display.{name}") for name in ("max_rows", "min_rows")}
        notes = [f"note: {note}" for note in getattr(self, "notes", ())]
        return "\n".join([self.to_string(**rows, max_colwidth=_CHARACTERS), *notes])

    def _repr_html_(self) -> str:
        """Return the first answers for a notebook, with histories and pictures; all text is escaped."""
        if not hasattr(self, "_shelves"):  # as after pickle
            return str(pd.DataFrame(self)._repr_html_())  # type: ignore[operator]
        shelves = self._shelves()
        num_users = self["user_id"].nunique(dropna=False) if "user_id" in self else 1
        return (
            _environment()
            .get_template("recommendations.html")
            .render(shelves=shelves, notes=self.notes, more=max(0, num_users - len(shelves)), rows=len(self))
        )


def picture_column(catalog: Catalog) -> str | None:
    """Return the first column of the catalogue with addresses of pictures; None if there is none."""
    for column in catalog.frame.columns:
        cells = catalog.frame[column]
        if not pd.api.types.is_string_dtype(cells):
            continue
        sample = [str(cell).strip() for cell in cells.dropna().head(_SAMPLE)]
        is_named = any(name in str(column).lower() for name in _PICTURE_NAMES)
        pattern = _ADDRESS if is_named else _PICTURE
        if sample and sum(pattern.fullmatch(cell) is not None for cell in sample) > len(sample) / 2:
            return str(column)
    return None


def picture_of(cell: Any) -> str | None:
    """Return the address of a picture, if a cell is one that a browser may open."""
    text = "" if cell is None else str(cell).strip()
    return text if _ADDRESS.fullmatch(text) else None


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("towers.api"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
