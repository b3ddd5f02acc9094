"""The three validated input tables: `Interactions`, `Catalog` and `Users`.

What cannot be right is a `DataError` naming file, column, row and remedy; what can be repaired is repaired and
counted in one line of `Tables.notes`. Behind `read_tables` nothing is checked again: ids have one type, every item of
an interaction is in the catalogue, rows are in order.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from features.config import ColumnSettings, FeaturesConfig, FeatureSettings
from features.errors import CellError, DataError, Problems
from features.ids import MAX_ID_CHARACTERS
from features.locations.object_path import TablePath
from features.locations.table_path import table_path
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.table_files import place, read_table
from features.tables.table_files import read_frame as read_frame
from features.tables.table_parts import table_digest, table_stamp
from features.values.distinct import column_cells, first, many
from features.values.numbers import NumberFormat
from features.values.readings import Reading, TextFormat, numbers_in, times_in
from features.values.times import MISSING, TimeFormat

INT_ID = pd.ArrowDtype(pa.int64())
TEXT_ID = pd.ArrowDtype(pa.string())
SECONDS = MICROSECONDS = POSITION = pd.ArrowDtype(pa.int64())
SECONDS_PER_DAY = 86_400
_EXACT_FLOATS = 2**53
_WHOLE_ID = r"^(0|-?[1-9][0-9]{0,14})(\.0*)?$"

Readings = Mapping[str, Reading]
"""Format of text cells, by column; typed columns are not in it."""


@dataclass(frozen=True)
class Interactions:
    """The interactions table: user, item and time.

    Attributes:
        frame: Columns `user_id` and `item_id` (int64 or string), and, where the data has them, `timestamp` (int64,
            Unix seconds UTC), `position` (int64) and `rating` (double). One row per event, sorted by user, then by
            position, else by time, else as in the file.
        is_ordered: Whether a position or a time orders the events of a user.
    """

    frame: pd.DataFrame
    is_ordered: bool

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.frame)

    def sequences(self, catalog: Catalog) -> Sequences:
        """Return the events as one row of catalogue positions per user, users sorted by id."""
        item_rows = catalog.rows_of(self.frame["item_id"])
        assert (item_rows >= 0).all(), "read_tables lets no unknown item through"
        user_ids = _plain_ids(self.frame["user_id"])
        begin = np.flatnonzero(np.append(True, user_ids[1:] != user_ids[:-1])) if len(user_ids) else np.zeros(0, int)
        times = self.frame["timestamp"].to_numpy(np.int64) if "timestamp" in self.frame else None
        lengths = np.diff(np.append(begin, len(user_ids)))
        return Sequences(user_ids[begin], offsets_of(lengths), item_rows, times, self.is_ordered)


@dataclass(frozen=True)
class Catalog:
    """The items table: one row per item, `item_id` first, then every column as in the file.

    Attributes:
        frame: The rows; an item's position here is its `item_row`.
    """

    frame: pd.DataFrame

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.frame)

    @cached_property
    def item_ids(self) -> np.ndarray:
        """The items' ids, `[items]`, int64 or object (str)."""
        return _plain_ids(self.frame["item_id"])

    def rows_of(self, ids: Sequence[Any] | np.ndarray | pd.Series) -> Int[np.ndarray, " ids"]:
        """Return the position of each id in the catalogue, -1 where it is unknown; no id may occur twice."""
        return _rows_of(self._index, ids)

    @property
    def is_unique(self) -> bool:
        """Whether no id occurs twice; an item that is replaced while a service runs has several rows."""
        return bool(self._index.is_unique)

    def titles(self, column: str | None) -> list[str]:
        """Return what to call each item: the cell of `column`, or the id where that is empty or there is no column."""
        names = [str(item_id) for item_id in self.item_ids]
        if column is None or column not in self.frame:
            return names
        cells = self.frame[column].astype(object)
        return [name if pd.isna(cell) else str(cell) for cell, name in zip(cells, names, strict=True)]

    @cached_property
    def _index(self) -> pd.Index:
        index: pd.Index = pd.Index(self.item_ids)
        return index


@dataclass(frozen=True)
class Users:
    """The users table: one row per user, `user_id` first, then every column as in the file.

    Users of the interactions without a row here have unknown attributes.

    Attributes:
        frame: The rows.
    """

    frame: pd.DataFrame

    def __len__(self) -> int:
        """Return the number of users with a row."""
        return len(self.frame)

    @cached_property
    def user_ids(self) -> np.ndarray:
        """The users' ids, `[users]`, int64 or object (str)."""
        return _plain_ids(self.frame["user_id"])

    def rows_of(self, ids: Sequence[Any] | np.ndarray | pd.Series) -> Int[np.ndarray, " ids"]:
        """Return the position of each id in the table, -1 where it has no row."""
        return _rows_of(self._index, ids)

    def attributes_of(self, ids: Sequence[Any] | np.ndarray | pd.Series) -> pd.DataFrame:
        """Return one row per id, in that order; everything is missing for an id that has no row."""
        return self.frame.set_axis(self._index, axis=0).reindex(pd.Index(ids)).reset_index(drop=True)

    @cached_property
    def _index(self) -> pd.Index:
        index: pd.Index = pd.Index(self.user_ids)
        return index


@dataclass(frozen=True)
class Tables:
    """The tables of one `[features]` setting, clean and consistent with each other.

    Attributes:
        interactions: The interactions.
        catalog: The items. Without an items file, the distinct items of the interactions, sorted by id.
        users: The people's attributes; None without a users' file.
        notes: One line for each repair: `1,204 duplicate interactions merged`.
        readings: What was decided of columns whose cells can be read in several ways, by table (`interactions`,
            `items`, `users`).
    """

    interactions: Interactions
    catalog: Catalog
    users: Users | None
    notes: tuple[str, ...]
    readings: Mapping[str, Readings] = field(default_factory=dict)


def read_tables(config: FeaturesConfig, folder: Path, readings: Mapping[str, Readings] | None = None) -> Tables:
    """Read, check and clean the tables that a configuration names.

    Blanks around ids are removed; ids that are whole numbers in one table and their text in another are brought to
    one type; events without a position (or, without positions, without a time) are left out; exact repeats of an
    event (same user, item and time; without times, same user, item and position if any) are merged.

    Args:
        config: The `[features]` table.
        folder: What the paths in it are relative to.
        readings: What was decided of the same columns before, as `Tables.readings` has it: they are read in that way.
            None: decide now.

    Raises:
        DataError: Something in the tables cannot be right, or nothing is left.
    """
    notes: list[str] = []
    problems = Problems()
    earlier = readings or {}
    events: Sheet | None = Sheet.without_rows(config.columns)
    items = users = None
    if config.interactions:
        with problems:
            events = None
            keys = {config.columns.user_id, config.columns.item_id}
            events = Sheet.read(folder, config.interactions, notes, earlier=earlier.get("interactions"), keys=keys)
    if config.items:
        with problems:
            keys = {config.columns.items_item_id or config.columns.item_id}
            items = Sheet.read(folder, config.items, notes, config.item, earlier.get("items"), keys=keys)
    if config.users:
        with problems:
            keys = {config.columns.users_user_id or config.columns.user_id}
            users = Sheet.read(folder, config.users, notes, config.user, earlier.get("users"), keys=keys)
    tables = _join(config, notes, problems, events, items, users)
    problems.raise_all()
    assert tables is not None, "nothing is wrong"
    return tables


def _join(
    config: FeaturesConfig,
    notes: list[str],
    problems: Problems,
    events: Sheet | None,
    items: Sheet | None,
    users: Sheet | None,
) -> Tables | None:
    """Return the tables brought together, None where something is wrong, which `problems` then holds."""
    names = config.columns
    item_key, user_key = names.items_item_id or names.item_id, names.users_user_id or names.user_id
    with problems:
        events = events and events.with_ids(names.user_id, "user_id", config)
    with problems:
        events = events and events.with_ids(names.item_id, "item_id", config)
    with problems:
        items = items and items.with_ids(item_key, "items_item_id", config)
    with problems:
        users = users and users.with_ids(user_key, "users_user_id", config)
    user_ids: IdColumn | None = None
    item_ids: IdColumn | None = None
    frame = catalog = people = None
    with problems:
        user_ids = events.ids(names.user_id, "user_id") if events else None
    with problems:
        item_ids = events.ids(names.item_id, "item_id") if events else None
    with problems:
        if items:
            item_ids, catalog = _keyed(item_ids, items, items.ids(item_key, "items_item_id"), "item_id")
    with problems:
        if users:
            user_ids, people = _keyed(user_ids, users, users.ids(user_key, "users_user_id"), "user_id")
    if events is not None:
        with problems:
            frame = event_columns(events, config)
    if problems.found or events is None or frame is None or user_ids is None or item_ids is None:
        return None
    ids = {"user_id": user_ids.series(), "item_id": item_ids.series()}
    frame = pd.concat([pd.DataFrame(ids).set_axis(frame.index, axis=0), frame], axis=1)
    known = None if catalog is None else Catalog(catalog)
    interactions = None
    with problems:
        interactions = ordered_events(filtered_events(events, config, frame, known), notes)
    if interactions is None:
        return None
    with problems:
        if users is not None and people is not None:
            refuse_strangers(users, Users(people), interactions.frame["user_id"].drop_duplicates())
    sheets = {"interactions": events, "items": items, "users": users}
    decided = {name: dict(sheet.readings) for name, sheet in sheets.items() if sheet is not None}
    return Tables(
        interactions,
        _catalog_of(interactions) if known is None else known,
        None if people is None else Users(people),
        tuple(notes),
        decided,
    )


def _keyed(ids: IdColumn | None, other: Sheet, known: IdColumn, target: str) -> tuple[IdColumn | None, pd.DataFrame]:
    """Return the interactions' ids and the other table by its own, both in one type."""
    if ids is not None:
        ids, known = alike(ids, known)
    return ids, other.keyed(known, target)


def data_digests(config: FeaturesConfig, folder: Path) -> dict[str, str]:
    """Return a SHA-256 of each table (`table_digest`) that a configuration names, by its key there."""
    return {name: table_digest(path) for name, path in _paths(config, folder).items()}


def _paths(config: FeaturesConfig, folder: Path) -> dict[str, TablePath]:
    named = {"interactions": config.interactions, "items": config.items, "users": config.users}
    return {name: table_path(folder, path) for name, path in named.items() if path is not None}


@contextmanager
def unchanged_tables(config: FeaturesConfig, folder: Path) -> Iterator[dict[str, str]]:
    """Yield `data_digests` of tables that are read in this block, and check at its end that they are still the same.

    Raises:
        DataError: A table changed meanwhile, so that a part of what was read may be of another one.
    """
    paths = _paths(config, folder)
    stamps = {name: table_stamp(path) for name, path in paths.items()}
    digests = data_digests(config, folder)
    yield digests
    for name, path in paths.items():
        if table_stamp(path) != stamps[name] and table_digest(path) != digests[name]:
            raise DataError(f"{path}: changed while it was read; run the command again once it is written")


@dataclass(frozen=True)
class Sheet:
    """A frame with the file it came from, so that errors can name the place.

    Attributes:
        path: The file.
        frame: The rows; its index is the row in the file.
        notes: Where to say what was repaired.
        readings: What was decided of its columns.
        is_part: Whether these are some of the rows, so that others may have what none of them has.
    """

    path: TablePath
    frame: pd.DataFrame
    notes: list[str] = field(repr=False)
    readings: dict[str, Reading] = field(default_factory=dict)
    is_part: bool = False

    @classmethod
    def read(
        cls,
        folder: Path,
        name: str,
        notes: list[str],
        features: Mapping[str, FeatureSettings] | None = None,
        earlier: Readings | None = None,
        keys: Collection[str] = (),
    ) -> Sheet:
        """Read a file, and the columns that are features as their kinds; `keys` are the columns of ids."""
        settings, known = features or {}, earlier or {}
        spelt = {column for column, one in settings.items() if one.definition.is_sparse}.union(keys)
        path = table_path(folder, name)
        raw = read_table(
            path,
            lambda column: column in spelt,
            lambda column: isinstance(known.get(column), TextFormat),
        )
        notes.extend(raw.notes)
        sheet = cls(path, raw.frame, notes, dict(known))
        problems = Problems()
        columns = {}
        for column, one in settings.items():
            if column in raw.frame:
                with problems:
                    columns[column] = sheet.feature(column, one)
        problems.raise_all()
        return replace(sheet, frame=raw.frame.assign(**columns))

    def feature(self, name: str, settings: FeatureSettings) -> pd.Series:
        """Return a column read as its kind."""
        cells = column_cells(self.frame[name])
        try:
            read = settings.definition.read_column(cells, settings, self.readings.get(name))
        except CellError as error:
            raise self._located(name, error) from None
        self._remember(name, read.reading, read.notes)
        if read.cells is cells:
            return self.frame[name]
        return pd.Series(read.cells, index=self.frame.index, dtype=pd.ArrowDtype(read.cells.type))

    def _remember(self, name: str, reading: Reading | None, notes: Sequence[str]) -> None:
        if reading is not None:
            self.readings[name] = reading
        self.notes.extend(f"{self.path.name}: column {name!r}: {note}" for note in notes)

    def _located(self, name: str, error: CellError) -> DataError:
        return self.error(name, error.found, error.remedy, error.row)

    @classmethod
    def without_rows(cls, names: ColumnSettings) -> Sheet:
        """Return interactions of which there are none."""
        nothing = pd.Series([], dtype=pd.ArrowDtype(pa.large_string()))
        return cls(Path(), pd.DataFrame({names.user_id: nothing, names.item_id: nothing}), [])

    def with_ids(self, name: str, setting: str, config: FeaturesConfig) -> Sheet:
        """Return the rows that have an id; the settings say whether others are a mistake."""
        has_id = has_ids(self.column(name, setting))
        if has_id.all() or config.missing_ids == "error":
            return self
        if not has_id.any() and not self.is_part:
            raise self.error(name, "no row has an id", "name another column under [features.columns]")
        self.notes.append(f"{self.path.name}: {many(int((~has_id).sum()), 'row')} without an id in {name!r} left out")
        return replace(self, frame=self.frame[has_id])

    def error(self, column: str, found: str, remedy: str, row: int | None = None) -> DataError:
        """Return the error about a column, and about the row at a position of the frame."""
        where = f", {place(self.path, int(self.frame.index[row]))}" if row is not None else ""
        return DataError(f"{self.path}: column {column!r}{where}: {found}; {remedy}")

    def column(self, name: str, setting: str) -> pd.Series:
        """Return a column; the error where there is none names the setting."""
        if name in self.frame:
            return self.frame[name]
        there = list(self.frame.columns)
        near = difflib.get_close_matches(name.lower(), [column.lower() for column in there], n=1, cutoff=0.6)
        nearest = next((column for column in there if near and column.lower() == near[0]), "...")
        raise DataError(
            f"{self.path}: no column {name!r}; it has {', '.join(there[:12])}{', ...' if len(there) > 12 else ''}; "
            f'set `{setting} = "{nearest}"` under [features.columns]'
        )

    def ids(self, name: str, setting: str, *, as_text: bool = False) -> IdColumn:
        """Return a column of ids, each present and short enough.

        Args:
            name: The column.
            setting: The setting that names it.
            as_text: Whether ids stay text, even if all of them are whole numbers.
        """
        column = column_cells(self.column(name, setting))
        if pa.types.is_floating(column.type):
            column = self._whole_ids(name, column)
        elif pa.types.is_integer(column.type):
            if pa.types.is_uint64(column.type) and pc.any(pc.greater(column, 2**63 - 1)).as_py():
                raise self.error(name, "ids beyond 64-bit signed integers", "save them as text")
            column = column.cast(pa.int64())
        elif pa.types.is_large_string(column.type):
            column = self._trimmed_ids(name, column, as_text=as_text)
        else:
            raise self.error(name, f"expected ids as whole numbers or text, found {column.type}", "save them as one")
        self._refuse_empty(name, column)
        column = column.cast(pa.string()) if as_text else column
        self._refuse_long(name, column)
        return IdColumn(self, name, column)

    def _whole_ids(self, name: str, column: pa.Array) -> pa.Array:
        self._refuse_empty(name, pc.if_else(pc.is_nan(column), None, column))
        values = column.to_numpy(zero_copy_only=False)
        broken = np.flatnonzero((values != np.floor(values)) | (np.abs(values) > _EXACT_FLOATS))
        if len(broken):
            found = f"expected ids as whole numbers or text, found {float(values[broken[0]])}"
            raise self.error(name, found, "save the ids as integers or text", int(broken[0]))
        self.notes.append(f"{self.path.name}: ids in {name!r} written as fractions (such as {values[0]}) read as whole")
        return pa.array(values.astype(np.int64))

    def _trimmed_ids(self, name: str, column: pa.Array, *, as_text: bool) -> pa.Array:
        trimmed = pc.utf8_trim_whitespace(column)
        changed = pc.sum(pc.not_equal(trimmed, column)).as_py() or 0
        trimmed = pc.if_else(pc.equal(trimmed, ""), None, trimmed).cast(pa.string())
        if changed:
            self.notes.append(f"{self.path.name}: blanks around {many(changed, 'id')} in {name!r} removed")
        if as_text:
            return trimmed
        whole = pc.match_substring_regex(trimmed, _WHOLE_ID)
        if trimmed.null_count == len(trimmed) or not pc.all(whole).as_py():
            return (_as_numbers(trimmed) or trimmed) if changed else trimmed
        fractions = pc.match_substring_regex(trimmed, r"\.")
        if pc.any(fractions).as_py():
            example = trimmed[pc.index(fractions, True).as_py()].as_py()
            self.notes.append(
                f"{self.path.name}: ids in {name!r} written as fractions (such as {example}) read as whole"
            )
            return pc.replace_substring_regex(trimmed, r"\.0*$", "").cast(pa.int64())
        return (_as_numbers(trimmed) or trimmed) if changed else trimmed

    def _refuse_empty(self, name: str, column: pa.Array) -> None:
        if not column.null_count:
            return
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        found = f"no id ({column.null_count:,} of {len(column):,} rows have none)"
        remedy = 'give every row an id, or set `missing_ids = "drop"` under [features] to leave these rows out'
        raise self.error(name, found, remedy, row)

    def _refuse_long(self, name: str, column: pa.Array) -> None:
        """Refuse ids that are too long for requests."""
        if not pa.types.is_string(column.type):
            return
        lengths = pc.utf8_length(column).to_numpy(zero_copy_only=False)
        long = lengths > MAX_ID_CHARACTERS
        if long.any():
            row = first(long)
            expected = f"expected ids of at most {MAX_ID_CHARACTERS} characters, found one of {lengths[row]:,}"
            raise self.error(name, f"{expected} ({many(int(long.sum()), 'such row')})", "give it a shorter id", row)

    def keyed(self, ids: IdColumn, target: str) -> pd.DataFrame:
        """Return the frame with the ids as its first column `target`, each once."""
        others = self.frame.drop(columns=[ids.name]).reset_index(drop=True)
        if target in others:
            self.notes.append(f"{self.path.name}: column {target!r} left out, as {ids.name!r} is the id")
            others = others.drop(columns=[target])
        values = ids.series()
        repeated = values.duplicated()
        if repeated.any():
            self._refuse_different(ids, values, others)
            self.notes.append(f"{self.path.name}: {many(int(repeated.sum()), 'repeated row')} merged")
            values, others = values[~repeated], others[~repeated]
        return pd.concat([values.rename(target), others], axis=1).reset_index(drop=True)

    def _refuse_different(self, ids: IdColumn, values: pd.Series, others: pd.DataFrame) -> None:
        repeated = values.duplicated(keep=False)
        rows = others[repeated].astype(object).map(repr).assign(__id=values[repeated].astype(object))
        second = rows.index[rows["__id"].duplicated() & ~rows.duplicated()]
        if not len(second):
            return
        row = int(second[0])
        earlier = first(np.asarray(values == values.iloc[row], dtype=bool))
        count = int(values.duplicated().sum())
        stood = place(self.path, int(self.frame.index[earlier]))
        found = f"the id {values.iloc[row]!r} stood in {stood} already ({many(count, 'such row')})"
        raise self.error(ids.name, found, "keep one row per id", row)

    def numbers(self, name: str, setting: str) -> pd.Series:
        """Return a column as nullable doubles."""
        earlier = self.readings.get(name)
        try:
            values, reading, notes = numbers_in(
                column_cells(self.column(name, setting)), earlier if isinstance(earlier, NumberFormat) else None
            )
        except CellError as error:
            raise self._located(name, error) from None
        self._remember(name, reading, notes)
        return pd.Series(pa.array(values, from_pandas=True), dtype=pd.ArrowDtype(pa.float64()), index=self.frame.index)

    def whole_numbers(self, name: str, setting: str) -> pd.Series:
        """Return a column as nullable int64."""
        column, numbers = self.column(name, setting), self.numbers(name, setting)
        values = numbers.fillna(0).to_numpy(np.float64)
        broken = np.flatnonzero((values != np.floor(values)) | (np.abs(values) > _EXACT_FLOATS))
        if len(broken):
            found = f"expected a whole number, found {column.iloc[broken[0]]}"
            raise self.error(name, found, "correct the cells or leave them empty", int(broken[0]))
        return numbers.astype(POSITION)

    def times(self, name: str, time_format: str | None) -> pd.Series:
        """Return a column of times as nullable microseconds: finer than we keep, to sort by."""
        column = self.column(name, "timestamp")
        earlier = self.readings.get(name)
        try:
            values, reading, notes = times_in(
                column_cells(column), time_format, earlier if isinstance(earlier, TimeFormat) else None
            )
        except CellError as error:
            raise self._located(name, error) from None
        self._remember(name, reading, notes)
        micros = pd.Series(pa.array(values, mask=values == MISSING), dtype=MICROSECONDS, index=self.frame.index)
        self._refuse_impossible(micros, column, name)
        return micros

    def _refuse_impossible(self, micros: pd.Series, column: pd.Series, name: str) -> None:
        if micros.isna().all() and not self.is_part:
            raise self.error(name, "no times at all", "leave out `timestamp` under [features.columns]")
        values = micros.fillna(0).to_numpy(np.int64)
        for wrong, said in (
            (values > (time.time() + SECONDS_PER_DAY) * 1e6, "in the future"),
            (values < 0, "before 1970"),
        ):
            rows = np.flatnonzero(wrong)
            if len(rows):
                value = _said(column.iloc[rows[0]])
                found = f"expected a time in the past, found {value}, {said} ({many(len(rows), 'such row')})"
                raise self.error(name, found, "correct or remove these rows", int(rows[0]))


@dataclass(frozen=True)
class IdColumn:
    """One column of ids, int64 or string, without missing values."""

    sheet: Sheet
    name: str
    array: pa.Array

    @property
    def is_text(self) -> bool:
        """Whether the ids are text, and not numbers."""
        return bool(pa.types.is_string(self.array.type))

    def in_type(self, *, is_text: bool) -> IdColumn:
        """Return the ids as text or as numbers, which all of them have to be."""
        if is_text == self.is_text:
            return self
        return IdColumn(self.sheet, self.name, self.array.cast(pa.string() if is_text else pa.int64()))

    def series(self) -> pd.Series:
        """Return the ids as a column of a table."""
        return pd.Series(self.array, dtype=TEXT_ID if self.is_text else INT_ID)


def alike(left: IdColumn, right: IdColumn, *, as_text: bool = False) -> tuple[IdColumn, IdColumn]:
    """Bring two columns that name the same things to one type: whole numbers if both can be, else text."""
    if left.is_text == right.is_text:
        return left, right
    text, numbers = (left, right) if left.is_text else (right, left)
    converted = None if as_text else _as_numbers(text.array)
    if converted is not None:
        text = IdColumn(text.sheet, text.name, converted)
    else:
        _refuse_ambiguous(text, numbers)
        numbers = IdColumn(numbers.sheet, numbers.name, numbers.array.cast(pa.string()))
    return (text, numbers) if left.is_text else (numbers, text)


def _refuse_ambiguous(text: IdColumn, numbers: IdColumn) -> None:
    """Refuse `007` in one table and 7 in the other: they may or may not be the same id."""
    padded = pc.and_(pc.match_substring_regex(text.array, "^0[0-9]+$"), pc.less(pc.utf8_length(text.array), 19))
    candidates = text.array.filter(padded)
    meant = pc.is_in(candidates.cast(pa.int64()), value_set=numbers.array)
    if pc.any(meant).as_py():
        row = int(np.flatnonzero(padded)[np.flatnonzero(meant)[0]])
        found = f"ids are text, such as {text.array[row].as_py()!r}, but numbers in {numbers.sheet.path.name}"
        raise text.sheet.error(text.name, found, "save both as text or both as numbers", row)


def _as_numbers(text: pa.Array) -> pa.Array | None:
    """Return text as int64 if every cell is a whole number written the one usual way, else None."""
    try:
        numbers = text.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return numbers if numbers.cast(pa.string()).equals(text) else None


def event_columns(events: Sheet, config: FeaturesConfig) -> pd.DataFrame:
    """Return the columns of the interactions other than ids, under our own names; the index is the row in the file."""
    names, problems = config.columns, Problems()
    columns = {}
    if names.timestamp is not None:
        with problems:
            columns["timestamp"] = events.times(names.timestamp, names.time_format)
    if names.position is not None:
        with problems:
            columns["position"] = events.whole_numbers(names.position, "position")
    if names.rating is not None:
        with problems:
            columns["rating"] = events.numbers(names.rating, "rating")
    elif config.min_rating is not None:
        with problems:
            raise DataError("`min_rating` is set but no column holds ratings; set `rating` under [features.columns]")
    problems.raise_all()
    return pd.DataFrame(columns, index=events.frame.index)


def filtered_events(
    events: Sheet, config: FeaturesConfig, frame: pd.DataFrame, catalog: Catalog | None
) -> pd.DataFrame:
    """Return the interactions that count, and note how many do not."""
    if config.min_rating is not None:
        frame = _keep(
            frame, frame["rating"].fillna(-np.inf) >= config.min_rating, f"rated below {config.min_rating:g}", events
        )
    if catalog is not None:
        known = catalog.rows_of(frame["item_id"]) >= 0
        if config.unknown_items == "error" and not known.all():
            raise _unknown_items(events, config, frame, known)
        frame = _keep(frame, known, "of items that are not in the catalogue", events)
    if "position" in frame:
        frame = _keep(frame, frame["position"].notna(), "without a position", events)
    if "timestamp" in frame and "position" not in frame:
        frame = _keep(frame, frame["timestamp"].notna(), "without a time", events)
    return frame


def _keep(frame: pd.DataFrame, kept: pd.Series | np.ndarray, what: str, events: Sheet) -> pd.DataFrame:
    kept = np.asarray(kept, dtype=bool)
    if kept.all():
        return frame
    if not kept.any() and not events.is_part:
        raise DataError(
            f"{events.path}: no interactions left after leaving out those {what}; check the settings of [features]"
        )
    events.notes.append(f"{many(int((~kept).sum()), 'interaction')} {what} left out")
    return frame[kept]


def _unknown_items(events: Sheet, config: FeaturesConfig, frame: pd.DataFrame, known: np.ndarray) -> DataError:
    strange = frame["item_id"][~known]
    examples = ", ".join(repr(item_id) for item_id in strange.unique()[:3])
    counts = f"{many(len(strange), 'interaction')} with {many(strange.nunique(), 'item')}"
    found = f"{counts} that are not in {config.items}, such as {examples}"
    remedy = 'add them there, or set `unknown_items = "drop"` under [features]'
    return events.error(config.columns.item_id, found, remedy, first(events.frame.index == strange.index[0]))


def refuse_strangers(users: Sheet, people: Users, seen: pd.Series) -> None:
    """Refuse a users table without any user of the interactions: most likely it has another kind of id."""
    if len(seen) and (people.rows_of(seen) < 0).all():
        raise DataError(
            f"{users.path}: none of the users of the interactions is in it (expected ids such as {seen.iloc[0]!r}, "
            f"found {people.user_ids[0]!r}); set `users_user_id` under [features.columns], or leave out `users`"
        )


def ordered_events(frame: pd.DataFrame, notes: list[str], *, is_sorted: bool = False) -> Interactions:
    """Sort by user and order, fill times from neighbours, merge repeats.

    Args:
        frame: The events.
        notes: Where to say what was filled and merged.
        is_sorted: Whether these are all events of some users of many, sorted already.

    Raises:
        DataError: These are not all users, and some have no time at all.
    """
    order = [name for name in ("position", "timestamp") if name in frame][:1]
    if is_sorted:
        users = _run_numbers(frame["user_id"])
    else:
        users = _codes(frame["user_id"])
        keys = [frame[name].to_numpy(np.int64) for name in order]
        rows = np.lexsort([*keys, users])
        frame, users = frame.take(rows), users[rows]
    if "timestamp" in frame:
        frame["timestamp"] = frame["timestamp"] // 10**6  # sorted by the finer time, kept in seconds
        if frame["timestamp"].isna().any():
            frame = _fill_times(frame, users, notes, is_part=is_sorted)
    key = [frame[name].to_numpy(np.int64) for name in ("timestamp", "position") if name in frame][:1]
    repeated = _repeated(users, frame["item_id"], key)
    if repeated.any():
        notes.append(f"{many(int(repeated.sum()), 'duplicate interaction')} merged")
        frame = frame[~repeated]
    return Interactions(frame.reset_index(drop=True), is_ordered=bool(order))


def _run_numbers(ids: pd.Series) -> Int[np.ndarray, " rows"]:
    """Return how many other ids stand before each one, where the same ids stand together."""
    cells = column_cells(ids)
    found: np.ndarray = np.cumsum(np.append(False, np.asarray(pc.not_equal(cells[1:], cells[:-1])).astype(bool)))
    return found


def _repeated(
    users: Int[np.ndarray, " rows"], items: pd.Series, key: list[Int[np.ndarray, " rows"]]
) -> Bool[np.ndarray, " rows"]:
    """Return which events are of the user, the item and the moment of an earlier one; all of a user stand together."""
    is_alone = np.diff(users) != 0
    if key and (np.diff(key[0])[~is_alone] >= 0).all():
        is_alone |= np.diff(key[0]) != 0  # in order, so that those of a moment stand together, too
    together = np.flatnonzero(~np.append(True, is_alone) | ~np.append(is_alone, True))
    same = {"user": users[together], "item": _codes(items.iloc[together])}
    if key:
        same["order"] = key[0][together]
    repeated = np.zeros(len(users), dtype=bool)
    repeated[together] = pd.DataFrame(same).duplicated().to_numpy()
    return repeated


def _fill_times(frame: pd.DataFrame, users: np.ndarray, notes: list[str], *, is_part: bool) -> pd.DataFrame:
    """Give events that have a position but no time that of the event before, else after, of the same user.

    Users without any time keep their events too (their order is known); they get the median time of all events.
    """
    missing = int(frame["timestamp"].isna().sum())
    filled = frame["timestamp"].groupby(users).ffill()
    filled = filled.fillna(filled.groupby(users).bfill())
    lost = int(filled.isna().sum())
    if missing > lost:
        notes.append(f"{many(missing - lost, 'missing time')} taken from the neighbouring interaction")
    if lost and is_part:
        user = frame["user_id"][filled.isna()].iloc[0]
        raise DataError(
            f"{many(lost, 'interaction')} of users without any time, such as of {user!r}; give them one (only in "
            "tables that are read at once they get the median of all times), or leave them out"
        )
    if lost:
        middle = int(np.median(filled.dropna().to_numpy(np.int64)))
        filled = filled.fillna(middle)
        notes.append(f"{many(lost, 'interaction')} of users without any time given the median time")
    return frame.assign(timestamp=filled)


def _catalog_of(interactions: Interactions) -> Catalog:
    ids = interactions.frame["item_id"]
    distinct = pc.unique(pa.array(ids))
    distinct = distinct.take(pc.sort_indices(distinct))
    return Catalog(pd.DataFrame({"item_id": pd.Series(distinct, dtype=ids.dtype)}))


def _codes(ids: pd.Series) -> Int[np.ndarray, " rows"]:
    """Return small integers in the order of the ids."""
    codes, distinct = pd.factorize(ids)
    rank = np.empty(len(distinct), dtype=np.int64)
    rank[np.asarray(distinct.argsort())] = np.arange(len(distinct))
    return rank[codes]


def _rows_of(index: pd.Index, ids: Sequence[Any] | np.ndarray | pd.Series) -> Int[np.ndarray, " ids"]:
    if not isinstance(ids, pd.Series | np.ndarray):
        ids = np.fromiter(ids, dtype=object, count=len(ids))  # numpy's own text would lose a NUL at the end
    codes, distinct = pd.factorize(ids, use_na_sentinel=False)
    rows = index.get_indexer(pd.Index(np.asarray(distinct))).astype(np.int64)
    found: np.ndarray = rows[codes] if len(rows) else np.zeros(0, dtype=np.int64)
    return found


def _plain_ids(ids: pd.Series) -> np.ndarray:
    return ids.to_numpy(np.int64) if ids.dtype == INT_ID else ids.to_numpy(object)


def has_ids(column: pd.Series) -> np.ndarray:
    """Return which cells hold an id; blanks are none."""
    cells = column_cells(column)
    has_id = cells.is_valid()
    if pa.types.is_large_string(cells.type):
        has_id = pc.and_(has_id, pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(cells), ""), False))
    found: np.ndarray = has_id.to_numpy(zero_copy_only=False)
    return found


def _said(value: Any) -> str:
    return str(value) if isinstance(value, pd.Timestamp) else repr(value)
