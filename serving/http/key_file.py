"""The file of API keys."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

import tomli_w
from pydantic import Field

from features.config import StrictTable, parse_settings, read_toml
from features.errors import DataError

Scope = Literal["none", "read", "write"]


_BEGINNING = "tt_"


RANKS: dict[Scope, int] = {"none": 0, "read": 1, "write": 2}


class Key(StrictTable):
    """What is known of a key."""

    name: str = Field(min_length=1, max_length=100)
    """Whose it is."""
    scope: Literal["read", "write"]
    """`write` may read, too."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the key."""
    created: str
    """When, ISO 8601 in UTC."""


class KeyFile(StrictTable):
    """The content of `keys.toml`."""

    keys: list[Key] = Field(default_factory=list)
    """Every key that is accepted."""


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file.

    Raises:
        DataError: It cannot be read, or is not a file of keys.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; `towers key add NAME --file {path}` makes a first key and the file")
    return parse_settings(KeyFile, read_toml(path), str(path)).keys


def add_key(path: Path, name: str, scope: Literal["read", "write"]) -> str:
    """Return a new key, after writing its hash into the file.

    Raises:
        DataError: The file cannot be read, or has a key of this name.
    """
    keys = read_keys(path) if path.exists() else []
    if any(key.name == name for key in keys):
        raise DataError(f"{path}: there is a key {name!r} already; remove it first, or choose another name")
    secret = _BEGINNING + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    _write(path, [*keys, Key(name=name, scope=scope, sha256=key_digest(secret), created=created)])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file.

    Raises:
        DataError: The file cannot be read, or has no key of this name.
    """
    keys = read_keys(path)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        known = ", ".join(repr(key.name) for key in keys) or "none"
        raise DataError(f"{path}: no key {name!r}; there are {known}")
    _write(path, left)


def key_digest(secret: str) -> str:
    """Return the SHA-256 of a key, which the file holds in its place."""
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, keys: list[Key]) -> None:
    """Write the file in one stroke, readable by its owner only."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb") as written:
        tomli_w.dump({"keys": [key.model_dump() for key in keys]}, written)
    draft.replace(path)
