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

import glob
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from features.errors import DataError
from features.files import sha256
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

    path: Path
    values: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def is_parquet(self) -> bool:
        """Whether the name says Parquet, and not CSV."""
        return self.path.name.lower().endswith(PARQUET_ENDINGS)


def table_parts(path: Path) -> list[Part]:
    """Return the files of a table, in the order of their names.

    Raises:
        DataError: There is no such file, none of a kind that can be read, or files of several kinds.
    """
    if path.is_dir():
        found = [Part(one, _values(one.relative_to(path))) for one in _in_folder(path)]
        return _of_one_kind(path, found)
    if is_pattern(path):
        return _of_one_kind(path, _matching(path))
    if not path.exists():
        near = did_you_mean(path.name, sorted(other.name for other in path.parent.glob("[!.]*")))
        raise DataError(f"{path}: no such file; check the path, which is relative to the folder of run.toml{near}")
    if not path.name.lower().endswith(PARQUET_ENDINGS + CSV_ENDINGS):
        raise DataError(f"{path}: {_EXPECTED}; save the table as one")
    return [Part(path)]


def is_documents(path: Path) -> bool:
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


def is_pattern(path: Path) -> bool:
    """Return whether a path stands for the files that match it."""
    return glob.has_magic(str(path)) and not path.exists()


def table_exists(path: Path) -> bool:
    """Return whether there is a file, a folder or, for a pattern, something that matches."""
    return bool(_matching(path)) if is_pattern(path) else path.exists()


def table_digest(path: Path) -> str:
    """Return the SHA-256 of a table: of the bytes of a file; of several, that of their names and digests."""
    if path.is_file() or is_documents(path):
        return sha256(path)
    root = _root(path)
    lines = (f"{part.path.relative_to(root).as_posix()} {sha256(part.path)}\n" for part in table_parts(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _in_folder(folder: Path) -> Iterable[Path]:
    return (one for one in _visible(folder) if one.name.lower().endswith(PARQUET_ENDINGS + _PART_ENDINGS))


def _visible(folder: Path) -> Iterator[Path]:
    for one in sorted(folder.rglob("*")):
        if any(name.startswith(("_", ".")) for name in one.relative_to(folder).parts):
            continue
        if one.is_symlink() and not one.exists():
            raise DataError(f"{one}: a link to {one.readlink()}, which is not there; put it back, or remove the link")
        if one.is_file():
            yield one


def _matching(pattern: Path) -> list[Part]:
    root = _root(pattern)
    files: dict[Path, None] = {}
    for one in map(Path, sorted(glob.glob(str(pattern), recursive=True))):  # noqa: PTH207 (absolute ones, too)
        if not one.name.startswith("_"):
            files |= dict.fromkeys(_in_folder(one) if one.is_dir() else [one])
    return [Part(one, _values(one.relative_to(root))) for one in files]


def _root(path: Path) -> Path:
    """Return the folder above everything that a pattern matches; of a folder, itself."""
    if path.is_dir():
        return path
    fixed = [part for part in path.parents if not glob.has_magic(str(part))]
    return fixed[0]


def _values(relative: Path) -> dict[str, str | None]:
    pairs = [name.partition("=") for name in relative.parts[:-1] if "=" in name.strip("=")]
    return {unquote(name): None if value == NO_VALUE else unquote(value) for name, _, value in pairs}


def _of_one_kind(path: Path, parts: list[Part]) -> list[Part]:
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
