"""Files that appear complete or not at all: written under a temporary name, renamed at the end; and arrays in files."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LATEST = "latest"
"""The link to the newest bundle that a training wrote, in the folder of the bundles."""
MOST_HEADER_BYTES = 16 << 20
"""Maximum bytes of the header of a safetensors file, with its eight bytes of length."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room: none at all, none within a quota, or none within the largest size of a file."""
_HEADER_BYTES = 256
_MOST_DIMENSIONS = 8
_TYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I8": np.int8, "U8": np.uint8}
_WRITTEN_ROWS = 1 << 16


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Let a full disk be an `OSError` that names `path`.

    Python names no file then, and a library a temporary one, in an exception of its own.

    Raises:
        OSError: The disk is full.
    """
    try:
        yield
    except Exception as error:
        if (number := _number_of(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _number_of(error: Exception) -> int | None:
    """Return the number of an error of a full disk; None where it is another one."""
    if isinstance(error, OSError):
        return error.errno if error.errno in FULL_DISK else None
    is_of_library = type(error).__name__ in ("SafetensorError", "RuntimeError")  # safetensors; FAISS
    return next((number for number in FULL_DISK if is_of_library and os.strerror(number) in str(error)), None)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it becomes `path` if the block ends well, and is removed if not.

    Raises:
        OSError: The disk is full, or `path` cannot be written; it stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing_to(path):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def create_once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file that several processes may make concurrently; an existing one is kept.

    Args:
        path: The file. It appears complete, made by one of the processes; the others drop what they made.
        make: Writes the file to the given path, which is in the same folder.

    Raises:
        OSError: The disk is full, or `path` cannot be written.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=path.parent) as folder:
        made = Path(folder) / path.name
        with writing_to(path):
            make(made)
        try:
            os.link(made, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                made.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; it takes the place of `path` if the block ends well.

    A folder that stood at `path` before is replaced as a whole, and stays as it was if the block fails.

    Raises:
        OSError: The disk is full, or `path` cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    old = temporary.with_suffix(".old")
    try:
        with writing_to(path):
            yield temporary
        _share(temporary)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        # A signal may arrive between any two lines of these.
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def move_link(link: Path, target: Path, previous: Path | None = None) -> None:
    """Let a link point elsewhere, from one moment to the next.

    Args:
        link: The link; made if there is none.
        target: What it is to point to; a neighbour of the link is named without its folder.
        previous: A link that is left to what `link` pointed to before. None: that is forgotten.
    """
    if previous is not None and link.is_symlink() and link.resolve() != target.resolve():
        _link(previous, link.readlink())
    is_neighbour = target.absolute().parent.resolve() == link.absolute().parent.resolve()
    _link(link, Path(target.absolute().name) if is_neighbour else target.resolve())


def _link(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _share(folder: Path) -> None:
    """Give a folder and what is in it the permissions that new ones have; some writers keep theirs to themselves."""
    hidden = os.umask(0)
    os.umask(hidden)
    folder.chmod(0o777 & ~hidden)
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue  # what it points to is no part of the folder
        path.chmod((0o777 if path.is_dir() else 0o666) & ~hidden)


def mapped(path: Path, *types: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a safetensors file, memory-mapped, and its metadata.

    They are read when needed, and all processes share them.

    Args:
        path: The file.
        types: Those that arrays in it may have, as the format calls them: F32, F16, I64, I32, I8, U8.

    Raises:
        ValueError: It is no such file, or an array is of a type that is not expected.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > min(num_bytes, MOST_HEADER_BYTES):
            raise ValueError(f"{path.name}: a header of {start - 8:,} bytes in a file of {num_bytes:,}")
        header = _header(path.name, file.read(start - 8))
    about = header.pop("__metadata__", {})
    places = sorted(
        (_Place.of(path.name, name, entry, types) for name, entry in header.items()), key=lambda one: one.begin
    )
    ends = [0, *(one.end for one in places)]
    if [one.begin for one in places] != ends[:-1] or start + ends[-1] != num_bytes:
        raise ValueError(f"{path.name}: its arrays are not what the file is made of")
    return {one.name: one.mapped(path, start) for one in places}, about


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a safetensors file, some rows of each at a time, so that mapped arrays need no memory.

    Raises:
        OSError: It cannot be written, such as on a full disk.
    """
    kinds = {np.dtype(kind): name for name, kind in _TYPES.items()}
    header, begin = {}, 0
    for name, array in arrays.items():
        offsets = [begin, begin + array.nbytes]
        header[name] = {"dtype": kinds[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        begin += array.nbytes
    text = json.dumps(header).encode()
    # The data begin where an array of any type may, and SIMD registers are loaded best.
    text += b" " * (-(8 + len(text)) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            for start in range(0, len(array), _WRITTEN_ROWS):
                file.write(np.ascontiguousarray(array[start : start + _WRITTEN_ROWS]).data)


def scratch_array(folder: Path, shape: tuple[int, ...], kind: type) -> np.ndarray:
    """Return an array of zeros on disk, mapped into memory, which vanishes with the process or its last user.

    Args:
        folder: Where its file is, which has no name and so is never left behind.
        shape: Its shape.
        kind: Its type.

    Raises:
        OSError: There is no room for it.
    """
    num_bytes = math.prod(shape) * np.dtype(kind).itemsize
    if not num_bytes:
        return np.zeros(shape, kind)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Without it a full disk would be found out by a write to memory, which ends the process.
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} for {num_bytes / 1e6:,.0f} MB", str(folder)) from None
        return np.memmap(file, kind, "r+", shape=shape).view(np.ndarray)


class ArrayFile:
    """A safetensors file with one array of one dimension, written piece by piece; `mapped` reads it.

    Args:
        path: The file.
        name: Name of the array.
        kind: Its type, as the format calls it, see `mapped`.
    """

    def __init__(self, path: Path, name: str, kind: str) -> None:
        self._file = path.open("wb")
        self._name, self._kind, self._length = name, kind, 0
        self._file.write(bytes(_HEADER_BYTES))

    def append(self, values: np.ndarray) -> None:
        """Write values behind those that are there."""
        self._file.write(np.ascontiguousarray(values, dtype=_TYPES[self._kind]).data)
        self._length += len(values)

    def close(self) -> None:
        """Write the header, which says how many there are, and wait until all is on the disk."""
        num_bytes = self._length * np.dtype(_TYPES[self._kind]).itemsize
        entry = {"dtype": self._kind, "shape": [self._length], "data_offsets": [0, num_bytes]}
        # The format lets a header end in blanks, so that one of fixed size can be written at the end.
        header = json.dumps({self._name: entry}).encode().ljust(_HEADER_BYTES - 8)
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class _Place(NamedTuple):
    """Byte range of an array in a file, from the end of the header."""

    begin: int
    end: int
    name: str
    kind: type
    shape: tuple[int, ...]

    @classmethod
    def of(cls, file: str, name: str, entry: Any, types: tuple[str, ...]) -> _Place:
        """Return the place that an entry of the header describes."""
        said, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if said not in types:
            raise ValueError(f"{file}: {name} is of type {said!s:.20}, expected {' or '.join(types)}")
        if not all(map(_are_counts, (shape, offsets))) or len(shape) > _MOST_DIMENSIONS or len(offsets) != 2:
            raise ValueError(f"{file}: {name} has no shape or no place")
        # Numbers of any size here, so that no product of them can overflow.
        expected = math.prod(shape) * np.dtype(_TYPES[said]).itemsize
        if offsets[1] - offsets[0] != expected:
            raise ValueError(f"{file}: {name} takes {offsets[1] - offsets[0]:,} bytes, expected {expected:,}")
        return cls(offsets[0], offsets[1], name, _TYPES[said], tuple(shape))

    def mapped(self, path: Path, start: int) -> np.ndarray:
        """Return the array."""
        if self.begin == self.end:
            return np.zeros(self.shape, self.kind)
        return np.memmap(path, self.kind, "c", start + self.begin, self.shape).view(np.ndarray)


def _header(file: str, content: bytes) -> dict[str, Any]:
    try:
        header: Any = json.loads(content)
    except RecursionError:
        raise ValueError(f"{file}: its header is nested too deeply") from None
    entries = header.values() if isinstance(header, dict) else [None]
    if not all(isinstance(entry, dict) for entry in entries) or not all(
        isinstance(value, str) for value in header.get("__metadata__", {}).values()
    ):
        raise ValueError(f"{file}: its header is not one of safetensors")
    return dict(header)


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; of a folder that of the names and digests in it."""
    if path.is_dir():
        lines = (
            f"{one.relative_to(path).as_posix()} {sha256(one)}\n" for one in sorted(path.rglob("*")) if one.is_file()
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
