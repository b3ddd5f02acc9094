"""Several tables as one, without a copy: a folder of links to their files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from features.errors import DataError
from features.files import atomic_folder
from features.tables.table_parts import NO_VALUE, Part, table_parts

_DIGITS = 12


def linked_table(tables: Sequence[Path], folder: Path) -> Path:
    """Return a folder that is a table of the files of several tables, the first ones first.

    A file that belongs to several of them is in it once. The links follow a file that is replaced.

    Args:
        tables: Files, folders or patterns, as `features.tables.table_parts` reads them.
        folder: Where the folder is put, under a name that depends on the files; one that is there is used.

    Raises:
        DataError: There is no such table, or they are of several kinds.
    """
    found = [table_parts(table) for table in tables]
    for table, parts in zip(tables, found, strict=True):
        if parts[0].is_parquet != found[0][0].is_parquet:
            kinds = ["Parquet" if one.is_parquet else "CSV" for one in (parts[0], found[0][0])]
            raise DataError(f"{table}: {kinds[0]}, and {tables[0]} is {kinds[1]}; save it as the other")
    files = list({part.path.resolve(): part for parts in found for part in parts}.items())
    lines = "".join(f"{_folder_of(part)} {path}\n" for path, part in files)
    linked = folder / hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS] / "interactions"
    if not linked.exists():
        with atomic_folder(linked) as temporary:
            for place, (path, part) in enumerate(files):
                link = temporary / _folder_of(part) / f"{place:05d}-{path.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
    return linked


def _folder_of(part: Part) -> Path:
    """Return the folders that say of a file what those it lies in say: `country=de`."""
    return Path(
        *(
            f"{quote(name, safe=' ')}={NO_VALUE if value is None else quote(value, safe=' ')}"
            for name, value in part.values.items()
        )
    )
