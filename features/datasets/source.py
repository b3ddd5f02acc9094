"""The original files of a data set: in a folder, at any depth, or in the downloaded zip."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, cast

from features.errors import DataError


@dataclass(frozen=True)
class OriginalFiles:
    """Original files by their names, without the folders they lie in.

    Attributes:
        path: A folder or a zip file.
        hint: What to do when a file is missing, for error messages.
    """

    path: Path
    hint: str = "give the folder of the original files with --from"

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise DataError(f"{self.path}: no such folder or zip; {self.hint}")
        if self.path.is_file() and not zipfile.is_zipfile(self.path):
            raise DataError(f"{self.path}: neither a folder nor a zip that can be read; {self.hint}")

    @property
    def names(self) -> list[str]:
        """The names of all files, without folders."""
        return list(self._members)

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return name in self._members

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Yield a file opened for reading; what ends in `.gz` is unpacked on the way.

        Raises:
            DataError: There is no file of this name.
        """
        if name not in self._members:
            raise DataError(f"{self.path}: no {name} in it; {self.hint}")
        member = self._members[name]
        with ExitStack() as stack:
            if isinstance(member, Path):
                file: IO[bytes] = stack.enter_context(member.open("rb"))
            else:
                file = stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(member))
            if name.endswith(".gz"):
                file = cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=file)))
            yield file

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            DataError: There is no file of this name.
        """
        with self.open(name) as file:
            return file.read()

    def text(self, name: str) -> str:
        """Return a file as text: UTF-8, or Latin-1 (as older sets are) where it is not UTF-8.

        Raises:
            DataError: There is no file of this name.
        """
        data = self.read(name)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data.decode("latin-1")

    @cached_property
    def _members(self) -> dict[str, Path | str]:
        """Path of each file name. A folder is searched two levels deep."""
        if self.path.is_dir():
            files = [file for pattern in ("*", "*/*") for file in sorted(self.path.glob(pattern)) if file.is_file()]
            return {file.name: file for file in reversed(files)}
        with zipfile.ZipFile(self.path) as archive:
            return {name.rpartition("/")[2]: name for name in archive.namelist() if not name.endswith("/")}
