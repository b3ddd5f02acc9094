"""A folder whose manifest names each of its files, with size and digest: a bundle, its index, its ranker.

Nothing but what the manifest names is ever opened, and nothing is read before it has proved to be what was sealed. A
name leads nowhere but into the folder, links, pipes and devices are refused, and sizes are compared before a byte is
hashed, so that a file of any size, made by anybody, is refused at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from features.errors import DataError
from features.files import sha256
from towers.bundle.private_copies import PrivateCopies, PrivateCopy
from towers.bundle.sealed_file import BundleError, SealedFile, check_digest, open_plain, opened_as_sealed
from towers.bundle.signature import MOST_SIGNATURE_BYTES, SUFFIX, SignatureError, prove

MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 16 << 20
MOST_FILES = 10_000
_MOST_NAME = 1024
_MOST_SAID = 300


@dataclass(frozen=True)
class SealedFolder:
    """A folder that was verified.

    Attributes:
        path: Where it was found; messages name it.
        root: Where its files are read: there, or in a copy.
        files: The files that its manifest names, by their path in the folder.
        copy: The copy; it stays as long as something refers to it. None: there is none.
    """

    path: Path
    root: Path
    files: Mapping[str, SealedFile]
    copy: PrivateCopy | None = None

    @classmethod
    def open(cls, path: Path, listed: object, copies: PrivateCopies | None = None) -> SealedFolder:
        """Verify a folder.

        Args:
            path: The folder.
            listed: What its manifest says under `files`: `{"bytes": ..., "sha256": ...}` by path in the folder.
            copies: Where its files are copied to, and read from then on. None: they are read where they lie.

        Raises:
            ValueError: Says what is wrong with the list, or with the first file that is not as it was sealed.
        """
        files = _listed(listed)
        copy = None if copies is None else copies.of(path, files)
        if copy is not None:
            return cls(path, copy.path, files, copy)
        for name, sealed in files.items():
            with opened_as_sealed(path, name, sealed) as file:
                check_digest(file, name, sealed)
        return cls(path, path, files)

    def __contains__(self, name: str) -> bool:
        """Return whether the manifest names a file."""
        return name in self.files

    def file(self, name: str) -> Path:
        """Return where a file is read.

        Raises:
            ValueError: The manifest does not name it.
        """
        if name not in self.files:
            raise ValueError(f"{name} is not in {MANIFEST}")
        return self.root / name

    def folder(self, name: str) -> Path:
        """Return where a folder is, for a library that reads all it finds there.

        Raises:
            ValueError: There is a file in it that the manifest does not name.
        """
        folder = self.root / name
        for path in folder.rglob("*"):
            found = path.relative_to(self.root).as_posix()
            if found not in self.files and (path.is_symlink() or not path.is_dir()):
                raise ValueError(f"{found} is not in {MANIFEST}; remove it")
        return folder

    def names(self, name: str) -> list[str]:
        """Return the names of the folders with files in them that are in a folder, in order."""
        parts = (PurePosixPath(file).parts for file in self.files)
        return sorted({found[1] for found in parts if len(found) > 2 and found[0] == name})


def seal(folder: Path) -> dict[str, dict[str, Any]]:
    """Return bytes and SHA-256 of every file below `folder`, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def read_manifest(folder: Path, trusted_keys: Path | None = None) -> dict[str, Any]:
    """Return the manifest of a folder: a JSON object of at most `MOST_MANIFEST_BYTES`.

    Args:
        folder: The folder.
        trusted_keys: File of public keys, one of which must have signed the manifest. None: no signature is needed.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        BundleError: It is not signed by one of these keys, or they cannot be read.
        ValueError: It is something else.
    """
    content = _read(folder, MANIFEST, MOST_MANIFEST_BYTES)
    if trusted_keys is not None:
        try:
            signature = _read(folder, f"{MANIFEST}{SUFFIX}", MOST_SIGNATURE_BYTES)
        except (FileNotFoundError, ValueError):
            signature = None
        try:
            prove(folder / MANIFEST, content, signature, trusted_keys)
        except (SignatureError, DataError) as error:
            raise BundleError(str(error)) from None
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, found {type(found).__name__}")
    return found


def _read(folder: Path, name: str, most_bytes: int) -> bytes:
    with open_plain(folder, name) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{name} has more than {most_bytes:,} bytes")
    return content


@contextmanager
def reading(path: Path, remedy: str, what: str = "cannot be read") -> Iterator[None]:
    """Turn any error of a library that reads a file into a one-line `BundleError`.

    The content of a file may be anything, and what a reader makes of that may be any exception: none of them is a
    fault of the program, and all of them end in the same way.

    Args:
        path: What is read.
        remedy: What to do about it.
        what: What is wrong with it.

    Raises:
        BundleError: The block did not end well.
    """
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{path}: {what} ({said_of(error)}); {remedy}") from error


def said_of(error: BaseException) -> str:
    """Return the message of an error as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}..."


def _listed(files: object) -> dict[str, SealedFile]:
    if not isinstance(files, Mapping):
        raise ValueError(f"files: expected an object, found {type(files).__name__}")
    if len(files) > MOST_FILES:
        raise ValueError(f"files: expected at most {MOST_FILES:,}, found {len(files):,}")
    for name in files:
        if not _is_plain(name):
            raise ValueError(f"files: {str(name)[:80]!r} is not the path of a file in the folder")
    return {name: _sealed(name, said) for name, said in files.items()}


def _is_plain(name: object) -> bool:
    """Return whether a name is a path in the folder, written in the one way it can be."""
    if not isinstance(name, str) or not 0 < len(name) <= _MOST_NAME or "\\" in name or not name.isprintable():
        return False
    path = PurePosixPath(name)
    is_inside = bool(path.parts) and ".." not in path.parts and not path.is_absolute()
    return is_inside and path.as_posix() == name and name != MANIFEST


def _sealed(name: str, said: object) -> SealedFile:
    size, digest = (said.get("bytes"), said.get("sha256")) if isinstance(said, Mapping) else (None, None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not isinstance(digest, str):
        raise ValueError(f"files: {name}: expected its bytes and sha256, found {str(said)[:80]}")
    return SealedFile(size, digest)
