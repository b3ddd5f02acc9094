"""The seal of a bundle: `manifest.json`, which says what made it and what each file must be.

It is read and verified without the libraries that read the rest, so that a service can be started at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.files import sha256

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"


class BundleError(ValueError):
    """A bundle or an index cannot be used as it is; the message says why, where and what to do, in one line."""


@dataclass(frozen=True)
class Manifest:
    """The seal of a bundle.

    Attributes:
        format_version: Of the layout of the folder.
        created: When it was written, ISO 8601, UTC.
        tables_folder: What the paths in run.toml were relative to.
        libraries: The versions it was made with.
        digests: SHA-256 of the configuration, the tables and the weights.
        primary_metric: Name and value of the metric the weights were selected by.
        files: Bytes and SHA-256 of each file, by path in the folder.
    """

    format_version: int
    created: str
    tables_folder: str
    libraries: dict[str, str]
    digests: dict[str, str]
    primary_metric: dict[str, float]
    files: dict[str, dict[str, Any]]

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""
        return self.digests["weights"]

    @property
    def version(self) -> str:
        """A short name of the weights: the first 12 digits of their digest."""
        return self.weights_digest[:12]


def seal(folder: Path) -> dict[str, dict[str, Any]]:
    """Return bytes and SHA-256 of every file below `folder`, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def broken_seal(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return what is wrong with the first file that is not as it was sealed; None if all are."""
    for name, sealed in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != sealed["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, expected {sealed['bytes']:,}"
        if sha256(path) != sealed["sha256"]:
            return f"{name} was changed after it was written"
    return None


def verify(path: Path) -> Manifest:
    """Return the manifest of a bundle whose every file is as it was written.

    Raises:
        BundleError: It is not.
    """
    remedy = "train again, or copy the whole folder again from where it was made"
    if not path.exists():
        raise BundleError(f"{path}: no such bundle; `towers train run.toml` writes one")
    if not path.is_dir():
        raise BundleError(f"{path}: expected the folder that `towers train` writes, found a file; give the folder")
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path}: not a bundle, it has no {MANIFEST}; give a folder that `towers train` wrote")
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found = content["format_version"]
        if found != FORMAT_VERSION:
            raise BundleError(
                f"{path}: expected bundle format {FORMAT_VERSION}, found {found}; train again with this version of "
                f"towers, or install two-towers {content.get('libraries', {}).get('two-towers', 'of its time')}"
            )
        manifest = Manifest(**content)
        broken = broken_seal(path, manifest.files)
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: {MANIFEST} is damaged ({error}); {remedy}") from None
    needed = {"run.toml", "schema.json", WEIGHTS, "report.json"} - manifest.files.keys()
    if broken or needed:
        raise BundleError(f"{path}: {broken or f'{min(needed)} is not in {MANIFEST}'}; {remedy}")
    return manifest
