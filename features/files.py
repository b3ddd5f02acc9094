"""Files that appear complete or not at all: written under a temporary name, renamed at the end; and arrays in files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

LATEST = "latest"
"""The link to the newest bundle that a training wrote, in the folder of the bundles."""
_TYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "I8": np.int8}


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it becomes `path` if the block ends well, and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def create_once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file that several processes may want to make at once; one that is there stays as it is.

    Args:
        path: The file. It appears complete, made by one of the processes; the others drop what they made.
        make: Writes the file to the path it is given, beside `path`.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=path.parent) as folder:
        made = Path(folder) / path.name
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
    """Yield a temporary folder beside `path`; it takes the place of `path` if the block ends well.

    A folder that stood at `path` before is replaced as a whole, and stays as it was if the block fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    old = temporary.with_suffix(".old")
    try:
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
        path.chmod((0o777 if path.is_dir() else 0o666) & ~hidden)


def mapped(path: Path, *types: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a safetensors file where they lie on disk, and what else it says.

    They are read when needed, and all processes share them.

    Args:
        path: The file.
        types: Those that arrays in it may have, as the format calls them: F32, I64, I32, I8.

    Raises:
        ValueError: An array is of a type that is not expected.
    """
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(num_bytes))
    about = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in types:
            raise ValueError(f"{path.name}: {name} is of type {entry['dtype']}, expected {' or '.join(types)}")
        kind = _TYPES[entry["dtype"]]
        start = 8 + num_bytes + entry["data_offsets"][0]
        shape = tuple(entry["shape"])
        found = np.memmap(path, kind, "c", start, shape) if np.prod(shape) else np.zeros(shape, kind)
        arrays[name] = found.view(np.ndarray)
    return arrays, about


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; of a folder that of the names and digests in it."""
    if path.is_dir():
        lines = (
            f"{one.relative_to(path).as_posix()} {sha256(one)}\n" for one in sorted(path.rglob("*")) if one.is_file()
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
