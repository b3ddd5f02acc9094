"""The file of API keys."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

import tomlkit
from pydantic import Field

from features.errors import DataError
from features.settings import StrictTable, parse_settings, read_toml

Scope = Literal["none", "read", "write"]
RANKS: dict[Scope, int] = {"none": 0, "read": 1, "write": 2}
"""A key of one scope may also be used where a scope of lower rank is required."""

_PREFIX = "tt_"


class Key(StrictTable):
    """An accepted API key; the key itself is not stored."""

    name: str = Field(min_length=1, max_length=100)
    """Name of the client that uses the key; appears in the log."""
    scope: Literal["read", "write"]
    """`write` includes `read`."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the key, in hexadecimal."""
    created: str
    """Time of creation, ISO 8601 in UTC."""


class KeyFile(StrictTable):
    """The content of `keys.toml`."""

    keys: list[Key] = Field(default_factory=list)
    """The accepted keys."""


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file.

    Raises:
        DataError: The file cannot be read, or is not a file of API keys.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; create it, with a first key: towers key add NAME --file {path}")
    return parse_settings(KeyFile, read_toml(path), str(path)).keys


def add_key(path: Path, name: str, scope: Literal["read", "write"]) -> str:
    """Return a new key, after writing its hash to the file.

    Raises:
        DataError: The file cannot be read, or already has a key of this name.
    """
    keys = read_keys(path) if path.exists() else []
    if any(key.name == name for key in keys):
        raise DataError(f"{path}: a key {name!r} already exists; remove it first, or choose another name")
    secret = _PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    _write(path, [*keys, Key(name=name, scope=scope, sha256=key_digest(secret), created=created)])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Remove a key from the file.

    Raises:
        DataError: The file cannot be read, or has no key of this name.
    """
    keys = read_keys(path)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        known = ", ".join(repr(key.name) for key in keys) or "none"
        raise DataError(f"{path}: no key {name!r}; the file has {known}")
    _write(path, left)


def key_digest(secret: str) -> str:
    """Return the SHA-256 of a key in hexadecimal, as the file stores it."""
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, keys: list[Key]) -> None:
    """Replace the file atomically, readable by its owner only."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as written:
        tomlkit.dump({"keys": [key.model_dump() for key in keys]}, written)
    draft.replace(path)
