"""Detects the user, item, time and rating columns of the interactions.

By the command line, else by names, else by the cells: ids that the other tables share, columns that repeat, columns
that read as times. What is no more than a guess is said to be one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from features.errors import CellError, DataError, Problems
from features.inference.column_names import (
    CLOCK_NAMES,
    POSITION_NAMES,
    bare_name,
    is_other_moment,
    is_quantity,
    is_rating,
    item_rank,
    looks_like_code,
    time_rank,
    user_rank,
    words_of_name,
)
from features.messages import did_you_mean
from features.values.distinct import column_cells, many
from features.values.numbers import is_written_as_number
from features.values.readings import numbers_in, times_in
from features.values.text import word_starts
from features.values.times import TimeFormat, looks_like_dates

SAMPLE = 20_000
FLAGS = {"user_id": "--user-column", "item_id": "--item-column", "timestamp": "--time-column"}
"""The option of `towers init` that names the column of a role."""
_REASONS = {
    "user_id": "ids of users",
    "item_id": "ids of items",
    "users_user_id": "ids of users in the users' table",
    "items_item_id": "ids of items in the items' table",
    "timestamp": "times of interactions",
    "position": "order of a user's interactions; counts before the time",
    "rating": "ratings; read only by min_rating",
}
_DEPENDS = 0.98
_LEAST_YEAR = pd.Timestamp(2000, 1, 1).timestamp()


@dataclass(frozen=True)
class Role:
    """The role of one column of the interactions.

    Attributes:
        setting: A key of `[features.columns]`.
        column: The column; None where there is none.
        reason: Why, in a few words.
        is_guess: Whether neither its name nor another table says so.
    """

    setting: str
    column: str | None
    reason: str
    is_guess: bool = False


class Roles:
    """Finds the roles of the columns of the interactions."""

    def __init__(
        self,
        events: pd.DataFrame,
        items: pd.DataFrame | None,
        users: pd.DataFrame | None,
        named: Mapping[str, str] | None = None,
    ) -> None:
        """Remember the tables.

        Args:
            events: The interactions.
            items: The items' table, if there is one.
            users: The users' table, if there is one.
            named: Columns whose role is known, by setting: `user_id`, `item_id`, `timestamp`.
        """
        self.events, self.items, self.users = events, items, users
        self.named = dict(named or {})
        self.taken: dict[str, Role] = {}

    def find(self) -> tuple[Role, ...]:
        """Return the roles in the order of `ColumnSettings`.

        Raises:
            DataError: A named column is missing, or the user or item column cannot be determined.
        """
        problems = Problems()
        for setting, column in self.named.items():
            with problems:
                self._take_named(setting, column)
        self._take("item_id", self._id_by_name(item_rank, self.items, "item_id"))
        self._take("user_id", self._id_by_name(user_rank, self.users, "user_id"))
        self._take("timestamp", self._time_by_name())
        self._take("position", self._first(lambda name: bare_name(name) in POSITION_NAMES, self._is_position))
        self._take("rating", self._first(is_rating, reads_as_number))
        for setting, other in (("item_id", self.items), ("user_id", self.users)):
            self._take_shared(setting, other)
        with problems:
            self._take_by_shape()
        self._take_time_by_shape()
        for who, frame, rank in (("item", self.items, item_rank), ("user", self.users, user_rank)):
            with problems:
                self._take_key(who, frame, rank)
        problems.raise_all()
        order = ("user_id", "item_id", "users_user_id", "items_item_id", "timestamp", "position", "rating")
        return tuple(self.taken[setting] for setting in order if setting in self.taken)

    def column(self, setting: str) -> str:
        """Return the column of a role that was found."""
        column = self.taken[setting].column
        assert column is not None
        return column

    def key(self, frame: pd.DataFrame | None, who: Literal["item", "user"]) -> str | None:
        """Return the id column of the items' or users' table."""
        if frame is None:
            return None
        other = self.taken.get(f"{who}s_{who}_id")
        return self.column(f"{who}_id") if other is None else other.column

    def ratings(self) -> tuple[float, float, float] | None:
        """Return the least, middle and greatest rating."""
        if "rating" not in self.taken:
            return None
        numbers = numbers_in(column_cells(self.events[self.column("rating")]))[0]
        return float(np.nanmin(numbers)), float(np.nanmedian(numbers)), float(np.nanmax(numbers))

    def returns(self) -> tuple[str, int] | None:
        """Return the column of quantities with those below 0, and how many they are."""
        for name in filter(is_quantity, self._free()):
            if reads_as_number(self.events[name]):
                count = int((numbers_in(column_cells(self.events[name]))[0] < 0).sum())
                if count:
                    return name, count
        return None

    def not_times(self) -> dict[str, str]:
        """Return the columns that look like times, where none was taken, and why each was not."""
        if "timestamp" in self.taken:
            return {}
        looked = [name for name in self._free() if time_rank(name) is not None or _looks_like_time(self.events[name])]
        return {name: _why_no_time(self.events[name]) for name in looked}

    def _take(self, setting: str, column: str | None, reason: str = "", *, is_guess: bool = False) -> None:
        if column is not None and setting not in self.taken:
            self.taken[setting] = Role(setting, column, reason or _REASONS[setting], is_guess)

    def _take_named(self, setting: str, column: str) -> None:
        if column not in self.events:
            there = list(map(str, self.events.columns))
            raise DataError(
                f"{FLAGS[setting]}: the interactions have no column {column!r}, they have {', '.join(there)}"
                f"{did_you_mean(column, there)}"
            )
        self._take(setting, column)

    def _free(self) -> list[str]:
        used = {role.column for role in self.taken.values()}
        return [name for name in self.events.columns if name not in used]

    def _first(self, is_called: Callable[[str], bool], fits: Callable[[pd.Series], bool]) -> str | None:
        """Return the first free column with a name of a kind, and with cells that fit."""
        return next((name for name in self._free() if is_called(name) and fits(self.events[name])), None)

    def _id_by_name(self, rank: Callable[[str], int | None], other: pd.DataFrame | None, setting: str) -> str | None:
        """Return the column with the best name: one that the other table has too, else one with repeated values."""
        if setting in self.named:
            return None
        ranked = {name: rank(name) for name in self._free_ids()}
        candidates = [(position, name) for name, position in ranked.items() if position is not None]
        return min(
            candidates,
            default=(0, None),
            key=lambda one: (other is None or one[1] not in other, _is_unique(self.events[one[1]]), one[0]),
        )[1]

    def _time_by_name(self) -> str | None:
        ranked = [(rank, name) for name in self._free() if (rank := time_rank(name)) is not None]
        fitting = [
            (rank, name)
            for rank, name in ranked
            if is_large_time(self.events[name]) or (bare_name(name) in CLOCK_NAMES and is_time(self.events[name]))
        ]
        return min(fitting, default=(0, None), key=lambda one: one[0])[1]

    def _take_time_by_shape(self) -> None:
        """Choose the column that can be read as times, whatever its name, unless that names another time."""
        fitting = [name for name in self._free() if _reads_as_moment(name, self.events[name])]
        if fitting:
            among = "the only column" if len(fitting) == 1 else f"the first of {len(fitting)} columns"
            self._take("timestamp", fitting[0], f"{among} that reads as times", is_guess=True)

    def _is_position(self, column: pd.Series) -> bool:
        """Whether whole numbers from 0 or 1 tell the events of most users apart."""
        if not pa.types.is_integer(arrow_type(column)) or "user_id" not in self.taken:
            return False
        known = pd.DataFrame({"user": self.events[self.column("user_id")], "position": column}).dropna()
        return len(known) > 0 and int(known["position"].min()) in (0, 1) and float(known.duplicated().mean()) < 0.01

    def _take_shared(self, setting: str, other: pd.DataFrame | None) -> None:
        """Take the column whose values are those of the other table's ids."""
        if setting in self.taken or setting in self.named or other is None:
            return
        pairs = [(overlap(self.events[a], other[b]), a) for a in self._free_ids() for b in unique_columns(other)]
        share, column = max(pairs, default=(0.0, ""))
        if share > 0.5:
            self._take(setting, column, f"its values are those of the {setting.removesuffix('_id')}s' table")

    def _take_by_shape(self) -> None:
        """Take ids by what depends on them, or as the only columns that can be ids."""
        missing = [one for one in ("user_id", "item_id") if one not in self.taken and one not in self.named]
        candidates = self._id_shaped(len(missing))
        if "item_id" in missing and (item := self._described(candidates)) is not None:
            column, said = item
            self._take("item_id", column, said, is_guess=True)
            candidates.remove(column)
            missing.remove("item_id")
        if "user_id" in missing and (user := self._of_orders(candidates)) is not None:
            column, said = user
            self._take("user_id", column, said, is_guess=True)
            candidates.remove(column)
            missing.remove("user_id")
        if missing and len(candidates) == len(missing):
            only = "the only column of ids that is left" if len(missing) == 1 else "by their place, the only two of ids"
            for setting, column in zip(missing, candidates, strict=True):
                self._take(setting, column, only, is_guess=True)
        elif missing:
            named = " and ".join(f"{FLAGS[setting]} NAME" for setting in missing)
            raise DataError(
                f"the interactions have no column that looks like {' and '.join(missing)} among "
                f"{', '.join(self.events.columns)}; say {named} (ids are whole numbers or text)"
            )

    def _id_shaped(self, wanted: int) -> list[str]:
        """Return the columns of ids, without those that are something else by their cells as far as enough remain."""
        candidates = self._free_ids()
        sieves: tuple[Callable[[str], bool], ...] = (
            lambda name: _varies(self.events[name]),
            lambda name: time_rank(name) is None and not is_quantity(name) and not is_rating(name),
            lambda name: not _looks_like_time(self.events[name]),
            lambda name: not _is_prose(self.events[name]),
            lambda name: not is_written_number(self.events[name]),
            lambda name: not _is_unique(self.events[name]),
        )
        for passes in sieves:
            kept = [name for name in candidates if passes(name)]
            candidates = kept if len(kept) >= wanted else candidates
        return candidates

    def _described(self, candidates: list[str]) -> tuple[str, str] | None:
        """Return the column of ids on which a name or a price depends, as those of items do."""
        others = [
            name
            for name in self._free()
            if name not in candidates and _varies(self.events[name]) and not _looks_like_time(self.events[name])
        ]
        depending = {one: [name for name in others if self._determines(one, name)] for one in candidates}
        most = max(map(len, depending.values()), default=0)
        best = [one for one in candidates if len(depending[one]) == most]
        return (best[0], f"{depending[best[0]][0]} depends on it") if most and len(best) == 1 else None

    def _of_orders(self, candidates: list[str]) -> tuple[str, str] | None:
        """Return the column of ids that is the same for each order: one that depends on another column of ids."""
        orders = [name for name in self._free_ids() if not _is_prose(self.events[name])]
        pairs = [
            (one, order)
            for one in candidates
            for order in orders
            if order != one and self._determines(order, one) and not self._determines(one, order)
        ]
        found = list(dict.fromkeys(one for one, _ in pairs))
        return (found[0], f"each {pairs[0][1]} has one") if len(found) == 1 else None

    def _determines(self, one: str, other: str) -> bool:
        """Return whether rows with the same value in one column, of which there are some, have it in the other too."""
        rows = self.events[[one, other]].head(SAMPLE).dropna()
        distinct = rows[one].nunique()
        if distinct < 2 or distinct > 0.9 * len(rows):
            return False
        return bool(distinct / len(rows.drop_duplicates()) >= _DEPENDS)

    def _free_ids(self) -> list[str]:
        return [name for name in self._free() if is_id(self.events[name])]

    def _take_key(self, who: str, frame: pd.DataFrame | None, rank: Callable[[str], int | None]) -> None:
        """Find the id column of another table if it has another name there."""
        if f"{who}_id" not in self.taken or frame is None or (own := self.column(f"{who}_id")) in frame:
            return
        named = [name for name in frame.columns if rank(name) is not None or bare_name(name) in ("id", bare_name(own))]
        ids = [column for column in dict.fromkeys(named + unique_columns(frame)) if is_id(frame[column])]
        if not ids:
            raise DataError(
                f"the {who}s' table has no column of ids among {', '.join(frame.columns)}; "
                f"add the column {own!r}, as in the interactions"
            )
        shares = [overlap(self.events[own], frame[column]) for column in ids]
        self._take(f"{who}s_{who}_id", ids[int(np.argmax(shares))])


def arrow_type(column: pd.Series) -> pa.DataType:
    """Return the type of a column as pyarrow has it."""
    return column.dtype.pyarrow_dtype if isinstance(column.dtype, pd.ArrowDtype) else pa.array(column).type


def is_number(column: pd.Series) -> bool:
    """Return whether cells are numbers."""
    kind = arrow_type(column)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def is_words(column: pd.Series) -> bool:
    """Return whether cells are text."""
    kind = arrow_type(column)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_id(column: pd.Series) -> bool:
    """Return whether cells can be ids: whole numbers or text."""
    if pa.types.is_floating(arrow_type(column)):
        values = column.dropna().to_numpy(np.float64)
        return bool(len(values)) and bool(np.all(values == np.floor(values)))
    return bool(pa.types.is_integer(arrow_type(column))) or is_words(column)


def is_written_number(column: pd.Series) -> bool:
    """Return whether cells are quantities as text: `19,99`, `$5`."""
    return is_words(column) and bool(column.notna().any()) and is_written_as_number(column_cells(column))


def reads_as_number(column: pd.Series) -> bool:
    """Return whether all cells are numbers, or text that can be read as numbers in one format."""
    if is_number(column):
        return bool(column.notna().any())
    if not is_words(column) or not column.notna().any():
        return False
    try:
        numbers_in(column_cells(column))
    except CellError:
        return False
    return True


def is_time(column: pd.Series) -> bool:
    """Return whether cells are dates, numbers, or text that can be read as times in one format."""
    if is_words(column):
        return bool(column.notna().any()) and not isinstance(time_format_of(column), CellError)
    return is_number(column) or _is_moment(column)


def is_large_time(column: pd.Series) -> bool:
    """Return whether cells are dates, or as large as Unix times of this century: hours of the day are not."""
    if not is_number(column) or not column.notna().any():
        return is_time(column)
    values = column.dropna().to_numpy(np.float64)
    return float(np.median(values)) > 1e8 or is_written_date(words_of_name(str(column.name)), values)


def is_written_date(words: list[str], values: np.ndarray) -> bool:
    """Return whether numbers are digits of dates (20240331), or days of Excel where the name speaks of dates."""
    try:
        written = TimeFormat.decide(pa.array(values, pa.float64())).name
    except CellError:
        return False
    return written == "digits" or (written == "excel" and bool({"date", "datum", "fecha", "day", "at"} & set(words)))


def time_format_of(column: pd.Series) -> TimeFormat | CellError:
    """Return how the cells of a column are times, or why they are none."""
    try:
        _, reading, _ = times_in(column_cells(column))
    except CellError as error:
        return error
    return reading


def overlap(left: pd.Series, right: pd.Series) -> float:
    """Return the share of the first column's values that the second has."""
    values = left.drop_duplicates().dropna().head(SAMPLE)
    return float(ids_as_text(values).isin(set(ids_as_text(right))).mean()) if len(values) else 0.0


def ids_as_text(ids: pd.Series) -> pd.Series:
    """Return ids as text, so that 7, 7.0 and "7" are the same."""
    if pa.types.is_floating(arrow_type(ids)) and is_id(ids):
        ids = ids.astype(pd.ArrowDtype(pa.int64()))
    return ids.astype(object).astype(str).str.strip()


def unique_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns of ids that are different in every row."""
    return [name for name in frame.columns if is_id(frame[name]) and frame[name].is_unique]


def _varies(column: pd.Series) -> bool:
    return len(column.drop_duplicates()) > 1


def _is_unique(column: pd.Series) -> bool:
    return len(column) > 2 and bool(column.is_unique)


def _is_moment(column: pd.Series) -> bool:
    kind = arrow_type(column)
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_prose(column: pd.Series) -> bool:
    """Return whether cells are texts of several words, as names and descriptions are, and no id is."""
    if not is_words(column):
        return False
    sample = column.dropna().head(1000)
    return bool(len(sample)) and float(np.mean([len(word_starts(str(cell))) for cell in sample])) >= 2


def _looks_like_time(column: pd.Series) -> bool:
    if is_words(column):
        return bool(column.notna().any()) and looks_like_dates(column_cells(column))
    return _is_moment(column)


def _reads_as_moment(name: str, column: pd.Series) -> bool:
    """Return whether all cells are times of this century, not before 2000, and the name does not say of what else."""
    if is_other_moment(name) or not column.notna().any():
        return False
    if _looks_like_time(column):
        return is_time(column)
    if not is_number(column) or looks_like_code(name):
        return False
    values = column.dropna().to_numpy(np.float64)
    try:
        micros, reading, _ = times_in(column_cells(column))
    except CellError:
        return False
    if reading.name == "excel" or not np.all(values == np.floor(values)):
        return False
    seconds = micros[column.notna().to_numpy(dtype=bool)] / 1e6
    return bool(seconds.min() >= _LEAST_YEAR and seconds.max() <= pd.Timestamp.now("UTC").timestamp() + 86_400)


def _why_no_time(column: pd.Series) -> str:
    if not column.notna().any():
        return "it is empty"
    reading = time_format_of(column)
    if isinstance(reading, CellError):
        if "time_format" in reading.remedy:
            return f"{reading.found}; say {FLAGS['timestamp']} {column.name} and --time-format dmy or mdy"
        return str(reading)
    if is_number(column):
        return f"numbers such as {column.dropna().iloc[0]} are too small for Unix times"
    return f"it may be the time of something else; say {FLAGS['timestamp']} {column.name} if it is not"


def guess_said(role: Role) -> str:
    """Return the message about a guessed role."""
    flag = FLAGS[role.setting]
    argument = flag.removeprefix("--").replace("-", "_")
    return (
        f"{role.column!r} is taken for {role.setting} by a guess ({role.reason}); if it is another column, "
        f"say {flag} NAME, in Python {argument}="
    )


def returns_said(returns: tuple[str, int]) -> str:
    """Return the message about negative quantities."""
    name, count = returns
    return (
        f"{many(count, 'interaction')} with a negative {name!r} (returns?) count like any other; to leave them out, "
        f"set rating = {json.dumps(name, ensure_ascii=False)} under [features.columns] and min_rating = 0"
    )
