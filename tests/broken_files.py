"""Everything that can become of a file that is read from a folder, each to be done to it and undone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Damage = Callable[[Path, Path], object]
"""Does something to a file, given one of the same name in another folder like it."""

HUGE = 10 << 40


def _replaced(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path, other: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:  # in its place, as a broken disk does it
        file.write(content)


def _of_another(path: Path, other: Path) -> None:
    content = other.read_bytes() if other.is_file() else b""
    if content == path.read_bytes():
        content += b"\n"
    path.write_bytes(content)


DAMAGES: dict[str, Damage] = {
    "removed": lambda path, other: path.unlink(),
    "emptied": lambda path, other: os.truncate(path, 0),
    "cut off": lambda path, other: os.truncate(path, path.stat().st_size // 2),
    "one bit turned": _flip,
    "garbage": lambda path, other: path.write_bytes(os.urandom(path.stat().st_size)),
    "huge": lambda path, other: os.truncate(path, HUGE),
    "a link elsewhere": _replaced(lambda path: path.symlink_to("/etc/passwd")),
    "a link to a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _replaced(lambda path: path.symlink_to(path)),
    "a pipe": _replaced(os.mkfifo),
    "a folder": _replaced(lambda path: path.mkdir()),
    "another's": _of_another,
}


def files_in(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, from there."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def damaged(folder: Path, name: str, damage: Damage, other: Path) -> Iterator[None]:
    """Let a file of a folder be damaged inside the block, in the place of another one in `other`."""
    path = folder / name
    kept = path.read_bytes()
    damage(path, other / name)
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(kept)
