"""From the name of a table, as settings and commands have it, to where it lies; and what differs between the kinds."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import click

from features.errors import DataError
from features.locations.object_path import ANONYMOUS, ObjectPath, TablePath
from features.locations.object_stores import SCHEMES
from features.redaction import HIDDEN, redacted

if TYPE_CHECKING:
    from pyarrow import NativeFile

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")
_OPTIONS = re.compile(r"\?[A-Za-z_]+=")
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")


def table_path(folder: Path, name: str | os.PathLike[str]) -> TablePath:
    """Return where a table lies.

    Args:
        folder: What a path of this machine is relative to.
        name: Such a path, or the address of an object, a folder of objects, or a pattern: `s3://BUCKET/NAME` or
            `gs://BUCKET/NAME`; with `anonymous@` before the bucket it is read without credentials.

    Raises:
        DataError: The address is of another kind, or holds a key.
    """
    text = os.fspath(name)
    found = _ADDRESS.fullmatch(text)
    if found is None:
        if _ONE_SLASH.match(text):
            address = _ONE_SLASH.sub(r"\1://", text)
            raise DataError(f"{text}: a slash is missing; write {address}, and not as a Path, which drops it")
        return folder / text
    scheme, rest = found.groups()
    if scheme not in SCHEMES:
        raise DataError(
            f"{redacted(text)}: {scheme}:// cannot be read; expected {' or '.join(f'{one}://' for one in SCHEMES)} "
            "or a path of this machine: copy the table to one of these, or mount it"
        )
    user, at, _ = rest.partition("/")[0].rpartition("@")
    key = rest.removeprefix(f"{user}{at}").rstrip("/")
    bucket = key.partition("/")[0]
    if user not in ("", ANONYMOUS) or ":" in bucket or _OPTIONS.search(key):
        raise DataError(
            f"{scheme}://{HIDDEN}: an address with a key, a port or options in it, which would be written down in "
            f"bundles and logs; write {scheme}://BUCKET/NAME, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, AWS_REGION or AWS_ENDPOINT_URL_S3 in the environment"
        )
    if not _BUCKET.fullmatch(bucket) or "//" in key:
        raise DataError(f"{text}: expected {scheme}://BUCKET/NAME, with no empty part; correct the address")
    return ObjectPath(scheme, key, is_anonymous=user == ANONYMOUS)


class TableFile(click.ParamType):  # type: ignore[type-arg]  # not generic in every release that we take
    """Type of an argument that names a table: a path, or an address of an object store."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> TablePath:
        """Return where the table lies."""
        return value if isinstance(value, Path | ObjectPath) else table_path(Path(), value)


TABLE_FILE = TableFile()


def is_pattern(path: TablePath) -> bool:
    """Return whether a path stands for the files that match it."""
    return glob.has_magic(str(path)) and not path.exists()


def fixed_folder(pattern: TablePath) -> TablePath:
    """Return the folder above everything that a pattern matches."""
    return next(part for part in pattern.parents if not glob.has_magic(str(part)))


def matching(pattern: TablePath) -> Sequence[TablePath]:
    """Return the files and folders that match a pattern, by `glob.glob`'s rules, sorted."""
    if isinstance(pattern, Path):
        return [Path(one) for one in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (absolute ones, too)
    root = fixed_folder(pattern)
    return list(root.glob(str(pattern.relative_to(root)))) if isinstance(root, ObjectPath) else []


def name_in(folder: TablePath, path: TablePath) -> PurePath:
    """Return the name that a file below a folder has in it."""
    return path.relative_to(folder) if isinstance(path, ObjectPath) else path.relative_to(str(folder))


def files_below(folder: TablePath) -> Sequence[TablePath]:
    """Return all files of a folder and of those in it, sorted; links to what is not there are among them."""
    if isinstance(folder, ObjectPath):
        return folder.files()
    return [one for one in sorted(folder.rglob("*")) if one.is_file() or (one.is_symlink() and not one.exists())]


@contextmanager
def arrow_source(path: TablePath) -> Iterator[Path | NativeFile]:
    """Yield what pyarrow's readers take."""
    if isinstance(path, Path):
        yield path
        return
    with path.open_at_random() as file:
        yield file
