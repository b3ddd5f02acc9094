"""Fetching the files of a data set from its publisher, checked, kept for the next time, or explained by hand."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from features.errors import DataError
from features.files import atomic_file

TIMEOUT_SECONDS = 30
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Original:
    """A file at its publisher's.

    Attributes:
        url: Where it is.
        md5: Its published checksum, in hexadecimal; None if there is none.
        has_md5_beside: Whether the publisher keeps the checksum at the same address with `.md5` behind it.
    """

    url: str
    md5: str | None = None
    has_md5_beside: bool = False

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


def cache_folder() -> Path:
    """Return where downloads are kept: `$XDG_CACHE_HOME/two-towers`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "two-towers"


def download(original: Original, folder: Path) -> Path:
    """Return the file in `folder`, after downloading it if necessary.

    Raises:
        DataError: The publisher cannot be reached, or what came does not have the published checksum.
    """
    path = folder / original.name
    if path.exists():
        return path
    by_hand = "fetch it by hand and give the folder it is in with --from"
    try:
        expected = original.md5 or (_md5_beside(original) if original.has_md5_beside else None)
        with atomic_file(path) as partial:
            found = _fetch(original.url, partial)
            if expected is not None and found != expected:
                raise DataError(f"{original.url}: expected MD5 {expected}, found {found}; try again, or {by_hand}")
            if path.suffix == ".zip" and not zipfile.is_zipfile(partial):
                raise DataError(f"{original.url}: what came is not a zip; {by_hand}")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise DataError(f"{original.url}: cannot be fetched ({reason}); {by_hand}") from None
    return path


def _fetch(url: str, path: Path) -> str:
    """Download a file, and return its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)  # noqa: S310 (https, written in this package)
    with request as answer, path.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, unit="B", unit_scale=True, desc=url.rpartition("/")[2], file=sys.stderr) as bar:
            while block := answer.read(_BLOCK_BYTES):
                digest.update(block)
                file.write(block)
                bar.update(len(block))
        if size and file.tell() != size:
            raise ConnectionError(f"{file.tell():,} of {size:,} bytes came")
    return digest.hexdigest()


def _md5_beside(original: Original) -> str | None:
    """Return the checksum that the publisher offers with the file, None if it cannot be read."""
    address = f"{original.url}.md5"
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 (as above)
        found = re.search(r"\b[0-9a-fA-F]{32}\b", answer.read(4096).decode("ascii", errors="replace"))
    return found[0].lower() if found else None
