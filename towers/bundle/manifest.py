"""The manifest of a bundle, `manifest.json`: its origin, and the size and digest of each file.

It is read and verified without the libraries that read the rest, so that a service can be started at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import DataError
from towers.bundle.private_copies import PrivateCopies
from towers.bundle.sealed_file import BundleError as BundleError
from towers.bundle.sealed_folder import MANIFEST as MANIFEST
from towers.bundle.sealed_folder import SealedFolder, read_manifest, said_of
from towers.bundle.signature import sign
from towers.bundle.trust import DEFAULT_TRUST, Trust

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT_VERSION = 3
WEIGHTS = "model.safetensors"
COLUMNS = "columns.json"
_KINDS = {"tables_folder": str, "libraries": dict, "digests": dict, "primary_metric": dict, "files": dict}
_MOST_VERSION = 40


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

    @property
    def made_with(self) -> str:
        """Version of two-towers that wrote it."""
        return _version_in(self.libraries)


def verify(path: Path, trust: Trust = DEFAULT_TRUST) -> Manifest:
    """Return the manifest of a bundle whose every file is as it was written, and that may be opened here.

    Args:
        path: The bundle.
        trust: What the operator trusts it with.

    Raises:
        BundleError: It is not, or is not signed by a trusted key, or would send texts or keys where they may not go.
    """
    manifest, folder = open_bundle(path, trusted_keys=trust.keys)
    try:
        trust.remote.check_all(folder.root / "encoders", folder.names("encoders"))
    except DataError as error:
        raise BundleError(f"{path}: {error}") from None
    return manifest


def open_bundle(
    path: Path, copies: PrivateCopies | None = None, trusted_keys: Path | None = None
) -> tuple[Manifest, SealedFolder]:
    """Return the manifest of a bundle, and its folder, whose every file is as it was written.

    Args:
        path: The bundle.
        copies: Where its files are copied to, and read from then on. None: they are read where they lie.
        trusted_keys: File of public keys, one of which must have signed it. None: no signature is needed.

    Raises:
        BundleError: It is not, or is not signed by one of these keys.
    """
    remedy = "train again, or copy the whole folder again from where it was made"
    try:
        manifest = _parsed(path, read_manifest(path, trusted_keys))
    except BundleError:
        raise
    except FileNotFoundError:
        if not path.exists():
            raise BundleError(f"{path}: no such bundle; `towers train run.toml` writes one") from None
        raise BundleError(
            f"{path}: not a bundle, it has no {MANIFEST}; give a folder that `towers train` wrote"
        ) from None
    except NotADirectoryError:
        raise BundleError(
            f"{path}: expected the folder that `towers train` writes, found a file; give the folder"
        ) from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: {MANIFEST} is damaged ({said_of(error)}); {remedy}") from None
    needed = {"run.toml", "schema.json", COLUMNS, WEIGHTS, "report.json"} - manifest.files.keys()
    if needed:
        raise BundleError(f"{path}: {min(needed)} is not in {MANIFEST}; {remedy}")
    try:
        return manifest, SealedFolder.open(path, manifest.files, copies)
    except ValueError as error:
        raise BundleError(f"{path}: {error}; {remedy}") from None


def _parsed(path: Path, content: dict[str, Any]) -> Manifest:
    found = content["format_version"]
    if found != FORMAT_VERSION:
        raise BundleError(
            f"{path}: expected bundle format {FORMAT_VERSION}, found {str(found)[:40]}; train again with this version "
            f"of towers, or install two-towers {_version_in(content.get('libraries'))}"
        )
    manifest = Manifest(**content)
    for name, kind in _KINDS.items():
        if not isinstance(getattr(manifest, name), kind):
            raise ValueError(f"{name}: expected {kind.__name__}, found {type(getattr(manifest, name)).__name__}")
    if not isinstance(manifest.digests.get("weights"), str):
        raise ValueError("digests: there is none of the weights")
    return manifest


def _version_in(libraries: object) -> str:
    found = libraries.get("two-towers") if isinstance(libraries, dict) else None
    return found if isinstance(found, str) and len(found) < _MOST_VERSION and found.isprintable() else "of its time"


def sign_bundle(path: Path, key: Ed25519PrivateKey) -> list[Path]:
    """Sign a bundle, and what was written into it later (its index, its ranker), and return the folders.

    All of them are verified before the first is signed.

    Raises:
        BundleError: One of them is damaged.
    """
    open_bundle(path)
    later = sorted(manifest.parent for manifest in path.glob(f"*/{MANIFEST}"))
    for folder in later:
        try:
            SealedFolder.open(folder, read_manifest(folder).get("files"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder}: {said_of(error)}; make it again before you sign it") from None
    for folder in (path, *later):
        sign(folder / MANIFEST, key)
    return [path, *later]
