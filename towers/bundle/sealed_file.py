"""One file of a sealed folder: opened only where no link leads to it, and compared with its seal."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# A file that says it has so many bytes and takes up less than this share of them on the disk is holes, not data.
_LARGE = 1 << 30


_LEAST_STORED = 1 / 64


class BundleError(ValueError):
    """A bundle or an index cannot be used; the one-line message gives the place, the reason and the remedy."""


class SealedFile(NamedTuple):
    """The entry of a file in a manifest.

    Attributes:
        num_bytes: Its size.
        digest: SHA-256 of its bytes, in hexadecimal.
    """

    num_bytes: int
    digest: str


def open_plain(folder: Path, name: str) -> BufferedReader:
    """Open a regular file of a folder for reading; links are refused.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be opened.
        ValueError: It, or a folder on the way, is a link, a pipe, a device or something else.
    """
    *folders, last = PurePosixPath(name).parts
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            inside = _open_at(at, part, name, os.O_DIRECTORY)
            os.close(at)
            at = inside
        # Looked at before it is opened: to open a pipe or a device may wait, or have effects.
        if not stat.S_ISREG(os.stat(last, dir_fd=at, follow_symlinks=False).st_mode):
            raise ValueError(f"{name} is a link, a folder or a device, expected a plain file")
        return os.fdopen(_open_at(at, last, name, os.O_NONBLOCK), "rb")
    finally:
        os.close(at)


@contextmanager
def opened_as_sealed(folder: Path, name: str, sealed: SealedFile) -> Iterator[BufferedReader]:
    """Yield a file of the size that it was sealed with.

    Raises:
        ValueError: It is missing, something else, or of another size, or it cannot be read.
    """
    try:
        file = open_plain(folder, name)
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be opened ({error.strerror})") from None
    with file:
        found = os.fstat(file.fileno())
        if found.st_size != sealed.num_bytes:
            raise ValueError(f"{name} has {found.st_size:,} bytes, expected {sealed.num_bytes:,}")
        if found.st_size > _LARGE and found.st_blocks * 512 < found.st_size * _LEAST_STORED:
            raise ValueError(f"{name} says it has {found.st_size:,} bytes and is nearly all holes")
        try:
            yield file
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror})") from None


def check_digest(file: BufferedReader | BufferedRandom, name: str, sealed: SealedFile) -> None:
    """Make sure that the rest of a file is what was sealed under a name.

    Raises:
        ValueError: It is not.
    """
    if hashlib.file_digest(file, "sha256").hexdigest() != sealed.digest:
        raise ValueError(f"{name} was changed after it was written")


def _open_at(folder: int, part: str, name: str, flags: int) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ValueError(f"{name} lies behind a link, expected a plain file") from None
        raise
