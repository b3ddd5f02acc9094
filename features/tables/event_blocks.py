"""The interactions of a run in blocks of checked rows, for tables that are larger than memory.

Every block goes through the checks of `read_tables`, with the same errors, notes and decisions. Three things differ,
none of them in silence: an error counts the rows of its block; a column whose cells decide how they are read (dates,
decimal commas) is read as its first block was, and a later cell that does not fit is an error; and where ids turn out
to be text in a later block, reading begins again with text from the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from features.config import FeaturesConfig, FeatureSettings
from features.errors import DataError, Problems
from features.ids import ITEM_ID, USER_ID
from features.locations.object_path import TablePath
from features.locations.table_path import table_path
from features.tables.numbering import Numbering
from features.tables.table_files import read_blocks
from features.tables.tables import (
    Catalog,
    IdColumn,
    Interactions,
    Readings,
    Sheet,
    Tables,
    Users,
    alike,
    event_columns,
    filtered_events,
    refuse_strangers,
)
from features.values.distinct import column_cells, many
from features.values.readings import Reading, TextFormat

CODE = "item_code"
"""Column of a block with a number for each item, see `EventBlocks.item_rows`."""
ROW = "row"
"""Column of a block with the place of each event in the table."""

_Result = TypeVar("_Result")
_COUNT = re.compile(r"(?<![\w.,])([0-9][0-9,]*) ((?:duplicate |missing )?(?:cell|id|row|interaction|time))s?\b")
_EXAMPLE = re.compile(r" such as .*")


class EventBlocks:
    """The tables of a `[features]` setting, of which the interactions are read in blocks, items and users at once.

    Args:
        config: The `[features]` table; it names interactions.
        folder: What the paths in it are relative to.
        earlier: See `read_tables`.

    Raises:
        DataError: As of `read_tables`, of the items and the users.
    """

    def __init__(self, config: FeaturesConfig, folder: Path, earlier: Mapping[str, Readings] | None = None) -> None:
        assert config.interactions is not None, "there is something to read"
        names, problems = config.columns, Problems()
        self.path = table_path(folder, config.interactions)
        self._config, self._folder, self._earlier = config, folder, earlier or {}
        self._notes: list[str] = []
        self._items = self._users = None
        with problems:
            key = names.items_item_id or names.item_id
            self._items = self._read("items", config.items, config.item, key, "items_item_id")
        with problems:
            key = names.users_user_id or names.user_id
            self._users = self._read("users", config.users, config.user, key, "users_user_id")
        problems.raise_all()
        self._reading = self._begin()

    def _read(
        self, table: str, name: str | None, features: Mapping[str, FeatureSettings], key: str, setting: str
    ) -> IdColumn | None:
        if name is None:
            return None
        sheet = Sheet.read(self._folder, name, self._notes, features, self._earlier.get(table), keys={key})
        return sheet.with_ids(key, setting, self._config).ids(key, setting)

    def _begin(self, as_text: frozenset[str] = frozenset()) -> _Reading:
        return _Reading(
            self._config, self.path, self._earlier.get("interactions", {}), self._items, self._users, as_text
        )

    def read(
        self, use: Callable[[Iterator[pa.RecordBatch]], _Result], on_read: Callable[[int], None] = lambda rows: None
    ) -> _Result:
        """Return what a function makes of the blocks.

        Args:
            use: Gets the blocks, all of one schema: `user_id` (int64 or string), `item_code` (int32), `timestamp`
                (int64, microseconds, nullable) and `position` (int64) where the data has them, and `row` (int64). It is
                called again, with all blocks, where ids have to be read in another way. An error of reading may come to
                it as an exception of another type, and so may Ctrl-C.
            on_read: Called with the number of rows read so far.

        Raises:
            DataError: As of `read_tables`.
        """
        while True:
            errors: list[BaseException] = []
            try:
                result = use(self._blocks(errors, on_read))
            except BaseException:
                if not errors:
                    raise
            if not errors:
                return result
            if not isinstance(errors[0], _OtherIdsError):
                raise errors[0]
            self._reading = self._begin(self._reading.as_text | {errors[0].column})

    def _blocks(self, errors: list[BaseException], on_read: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
        try:
            for block in self._reading.blocks():
                on_read(self._reading.num_read)
                yield block
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                errors.append(error)
            raise

    def item_rows(self) -> Int[np.ndarray, "codes"]:
        """Return the catalogue row of each item code, once all blocks were read."""
        return self._reading.item_rows()

    @property
    def ids_are_text(self) -> tuple[bool, bool]:
        """Whether the ids of users and of items are text, once all blocks were read."""
        return self._reading.is_text["user_id"], self._reading.is_text["item_id"]

    def was_read(self, ids_are_text: tuple[bool, bool], item_ids: pa.Array | None) -> None:
        """Take what an earlier reading of the same blocks found.

        Args:
            ids_are_text: Its `ids_are_text`.
            item_ids: The ids of its catalogue. None: there is a table of items.
        """
        self._reading.was_read(ids_are_text, item_ids)

    def tables(self, interactions: Interactions, notes: Sequence[str] = ()) -> Tables:
        """Return the tables, once all blocks were read.

        Args:
            interactions: What became of the blocks.
            notes: What was repaired on the way to that, block by block.
        """
        reading = self._reading
        sheets = {"items": self._items, "users": self._users}
        decided: dict[str, Readings] = {name: dict(one.sheet.readings) for name, one in sheets.items() if one}
        decided["interactions"] = reading.decided()
        said = (*summed([*reading.notes, *notes]), *dict.fromkeys(self._notes))
        return Tables(interactions, reading.catalog(), reading.people, said, decided)


class _OtherIdsError(Exception):
    """Ids of a column are text where those of earlier blocks were numbers, or the other way round."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


@dataclass
class _Reading:
    """One reading of the interactions, from their first block.

    Attributes:
        as_text: The columns whose ids stay text.
    """

    config: FeaturesConfig
    path: TablePath
    earlier: Readings
    items: IdColumn | None
    users: IdColumn | None
    as_text: frozenset[str]
    notes: list[str] = field(default_factory=list)
    num_read: int = 0
    is_text: dict[str, bool] = field(default_factory=dict)
    _readings: dict[str, Reading] = field(default_factory=dict)
    _found: Numbering = field(default_factory=Numbering)
    _catalog: Catalog | None = None
    people: Users | None = None
    _strangers: pd.Series | None = None
    _num_kept: int = 0
    _has_time: bool = False

    def blocks(self) -> Iterator[pa.RecordBatch]:
        names = self.config.columns
        self._readings = {**self.earlier, **{name: TextFormat() for name in self.as_text}}
        keys = {names.user_id, names.item_id}
        wanted = {*keys, *(name for name in (names.timestamp, names.position, names.rating) if name is not None)}
        frames = read_blocks(
            self.path,
            wanted,
            self.notes,
            lambda name: name in keys,
            lambda name: isinstance(self._readings.get(name), TextFormat),
        )
        for frame in frames:
            self.num_read += len(frame)
            block = self._checked(Sheet(self.path, frame, self.notes, self._readings, is_part=True))
            if len(block):
                yield block
        if names.timestamp is not None and names.position is None and not self._has_time:
            sheet = Sheet(self.path, pd.DataFrame(), self.notes)
            raise sheet.error(names.timestamp, "no times at all", "leave out `timestamp` under [features.columns]")
        if not self._num_kept:
            raise DataError(
                f"{self.path}: no interactions left ({'; '.join(summed(self.notes))}); check the settings of [features]"
            )
        if self._strangers is not None and self.users is not None and self.people is not None:
            refuse_strangers(self.users.sheet, self.people, self._strangers)

    def _checked(self, sheet: Sheet) -> pa.RecordBatch:
        """Return the rows of a block that count."""
        names, problems = self.config.columns, Problems()
        user_ids: IdColumn | None = None
        item_ids: IdColumn | None = None
        frame: pd.DataFrame | None = None
        with problems:
            sheet = sheet.with_ids(names.user_id, "user_id", self.config)
        with problems:
            sheet = sheet.with_ids(names.item_id, "item_id", self.config)
        with problems:
            user_ids = self._ids(sheet, names.user_id, "user_id", self.users)
        with problems:
            item_ids = self._ids(sheet, names.item_id, "item_id", self.items)
        with problems:
            frame = event_columns(sheet, self.config)
        problems.raise_all()
        if user_ids is None or item_ids is None or frame is None:
            raise AssertionError("nothing is wrong")
        if "timestamp" in frame:
            self._has_time = self._has_time or bool(frame["timestamp"].notna().any())
        ids = {USER_ID: user_ids.series(), ITEM_ID: item_ids.series()}
        frame = pd.concat([pd.DataFrame(ids).set_axis(frame.index, axis=0), frame], axis=1)
        frame = filtered_events(sheet, self.config, frame, self._catalog)
        self._num_kept += len(frame)
        if self.people is not None and self._strangers is not None and len(frame):
            seen = frame[USER_ID].drop_duplicates()
            self._strangers = None if (self.people.rows_of(seen) >= 0).any() else seen
        return self._batch(frame)

    def _ids(self, sheet: Sheet, name: str, setting: str, known: IdColumn | None) -> IdColumn:
        """Return a column of ids in the type of the earlier blocks and of the table that describes them."""
        as_text = name in self.as_text
        ids = sheet.ids(name, setting, as_text=as_text)
        if known is not None:
            ids, known = alike(ids, known, as_text=as_text)
        if self.is_text.setdefault(setting, ids.is_text) != ids.is_text:
            raise _OtherIdsError(name)
        if known is not None and setting == "item_id" and self._catalog is None:
            self._catalog = Catalog(known.sheet.keyed(known, ITEM_ID))
        if known is not None and setting == "user_id" and self.people is None:
            self.people = Users(known.sheet.keyed(known, USER_ID))
            self._strangers = ids.series()
        return ids

    def was_read(self, ids_are_text: tuple[bool, bool], item_ids: pa.Array | None) -> None:
        self.is_text = dict(zip(("user_id", "item_id"), ids_are_text, strict=True))
        self._readings = dict(self.earlier)
        if self.users is not None:
            known = self.users.in_type(is_text=ids_are_text[0])
            self.people = Users(known.sheet.keyed(known, USER_ID))
        if self.items is not None:
            known = self.items.in_type(is_text=ids_are_text[1])
            self._catalog = Catalog(known.sheet.keyed(known, ITEM_ID))
        elif item_ids is not None:
            self._found = Numbering(item_ids.to_numpy(zero_copy_only=False))

    def _batch(self, frame: pd.DataFrame) -> pa.RecordBatch:
        columns = {
            USER_ID: column_cells(frame[USER_ID]),
            CODE: pa.array(self._code(frame[ITEM_ID]).astype(np.int32)),
            **{name: column_cells(frame[name]) for name in ("timestamp", "position") if name in frame},
            ROW: pa.array(frame.index.to_numpy(np.int64)),
        }
        return pa.RecordBatch.from_pydict(columns)

    def _code(self, item_ids: pd.Series) -> Int[np.ndarray, "events"]:
        if self._catalog is not None:
            return self._catalog.rows_of(item_ids)
        cells = column_cells(item_ids)
        if not pa.types.is_integer(cells.type):
            encoded = cells.dictionary_encode()
            distinct = self._found.number(encoded.dictionary.to_numpy(zero_copy_only=False))
            codes: np.ndarray = distinct[encoded.indices.to_numpy(zero_copy_only=False)]
            return codes
        return self._found.number(cells.to_numpy(zero_copy_only=False))

    def item_rows(self) -> Int[np.ndarray, "codes"]:
        if self._catalog is not None:
            return np.arange(len(self._catalog))
        items = self._found_items()
        rows = np.empty(len(items), dtype=np.int64)
        rows[pc.sort_indices(items).to_numpy()] = np.arange(len(rows))
        return rows

    def _found_items(self) -> pa.Array:
        return pa.array(self._found.values, pa.string() if self.is_text["item_id"] else pa.int64())

    def catalog(self) -> Catalog:
        if self._catalog is not None:
            return self._catalog
        ids = self._found_items()
        return Catalog(
            pd.DataFrame({ITEM_ID: pd.Series(ids.take(pc.sort_indices(ids)), dtype=pd.ArrowDtype(ids.type))})
        )

    def decided(self) -> Readings:
        """Return what was decided of columns, without the ids that are text only here."""
        return {name: one for name, one in self._readings.items() if name not in self.as_text or name in self.earlier}


def summed(notes: Sequence[str]) -> list[str]:
    """Return one note for those of several blocks that say the same with another count.

    Example:
        >>> summed(["1 duplicate interaction merged", "times read as digits", "1,204 duplicate interactions merged"])
        ['1,205 duplicate interactions merged', 'times read as digits']
    """
    counts: dict[str, int] = {}
    first: dict[str, tuple[str, str, str]] = {}
    for note in notes:
        found = _COUNT.search(note)
        before, noun, after = (
            (note, "", "") if found is None else (note[: found.start()], found[2], note[found.end() :])
        )
        key = _EXAMPLE.sub("", f"{before}#{noun}{after}")
        first.setdefault(key, (before, noun, after))
        counts[key] = counts.get(key, 0) + (0 if found is None else int(found[1].replace(",", "")))
    return [f"{before}{many(counts[key], noun) if noun else ''}{after}" for key, (before, noun, after) in first.items()]
