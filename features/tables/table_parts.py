"""Which files are one table: a file, a folder of parts such as Spark writes, or a pattern such as `orders-*.csv`.

| named | read |
|---|---|
| `orders.csv` | the file |
| `orders/` | every Parquet file, or every CSV file, in the folder and its sub-folders |
| `orders-*.csv`, `orders/**/*.parquet` | the files and folders that match |

Files and folders whose names begin with `_` or `.` are left out, as they are by Spark and Hive (`_SUCCESS`,
`_temporary`, `.part-0.crc`). A folder `country=de` below the one that is named is a column `country` of the parts in
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from urllib.parse import unquote

from features.errors import DataError
from features.files import sha256
from features.locations.object_path import ObjectPath, TablePath
from features.locations.table_path import files_below, fixed_folder, is_pattern, matching, name_in
from features.messages import did_you_mean
from features.tables.documents import ENDINGS as DOCUMENT_ENDINGS

PARQUET_ENDINGS = (".parquet", ".pq")
CSV_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
# In a folder, .txt is a document.
_PART_ENDINGS = tuple(ending for ending in CSV_ENDINGS if not ending.startswith(".txt"))
_EXPECTED = "expected a file ending in .csv, .tsv, .csv.gz or .parquet"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark write in the name of a folder for a missing value."""


@dataclass(frozen=True)
class Part:
    """One file of a table.

    Attributes:
        path: The file.
        values: What the names of its folders say of all its rows, by column; None for a missing value.
    """

    path: TablePath
    values: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def is_parquet(self) -> bool:
        """Whether the name says Parquet, and not CSV."""
        return self.path.name.lower().endswith(PARQUET_ENDINGS)


def table_parts(path: TablePath) -> list[Part]:
    """Return the files of a table, in the order of their names.

    Raises:
        DataError: There is no such file, none of a kind that can be read, or files of several kinds.
    """
    if path.is_dir():
        found = [Part(one, _values(name_in(path, one))) for one in _in_folder(path)]
        return _of_one_kind(path, found)
    if is_pattern(path):
        return _of_one_kind(path, _matching(path))
    if not path.exists():
        near = did_you_mean(path.name, sorted(other.name for other in path.parent.glob("[!.]*")))
        if isinstance(path, ObjectPath):
            raise DataError(f"{path}: no such object; check the address{near}")
        raise DataError(f"{path}: no such file; check the path, which is relative to the folder of run.toml{near}")
    if not path.name.lower().endswith(PARQUET_ENDINGS + CSV_ENDINGS):
        raise DataError(f"{path}: {_EXPECTED}; save the table as one")
    return [Part(path)]


def is_documents(path: TablePath) -> bool:
    """Return whether a path is a folder of documents rather than one of the parts of a table.

    Raises:
        DataError: The folder holds both.
    """
    if not path.is_dir():
        return False
    parts = next(iter(_in_folder(path)), None)
    document = next((one for one in _visible(path) if one.name.lower().endswith(DOCUMENT_ENDINGS)), None)
    if parts is not None and document is not None:
        raise DataError(
            f"{path}: the folder holds tables ({parts.name}) and documents ({document.name}); say which are meant, "
            f"such as '{path}/*{parts.suffix}'"
        )
    return parts is None


def table_exists(path: TablePath) -> bool:
    """Return whether there is a file, a folder or, for a pattern, something that matches."""
    return bool(_matching(path)) if is_pattern(path) else path.exists()


@contextmanager
def staying_there() -> Iterator[None]:
    """Let a file that vanishes while this block reads a table be an error of one line.

    Raises:
        DataError: A file was removed.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise removed(error.filename) from None


def removed(path: TablePath | str) -> DataError:
    """Return the error of a file that was removed."""
    return DataError(f"{path}: removed while the table was read; put it back, or run the command again")


def table_digest(path: TablePath) -> str:
    """Return a SHA-256 of a table: of a file, or of the names and digests of several; see `digest_of`.

    Raises:
        DataError: There is no such table, or a file of it was removed meanwhile.
    """
    return _over_files(path, digest_of)


def table_stamp(path: TablePath) -> str:
    """Return what is another one whenever a table was written to: its files' sizes and times, which are quickly read.

    Raises:
        DataError: As of `table_digest`.
    """
    return _over_files(path, _stamp_of)


def _over_files(path: TablePath, of: Callable[[TablePath], str]) -> str:
    """Return what a function says of a file or a folder of documents, or a digest of what it says of each part."""
    with staying_there():
        if path.is_file() or is_documents(path):
            return of(path)
        root = _root(path)
        lines = (f"{name_in(root, part.path).as_posix()} {of(part.path)}\n" for part in table_parts(path))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _stamp_of(path: TablePath) -> str:
    if isinstance(path, ObjectPath):
        return path.digest()
    files = sorted(files_below(path)) if path.is_dir() else [path]
    found = [(str(one), one.stat()) for one in files if isinstance(one, Path)]
    return str([(name, about.st_size, about.st_mtime_ns, about.st_ino) for name, about in found])


def digest_of(path: TablePath) -> str:
    """Return a SHA-256 that changes with a file or a folder: of content here, of sizes and times in an object store."""
    return path.digest() if isinstance(path, ObjectPath) else sha256(path)


def _in_folder(folder: TablePath) -> Iterable[TablePath]:
    return (one for one in _visible(folder) if one.name.lower().endswith(PARQUET_ENDINGS + _PART_ENDINGS))


def _visible(folder: TablePath) -> list[TablePath]:
    found = [
        one
        for one in files_below(folder)
        if not any(name.startswith(("_", ".")) for name in name_in(folder, one).parts)
    ]
    for one in found:
        if isinstance(one, Path) and not one.exists():
            raise DataError(f"{one}: a link to {one.readlink()}, which is not there; put it back, or remove the link")
    return found


def _matching(pattern: TablePath) -> list[Part]:
    root = _root(pattern)
    files: dict[TablePath, None] = {}
    for one in matching(pattern):
        if not one.name.startswith("_"):
            files |= dict.fromkeys(_in_folder(one) if one.is_dir() else [one])
    return [Part(one, _values(name_in(root, one))) for one in files]


def _root(path: TablePath) -> TablePath:
    """Return the folder above everything that a pattern matches; of a folder, itself."""
    return path if path.is_dir() else fixed_folder(path)


def _values(relative: PurePath) -> dict[str, str | None]:
    pairs = [name.partition("=") for name in relative.parts[:-1] if "=" in name.strip("=")]
    return {unquote(name): None if value == NO_VALUE else unquote(value) for name, _, value in pairs}


def _of_one_kind(path: TablePath, parts: list[Part]) -> list[Part]:
    if not parts:
        raise DataError(f"{path}: no CSV or Parquet file there; name a file, a folder of such files, or a pattern")
    strange = next((part for part in parts if not part.path.name.lower().endswith(PARQUET_ENDINGS + CSV_ENDINGS)), None)
    if strange is not None:
        raise DataError(f"{strange.path}: {_EXPECTED}; name a pattern that leaves it out")
    other = next((part for part in parts if part.is_parquet != parts[0].is_parquet), None)
    if other is not None:
        raise DataError(
            f"{path}: files of two kinds ({parts[0].path.name}, {other.path.name}); name one of them, such as "
            f"'*{parts[0].path.suffix}'"
        )
    uneven = next((part for part in parts if list(part.values) != list(parts[0].values)), None)
    if uneven is not None:
        raise DataError(
            f"{path}: {uneven.path} lies in other folders than {parts[0].path}, whose names are columns "
            f"({', '.join(parts[0].values or uneven.values)}); name one of both, or move the file"
        )
    return parts
