"""The manifest of an index folder, `manifest.json`: the model that built it, its parameters, and its files' checksums.

An index built with other weights returns plausible but wrong results, which nothing in its format would reveal. So the
manifest has the digest of the weights, and all checksums are verified before a file is read.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from pydantic import Field, ValidationError

from features.settings import StrictTable
from serving.search.index_config import IndexConfig
from towers.bundle.private_copies import PrivateCopies
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import SealedFolder, read_manifest, said_of
from towers.bundle.sealed_folder import seal as seal_files
from towers.bundle.signature import sign, signing_key

FORMAT_VERSION = 4
NAME = "manifest.json"
FOLDER = "index"
"""Name of the index folder within a bundle."""

_LIBRARIES = ("numpy", "pandas", "pyarrow", "safetensors", "torch")


class Weights(Protocol):
    """A bundle, or only its manifest."""

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""

    @property
    def version(self) -> str:
        """A short name of the weights."""


class LogOffset(StrictTable):
    """The part of a log of live writes that is contained in an index."""

    log_id: str
    """Identity of the log."""
    position: int
    """Position of the last contained record."""


class PrecomputedInfo(StrictTable):
    """The parameters of precomputed recommendations."""

    depth: int
    """Number of items per user."""
    seen_items: str
    """Label of the policy for seen items that they were computed with."""


class IndexManifest(StrictTable):
    """The content of an index's `manifest.json`."""

    format_version: int
    """Format of the folder; this version reads 4."""
    weights_digest: str
    """SHA-256 of the model weights that encoded the vectors."""
    model: str
    """The model's version, as in responses."""
    catalog_digest: str
    """SHA-256 of the catalogue's content."""
    plan: IndexConfig
    """Kind and parameters of the index."""
    recall_at_100: float
    """Recall@100, 0 to 1, measured when the index was built."""
    recall_wanted: float | None
    """The recall that it was tuned for; None: it was not tuned."""
    recall_users: int
    """Number of users that recall was measured with; 0 if no users are known and items were used."""
    num_items: int
    """Number of items in the catalogue."""
    num_users: int
    """Number of known users."""
    num_interactions: int
    """Number of events in their histories."""
    width: int
    """Dimension of the vectors."""
    newest_event: float | None = None
    """Time of the newest event in Unix seconds; None if the tables have no times."""
    trend_until: float | None = None
    """Moment of the items' recent popularity in Unix seconds; None: the model reads none."""
    live: LogOffset | None = None
    """The part of the log of live writes that the index contains; None: no log was compacted into it."""
    precomputed: PrecomputedInfo | None = None
    """Parameters of the precomputed recommendations; None: there are none."""
    created: str
    """Time of creation, ISO 8601 in UTC."""
    libraries: dict[str, str]
    """Versions of the libraries that wrote it."""
    files: dict[str, dict[str, int | str]] = Field(default_factory=dict)
    """Size in bytes and SHA-256 of every other file of the folder, by name."""

    @classmethod
    def of(
        cls,
        bundle: Weights,
        *,
        catalog_digest: str,
        plan: IndexConfig,
        recall_at_100: float,
        recall_wanted: float | None,
        recall_users: int,
        num_items: int,
        num_users: int,
        num_interactions: int,
        width: int,
        newest_event: float | None = None,
        trend_until: float | None = None,
        live: LogOffset | None = None,
    ) -> IndexManifest:
        """Return the manifest of an index that `bundle` builds now; checksums are added when it is written."""
        return cls(
            format_version=FORMAT_VERSION,
            weights_digest=bundle.weights_digest,
            model=bundle.version,
            catalog_digest=catalog_digest,
            plan=plan,
            recall_at_100=recall_at_100,
            recall_wanted=recall_wanted,
            recall_users=recall_users,
            num_items=num_items,
            num_users=num_users,
            num_interactions=num_interactions,
            width=width,
            newest_event=newest_event,
            trend_until=trend_until,
            live=live,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            libraries={name: version(name) for name in _LIBRARIES},
        )

    @property
    def version(self) -> str:
        """A short name of the index: the first 12 digits of the digest of the manifest."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def identity(self) -> str:
        """A short name of what was indexed, the same before and after the folder is written: without the files."""
        return self.model_copy(update={"files": {}}).version

    @property
    def events_until(self) -> float:
        """Unix seconds until which events received by a log are considered to be in the tables; 0: none are."""
        created = datetime.fromisoformat(self.created).timestamp()
        return 0.0 if self.newest_event is None else min(self.newest_event, created)

    @classmethod
    def identity_in(cls, folder: Path) -> str | None:
        """Return the identity of the index in a folder, unverified; None if there is none that can be read."""
        try:
            return cls.model_validate_json((folder / NAME).read_bytes()).identity
        except (OSError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Write the manifest with checksums of the files in `folder`, signed if the environment names a key."""
        sealed = self.model_copy(update={"files": seal_files(folder)})
        (folder / NAME).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
        sign(folder / NAME, signing_key())

    @classmethod
    def read(cls, folder: Path, bundle: Weights, trusted_keys: Path | None = None) -> IndexManifest:
        """Return the manifest of an index after verifying its checksums, and that `bundle` built it.

        Args:
            folder: The folder of the index.
            bundle: The bundle that it must belong to.
            trusted_keys: File of public keys, one of which must have signed it. None: no signature is required.

        Raises:
            BundleError: The index cannot be used; names the cause, and the command to rebuild it.
        """
        return cls.open(folder, bundle, trusted_keys=trusted_keys)[0]

    @classmethod
    def open(
        cls, folder: Path, bundle: Weights, copies: PrivateCopies | None = None, trusted_keys: Path | None = None
    ) -> tuple[IndexManifest, SealedFolder]:
        """Return the manifest of an index and its files, after verifying checksums, and that `bundle` built it.

        Args:
            folder: The folder of the index.
            bundle: The bundle that it must belong to.
            copies: Folder to which its files are copied before they are read. None: they are read in place.
            trusted_keys: File of public keys, one of which must have signed it. None: no signature is required.

        Raises:
            BundleError: The index cannot be used; names the cause, and the command to rebuild it.
        """
        manifest, remedy = cls._parse(folder, trusted_keys), cls.remedy(folder.parent)
        if manifest.weights_digest != bundle.weights_digest:
            raise BundleError(
                f"{folder}: built with other weights (digest {manifest.weights_digest[:12]}) than those of the "
                f"model in {folder.parent} (digest {bundle.weights_digest[:12]}); {remedy}"
            )
        try:
            return manifest, SealedFolder.open(folder, manifest.files, copies)
        except ValueError as error:
            raise BundleError(f"{folder}: {error}; {remedy}") from None

    @staticmethod
    def remedy(bundle_path: Path) -> str:
        """Return the instruction to rebuild an index, for messages."""
        return f"rebuild the index with `towers index {bundle_path}`"

    @classmethod
    def _parse(cls, folder: Path, trusted_keys: Path | None) -> IndexManifest:
        path, remedy = folder / NAME, cls.remedy(folder.parent)
        try:
            content = read_manifest(folder, trusted_keys)
        except BundleError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{path}: no such file, so there is no index; {remedy}") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read ({said_of(error)}); {remedy}") from None
        found = content.get("format_version")
        if isinstance(found, int) and found != FORMAT_VERSION:
            age, upgrade = ("a newer", "upgrade, or ") if found > FORMAT_VERSION else ("an older", "")
            raise BundleError(
                f"{path}: format {found}, written by {age} version of two-towers (this version reads format "
                f"{FORMAT_VERSION}); {upgrade}{remedy}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{path}: {where}: {first['msg'].lower()}; {remedy}") from None
