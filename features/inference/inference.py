"""Infers a proposal for `[features]` from tables, each choice with its reason.

`infer_features` looks at names and cells and decides; `render_run_toml` writes the decisions as commented TOML that a
person can read and change. Nothing here is used after `init`: training reads run.toml alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from features.config import FeatureSettings
from features.errors import CellError, DataError, Problems
from features.inference.column_names import (
    LOOKS_LIKE_CODE,
    TEXT_NAMES,
    TITLE_NAMES,
    bare_name,
    is_stock,
    item_rank,
    words_of_name,
)
from features.inference.column_names import looks_like_code as looks_like_code
from features.inference.roles import (
    SAMPLE,
    Role,
    Roles,
    arrow_type,
    guess_said,
    ids_as_text,
    is_number,
    is_time,
    is_words,
    is_written_date,
    returns_said,
    time_format_of,
    unique_columns,
)
from features.tables.tables import has_ids
from features.values.distinct import column_cells, many
from features.values.lists import ListFormat, looks_like_lists
from features.values.numbers import is_written_as_number
from features.values.readings import numbers_in, times_in
from features.values.text import word_starts
from features.values.times import MISSING, TimeFormat, looks_like_dates, said_of_format


def _listed(names: str) -> tuple[str, ...]:
    return tuple(names.split())


# Columns about how people behaved towards an item (or how much a user did) tell a model what it is to foresee.
BEHAVIOUR = frozenset(
    _listed(
        "rating ratings score scores star stars review reviews vote votes views clicks impressions sales sold "
        "purchases orders bought downloads plays playcount likes favorites favourites followers shares interactions "
        "events popularity popular trending bestseller rank ranking salesrank ctr conversions conversion revenue spent"
    )
)
BEHAVIOUR_IF_COUNTED = frozenset(
    _listed(
        "view click like play download purchase sale order share follower favorite favourite visit visits listen "
        "listens watch buyer buyers customer customers user users reader readers viewer viewers interaction event"
    )
)
COUNTED = frozenset(_listed("count counts num number n total avg average mean sum"))
BEHAVIOUR_IN_WORDS = frozenset(_listed("popularity popular trending bestseller sales salesrank"))
NOT_BEHAVIOUR = frozenset(_listed("age content energy maturity parental mpaa"))
PERSONAL = frozenset(
    _listed("email mail phone telephone firstname lastname surname fullname username address street password")
)
SEPARATORS = ("|", ";", "；", " > ", ">", "\t", ",", "，", "、", "/")

USER_ID_IS_ON = False
"""Whether `init` turns the embedding of user ids on."""
TIME_IS_ON = False
"""Whether `init` turns the time of the request on, where interactions have times."""
SEARCH_WIDTH = 1024
"""Numbers that a text of a search becomes: the more, the truer is what its words say."""
FEW = 10
_LOOKED_AT, _SHOWN = 100, 3


@dataclass(frozen=True)
class FeatureChoice:
    """The proposal for one column.

    Attributes:
        column: Its name in the file.
        settings: How it is read; None where it is left out.
        reason: Why, in a few words.
        is_warning: Whether the command prints it, besides the comment in the file: a leak, or unreadable cells.
    """

    column: str
    settings: FeatureSettings | None
    reason: str
    is_warning: bool = False


@dataclass(frozen=True)
class Line:
    """How one column will be used, for the terminal.

    Attributes:
        table: `interactions`, `items` or `users`; of a search `pairs`, `documents` or `queries`.
        column: Its name in the file.
        taken_as: A role or a kind; `-` where it is left out.
        reason: Why, in a few words.
        examples: Some of its values.
    """

    table: str
    column: str
    taken_as: str
    reason: str
    examples: str


@dataclass(frozen=True)
class Inference:
    """A proposal for `[features]`.

    Attributes:
        roles: The columns that give the interactions their meaning.
        unread: Columns of the interactions without a role.
        item: One choice per column of the items' table but its id.
        user: One choice per column of the users' table but its id.
        title: The column that names an item, if any.
        num_events: Interactions in the file.
        num_users: Users in the interactions.
        num_items: Items in the interactions.
        num_unknown: Interactions whose item is not in the items' table.
        num_repeats: Interactions with an item that is in the user's history already.
        ratings: The least, middle and greatest rating, if there are ratings.
        is_search: Whether users are queries and items are documents, known by what is written of them.
        time_format: How the times of the interactions are written, where the setting must say it.
        not_times: Columns of the interactions that look like times by their names, each with why it was not taken.
        missing_ids: Rows without an id that are left out, one line for each table.
        returns: The column of quantities with some below 0, and how many these are, if there is one.
        lines: What becomes of every column.
        notes: What was repaired or left out when the files were read.
        is_read: Whether the tables were read as training will: then the counts are those after cleaning, and `notes`
            say all that was left out.
    """

    roles: tuple[Role, ...]
    unread: tuple[str, ...]
    item: tuple[FeatureChoice, ...]
    user: tuple[FeatureChoice, ...]
    title: str | None
    num_events: int
    num_users: int
    num_items: int
    num_unknown: int
    num_repeats: int
    ratings: tuple[float, float, float] | None
    is_search: bool = False
    time_format: str | None = None
    not_times: tuple[FeatureChoice, ...] = ()
    missing_ids: tuple[str, ...] = ()
    returns: tuple[str, int] | None = None
    lines: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()
    is_read: bool = False

    def column(self, setting: str) -> str | None:
        """Return the column that has a role, None where no column has."""
        return next((role.column for role in self.roles if role.setting == setting), None)

    @property
    def is_ordered(self) -> bool:
        """Whether a position or a time orders the interactions."""
        return self.column("position") is not None or self.column("timestamp") is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the terminal, one line each."""
        said = [guess_said(role) for role in self.roles if role.is_guess]
        said += [f"{choice.column} left out: {choice.reason}" for choice in self.item + self.user if choice.is_warning]
        if self.num_unknown and not self.is_read:
            said.append(f"{many(self.num_unknown, 'interaction')} of items that are not in the items' table")
        said += self.notes
        said += () if self.is_read else self.missing_ids
        if self.returns is not None:
            said.append(returns_said(self.returns))
        said += [f"{one.column} not taken for the time: {one.reason}" for one in self.not_times]
        if not self.is_ordered and not self.is_search:
            said.append("no time and no position: what came first is not known; --time-column names a time")
        return tuple(said)


@dataclass(frozen=True)
class Files:
    """Paths of the tables of an `Inference`.

    Attributes:
        interactions: The file of the interactions; None of a search without pairs.
        items: The catalogue's file, if any.
        users: The file of the users' attributes, if any.
    """

    interactions: Path | None
    items: Path | None = None
    users: Path | None = None


def infer_features(
    interactions: pd.DataFrame,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    *,
    named: Mapping[str, str] | None = None,
    time_format: str | None = None,
) -> Inference:
    """Propose settings for tables as `features.tables.tables.read_frame` returns them.

    Args:
        interactions: Table of interactions.
        items: The catalogue, if there is one.
        users: The users' attributes, if there are any.
        named: Columns of the interactions whose role is known: `user_id`, `item_id`, `timestamp`.
        time_format: How the times are written, if it is known.

    Raises:
        DataError: The user or item column cannot be determined; or no item is in the items' table.
            Several of these at once are a `CombinedDataError`.
    """
    roles = Roles(interactions, items, users, named)
    found = roles.find()
    given = interactions, items, users
    item_id, user_id = roles.column("item_id"), roles.column("user_id")
    item_key, user_key = roles.key(items, "item"), roles.key(users, "user")
    problems, kept = Problems(), list(given)
    for place, keys in enumerate(((user_id, item_id), (item_key,), (user_key,))):
        with problems:
            kept[place] = _with_ids(given[place], *keys)
    problems.raise_all()
    missing = _missing_ids(zip(_TABLES, given, kept, strict=True))
    interactions, items, users = kept[0] if kept[0] is not None else interactions, kept[1], kept[2]
    unknown = 0
    item: tuple[FeatureChoice, ...] = ()
    user: tuple[FeatureChoice, ...] = ()
    if items is not None and item_key is not None:
        unknown = _num_unknown(interactions[item_id], items[item_key])
        item = _choices(items, item_key, _counts(interactions[item_id], items[item_key]), "item")
    if users is not None and user_key is not None:
        user = _choices(users, user_key, _counts(interactions[user_id], users[user_key]), "user")
    not_times = tuple(_left_out(name, reason) for name, reason in roles.not_times().items())
    return Inference(
        roles=found,
        unread=tuple(name for name in interactions.columns if name not in {role.column for role in found}),
        item=item,
        user=user,
        title=None if items is None else _title(items, item),
        num_events=len(interactions),
        num_users=interactions[user_id].nunique(),
        num_items=interactions[item_id].nunique(),
        num_unknown=unknown,
        num_repeats=int(interactions.duplicated([user_id, item_id]).sum()),
        ratings=roles.ratings(),
        time_format=time_format or _format_of_events(interactions, roles),
        not_times=not_times,
        missing_ids=missing,
        returns=roles.returns(),
        lines=(
            *_lines_of_events(interactions, found, not_times),
            *_lines_of("items", items, item_key, "item_id", item),
            *_lines_of("users", users, user_key, "user_id", user),
        ),
    )


_TABLES = ("interactions", "items", "users")
_OF_SEARCH = {"interactions": "pairs", "items": "documents", "users": "queries"}


def _written_time_format(column: pd.Series) -> str | None:
    """Return the format that run.toml must say: that of dates which in another file may be read in two ways."""
    if not is_words(column):
        return None
    reading = time_format_of(column)
    return reading.name if isinstance(reading, TimeFormat) and reading.name in ("dmy", "mdy") else None


def _format_of_events(events: pd.DataFrame, roles: Roles) -> str | None:
    return _written_time_format(events[roles.column("timestamp")]) if "timestamp" in roles.taken else None


def _lines_of_events(events: pd.DataFrame, roles: Iterable[Role], not_times: Iterable[FeatureChoice]) -> Iterable[Line]:
    taken = {role.column: role for role in roles if not role.setting.startswith(("users_", "items_"))}
    looked = {one.column: one.reason for one in not_times}
    for name in events.columns:
        role = taken.get(name)
        if role is not None:
            reason = f"a guess: {role.reason}" if role.is_guess else role.reason
            yield Line("interactions", name, role.setting, reason, _values_of(events[name]))
        else:
            reason = f"no time: {looked[name]}" if name in looked else "not read: interactions have no attributes"
            yield Line("interactions", name, "-", reason, _values_of(events[name]))


def _lines_of(
    table: str, frame: pd.DataFrame | None, key: str | None, setting: str, choices: Iterable[FeatureChoice]
) -> Iterable[Line]:
    if frame is None or key is None:
        return
    yield Line(table, key, setting, "the id", _values_of(frame[key]))
    for choice in choices:
        kind = "-" if choice.settings is None else choice.settings.kind
        yield Line(table, choice.column, kind, choice.reason, _values_of(frame[choice.column]))


def _values_of(column: pd.Series) -> str:
    """Return the first different values of a column."""
    values = list(dict.fromkeys(_short(cell) for cell in column.dropna().head(_LOOKED_AT)))
    return ", ".join(values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")


def _with_ids(frame: pd.DataFrame | None, *keys: str | None) -> pd.DataFrame | None:
    """Return the rows that have all of the ids."""
    if frame is None:
        return None
    has_id = np.all([has_ids(frame[key]) for key in keys if key is not None], axis=0)
    if not has_id.any():
        raise DataError(f"no row has all of the ids ({', '.join(map(str, keys))}); name other columns of ids")
    return frame if has_id.all() else frame[has_id].reset_index(drop=True)


def _missing_ids(tables: Iterable[tuple[str, pd.DataFrame | None, pd.DataFrame | None]]) -> tuple[str, ...]:
    """Return a line for each table that loses rows, from its name and its rows before and after."""
    return tuple(
        f"{many(len(before) - len(after), 'row')} of the {name} without an id left out"
        for name, before, after in tables
        if before is not None and after is not None and len(after) < len(before)
    )


def infer_search(
    documents: pd.DataFrame, queries: pd.DataFrame | None = None, pairs: pd.DataFrame | None = None
) -> Inference:
    """Propose settings for a search: documents, and perhaps queries with the pairs of both that belong together.

    Raises:
        DataError: The roles of the columns cannot be determined, or a table has no text.
    """
    if (queries is None) != (pairs is None):
        raise DataError("pairs need the queries that they name, and queries the pairs; give both, or documents alone")
    if queries is not None and pairs is not None:
        found = infer_features(pairs, documents, queries)
        text = FeatureSettings(kind="text", frozen_dim=SEARCH_WIDTH, trainable_residual=True)
        item, user = _texts_read(found.item, documents, text), _texts_read(found.user, queries, text)
        lines = _as_read(found.lines, {"items": item, "users": user})
        return replace(found, item=item, user=user, lines=lines, is_search=True)
    key = document_key(documents)
    item = _choices(documents, key, np.zeros(len(documents)), "item")
    read = _texts_read(item, documents, FeatureSettings(kind="text", frozen_dim=SEARCH_WIDTH))
    return Inference(
        roles=(Role("item_id", key, "the document"),),
        unread=(),
        item=read,
        user=(),
        title=_title(documents, item),
        num_events=0,
        num_users=0,
        num_items=len(documents),
        num_unknown=0,
        num_repeats=0,
        ratings=None,
        is_search=True,
        lines=tuple(_lines_of("documents", documents, key, "item_id", read)),
    )


def _as_read(lines: Iterable[Line], choices: Mapping[str, Iterable[FeatureChoice]]) -> tuple[Line, ...]:
    """Return the lines of a search, whose tables have other names, and of whose columns only texts are read."""
    chosen = {(table, choice.column): choice for table, some in choices.items() for choice in some}
    read = []
    for line in lines:
        choice = chosen.get((line.table, line.column))
        if choice is not None:
            kind = "-" if choice.settings is None else choice.settings.kind
            line = replace(line, taken_as=kind, reason=choice.reason)
        read.append(replace(line, table=_OF_SEARCH[line.table]))
    return tuple(read)


def document_key(documents: pd.DataFrame) -> str:
    """Return the id column of documents: by its name, else the first with unique values."""
    unique = unique_columns(documents)
    ranked = sorted((rank, name) for name in unique if (rank := item_rank(name)) is not None)
    named = [name for _, name in ranked] + [name for name in unique if bare_name(name) == "id"]
    if not unique:
        raise DataError(
            f"the documents have no column that tells them apart among {', '.join(documents.columns)}; add document_id"
        )
    return (named + unique)[0]


def _texts_read(
    choices: tuple[FeatureChoice, ...], frame: pd.DataFrame, text: FeatureSettings
) -> tuple[FeatureChoice, ...]:
    """Return the choices of a search: text columns are features, others are left out."""
    read = tuple(_as_text(choice, frame[choice.column], text) for choice in choices)
    if not any(choice.settings for choice in read):
        raise DataError(
            f"a search needs texts of documents and of queries, found none in the columns {', '.join(frame.columns)}; "
            "call the column of texts text"
        )
    return read


def _as_text(choice: FeatureChoice, column: pd.Series, text: FeatureSettings) -> FeatureChoice:
    is_text = choice.settings is not None and choice.settings.kind == "text"
    if is_text or (is_words(column) and bare_name(choice.column) in TEXT_NAMES and column.notna().any()):
        return FeatureChoice(choice.column, text, choice.reason if is_text else "what is written")
    said = "a search reads texts; others can be filtered by" if choice.settings is not None else choice.reason
    return replace(choice, settings=None, reason=said)


def _num_unknown(ids: pd.Series, key: pd.Series) -> int:
    """Return how many interactions are with items that are not in the items' table."""
    counts = ids.value_counts()
    known = ids_as_text(counts.index.to_series()).isin(set(ids_as_text(key))).to_numpy(dtype=bool)
    if not known.any():
        raise DataError(
            f"none of the items of the interactions ({ids.name} such as {counts.index[0]!r}) is in the items' table "
            f"({key.name} such as {key.iloc[0]!r}); give the items' table that goes with the interactions"
        )
    return int(counts[~known].sum())


def _choices(
    frame: pd.DataFrame, key: str, counts: np.ndarray, who: Literal["item", "user"]
) -> tuple[FeatureChoice, ...]:
    choices = [_choose(name, frame[name], counts, who) for name in frame.columns if name not in (key, f"{who}_id")]
    if f"{who}_id" in frame and key != f"{who}_id":
        choices.append(_left_out(f"{who}_id", f"here {key!r} is the id"))
    return tuple(choices)


def _choose(name: str, column: pd.Series, counts: np.ndarray, who: Literal["item", "user"]) -> FeatureChoice:
    """Decide about one column of the items' or users' table."""
    if column.notna().any() and (leak := _leak(name, _understood(column).column, counts, who)):
        return FeatureChoice(name, None, leak, is_warning=True)
    if who == "item" and is_stock(name) and column.notna().any():
        return FeatureChoice(
            name, None, "a LEAK by its name: today's stock, not that of the time of sale", is_warning=True
        )
    return as_feature(name, column, who)


def as_feature(name: str, column: pd.Series, who: Literal["item", "user"]) -> FeatureChoice:
    """Decide how one column is best read, whatever it may know of the future."""
    understood = _understood(column)
    choice = _as_feature(name, understood.column, who) if understood.problem is None else None
    if choice is None:
        return FeatureChoice(name, None, f"{understood.problem}", is_warning=True)
    return understood.told(choice)


@dataclass(frozen=True)
class _Understood:
    """A column whose text cells were found to be numbers, times or lists, in that type.

    Attributes:
        column: The cells.
        written: How they are written, for the reason; empty if the file gave them a type.
        kind: The kind that they must be declared as, so that they are read in this way; None: any.
        time_format: The setting of that name.
        decimal: The setting of that name.
        problem: Why the cells cannot be read, though they look like one of these; None where they can.
    """

    column: pd.Series
    written: str = ""
    kind: str | None = None
    time_format: str | None = None
    decimal: Literal[".", ","] | None = None
    problem: str | None = None

    def told(self, choice: FeatureChoice) -> FeatureChoice:
        """Return a choice about the typed column as one about the text that the file has."""
        if choice.settings is None or self.kind is None:
            return choice
        reason = f"{choice.reason}; {self.written}" if self.written else choice.reason
        if choice.settings.definition.read is None:
            return replace(choice, reason=choice.reason)
        setting = {"time_format": self.time_format} if choice.settings.kind == "time" else {}
        setting |= {"decimal": self.decimal} if choice.settings.kind == "number" else {}
        return replace(choice, settings=choice.settings.model_copy(update=setting), reason=reason)


def _understood(column: pd.Series) -> _Understood:
    """Return a column of text with its cells typed, if all of them are numbers, times or lists that are written out."""
    if not is_words(column) or not column.notna().any():
        return _Understood(column)
    cells = column_cells(column)
    try:
        if looks_like_lists(cells):
            read = ListFormat.decide(cells).read(cells)
            return _Understood(_series(read[0], column), read[1][0], "categories")
        if is_written_as_number(cells):
            numbers, reading, notes = numbers_in(cells)
            assert reading is not None, "text is decided about"
            decimal = reading.decimal if reading.decimal == "," else None
            typed = pa.array(numbers, pa.float64(), from_pandas=True)
            return _Understood(_series(typed, column), ", ".join(notes), "number", decimal=decimal)
        if looks_like_dates(cells):
            time_format = _written_time_format(column)
            micros, _, notes = times_in(cells)
            typed = pa.array(micros, mask=micros == MISSING).cast(pa.timestamp("us"))
            return _Understood(_series(typed, column), ", ".join(notes), "time", time_format)
    except CellError as error:
        return _Understood(column, problem=str(error))
    return _Understood(column)


def _series(cells: pa.Array, column: pd.Series) -> pd.Series:
    return pd.Series(cells, dtype=pd.ArrowDtype(cells.type), index=column.index, name=column.name)


def _as_feature(name: str, column: pd.Series, who: Literal["item", "user"]) -> FeatureChoice:
    filled = column.dropna()
    kind = arrow_type(column)
    if not len(filled):
        return _left_out(name, "it is empty")
    if pa.types.is_nested(kind):
        return _nested(name, filled, kind)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _left_out(name, "bytes, which are not read")
    distinct = int(filled.nunique())
    if distinct == 1 and len(filled) > 0.95 * len(column):
        return _left_out(name, f"the same in every row ({_short(filled.iloc[0])})")
    if pa.types.is_temporal(kind):
        return _feature(name, "time", f"dates from {str(filled.min())[:10]} to {str(filled.max())[:10]}")
    if pa.types.is_boolean(kind):
        return _feature(name, "category", "yes or no")
    if is_number(column):
        return _number(name, filled, distinct)
    return _words_of(name, filled, distinct, who)


def _nested(name: str, filled: pd.Series, kind: pa.DataType) -> FeatureChoice:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return _left_out(name, f"cells of type {kind}, which are not read")
    inner = kind.value_type
    lengths = {len(cell) for cell in filled.head(SAMPLE)}
    if pa.types.is_floating(inner):
        if len(lengths) == 1:
            return _feature(name, "vector", f"{lengths.pop()} numbers in every cell")
        return _left_out(name, "lists of numbers that differ in length")
    if pa.types.is_integer(inner) or pa.types.is_string(inner) or pa.types.is_large_string(inner):
        pieces = Counter(str(piece) for cell in filled.head(SAMPLE) for piece in cell)
        if pieces and np.mean([len(word_starts(piece)) for piece in pieces]) > 5:
            return _left_out(name, "lists of sentences; join each into one text to have them read")
        return _feature(name, "categories", f"lists of {many(len(pieces), 'value')}{_examples(pieces)}")
    return _left_out(name, f"lists of {inner}, which are not read")


def _number(name: str, filled: pd.Series, distinct: int) -> FeatureChoice:
    values = filled.to_numpy(np.float64)
    is_whole = bool(np.all(values == np.floor(values)))
    words = words_of_name(name)
    if _is_clock(words, values) or (distinct > 2 and _are_dates(values)):
        try:
            written = TimeFormat.decide(pa.array(values)).name
        except CellError as error:
            return FeatureChoice(name, None, str(error), is_warning=True)
        return _feature(name, "time", f"times by name and size: {said_of_format(written)}")
    if is_whole and words and words[-1] in LOOKS_LIKE_CODE:
        if distinct <= len(filled) / 2:
            return _feature(name, "category", f"{many(distinct, 'code')}; numbers that only name things")
        return _left_out(name, f"a code that is nearly different in every row ({distinct:,} of {len(filled):,})")
    if is_whole and distinct == len(filled) and distinct > FEW and bool(np.all(np.diff(np.sort(values)) == 1)):
        return _left_out(name, "it only counts the rows")
    if is_whole and distinct <= FEW:
        return _feature(name, "category", f"{distinct} whole numbers")
    return _feature(name, "number", f"from {values.min():g} to {values.max():g}")


def _are_dates(values: np.ndarray) -> bool:
    """Return whether all are digits of dates, as 20240331 or 20240331180000, which other numbers hardly are."""
    try:
        return TimeFormat.decide(pa.array(values, pa.float64())).name == "digits"
    except CellError:
        return False


def _is_clock(words: list[str], values: np.ndarray) -> bool:
    if not {"time", "timestamp", "date", "at", "ts", "unix"} & set(words):
        return False
    return float(np.median(values)) > 1e8 or is_written_date(words, values)


def _words_of(name: str, filled: pd.Series, distinct: int, who: Literal["item", "user"]) -> FeatureChoice:
    """Decide about a column of words."""
    sample = filled.head(SAMPLE).astype(str)
    words = words_of_name(name)
    share_distinct = distinct / len(filled)
    if sample.str.match(r"\s*(https?://|www\.|/)\S*$|\S+\.(jpe?g|png|gif|webp)$|data:image/", case=False).mean() > 0.5:
        return _left_out(name, "addresses of pages or pictures")
    is_person = who == "user" and (bool(PERSONAL & {*words, "".join(words)}) or words == ["name"])
    if is_person or sample.str.contains(r"^\S+@\S+\.\w+$").mean() > 0.5:
        return _left_out(name, "it says who someone is, not what they like")
    cells = sample.drop_duplicates()
    is_title = bare_name(name) in TITLE_NAMES
    is_markup = sample.str.contains(r"<[a-z]+[^>]*>", case=False).mean() > 0.5
    if not is_title and not is_markup and (found := _separator(cells, share_distinct)):
        separator, pieces = found
        said = f"{many(len(pieces), 'value')}{_examples(pieces)}"
        return _feature(name, "categories", said, separator)
    mean_words = float(np.mean([len(word_starts(cell)) for cell in cells]))
    if is_title or mean_words >= 4 or (share_distinct > 0.5 and mean_words >= 1.5):
        return _feature(
            name, "text", f"{mean_words:.{0 if mean_words >= 10 else 1}f} words in a cell, {distinct:,} different"
        )
    if distinct > FEW and share_distinct > (0.25 if words and words[-1] in LOOKS_LIKE_CODE else 0.5):
        return _left_out(name, f"a code that is nearly different in every row ({distinct:,} of {len(filled):,})")
    return _feature(name, "category", f"{many(distinct, 'value')}{_examples(Counter(sample))}")


def _separator(cells: pd.Series, share_distinct: float) -> tuple[str, Counter[str]] | None:
    """Return the separator of the values of one cell, if cells are lists, and how often each value occurs.

    Values of a list come again in other cells; the parts of a sentence do not.
    """
    for separator in SEPARATORS:
        several = float(cells.str.contains(separator, regex=False).mean())
        if several < (0.05 if separator == "|" else 0.1):
            continue
        parts = [part.strip() for cell in cells for part in cell.split(separator)]
        pieces = Counter(part for part in parts if part)
        repeats = len(parts) / max(len(pieces), 1)
        words = float(np.mean([len(word_starts(part)) for part in pieces])) if pieces else 0.0
        is_prose = separator in ",;/，；、" and (words > 3 or (share_distinct > 0.9 and repeats < 3))
        if repeats >= {"|": 1.05, "/": 1.5}.get(separator, 1.15) and words <= 5 and not is_prose:
            return separator, pieces
    return None


def _leak(name: str, column: pd.Series, counts: np.ndarray, who: Literal["item", "user"]) -> str | None:
    """Return why a column seems to be a leak; None if it does not."""
    if _is_behaviour(set(words_of_name(name)), column, who):
        what = "what people did with the item" if who == "item" else "what the user did"
        return f"a LEAK by its name: sums up {what}, the future included"
    if not is_number(column):
        return None
    known = column.notna().to_numpy(dtype=bool)
    values = column[known].to_numpy(np.float64)
    if known.sum() < 50 or len(np.unique(values)) < FEW or len(np.unique(counts[known])) < 3:
        return None
    agreement = float(pd.Series(values).rank().corr(pd.Series(counts[known]).rank()))  # of ranks: Spearman's
    if abs(agreement) <= 0.8:
        return None
    return f"looks like a LEAK: it goes with the number of interactions (rank correlation {agreement:.2f})"


def _is_behaviour(words: set[str], column: pd.Series, who: Literal["item", "user"]) -> bool:
    """Return whether a column's name suggests an aggregate of interactions."""
    if words & NOT_BEHAVIOUR:
        return False
    if words & BEHAVIOUR_IN_WORDS or (who == "user" and "last" in words and is_time(column)):
        return True
    return is_number(column) and bool(words & BEHAVIOUR or (words & BEHAVIOUR_IF_COUNTED and words & COUNTED))


def _title(items: pd.DataFrame, choices: tuple[FeatureChoice, ...]) -> str | None:
    """Return the column that names an item: by its name, else the shortest text."""
    named = [name for wanted in TITLE_NAMES for name in items.columns if bare_name(name) == wanted]
    for name in named:
        if is_words(items[name]) and items[name].notna().mean() > 0.5:
            return name
    texts = [choice.column for choice in choices if choice.settings is not None and choice.settings.kind == "text"]
    return min(texts, key=lambda name: float(items[name].dropna().astype(str).str.len().mean()), default=None)


def render_run_toml(inference: Inference, files: Files, folder: Path) -> str:
    """Return the `[features]` part of run.toml, every choice explained in a comment.

    Args:
        inference: What `infer_features` found.
        files: Where the tables are.
        folder: Where run.toml will be; paths below it are written relative to it, others in full.
    """
    parts = [
        "# Written by `towers init` after a look at the tables. Every line may be changed.\n",
        _section("features", _table_lines(inference, files, folder)),
        _section("features.columns", _column_lines(inference)),
        _section("features.item", [*_own(_ITEM_ID_LINE, inference), *map(_choice_line, _sorted(inference.item))]),
        _section("features.user", [*_own(_USER_ID_LINE, inference), *map(_choice_line, _sorted(inference.user))]),
    ]
    if inference.column("timestamp") is not None:
        parts.append(_section("features.context", [_TIME_LINE]))
    return "\n".join(parts)


@dataclass(frozen=True)
class _Line:
    """One line of TOML with its comment; a line that is not on is a comment as a whole."""

    code: str
    comment: str
    is_on: bool = True

    def render(self, width: int) -> str:
        code = self.code if self.is_on else f"# {self.code}"
        return f"{code:<{width}}  # {self.comment}" if self.comment else code

    @property
    def width(self) -> int:
        return len(self.code) + (0 if self.is_on else 2)


_ITEM_ID_LINE = _Line('item_id = { kind = "id" }', "an embedding of each item; new items do without")


_USER_ID_LINE = _Line(
    'user_id = { kind = "id" }', "an embedding of each user, in addition to the history", USER_ID_IS_ON
)
_TIME_LINE = _Line('time = { kind = "time" }', "hour, weekday and season of the request", TIME_IS_ON)


def _own(line: _Line, inference: Inference) -> list[_Line]:
    """Return the line about ids, which a search does without."""
    return [] if inference.is_search else [line]


def _section(name: str, lines: list[_Line]) -> str:
    """Return a table of TOML, the comments in one column unless a line is very long."""
    width = max((line.width for line in lines if line.width <= 56), default=0)
    return "\n".join([f"[{name}]", *(line.render(width) for line in lines)]) + "\n"


def _table_lines(inference: Inference, files: Files, folder: Path) -> list[_Line]:
    if inference.is_search:
        return _search_table_lines(inference, files, folder)
    users, items = many(inference.num_users, "user"), many(inference.num_items, "item")
    events = f"{many(inference.num_events, 'interaction')} of {users} with {items}"
    assert files.interactions is not None, "only a search does without"
    lines = [_path_line("interactions", files.interactions, folder, events)]
    if files.items is not None:
        lines.append(_path_line("items", files.items, folder, "the catalogue; new items in it are recommended, too"))
        lines.append(_unknown_items_line(inference))
    if files.users is not None:
        lines.append(_path_line("users", files.users, folder, "attributes of users; not every user needs a row"))
    if inference.missing_ids:
        lines.append(_Line('missing_ids = "drop"', "; ".join(inference.missing_ids)))
    if inference.title is not None:
        lines.append(_Line(f"title = {_quoted(inference.title)}", "column with the name of an item in responses"))
    if inference.ratings is not None:
        least, middle, most = inference.ratings
        said = f"if on, lower ratings are left out (ratings go from {least:g} to {most:g})"
        lines.append(_Line(f"min_rating = {middle}", said, is_on=False))
    repeats = f"{inference.num_repeats / max(inference.num_events, 1):.0%} of interactions repeat an earlier one"
    lines.append(_Line("recommend_seen = false", f"true if users return to the same items ({repeats})"))
    lines.append(_Line("max_history = 200", "how many of a user's newest interactions are read"))
    return lines


def _search_table_lines(inference: Inference, files: Files, folder: Path) -> list[_Line]:
    lines = []
    if files.interactions is not None:
        queries, documents = _queries(inference.num_users), many(inference.num_items, "document")
        said = f"pairs: {inference.num_events:,}, of {queries} with {documents}"
        lines.append(_path_line("interactions", files.interactions, folder, said))
    if files.items is not None:
        lines.append(_path_line("items", files.items, folder, "documents; those that are new are found as well"))
    if files.users is not None:
        lines.append(_unknown_items_line(inference))
        lines.append(_path_line("users", files.users, folder, "queries"))
    if inference.title is not None:
        lines.append(_Line(f"title = {_quoted(inference.title)}", "column with the name of a document in responses"))
    lines.append(_Line("recommend_seen = true", "a query is answered with its documents, however often it is asked"))
    return lines


def _queries(count: int) -> str:
    return f"{count:,} quer{'y' if count == 1 else 'ies'}"


def _unknown_items_line(inference: Inference) -> _Line:
    if inference.num_unknown:
        said = f"{many(inference.num_unknown, 'interaction')} of items that are not in the catalogue: left out"
        return _Line('unknown_items = "drop"', said)
    return _Line('unknown_items = "error"', 'every interaction\'s item is in the catalogue; or "drop"')


def _path_line(key: str, path: Path, folder: Path, comment: str) -> _Line:
    path, folder = path.resolve(), folder.resolve()
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    return _Line(f"{key} = {_quoted(shown.as_posix())}", comment)


def _role_line(role: Role) -> _Line:
    assert role.column is not None
    reason = f"{role.reason} (a guess: check it)" if role.is_guess else role.reason
    return _Line(f"{role.setting} = {_quoted(role.column)}", reason)


def _column_lines(inference: Inference) -> list[_Line]:
    lines = [_role_line(role) for role in inference.roles]
    if inference.time_format is not None:
        lines.append(_Line(f"time_format = {_quoted(inference.time_format)}", "how the times are written"))
    return lines + _unread_lines(inference)


def _unread_lines(inference: Inference) -> list[_Line]:
    lines = [
        _Line(f"timestamp = {_quoted(one.column)}", f"not taken: {one.reason}", is_on=False)
        for one in inference.not_times
    ]
    if not inference.is_ordered and not inference.is_search:
        lines.append(_Line('timestamp = "..."', "no time and no position found: the order is not known", is_on=False))
    if inference.returns is not None:
        name, count = inference.returns
        said = f"with min_rating = 0 above leaves out {many(count, 'interaction')} with a negative one (returns?)"
        lines.append(_Line(f"rating = {_quoted(name)}", said, is_on=False))
    if inference.unread:
        lines.append(_Line(f"not read: {', '.join(inference.unread)}", "", is_on=False))
    return lines


def _choice_line(choice: FeatureChoice) -> _Line:
    if choice.settings is None:
        return _Line(f"{_key(choice.column)}", f"left out: {choice.reason}", is_on=False)
    settings = f"kind = {_quoted(choice.settings.kind)}"
    if choice.settings.frozen_dim is not None:
        settings += f", frozen_dim = {choice.settings.frozen_dim}"
    if choice.settings.trainable_residual:
        settings += ", trainable_residual = true"
    if choice.settings.decimal is not None:
        settings += f", decimal = {_quoted(choice.settings.decimal)}"
    if choice.settings.time_format is not None:
        settings += f", time_format = {_quoted(choice.settings.time_format)}"
    if choice.settings.separator is not None:
        settings += f", separator = {_quoted(choice.settings.separator)}"
    return _Line(f"{_key(choice.column)} = {{ {settings} }}", choice.reason)


def render_table(inference: Inference) -> str:
    """Return what becomes of every column as a table for the terminal: column, taken as, why, examples."""
    parts = []
    for table in dict.fromkeys(line.table for line in inference.lines):
        rows = [
            (line.column, line.taken_as, line.reason, line.examples) for line in inference.lines if line.table == table
        ]
        rows = [(table, "taken as", "why", "examples"), *rows]
        widths = [min(max(len(row[place]) for row in rows), most) for place, most in enumerate(_WIDEST)]
        cells = (
            [f"{cell:<{width}}" for cell, width in zip(map(_one_line, row), widths, strict=False)]
            + [_one_line(row[-1])]
            for row in rows
        )
        parts.append("\n".join("  ".join(row).rstrip() for row in cells))
    return "\n\n".join(parts)


_WIDEST = (32, 12, 72)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sorted(choices: Iterable[FeatureChoice]) -> list[FeatureChoice]:
    """Return the features, then the columns that are left out."""
    return sorted(choices, key=lambda choice: choice.settings is None)


def _feature(name: str, kind: str, reason: str, separator: str | None = None) -> FeatureChoice:
    return FeatureChoice(name, FeatureSettings.model_validate({"kind": kind, "separator": separator}), reason)


def _left_out(name: str, reason: str) -> FeatureChoice:
    return FeatureChoice(name, None, reason)


def _examples(pieces: Counter[str]) -> str:
    common = [_short(piece) for piece, _ in pieces.most_common(3)]
    return f": {', '.join(common)}{', ...' if len(pieces) > 3 else ''}"


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 24 else f"{text[:21]}..."


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _counts(ids: pd.Series, key: pd.Series) -> np.ndarray:
    """Return how often each id of `key` occurs in `ids`."""
    counts = ids.value_counts()
    by_text = pd.Series(counts.to_numpy(np.float64), index=ids_as_text(counts.index.to_series()).to_numpy())
    return ids_as_text(key).map(by_text[~by_text.index.duplicated()]).fillna(0).to_numpy(np.float64)
