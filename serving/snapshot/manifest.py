"""The seal of an index folder: `manifest.json`, which says what made it and what each file must be.

An index of other weights gives answers that look plausible and are wrong, and nothing in its shape would show it. So
the seal holds the digest of the weights, and nothing is read before every file has proved to be the one that was
written.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from pydantic import Field, ValidationError

from features.config import StrictTable
from serving.search.index_config import IndexConfig
from towers.bundle.private_copies import PrivateCopies
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import SealedFolder, read_manifest, said_of
from towers.bundle.sealed_folder import seal as seal_files
from towers.bundle.signature import sign, signing_key

FORMAT_VERSION = 3
NAME = "manifest.json"
FOLDER = "index"
"""Where it is in a bundle."""

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
    """How much of a log of live writes is in the tables that an index was made of."""

    log_id: str
    """Which log."""
    position: int
    """Its last record that is in them."""


class PrecomputedInfo(StrictTable):
    """What is listed of each user before anybody asks."""

    depth: int
    """Items for each."""
    seen_items: str
    """Label of the policy for seen items that they were made with."""


class IndexManifest(StrictTable):
    """What is said of an index on disk."""

    format_version: int
    """Of the folder; this version reads 3."""
    weights_digest: str
    """SHA-256 of the model weights that made the vectors."""
    model: str
    """The model's version, as answers name it."""
    catalog_digest: str
    """SHA-256 of the catalogue's content."""
    plan: IndexConfig
    """How the index searches: its kind and parameters."""
    recall_at_100: float
    """The share of the true best 100 of each user that it found when it was built."""
    recall_wanted: float | None
    """The recall that it was tuned for; None: it was not tuned."""
    recall_users: int
    """How many users this was measured with; 0 where nobody is known, and items stood in for them."""
    num_items: int
    """Items in the catalogue."""
    num_users: int
    """Known users."""
    num_interactions: int
    """Events in their histories."""
    width: int
    """Numbers in a vector."""
    newest_event: float | None = None
    """When the newest of them was, in Unix seconds; None where the tables have no times."""
    live: LogOffset | None = None
    """What of the log of live writes is in it; None: nothing was folded in."""
    shortlists: PrecomputedInfo | None = None
    """The shortlists of users; None: there are none."""
    created: str
    """When, ISO 8601 in UTC."""
    libraries: dict[str, str]
    """Versions of what wrote it."""
    files: dict[str, dict[str, int | str]] = Field(default_factory=dict)
    """Bytes and SHA-256 of every other file of the folder, by name."""

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
        live: LogOffset | None = None,
    ) -> IndexManifest:
        """Return the seal of an index that `bundle` makes now; its files are sealed when they are written."""
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
            live=live,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            libraries={name: version(name) for name in _LIBRARIES},
        )

    @property
    def version(self) -> str:
        """A short name of the index: the first 12 digits of the digest of all that is said of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def events_until(self) -> float:
        """Until when events that a log received are taken to be in the tables, in Unix seconds; 0: none are."""
        created = datetime.fromisoformat(self.created).timestamp()
        return 0.0 if self.newest_event is None else min(self.newest_event, created)

    def write(self, folder: Path) -> None:
        """Write the seal over the files that are in `folder`, signed where the environment names a key."""
        sealed = self.model_copy(update={"files": seal_files(folder)})
        (folder / NAME).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
        sign(folder / NAME, signing_key())

    @classmethod
    def read(cls, folder: Path, bundle: Weights, trusted_keys: Path | None = None) -> IndexManifest:
        """Return the seal of `folder`, which is in `bundle`, after proving that it belongs there and is intact.

        Args:
            folder: The index.
            bundle: Whose index it is to be.
            trusted_keys: File of public keys, one of which must have signed it. None: no signature is needed.

        Raises:
            BundleError: Says what is wrong and how to make the index anew.
        """
        return cls.open(folder, bundle, trusted_keys=trusted_keys)[0]

    @classmethod
    def open(
        cls, folder: Path, bundle: Weights, copies: PrivateCopies | None = None, trusted_keys: Path | None = None
    ) -> tuple[IndexManifest, SealedFolder]:
        """Return the seal of `folder` and its files, after proving that they belong there and are intact.

        Args:
            folder: The index.
            bundle: What it is in.
            copies: Where its files are copied to, and read from then on. None: they are read where they lie.
            trusted_keys: File of public keys, one of which must have signed it. None: no signature is needed.

        Raises:
            BundleError: Says what is wrong and how to make the index anew.
        """
        seal, remedy = cls._parse(folder, trusted_keys), cls.remedy(folder.parent)
        if seal.weights_digest != bundle.weights_digest:
            raise BundleError(
                f"{folder}: made from other weights (digest {seal.weights_digest[:12]}) than the model in "
                f"{folder.parent} (digest {bundle.weights_digest[:12]}); {remedy}"
            )
        try:
            return seal, SealedFolder.open(folder, seal.files, copies)
        except ValueError as error:
            raise BundleError(f"{folder}: {error}; {remedy}") from None

    @staticmethod
    def remedy(bundle_path: Path) -> str:
        """Return how an index is made anew."""
        return f"make the index anew with `towers index {bundle_path}`"

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
            age, cure = ("a newer", "upgrade, or ") if found > FORMAT_VERSION else ("an older", "")
            raise BundleError(
                f"{path}: format {found}, written by {age} two-towers (this one reads {FORMAT_VERSION}); {cure}{remedy}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{path}: {where}: {first['msg'].lower()}; {remedy}") from None
