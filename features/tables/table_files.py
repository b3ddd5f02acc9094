"""A table's files to one frame: CSV or Parquet, with pyarrow types; each kind of damage has a one-line error.

CSV is read as text first and typed afterwards, so that `007` stays `007`: a column becomes numbers only if that loses
nothing, and a column of codes only if writing the numbers out again gives back what was read. What the columns mean is
the matter of `features.tables.tables`.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from features.errors import DataError
from features.locations.object_path import TablePath
from features.locations.object_stores import is_of_store
from features.locations.table_path import arrow_source
from features.tables.documents import read_documents
from features.tables.table_parts import Part, is_documents, removed, staying_there, table_parts
from features.values.cells import MAX_CELL_CHARACTERS
from features.values.distinct import many

EMPTY_WORDS = ["NA", "N/A", "NaN", "nan", "NULL", "null", "None", "<NA>", "\\N"]
EMPTY_CELLS = ["", *EMPTY_WORDS]
TEXT = pa.large_string()
BLOCK_ROWS = 1 << 20
"""Rows of a block of Parquet files."""
BLOCK_BYTES = 1 << 25
"""Bytes of a block of CSV files, about; no record is divided."""
_MOST_BYTES = 2**31 - 1
_HEAD_BYTES = 1 << 20
# What is read of a column of a Parquet file at a time.
_BUFFER_BYTES = 4 << 20
_DIAGNOSED_BYTES = 1 << 30
_CONNECTIONS = 16
NEWLINE = b"\n"
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
# A first line that tells Excel the separator; its end stays, so that lines keep their numbers.
_EXCEL_SEPARATOR = re.compile(rb'\A"?sep=.?"?(\r?\n)', re.IGNORECASE)
# 12e4 is no number: it is as likely to be a code. 1.2e4 and 1e+20 are what programs write.
_NUMBER = r"^-?(0|[1-9][0-9]*)?(\.[0-9]*([eE][+-]?[0-9]+)?|[eE][+-][0-9]+)?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TRUTH = r"^([Tt]rue|TRUE|[Ff]alse|FALSE)$"
# 1.234 is a number in New York and in a file with commas; in one with semicolons it may be 1234.
_THOUSANDS = r"^-?([1-9][0-9]{0,2}(\.[0-9]{3})+|[0-9]{1,3})$"
# In a header, what no one calls a column: a fraction, a date, five digits or more.
_DATA = re.compile(r"-?[0-9]+[.,][0-9]+|[0-9]{5,}|[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}\b.*")


@dataclass(frozen=True)
class RawTable:
    """A table as its file has it.

    Attributes:
        frame: The rows, in pyarrow types.
        notes: One line for each column in which words such as `NA` became empty cells.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def read_frame(path: TablePath) -> pd.DataFrame:
    """Return the rows that `read_table` returns."""
    return read_table(path).frame


def read_table(
    path: TablePath,
    is_code: Callable[[str], bool] = lambda name: False,
    is_text: Callable[[str], bool] = lambda name: False,
) -> RawTable:
    """Return the rows of a table, or the passages of a folder's documents, in pyarrow types.

    Text is `large_string`, whole numbers keep their width (int64 from CSV), ISO dates become timestamps, true and false
    booleans. Empty cells are missing values, as are NaN in Parquet and, in CSV and without quotes, `NA`, `NaN`, `null`
    and `None`; with quotes these are text, except in a column of nothing but numbers, dates or booleans otherwise. The
    separator of a CSV file is found in its first line.

    Args:
        path: A CSV or Parquet file, or a folder or a pattern of such files (`features.tables.table_parts`), which are
            one table: the type of a column is decided over all of them. Or a folder of documents.
        is_code: Says of a column's name whether it holds ids or codes, whose spelling must be kept: there 1.10 and 1.1
            are two values, and fractions are text.
        is_text: Says of a column's name whether it stays text in a CSV file, whatever its cells are.

    Raises:
        DataError: A file is missing, empty, of an unknown kind, not UTF-8, cut off or ragged, it has no header, or a
            cell is too long; files of one table have other columns or types; the folder has nothing to read.
    """
    if is_documents(path):
        return RawTable(read_documents(path))
    with staying_there():
        return _read_table(path, is_code, is_text)


def _read_table(path: TablePath, is_code: Callable[[str], bool], is_text: Callable[[str], bool]) -> RawTable:
    parts = table_parts(path)
    for part in parts:
        if len(parts) == 1 and not part.path.stat().st_size:
            raise DataError(f"{part.path}: the file is empty (0 bytes); write the table again")
    table, notes = _read_parquet(path, parts) if parts[0].is_parquet else _read_csv(path, parts, is_code, is_text)
    if not table.num_rows:
        raise DataError(f"{path}: no rows below the column names; expected at least one")
    _refuse_long_cells(path, table)
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
    return RawTable(frame, tuple(notes))


def read_blocks(
    path: TablePath,
    columns: Collection[str],
    notes: list[str],
    is_code: Callable[[str], bool] = lambda name: False,
    is_text: Callable[[str], bool] = lambda name: False,
) -> Iterator[pd.DataFrame]:
    """Yield a table block by block, for one that may be larger than memory.

    A block is what `read_table` returns of its rows, but that each block decides the types of CSV columns by itself;
    blocks that are joined have to be compared. The index is the row in the table, so that errors name the same places.

    Args:
        path: A CSV or Parquet file, or a folder or a pattern of such files.
        columns: The columns that are wanted; those that the table has not are left out.
        notes: Gets a line for each column and block in which words became empty cells.
        is_code: See `read_table`.
        is_text: See `read_table`.

    Raises:
        DataError: As of `read_table`.
    """
    with staying_there():
        yield from _blocks(path, columns, notes, is_code, is_text)


def _blocks(
    path: TablePath,
    columns: Collection[str],
    notes: list[str],
    is_code: Callable[[str], bool],
    is_text: Callable[[str], bool],
) -> Iterator[pd.DataFrame]:
    parts = table_parts(path)
    start = 0
    blocks = _parquet_blocks if parts[0].is_parquet else _csv_blocks
    for table in blocks(path, parts, columns, notes, is_code, is_text):
        _refuse_long_cells(path, table, start)
        frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
        yield frame.set_axis(pd.RangeIndex(start, start + len(frame)), axis=0)
        start += len(frame)
    if not start:
        raise DataError(f"{path}: no rows below the column names; expected at least one")


def approximate_rows(path: TablePath) -> int:
    """Return how many rows a table has: exactly of Parquet, of CSV by the length of its first lines."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return int(sum(pool.map(_approximate_rows, table_parts(path))))


def _approximate_rows(part: Part) -> float:
    if part.is_parquet:
        return _num_rows(part)
    with _opened(part.path) as content, _unpacked(part.path):
        head = content.read(_HEAD_BYTES)
        # Text is some five times its size when packed.
        expansion = 5 if isinstance(content, gzip.GzipFile) else 1
    return head.count(b"\n") * part.path.stat().st_size * expansion / max(len(head), 1)


def place(path: TablePath, row: int) -> str:
    """Return where a person finds the row at 0-based position `row`: `line 7` of a CSV file, `row 6` of Parquet."""
    return places(path, [row])[0]


def places(path: TablePath, rows: Collection[int]) -> list[str]:
    """Return the place of each of several rows, reading each file once; of a table of several files, with its name."""
    if is_documents(path):
        return [f"passage {row + 1:,}" for row in rows]
    parts = table_parts(path)
    if len(parts) == 1:
        return _places_in(parts[0], rows)
    found: dict[int, str] = {}
    start = 0
    for part in parts:
        end = start + _num_rows(part)
        inside = [row for row in rows if start <= row < end]
        if inside:
            said = _places_in(part, [row - start for row in inside])
            found |= {row: f"{part.path.name}, {where}" for row, where in zip(inside, said, strict=True)}
        start = end
    return [found[row] for row in rows]


def _places_in(part: Part, rows: Collection[int]) -> list[str]:
    if part.is_parquet:
        return [f"row {row + 1:,}" for row in rows]
    last, wanted = max(rows, default=-1), set(rows)
    with _text_lines(part.path) as (text, separator):
        records = islice(_records(text, separator), last + 2)
        lines = {index - 1: line for index, (line, _) in enumerate(records) if index - 1 in wanted}
    assert len(lines) == len(wanted), f"a row beyond the end of {part.path}"
    return [f"line {lines[row]:,}" for row in rows]


def _num_rows(part: Part) -> int:
    if part.is_parquet:
        with _parquet_file(part.path) as file:
            return int(file.metadata.num_rows)
    with _text_lines(part.path) as (text, separator):
        return max(sum(1 for _ in _records(text, separator)) - 1, 0)


@contextmanager
def _text_lines(path: TablePath) -> Iterator[tuple[Iterator[str], str]]:
    """Yield the lines of a CSV file, whatever its size, and its separator; bytes that are not UTF-8 are replaced."""
    with _opened(path) as file, _unpacked(path), io.TextIOWrapper(file, "utf-8-sig", "replace", newline="") as text:
        begun = list(islice(text, 1))
        if begun and _EXCEL_SEPARATOR.match(begun[0].encode()):
            begun = ["\n"]
        while begun and not begun[-1].strip("\r\n") and (line := text.readline()):
            begun.append(line)
        yield chain(begun, text), _separator(begun[-1].rstrip("\r\n") if begun else "")


def _refuse_long_cells(path: TablePath, table: pa.Table, start: int = 0) -> None:
    for name in table.column_names:
        column = table[name]
        if not pa.types.is_large_string(column.type) or (pc.max(pc.binary_length(column)).as_py() or 0) <= (
            MAX_CELL_CHARACTERS
        ):
            continue
        lengths = pc.fill_null(pc.utf8_length(column), 0).to_numpy()
        too_long = np.flatnonzero(lengths > MAX_CELL_CHARACTERS)
        if len(too_long):
            raise _too_long(path, name, place(path, start + int(too_long[0])), int(lengths[too_long[0]]))


def _too_long(path: TablePath, name: str, where: str, length: int) -> DataError:
    return DataError(
        f"{path}: column {name!r}, {where}: expected at most {MAX_CELL_CHARACTERS:,} characters in a cell, found "
        f"{length:,}; shorten it, or leave the column out of the file"
    )


def _read_parquet(path: TablePath, parts: Sequence[Part]) -> tuple[pa.Table, list[str]]:
    tables = [_parquet(part) for part in parts]
    for part, table in zip(parts, tables, strict=True):
        _refuse_other_names(parts[0].path, tables[0].column_names, part.path, table.column_names)
        _refuse_other_types(parts[0].path, tables[0], part.path, table)
    joined = pa.concat_tables(tables, promote_options="permissive")
    return pa.table({name: _plain(joined[name]) for name in joined.column_names}), []


def _parquet_blocks(path: TablePath, parts: Sequence[Part], columns: Collection[str], *_: object) -> Iterator[pa.Table]:
    """Yield the wanted columns of Parquet files, each block in plain types."""
    first: pa.Table | None = None
    for part in parts:
        with _parquet_file(part.path, in_blocks=True) as file:
            found = _columns_of(part, file.schema_arrow.empty_table())
            first = found if first is None else first
            _refuse_other_names(parts[0].path, first.column_names, part.path, found.column_names)
            _refuse_other_types(parts[0].path, first, part.path, found)
            wanted = [name for name in file.schema_arrow.names if name in columns]
            batches = file.iter_batches(BLOCK_ROWS, columns=wanted)
            while (batch := _next_of(part.path, batches)) is not None:
                table = _columns_of(part, pa.Table.from_batches([batch]))
                yield pa.table({name: _plain(table[name]) for name in found.column_names if name in columns})


def _next_of(path: TablePath, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    with _readable(path):
        return next(batches, None)


def _parquet(part: Part) -> pa.Table:
    """Return the columns of one file; those without any value in it keep the type null, so that any other fits."""
    with _parquet_file(part.path) as file, _readable(part.path):
        table = file.read()
    return _columns_of(part, table)


@contextmanager
def _parquet_file(path: TablePath, *, in_blocks: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a file; with `in_blocks` what was read does not stay in memory, as it does by pyarrow's default."""
    how: dict[str, Any] = {"pre_buffer": False, "buffer_size": _BUFFER_BYTES} if in_blocks else {}
    with arrow_source(path) as source:
        with _readable(path):
            file = pq.ParquetFile(source, **how)
        with file:
            _check_names(path, file.schema_arrow.names)
            yield file


@contextmanager
def _readable(path: TablePath) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if is_of_store(error):
            raise
        if isinstance(error, FileNotFoundError):
            raise removed(path) from None
        reason = _one_line(error)
        raise DataError(f"{path}: not a Parquet file, or cut off ({reason}); write it again, or name it .csv") from None


def _columns_of(part: Part, table: pa.Table) -> pa.Table:
    """Return the columns of a file, or of a block of it, and those that the names of its folders say."""
    kept = [name for name in table.column_names if not name.startswith("__index_level_")]
    columns = {name: table[name] if pa.types.is_null(table[name].type) else _plain(table[name]) for name in kept}
    for name, value in part.values.items():
        columns.setdefault(name, _typed(pa.chunked_array([pa.repeat(pa.scalar(value, TEXT), len(table))]), ","))
    return pa.table(columns)


def _refuse_other_names(first: TablePath, expected: Sequence[str], path: TablePath, found: Sequence[str]) -> None:
    """Refuse a file of a table without the columns of the first, or with more than those."""
    if set(expected) == set(found):
        return
    lacking = [name for name in expected if name not in found]
    said = f"lacks the column {lacking[0]!r}" if lacking else f"has a column {next(iter(set(found) - set(expected)))!r}"
    other = f"of {first.name}" if lacking else f"which {first.name} has not"
    raise DataError(f"{path}: {said} {other}; files of one table need the same columns: write them alike, or name one")


def _refuse_other_types(first: TablePath, expected: pa.Table, path: TablePath, found: pa.Table) -> None:
    for name in expected.column_names:
        kinds = pa.schema([(name, expected[name].type)]), pa.schema([(name, found[name].type)])
        try:
            pa.unify_schemas(kinds, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise DataError(
                f"{path}: column {name!r} is of type {found[name].type}, in {first.name} it is {expected[name].type}; "
                "write all files of the table with one type"
            ) from None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in one of few types: text as `large_string`, decimals as numbers. Bytes stay if not UTF-8.

    NaN is how some programs (polars, Spark, DuckDB) write a missing number, and becomes null.
    """
    kind = column.type
    if pa.types.is_floating(kind) and not pa.types.is_float16(kind):
        is_nan = pc.is_nan(column)
        return pc.if_else(is_nan, pa.scalar(None, kind), column) if pc.any(is_nan).as_py() else column
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return _plain(column.cast(pa.int64() if _casts(column, pa.int64()) else pa.float64()))
    is_text = pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)
    if is_text or (_is_bytes(kind) and _casts(column, TEXT)):
        return column.cast(TEXT)
    return column


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@dataclass(frozen=True)
class _TextFile:
    """A CSV file, or a block of one, whose cells are text."""

    part: Part
    separator: str
    cells: dict[str, pa.ChunkedArray]
    body: bytes

    @property
    def num_rows(self) -> int:
        """The number of records below the header."""
        return len(next(iter(self.cells.values())))

    def columns(self) -> dict[str, pa.ChunkedArray]:
        """Return the columns, those that the names of its folders say included."""
        said = {
            name: pa.chunked_array([pa.repeat(pa.scalar(value, TEXT), self.num_rows)])
            for name, value in self.part.values.items()
        }
        return said | self.cells


def _read_csv(
    path: TablePath, parts: Sequence[Part], is_code: Callable[[str], bool], is_text: Callable[[str], bool]
) -> tuple[pa.Table, list[str]]:
    files = [_csv(part, is_one=len(parts) == 1) for part in parts if part.path.stat().st_size]
    if not files:
        raise DataError(f"{path}: every file is empty (0 bytes); write the table again")
    for file in files:
        _refuse_other_names(files[0].part.path, list(files[0].cells), file.part.path, list(file.cells))
    whole = pa.concat_tables([pa.table(file.columns()) for file in files])
    separator = ";" if any(file.separator == ";" for file in files) else files[0].separator
    typed = {
        name: whole[name] if is_text(name) else _typed(whole[name], separator, is_code=is_code(name))
        for name in whole.column_names
    }
    return pa.table(typed), [*_notes_on_no_bytes(path, parts), *_notes_on_empty(path, files)]


def _csv_blocks(
    path: TablePath,
    parts: Sequence[Part],
    columns: Collection[str],
    notes: list[str],
    is_code: Callable[[str], bool],
    is_text: Callable[[str], bool],
) -> Iterator[pa.Table]:
    """Yield the wanted columns of CSV files, each block in the types that its cells have."""
    first: list[str] | None = None
    notes.extend(_notes_on_no_bytes(path, parts))
    for part in parts:
        if not part.path.stat().st_size and len(parts) > 1:
            continue
        names: list[str] = []
        separator, start = ",", 0
        for data in _pieces(part.path):
            body = data
            if not names:
                names, separator, body = _header(part.path, _clean(part.path, data))
                first = first or names
                _refuse_other_names(parts[0].path, first, part.path, names)
            if not body.strip():
                continue
            block = _text_block(part, names, separator, body, start)
            notes.extend(_notes_on_empty(path, [block], start))
            cells = block.columns()
            start += block.num_rows
            yield pa.table(
                {
                    name: cells[name] if is_text(name) else _typed(cells[name], separator, is_code=is_code(name))
                    for name in cells
                    if name in columns
                }
            )
        if not names:
            raise DataError(f"{part.path}: the file holds only blank lines; write the table again")


def _text_block(part: Part, names: list[str], separator: str, body: bytes, start: int) -> _TextFile:
    """Return the cells of a block of a CSV file as text; `start` is its first row."""
    is_closed = body.count(b'"') % 2 == 0
    try:
        if is_closed:
            return _TextFile(part, separator, _filled_cells(body, names, separator), body)
        error: Exception = ValueError("a quote is never closed")
    except (pa.ArrowInvalid, pa.ArrowKeyError) as found:
        error = found
    if part.path.stat().st_size < _DIAGNOSED_BYTES:
        _diagnose(part.path, _content(part.path), separator, names)
    raise DataError(
        f"{part.path}: not a CSV file that can be read, in the {many(body.count(NEWLINE), 'line')} from row "
        f"{start + 1:,} on ({_one_line(error)}); write it again"
    )


def _pieces(path: TablePath) -> Iterator[bytes]:
    """Yield the content of a CSV file in pieces that end where a record does."""
    rest = b""
    with _opened(path) as file, _unpacked(path):
        while data := file.read(BLOCK_BYTES):
            rest += data if NEWLINE in data else data.replace(b"\r", NEWLINE)
            end = _end_of_records(rest)
            if not end and len(rest) >= _MOST_BYTES - BLOCK_BYTES:
                break
            if end:
                yield rest[:end]
                rest = rest[end:]
    if rest:
        yield rest


def _end_of_records(data: bytes) -> int:
    """Return where the last record that is whole ends: after a line break with all quotes before it closed."""
    end = data.rfind(NEWLINE)
    is_open = data.count(b'"', 0, max(end, 0)) % 2
    while end >= 0 and is_open:
        before = data.rfind(NEWLINE, 0, end)
        is_open = (is_open + data.count(b'"', max(before, 0), end)) % 2
        end = before
    return end + 1


def _csv(part: Part, *, is_one: bool) -> _TextFile:
    """Return the cells of one file as text; among several, one may have no rows."""
    path = part.path
    data = _content(path)
    if not data.strip():
        raise DataError(f"{path}: the file holds only blank lines; write the table again")
    names, separator, body = _header(path, data)
    if not body.strip():
        if is_one:
            raise DataError(f"{path}: no rows below the column names {', '.join(names)}; expected at least one")
        return _TextFile(part, separator, {name: pa.chunked_array([], TEXT) for name in names}, b"")
    if body.count(b'"') % 2:
        _diagnose(path, data, separator, names)
    try:
        return _TextFile(part, separator, _filled_cells(body, names, separator), body)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        _diagnose(path, data, separator, names)
        raise DataError(f"{path}: not a CSV file that can be read ({_one_line(error)}); write it again") from None


def _filled_cells(body: bytes, names: list[str], separator: str) -> dict[str, pa.ChunkedArray]:
    cells = _cells(body, names, separator, EMPTY_CELLS)
    if b'""' in body:
        cells = {name: pc.if_else(pc.equal(column, ""), None, column) for name, column in cells.items()}
    return cells


def _cells(
    body: bytes, names: list[str], separator: str, empty: list[str], columns: list[str] | None = None
) -> dict[str, pa.ChunkedArray]:
    """Return the columns as text; what stands in quotes is text, too, even if it is a word for an empty cell."""
    table = pacsv.read_csv(
        pa.BufferReader(body),
        read_options=pacsv.ReadOptions(column_names=names, block_size=1 << 24),
        parse_options=pacsv.ParseOptions(delimiter=separator, newlines_in_values=b'"' in body),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, TEXT),
            null_values=empty,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            include_columns=columns,
        ),
    )
    return {name: table[name] for name in table.column_names}


def _notes_on_no_bytes(path: TablePath, parts: Sequence[Part]) -> list[str]:
    """Return a note on the files of a table that have nothing in them, not even names of columns."""
    empty = [part.path.name for part in parts if not part.path.stat().st_size]
    if not empty:
        return []
    return [f"{path.name}: {many(len(empty), 'file')} of 0 bytes left out, such as {empty[0]}"]


def _notes_on_empty(path: TablePath, files: Sequence[_TextFile], start: int = 0) -> list[str]:
    """Return a note for each column in which words became empty cells, with the place of the first.

    Args:
        path: The table.
        files: Its files, or a block of one of them.
        start: The row of its file that the block begins with.
    """
    counts: Counter[str] = Counter()
    firsts: dict[str, str] = {}
    for file in files:
        found = _words_for_empty(file)
        rows = [row for _, row, _ in found.values()]
        # To find lines, the file is read from its beginning.
        where = [f"row {start + row + 1:,}" for row in rows] if start else _places_in(file.part, rows)
        for (name, (count, _, word)), line in zip(found.items(), where, strict=True):
            counts[name] += count
            firsts.setdefault(name, f"{word} ({line if len(files) == 1 else f'{file.part.path.name}, {line}'})")
    return [
        f"{path.name}: column {name!r}: {many(count, 'cell')} such as {firsts[name]} read as empty; put it in quotes "
        "where it is a value"
        for name, count in counts.items()
    ]


def _words_for_empty(file: _TextFile) -> dict[str, tuple[int, int, str]]:
    """Return how many words became empty cells, the row of the first and the word itself, by column."""
    suspects = [name for name, column in file.cells.items() if column.null_count]
    # One byte is looked for far faster than a word, and files of numbers have none of these.
    if not suspects or not any(byte.encode() in file.body for byte in {word[0] for word in EMPTY_WORDS}):
        return {}
    found: dict[str, tuple[int, int, str]] = {}
    for name, column in _cells(file.body, list(file.cells), file.separator, [""], suspects).items():
        is_word = pc.and_(pc.is_null(file.cells[name]), pc.is_in(column, value_set=pa.array(EMPTY_WORDS, TEXT)))
        if count := pc.sum(is_word).as_py():
            row = pc.index(is_word, True).as_py()
            found[name] = count, row, column[row].as_py()
    return found


def _content(path: TablePath) -> bytes:
    with _opened(path) as file, _unpacked(path):
        return _clean(path, file.read())


@contextmanager
def _opened(path: TablePath) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open a CSV file, which may be packed, whatever its name says."""
    with path.open("rb") as file:
        yield gzip.GzipFile(fileobj=file) if file.peek(len(_GZIP))[: len(_GZIP)] == _GZIP else file


@contextmanager
def _unpacked(path: TablePath) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a damaged gzip file ({_one_line(error)}); write it again") from None


def _clean(path: TablePath, data: bytes) -> bytes:
    """Return the beginning of a text file without marks that are none of its cells.

    Raises:
        DataError: It is no text in UTF-8.
    """
    if data[:4] == b"PAR1":
        raise DataError(f"{path}: a Parquet file by its content; name it .parquet")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: the text is UTF-16, expected UTF-8; save it as CSV UTF-8")
    if b"\x00" in data[:4096]:
        raise DataError(f"{path}: binary data, expected text; save the table as CSV UTF-8 or Parquet")
    data = _EXCEL_SEPARATOR.sub(b"\\1", data.removeprefix(_BOM))
    return data if b"\n" in data else data.replace(b"\r", b"\n")


def _header(path: TablePath, data: bytes) -> tuple[list[str], str, bytes]:
    """Return the column names, the separator and everything after the first line that is not blank."""
    body = data.lstrip(b"\r\n")
    line, _, body = body.partition(b"\n")
    try:
        text = line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        raise _wrong_encoding(path, data) from None
    separator = _separator(text)
    names = [name.strip() for name in next(_reader([text], separator))]
    _refuse_data(path, names, body, separator)
    names = [name or f"column_{place}" for place, name in enumerate(names, start=1)]
    _check_names(path, names)
    return names, separator, body


def _refuse_data(path: TablePath, names: list[str], body: bytes, separator: str) -> None:
    """Refuse a first line that is like the next one: a table without a line of column names."""
    line = body.lstrip(b"\r\n").partition(b"\n")[0].decode("utf-8", errors="replace").rstrip("\r")
    below: list[str] = next(_reader([line], separator), [])
    data = [name for name, cell in zip(names, below, strict=False) if _DATA.fullmatch(name) and _DATA.fullmatch(cell)]
    numbers = [int(name) for name in names if name.isdecimal()]
    counts_on = len(numbers) > 1 and all(after == before + 1 for before, after in pairwise(numbers))
    if data and not counts_on:
        raise DataError(
            f"{path}: the first line holds data, such as {data[0]!r}, and no column names; put a line of names before "
            "it, such as user_id,item_id,timestamp"
        )


def _separator(header: str) -> str:
    """Return whichever of comma, semicolon, tab and bar occurs most in the header, quoted names apart."""
    outside = "".join(header.split('"')[::2])
    return max(",;\t|", key=outside.count)


def _check_names(path: TablePath, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: the column name {twice[0]!r} occurs twice; rename or remove one of them")


def _typed(column: pa.ChunkedArray, separator: str, *, is_code: bool = False) -> pa.ChunkedArray:
    """Return text cells as int64, double, timestamps or booleans where that loses nothing, else as they are."""
    filled = column.drop_null()
    if not len(filled):
        return column
    kind = _type_of(filled, separator, is_code=is_code)
    if kind is None and pc.any(pc.is_in(filled[:100], value_set=pa.array(EMPTY_WORDS, TEXT))).as_py():
        # Words in quotes among nothing but numbers are empty cells of a program that puts everything in quotes.
        is_word = pc.is_in(column, value_set=pa.array(EMPTY_WORDS, TEXT))
        without = pc.if_else(is_word, None, column)
        kind = _type_of(without.drop_null(), separator, is_code=is_code) if without.null_count < len(column) else None
        column = column if kind is None else without
    return column if kind is None else column.cast(kind)


def _type_of(filled: pa.ChunkedArray, separator: str, *, is_code: bool) -> pa.DataType | None:
    """Return the type that the cells of a column have, all of them, None where they are text."""
    if _matches(filled[:100], _NUMBER) and (kind := _number_type(filled)) is not None:
        if pa.types.is_integer(kind):
            return kind
        if is_code:
            return kind if _is_whole(filled) and _is_shortest(filled) else None
        return None if separator == ";" and _matches(filled, _THOUSANDS) else kind
    if _matches(filled[:100], _DATE) and not is_code:
        return next((kind for kind in (pa.timestamp("us"), pa.timestamp("us", tz="UTC")) if _casts(filled, kind)), None)
    return pa.bool_() if _matches(filled[:100], _TRUTH) and _matches(filled, _TRUTH) else None


def _is_whole(cells: pa.ChunkedArray) -> bool:
    numbers = cells.cast(pa.float64())
    return bool(pc.all(pc.equal(numbers, pc.floor(numbers))).as_py())


def _is_shortest(cells: pa.ChunkedArray) -> bool:
    """Return whether fractions are spelled as they would be written again, so that none is lost as a number."""
    spelled = pc.unique(cells)
    return all(
        repr(number) == text for number, text in zip(spelled.cast(pa.float64()).tolist(), spelled.tolist(), strict=True)
    )


def _number_type(cells: pa.ChunkedArray) -> pa.DataType | None:
    """Return int64 or double if every cell is such a number, None if not, or if it is too long to be kept exactly."""
    try:
        whole = cells.cast(pa.int64())
        return pa.int64() if whole.cast(TEXT).equals(cells) else None
    except pa.ArrowInvalid:
        is_fraction = pc.any(pc.match_substring_regex(cells, "[.eE]")).as_py()
    return pa.float64() if is_fraction and _matches(cells, _NUMBER) and _casts(cells, pa.float64()) else None


def _casts(cells: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        cells.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _matches(cells: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(cells, pattern)).as_py())


def _reader(lines: Iterable[str], separator: str, *, strict: bool = False) -> Any:
    """Return a reader of records that takes cells of any length: our own check reports those that are too long."""
    csv.field_size_limit(_MOST_BYTES)
    return csv.reader(lines, delimiter=separator, strict=strict)


def _records(lines: Iterable[str], separator: str, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of each record that is not blank, the header first."""
    reader = _reader(lines, separator, strict=strict)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error:
        raise csv.Error(line) from None


def _diagnose(path: TablePath, data: bytes, separator: str, names: list[str]) -> None:
    """Read a CSV file slowly to find the first line that is wrong.

    Raises:
        DataError: Names the line, if one is found.
    """
    try:
        text = io.StringIO(data.decode("utf-8"), newline="")
        for line, cells in _records(text, separator, strict=True):
            if len(cells) != len(names):
                raise DataError(
                    f"{path}: line {line:,} has {len(cells)} values, the header {len(names)}; "
                    f"put quotes round cells that hold {_SPOKEN[separator]}, or mend the line"
                )
            for name, cell in zip(names, cells, strict=True):
                if len(cell) > MAX_CELL_CHARACTERS:
                    raise _too_long(path, name, f"line {line:,}", len(cell))
    except UnicodeDecodeError:
        raise _wrong_encoding(path, data) from None
    except csv.Error as error:
        raise DataError(
            f"{path}: a quote opened on line {error.args[0]:,} is never closed; "
            'close it, or write "" for a quote in a cell'
        ) from None


_SPOKEN = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def _wrong_encoding(path: TablePath, data: bytes) -> DataError:
    """Return the error that names the first byte that is not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = data[error.start : error.start + 1].decode("cp1252", errors="replace")
        return DataError(
            f"{path}: byte 0x{data[error.start]:02x} on line {line:,} is not UTF-8 (in Latin-1 it is {guess!r}); "
            "save the file as UTF-8"
        )
    raise AssertionError("every byte is UTF-8")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".")
