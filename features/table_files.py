"""One file to one frame: CSV or Parquet, with pyarrow types, and every way a file can be broken told in one line.

CSV is read as text first and typed afterwards, so that `007` stays `007`: a column becomes numbers only if writing
the numbers out again gives back what was read. What the columns mean is the matter of `features.tables`.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from features.documents import read_documents
from features.errors import DataError

PARQUET_ENDINGS = (".parquet", ".pq")
CSV_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
EMPTY_CELLS = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "<NA>", "\\N"]
TEXT = pa.large_string()
_BOM = b"\xef\xbb\xbf"
# 12e4 is no number: it is as likely to be a code. 1.2e4 and 1e+20 are what programs write.
_NUMBER = r"^-?(0|[1-9][0-9]*)?(\.[0-9]*([eE][+-]?[0-9]+)?|[eE][+-][0-9]+)?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"


def read_frame(path: Path) -> pd.DataFrame:
    """Return the rows of a CSV or Parquet file, or the passages of a folder's documents, in pyarrow types.

    Text is `large_string`, whole numbers keep their width (int64 from CSV), ISO dates become timestamps. Empty cells
    and `NA`, `NaN`, `null`, `None` are missing values. The separator of a CSV file is found in its first line.

    Args:
        path: The file; its ending says what it is (.parquet, .pq; .csv, .tsv, .txt, also with .gz). Or the folder.

    Raises:
        DataError: The file is missing, empty, of an unknown kind, not UTF-8, cut off or ragged; the folder has none.
    """
    if path.is_dir():
        return read_documents(path)
    table = _read_parquet(path) if is_parquet(path) else _read_csv(path)
    if not table.num_rows:
        raise DataError(f"{path}: no rows below the column names; expected at least one")
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
    return frame


def is_parquet(path: Path) -> bool:
    """Return whether a file's ending says Parquet, after checking that it can be read at all.

    Raises:
        DataError: The file is missing, a folder, empty or of an unknown kind.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder, expected a CSV or Parquet file; name a file in it")
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path, which is relative to the folder of run.toml")
    name = path.name.lower()
    if not name.endswith(PARQUET_ENDINGS + CSV_ENDINGS):
        raise DataError(f"{path}: expected a file ending in .csv, .tsv, .csv.gz or .parquet; save the table as one")
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty (0 bytes); write the table again")
    return name.endswith(PARQUET_ENDINGS)


def place(path: Path, row: int) -> str:
    """Return where a person finds the row at 0-based position `row`: `line 7` of a CSV file, `row 6` of Parquet."""
    if path.is_dir():
        return f"passage {row + 1:,}"
    if path.name.lower().endswith(PARQUET_ENDINGS):
        return f"row {row + 1:,}"
    for index, (line, _) in enumerate(_records(_content(path))):
        if index == row + 1:
            return f"line {line:,}"
    raise AssertionError(f"row {row} beyond the end of {path}")


def _read_parquet(path: Path) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        _check_names(path, file.schema_arrow.names)
        table = file.read()
    except (pa.ArrowInvalid, OSError) as error:
        reason = _one_line(error)
        raise DataError(f"{path}: not a Parquet file, or cut off ({reason}); write it again, or name it .csv") from None
    kept = [name for name in table.column_names if not name.startswith("__index_level_")]
    return pa.table({name: _plain(table[name]) for name in kept})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in one of few types: text as `large_string`, decimals as numbers. Bytes stay if not UTF-8."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return column.cast(pa.int64() if _casts(column, pa.int64()) else pa.float64())
    is_text = pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)
    if is_text or (_is_bytes(kind) and _casts(column, TEXT)):
        return column.cast(TEXT)
    return column


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read_csv(path: Path) -> pa.Table:
    data = _content(path)
    if not data.strip():
        raise DataError(f"{path}: the file holds only blank lines; write the table again")
    names, separator, body = _header(path, data)
    if not body.strip():
        raise DataError(f"{path}: no rows below the column names {', '.join(names)}; expected at least one")
    if body.count(b'"') % 2:
        _diagnose(path, data, separator, len(names))
    try:
        table = pacsv.read_csv(
            pa.BufferReader(body),
            read_options=pacsv.ReadOptions(column_names=names, block_size=1 << 24),
            parse_options=pacsv.ParseOptions(delimiter=separator, newlines_in_values=b'"' in body),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, TEXT), null_values=EMPTY_CELLS, strings_can_be_null=True
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        _diagnose(path, data, separator, len(names))
        raise DataError(f"{path}: not a CSV file that can be read ({_one_line(error)}); write it again") from None
    return pa.table({name: _typed(table[name]) for name in names})


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: a damaged gzip file ({_one_line(error)}); write it again") from None
    if data[:4] == b"PAR1":
        raise DataError(f"{path}: a Parquet file by its content; name it .parquet")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: the text is UTF-16, expected UTF-8; save it as CSV UTF-8")
    if b"\x00" in data[:4096]:
        raise DataError(f"{path}: binary data, expected text; save the table as CSV UTF-8 or Parquet")
    data = data.removeprefix(_BOM)
    return data if b"\n" in data else data.replace(b"\r", b"\n")


def _header(path: Path, data: bytes) -> tuple[list[str], str, bytes]:
    """Return the column names, the separator and everything after the first line that is not blank."""
    body = data.lstrip(b"\r\n")
    line, _, body = body.partition(b"\n")
    try:
        text = line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        raise _wrong_encoding(path, data) from None
    separator = _separator(text)
    names = [name.strip() for name in next(csv.reader([text], delimiter=separator))]
    names = [name or f"column_{place}" for place, name in enumerate(names, start=1)]
    _check_names(path, names)
    return names, separator, body


def _separator(header: str) -> str:
    """Return whichever of comma, semicolon, tab and bar occurs most in the header, quoted names apart."""
    outside = "".join(header.split('"')[::2])
    return max(",;\t|", key=outside.count)


def _check_names(path: Path, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: the column name {twice[0]!r} occurs twice; rename or remove one of them")


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text cells as int64, double or timestamps where that loses nothing, else as they are."""
    filled = column.drop_null()
    if not len(filled):
        return column
    if _matches(filled[:100], _NUMBER) and (kind := _number_type(filled)) is not None:
        return column.cast(kind)
    if _matches(filled[:100], _DATE):
        for kind in (pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
            if _casts(filled, kind):
                return column.cast(kind)
    return column


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


def _records(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of each record that is not blank, the header first."""
    text = data.decode("utf-8", errors="replace")
    header = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(header))
    line = 1
    for cells in reader:
        if cells:
            yield line, cells
        line = reader.line_num + 1


def _diagnose(path: Path, data: bytes, separator: str, num_columns: int) -> None:
    """Read a CSV file slowly to find the first line that is wrong.

    Raises:
        DataError: Names the line, if one is found.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _wrong_encoding(path, data) from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells and len(cells) != num_columns:
                raise DataError(
                    f"{path}: line {line:,} has {len(cells)} values, the header {num_columns}; "
                    f"put quotes round cells that hold {_SPOKEN[separator]}, or mend the line"
                )
            line = reader.line_num + 1
    except csv.Error:
        raise DataError(
            f'{path}: a quote opened on line {line:,} is never closed; close it, or write "" for a quote in a cell'
        ) from None


_SPOKEN = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def _wrong_encoding(path: Path, data: bytes) -> DataError:
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
