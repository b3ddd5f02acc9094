"""The interface of a vector database, and the seal of a collection in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field

from features.errors import DataError
from features.settings import StrictTable
from serving.search.conditions import Filter
from serving.search.databases.columns import Cells, ColumnKind
from serving.search.vectors import ItemVectors

FORMAT_VERSION = 1


class Seal(StrictTable):
    """What a collection was made of, stored with it: it is used only with the bundle and the index that it names."""

    format_version: int = FORMAT_VERSION
    """Format of the collection; this version reads 1."""
    model: str
    """The model's version, as in responses."""
    weights_digest: str
    """SHA-256 of the model weights that encoded the vectors."""
    catalog_digest: str
    """SHA-256 of the catalogue's content, whose rows are the keys."""
    index: str
    """Identity of the index in the bundle."""
    num_items: int
    """Number of items."""
    width: int
    """Dimension of the vectors."""
    columns: dict[str, ColumnKind] = Field(default_factory=dict)
    """The columns that the database filters by, and what they hold."""
    effort: int = 0
    """Candidates that a search for 128 items keeps in view. More find more and take longer."""
    recall_at_100: float = 0.0
    """Recall@100, 0 to 1, measured after the collection was written."""
    created: str
    """Time of creation, ISO 8601 in UTC."""

    def misfit(self, wanted: Seal) -> str | None:
        """Return in what a collection differs from the one that a bundle's index needs; None if it fits."""
        for name in ("format_version", "weights_digest", "catalog_digest", "index", "num_items", "width"):
            found, expected = getattr(self, name), getattr(wanted, name)
            if found != expected:
                return f"its {name} is {_short(found)}, that of the bundle's index {_short(expected)}"
        return None


def _short(value: object) -> str:
    return str(value)[:12]


@dataclass(frozen=True)
class Points:
    """Items to write.

    Attributes:
        keys: Their keys: rows of the catalogue; of live items positions in the log of live writes, behind all rows.
        vectors: Their vectors as they are searched, `[points, width]`.
        cells: The columns to filter by.
    """

    keys: Int64[np.ndarray, " points"]
    vectors: ItemVectors
    cells: Cells = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.keys)


@dataclass(frozen=True)
class Asked:
    """What a database is asked for several users.

    Attributes:
        queries: Their vectors, `[users, width]`.
        depth: Number of items for each.
        effort: Candidates that each search keeps in view.
        is_exact: Whether all items that meet the conditions are compared.
        where: Conditions that the database applies.
        excluded: Keys that each user must not get; empty where they are left out afterwards.
    """

    queries: Float32[np.ndarray, "users width"]
    depth: int
    effort: int
    is_exact: bool = False
    where: Filter = ()
    excluded: Sequence[Int64[np.ndarray, " _"]] = ()


@dataclass(frozen=True)
class LiveChange:
    """Live writes for a collection: all records of a log from one position to another.

    Attributes:
        log_id: Identity of the log.
        after: The position that the records follow.
        until: The position of the last record.
        put: Items that arrived; None if none did.
        deleted: Keys of items that were deleted or replaced.
    """

    log_id: str
    after: int
    until: int
    put: Points | None
    deleted: Int64[np.ndarray, " deleted"]


class VectorDatabase(Protocol):
    """A database with collections of vectors, of which an alias names the current one.

    Every method raises `UnavailableError` if the database does not answer or refuses, in one line without a password;
    those for operators raise `DataError` for what an operator can correct.
    """

    @property
    def alias(self) -> str:
        """The name under which the current collection can be found, from which names of collections begin."""

    @property
    def max_effort(self) -> int:
        """The greatest `Asked.effort`."""

    def can_hold(self, column: str) -> bool:
        """Return whether a column can have this name there."""

    def seal(self, collection: str) -> Seal | None:
        """Return the seal of a collection; None if there is no such collection, or it was not finished."""

    def nearest(self, collection: str, kinds: dict[str, ColumnKind], asked: Asked) -> list[Int64[np.ndarray, " _"]]:
        """Return the keys of each user's nearest items; fewer than `depth` where the search found fewer."""

    def write(self, collection: str, seal: Seal, points: Points, progress: Callable[[int], None]) -> None:
        """Write a new collection with its indexes, replacing an unfinished one, and seal it last.

        Args:
            collection: Its name.
            seal: Its seal.
            points: The items.
            progress: Called with the number of items that were written since the last call.
        """

    def reseal(self, collection: str, seal: Seal) -> None:
        """Replace the seal of a collection."""

    def current(self) -> str | None:
        """Return the collection that the alias names; None if it names none."""

    def point_alias(self, collection: str) -> None:
        """Let the alias name a collection, in one step."""

    def collections(self) -> dict[str, Seal]:
        """Return the sealed collections of this alias, the newest first."""

    def drop(self, collection: str) -> None:
        """Delete a collection."""

    def num_points(self, collection: str) -> int | None:
        """Return how many items a collection has; None if live writes have changed it."""

    def apply(self, collection: str, change: LiveChange) -> bool:
        """Apply live writes that are not in the collection yet; return False if it follows another log."""

    def close(self) -> None:
        """Close all connections."""


def collection_of(database: VectorDatabase, seal: Seal) -> str:
    """Return the name of an index's collection."""
    return f"{database.alias}_{seal.index}"


def checked_seal(database: VectorDatabase, collection: str, wanted: Seal) -> Seal:
    """Return the seal of a collection after comparing it with what it must say.

    Raises:
        DataError: There is no such collection, or it belongs to another bundle or index.
        UnavailableError: The database does not answer.
    """
    found = database.seal(collection)
    if found is None:
        raise DataError(
            f"index: the database has no collection {collection}, which the bundle's index needs; write it with "
            "`towers index`"
        )
    misfit = found.misfit(wanted)
    if misfit is not None:
        raise DataError(
            f"index: the collection {collection} does not fit this bundle: {misfit}; write it again with `towers index`"
        )
    return found


def check_complete(database: VectorDatabase, collection: str, seal: Seal) -> None:
    """Check that a collection still has all items: those that it lost would never be recommended.

    Raises:
        DataError: It has fewer or more.
        UnavailableError: The database does not answer.
    """
    found = database.num_points(collection)
    if found not in (None, seal.num_items):
        raise DataError(
            f"index: the collection {collection} has {found:,} items, expected {seal.num_items:,}: something else than "
            "this program changed it; write it again with `towers index`"
        )
