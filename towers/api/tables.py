"""Tables and settings as a program has them, as the files and the values of `--set` that commands read.

A DataFrame is written to `runs/inputs`, so that a bundle can be indexed, evaluated and trained again from its tables,
by Python or by commands. The folder is named after its content: the same tables are written once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tomlkit

from features.config import FeaturesConfig
from features.errors import DataError, renamed
from features.files import sha256
from features.locations.object_path import TablePath
from features.locations.table_path import table_path
from features.messages import did_you_mean
from features.settings import StrictTable
from towers.config import TowersConfig
from training.config import ContinuationConfig, TrainingConfig
from training.runs.run_folder import INPUTS

TRAINING_TABLES: dict[str, type[StrictTable]] = {
    "features": FeaturesConfig,
    "towers": TowersConfig,
    "training": TrainingConfig,
}
"""The tables of run.toml whose settings are arguments of `towers.train`, by their own names."""
CONTINUATION_TABLES: dict[str, type[StrictTable]] = {**TRAINING_TABLES, "continuation": ContinuationConfig}
"""Those of `Model.update`."""
_DIGITS = 12
_FLAG = re.compile(r"--((?:user|item|time)-(?:column|format)) ")
"""A flag of `towers init` that is an argument of `towers.train`."""


@runtime_checkable
class ArrowTable(Protocol):
    """A table with Arrow's interface, such as one of polars, DuckDB or pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the table as a stream."""


Table: TypeAlias = pd.DataFrame | ArrowTable | str | os.PathLike[str]
"""A DataFrame, or the path of a file, a folder of files or a pattern; or an address of an object store, as text."""


@contextmanager
def stored(tables: Mapping[str, Table | None]) -> Iterator[Inputs]:
    """Yield a new folder with those tables that are no files; it stays only if `Inputs.keep` is called.

    An error of the block about a DataFrame names the DataFrame instead of its file.

    Args:
        tables: By name; None is left out.

    Raises:
        DataError: A DataFrame cannot be stored.
    """
    INPUTS.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".", dir=INPUTS))
    inputs = Inputs(folder, {})
    try:
        for name, table in tables.items():
            if table is not None:
                inputs.add(name, table)
        yield inputs
    except DataError as error:
        raise _renamed(error, inputs.names) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_if_empty(INPUTS)


class Inputs:
    """The tables of a training, as files.

    Attributes:
        folder: Where those are that were no files.
        paths: The path of each table, by its name.
        names: What errors call the tables that were no files, by path.
    """

    def __init__(self, folder: Path, paths: dict[str, TablePath]) -> None:
        self.folder = folder
        self.paths = paths
        self.names: dict[str, str] = {}

    def add(self, name: str, table: Table) -> None:
        """Add a table; one that is no file is written to the folder.

        Raises:
            DataError: It cannot be stored.
        """
        if isinstance(table, str | os.PathLike):
            self.paths[name] = table_path(Path(), table).absolute()
        else:
            self.paths[name] = self.folder / f"{name}.parquet"
            pq.write_table(to_arrow(name, table), self.paths[name])
            self._name(name)

    def keep(self) -> None:
        """Give the folder the name of its content; the paths of its tables change with it."""
        files = [path for path in self.folder.iterdir() if path.is_file()]
        digests = "".join(f"{path.name} {sha256(path)}\n" for path in sorted(files))
        folder = INPUTS / hashlib.sha256(digests.encode()).hexdigest()[:_DIGITS]
        if not folder.exists():
            self.folder.chmod(0o777 & ~_mask())
            self.folder.rename(folder)
        for name, path in self.paths.items():
            if path.parent == self.folder:
                self.paths[name] = folder / path.name
                self._name(name)
        self.folder = folder

    def _name(self, name: str) -> None:
        path = self.paths[name]
        self.names |= {str(path): name, str(path.absolute()): name}


@contextmanager
def as_file(name: str, table: Table) -> Iterator[TablePath]:
    """Yield the path of a table that is needed for a moment; a DataFrame is written to a temporary file."""
    if isinstance(table, str | os.PathLike):
        yield table_path(Path(), table)
        return
    with tempfile.TemporaryDirectory(prefix="towers-") as folder:
        path = Path(folder) / "table.parquet"
        pq.write_table(to_arrow(name, table), path)
        try:
            yield path
        except DataError as error:
            raise _renamed(error, {str(path): name}) from None


@contextmanager
def as_files(tables: Mapping[str, Table | None]) -> Iterator[dict[str, TablePath]]:
    """Yield the paths of those tables that are given, by name; see `as_file`."""
    with ExitStack() as files:
        yield {name: files.enter_context(as_file(name, table)) for name, table in tables.items() if table is not None}


def to_arrow(name: str, table: object) -> pa.Table:
    """Return a DataFrame in Arrow's types; a named index is a column.

    Args:
        name: What the table is called in errors.
        table: The table.

    Raises:
        DataError: It is no table, two columns have one name, or a column has cells of several types.
    """
    if not isinstance(table, pd.DataFrame):
        if isinstance(table, ArrowTable):
            return pa.table(table)
        raise DataError(f"{name}: expected a DataFrame or a path, found {type(table).__name__}; give one of them")
    if any(level is not None and level not in table for level in table.index.names):
        table = table.reset_index()
    names = [str(column) for column in table.columns]
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: the column name {twice!r} occurs twice; rename or remove one of them")
    return pa.table({column: _cells(name, column, table.iloc[:, place]) for place, column in enumerate(names)})


def _cells(name: str, column: str, cells: pd.Series) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.Array.from_pandas(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        filled = cells[cells.notna().to_numpy()]
        kinds = [type(cell).__name__ for cell in filled]
        other = next((place for place, kind in enumerate(kinds) if kind != kinds[0]), None)
        if other is None:
            raise DataError(
                f"{name}: column {column!r}: cells of type {kinds[0]} cannot be stored "
                f"({' '.join(str(error).split())}); leave the column out, or make it text"
            ) from None
        row = int(cells.notna().to_numpy().nonzero()[0][other]) + 1
        raise DataError(
            f"{name}: column {column!r}, row {row:,}: expected {kinds[0]} as in the rows before, found {kinds[other]} "
            f"({filled.iloc[other]!r}); give the column one type, such as text: {name}[{column!r}].astype(str)"
        ) from None


def _renamed(error: DataError, named: Mapping[str, str]) -> DataError:
    """Return an error in the words of Python: a DataFrame has no path, and flags are arguments."""
    flags = {flag[0]: f"{flag[1].replace('-', '_')}=" for flag in _FLAG.finditer(str(error))}
    return renamed(error, {**named, **flags})


def _remove_if_empty(folder: Path) -> None:
    for one in (folder, folder.parent):
        try:
            one.rmdir()
        except OSError:
            return


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def plain(value: Any) -> Any:
    """Return a value of numpy or pandas as Python's own: an array or a column as a list."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    return value


def by_full_name(
    values: Mapping[str, Any], tables: Mapping[str, type[StrictTable]] = TRAINING_TABLES
) -> dict[str, Any]:
    """Return settings that are given by their own names by their full names; a name in several tables is the last's.

    Example:
        >>> by_full_name({"epochs": 3, "embedding_dim": 32})
        {'training.epochs': 3, 'towers.embedding_dim': 32}

    Raises:
        DataError: There is no such setting.
    """
    places = {name: f"{table}.{name}" for table, kind in tables.items() for name in kind.model_fields}
    unknown = next((name for name in values if name not in places), None)
    if unknown is not None:
        raise DataError(f"{unknown}: no such setting of run.toml{did_you_mean(unknown, list(places))}")
    return {places[name]: value for name, value in values.items()}


def as_overrides(values: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """Return settings as `--set` takes them.

    Example:
        >>> as_overrides({"training": {"epochs": 3}, "features.title": "name"})
        ('training.epochs=3', 'features.title="name"')

    Raises:
        DataError: A value is none of TOML's.
    """
    given: list[str] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            given += as_overrides(value, f"{key}.")
            continue
        try:
            text = tomlkit.dumps({"value": plain(value)}).removeprefix("value = ").strip()
        except (TypeError, ValueError):
            raise DataError(
                f"{key}: expected a number, a text, a boolean or a list, found {value!r}; leave it out for its default"
            ) from None
        given.append(f"{key}={text}")
    return tuple(given)
