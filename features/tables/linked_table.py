"""Two tables as one: a folder of links to the files of a table, and of copies of what is added to it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

from features.errors import DataError, renamed
from features.files import atomic_folder, create_once, sha256
from features.tables.table_parts import NO_VALUE, Part, table_parts

_DIGITS = 12


@contextmanager
def linked_table(base: Path, added: Path, folder: Path) -> Iterator[Path]:
    """Yield a folder that is a table of the files of `base` and, after them, those of `added`.

    The files of `base` are linked to, and so are read as they are then. Those of `added` are copied, because a file of
    that name may be another one tomorrow; one that `base` has, or that was copied before, is not copied. A `DataError`
    of the block names these files and not the links, and leaves nothing in `folder` that was not there.

    Args:
        base: A file, folder or pattern, as `features.tables.table_parts` reads it.
        added: Another one, of the same kind.
        folder: Where the folder and the copies are put, under names that depend on the content.

    Raises:
        DataError: There is no such table, or one is CSV and the other Parquet.
    """
    old, new = table_parts(base), table_parts(added)
    if old[0].is_parquet != new[0].is_parquet:
        kinds = ["Parquet" if one.is_parquet else "CSV" for one in (new[0], old[0])]
        raise DataError(f"{added}: {kinds[0]}, and {base} is {kinds[1]}; save it as the other")
    there = set(folder.iterdir()) if folder.is_dir() else set()
    known = {_file(part).resolve() for part in old}
    kept = [(part, _kept(part, folder)) for part in new if _file(part).resolve() not in known]
    linked, names = _link([*((part, part) for part in old), *kept], folder)
    names |= {str(linked): "the interactions"}
    try:
        yield linked
    except DataError as error:
        for one in {linked.parent, *(_file(copy).parent for _, copy in kept)} - there:
            shutil.rmtree(one, ignore_errors=True)
        raise renamed(error, names) from None


def _kept(part: Part, folder: Path) -> Part:
    """Return a file as a copy in `folder`, if it does not lie there already."""
    file = _file(part)
    if file.resolve().is_relative_to(folder.resolve()):
        return part
    copy = folder / sha256(file)[:_DIGITS] / file.name
    create_once(copy, partial(shutil.copyfile, file))
    return replace(part, path=copy)


def _file(part: Part) -> Path:
    assert isinstance(part.path, Path), "tables in object stores are not linked"
    return part.path


def _link(parts: list[tuple[Part, Part]], folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a folder of links to the second file of each pair, and what each link is called: after the first."""
    files = {_file(read).resolve(): (given, read) for given, read in parts}
    lines = "".join(f"{_folder_of(read)} {path}\n" for path, (_, read) in files.items())
    linked = folder / hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS] / "interactions"
    links = {
        linked / _folder_of(read) / f"{place:05d}-{path.name}": (given, path)
        for place, (path, (given, read)) in enumerate(files.items())
    }
    if not linked.exists():
        with atomic_folder(linked) as temporary:
            for link, (_, path) in links.items():
                there = temporary / link.relative_to(linked)
                there.parent.mkdir(parents=True, exist_ok=True)
                there.symlink_to(path)
    names = {str(link): str(given.path) for link, (given, _) in links.items()}
    return linked, names | {link.name: given.path.name for link, (given, _) in links.items()}


def _folder_of(part: Part) -> Path:
    """Return the folders that say of a file what those it lies in say: `country=de`."""
    return Path(
        *(
            f"{quote(name, safe=' ')}={NO_VALUE if value is None else quote(value, safe=' ')}"
            for name, value in part.values.items()
        )
    )
