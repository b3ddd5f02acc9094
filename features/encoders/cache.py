"""Vectors that were made before, on disk: one file for each model, vectors by the hash of their text.

Each batch is written as it comes, so that work that was interrupted goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from features.encoders.model import Role

AT_ONCE = 900
"""Texts looked up in one statement; SQLite takes about a thousand parameters."""


class CacheError(OSError):
    """Cached vectors cannot be written or read; they can be computed again."""


def cache_folder() -> Path:
    """Return where vectors are kept: TOWERS_CACHE, else `two-towers` in the user's cache folder."""
    own = os.environ.get("TOWERS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else base / "two-towers"


class VectorCache:
    """The vectors of one model.

    Args:
        fingerprint: Of the model.
        folder: Where the file is.
    """

    def __init__(self, fingerprint: str, folder: Path) -> None:
        self.path = folder / "vectors" / f"{fingerprint}.sqlite"

    def get(self, texts: Sequence[str], role: Role) -> dict[str, Float32[np.ndarray, "width"]]:
        """Return the vectors that are there, by text."""
        found: dict[str, np.ndarray] = {}
        by_key = {_key(text, role): text for text in texts}
        keys = list(by_key)
        with self._open() as file:
            for begin in range(0, len(keys), AT_ONCE):
                asked = keys[begin : begin + AT_ONCE]
                marks = ",".join("?" * len(asked))
                question = f"SELECT key, vector FROM vectors WHERE key IN ({marks})"  # noqa: S608 (question marks only)
                for key, vector in file.execute(question, asked):
                    found[by_key[key]] = np.frombuffer(vector, dtype="<f4").astype(np.float32)
        return found

    def put(self, texts: Sequence[str], role: Role, vectors: Float32[np.ndarray, "texts width"]) -> None:
        """Keep the vectors of some texts."""
        rows = [(_key(text, role), vector.astype("<f4").tobytes()) for text, vector in zip(texts, vectors, strict=True)]
        with self._open() as file:
            file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            file.commit()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as file:
                file.execute("PRAGMA journal_mode=WAL")
                file.execute("PRAGMA synchronous=NORMAL")
                file.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
                yield file
        except (sqlite3.Error, OSError) as error:
            raise CacheError(f"{self.path}: {error}") from None


def _key(text: str, role: Role) -> bytes:
    return hashlib.sha256(f"{role}\0{text}".encode("utf-8", "surrogatepass")).digest()
