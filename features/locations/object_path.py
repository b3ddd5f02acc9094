"""`ObjectPath`: an object or a folder of an object store, with the methods of `pathlib.Path` that tables need.

Objects have no folders: what is called one here is what their names have in common up to a slash.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from features.errors import DataError, UnavailableError
from features.locations.object_stores import LISTING_FOLDERS, file_system, is_of_store, store_errors

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileInfo, FileSystem

ANONYMOUS = "anonymous"
"""Before the bucket and an `@`: it is read without credentials."""
_BUFFER_BYTES = 4 << 20
_SAME_SECOND = 1_000_000_000


class ObjectStat(NamedTuple):
    """Size and time of an object, by the names of `os.stat_result`.

    Attributes:
        st_size: Bytes.
        st_mtime_ns: When it was written, in nanoseconds since 1970.
    """

    st_size: int
    st_mtime_ns: int


@total_ordering
class ObjectPath:
    """An object, or a folder of objects.

    Args:
        scheme: `s3` or `gs`.
        key: The bucket and the name in it, `bucket/folder/file.csv`.
        is_anonymous: Whether it is read without credentials.
        listed: What a listing said of it. None: the store is asked each time.
    """

    def __init__(self, scheme: str, key: str, *, is_anonymous: bool = False, listed: FileInfo | None = None) -> None:
        self.scheme, self.key, self.is_anonymous = scheme, key, is_anonymous
        self._listed = listed

    def __str__(self) -> str:
        return f"{self.scheme}://{f'{ANONYMOUS}@' if self.is_anonymous else ''}{self.key}"

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, ObjectPath) else NotImplemented

    def __lt__(self, other: ObjectPath) -> bool:
        return (self.scheme, self._names) < (other.scheme, other._names)

    def __hash__(self) -> int:
        return hash(str(self))

    def _with(self, key: str, listed: FileInfo | None = None) -> ObjectPath:
        return ObjectPath(self.scheme, key, is_anonymous=self.is_anonymous, listed=listed)

    @property
    def _names(self) -> list[str]:
        return self.key.split("/")

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self._names[-1]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The last part of the name, without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def parents(self) -> Sequence[ObjectPath]:
        """The folders that it is in, the nearest first, the bucket last."""
        names = self._names
        return [self._with("/".join(names[:length])) for length in range(len(names) - 1, 0, -1)]

    @property
    def parent(self) -> ObjectPath:
        """The folder that it is in; of a bucket, itself."""
        return next(iter(self.parents), self)

    def absolute(self) -> ObjectPath:
        """Return itself: an address is relative to nothing."""
        return self

    resolve = absolute

    def as_posix(self) -> str:
        """Return its address."""
        return str(self)

    def is_relative_to(self, other: TablePath) -> bool:
        """Return whether it lies in a folder."""
        return isinstance(other, ObjectPath) and str(self).startswith(f"{other}/")

    def relative_to(self, other: TablePath) -> PurePosixPath:
        """Return its name in a folder.

        Raises:
            ValueError: It is not in it.
        """
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not in {other}")
        return PurePosixPath(str(self).removeprefix(f"{other}/"))

    @property
    def _store(self) -> FileSystem:
        with store_errors(str(self)):
            return file_system(self.scheme, self._names[0], is_anonymous=self.is_anonymous)

    def _info(self) -> FileInfo:
        if self._listed is not None:
            return self._listed
        return self._asked()

    def _asked(self) -> FileInfo:
        store = self._store
        with store_errors(str(self)):
            return store.get_file_info(self.key)

    def exists(self) -> bool:
        """Return whether there is an object of this name, or one in a folder of this name."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Return whether there is an object in a folder of this name, and none of this name itself."""
        from pyarrow.fs import FileType

        return bool(self._info().type == FileType.Directory)

    def stat(self) -> ObjectStat:
        """Return size and time of an object.

        Raises:
            DataError: There is no such object.
        """
        return self._stat(self._info())

    def _stat(self, info: FileInfo) -> ObjectStat:
        if not info.is_file:
            raise DataError(f"{self}: no such object; check the address")
        return ObjectStat(info.size, info.mtime_ns)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield what matches a pattern below this folder, as `glob.glob` does: `**` is any number of folders.

        All objects below the folder are listed, unless the pattern is about those in it alone (and it is one of S3).
        """
        wanted = pattern.split("/")
        is_deep = len(wanted) > 1 or "**" in wanted or self.scheme not in LISTING_FOLDERS
        for one in self._below(recursive=is_deep):
            if _matches(one.relative_to(self).parts, wanted):
                yield one

    def files(self) -> list[ObjectPath]:
        """Return all objects of a folder and of those in it."""
        return [one for one in self._below(recursive=True) if one.is_file()]

    def _below(self, *, recursive: bool) -> list[ObjectPath]:
        from pyarrow.fs import FileInfo, FileSelector, FileType

        store = self._store
        with store_errors(str(self)):
            try:
                found = store.get_file_info(FileSelector(self.key, recursive=recursive))
            except FileNotFoundError:
                return []
        paths = {info.path: self._with(info.path, info) for info in found}
        # Not every store lists folders that are there only as a part of names.
        folders = {one.key for path in paths.values() for one in path.parents if one.is_relative_to(self)}
        implied = {key: self._with(key, FileInfo(key, FileType.Directory)) for key in folders - paths.keys()}
        return sorted([*paths.values(), *implied.values()])

    def digest(self) -> str:
        """Return a SHA-256 of size and time of an object; of a folder that of the names, sizes and times in it."""
        if self.is_dir():
            lines = (f"{one.relative_to(self)} {one.digest()}\n" for one in self.files())
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        return hashlib.sha256("size {} time {}".format(*self.stat()).encode()).hexdigest()

    @contextmanager
    def open(self, mode: Literal["rb"] = "rb") -> Iterator[io.BufferedReader]:
        """Open an object to be read in a stream, within a `with` block.

        Raises:
            DataError: There is no such object, it may not be read, or it changed since it was listed or opened.
            UnavailableError: The store cannot be reached.
        """
        with self.open_at_random() as file:
            stream: io.BufferedReader = io.BufferedReader(_Stream(self, file), _BUFFER_BYTES)
            yield stream

    @contextmanager
    def open_at_random(self) -> Iterator[NativeFile]:
        """Open an object for a reader of pyarrow that fetches parts of it; see `open`."""
        before, store = self.stat(), self._store
        with store_errors(str(self)):
            try:
                with store.open_input_file(self.key) as file:
                    yield file
            except Exception as error:
                if not is_of_store(error):
                    self._refuse_changed(before)
                raise
        self._refuse_changed(before)

    def _refuse_changed(self, before: ObjectStat) -> None:
        # A listing may have fractions of a second where the object itself has none.
        now = self._stat(self._asked())
        if now.st_size != before.st_size or abs(now.st_mtime_ns - before.st_mtime_ns) >= _SAME_SECOND:
            raise DataError(f"{self}: changed while it was read; run the command again when it is written")

    def read_bytes(self) -> bytes:
        """Return the content of an object."""
        with self.open() as file:
            return file.read()


TablePath = Path | ObjectPath
"""Where a table lies."""


class _Stream(io.RawIOBase):
    """A file of pyarrow as a stream of Python, which may not end before its size."""

    def __init__(self, path: ObjectPath, file: NativeFile) -> None:
        self._path, self._file, self._left = path, file, int(file.size())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._file.readinto(buffer))
        self._left -= count
        if not count and len(buffer) and self._left:
            raise UnavailableError(
                f"{self._path}: the download was cut off, {self._left:,} bytes before its end; run the command again"
            )
        return count


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a name match those of a pattern; hidden ones match only a dot."""
    if not pattern:
        return not names
    is_hidden = bool(names) and names[0].startswith(".") and not pattern[0].startswith(".")
    if pattern[0] == "**":
        return _matches(names, pattern[1:]) or (bool(names) and not is_hidden and _matches(names[1:], pattern))
    return bool(names) and not is_hidden and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])
