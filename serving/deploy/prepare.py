"""Makes a bundle ready to be served: verifies it, and builds its index if there is none."""

from __future__ import annotations

from pathlib import Path

from serving.config import ServingConfig
from serving.snapshot.collection import check_collection
from serving.snapshot.manifest import FOLDER, NAME, IndexManifest
from towers.bundle.manifest import Manifest, verify


def ensure_index(bundle: Path, settings: ServingConfig | None = None) -> Manifest:
    """Verify a bundle and its index, which is built first if there is none, and return the manifest of the bundle.

    Args:
        bundle: The folder of the bundle.
        settings: The settings of the service. None: the defaults.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: There is no index and the tables cannot be read, the index cannot be signed, or the vector database
            has no collection that fits.
        UnavailableError: The vector database does not answer, and the operator wants no other answer.
    """
    settings = settings or ServingConfig()
    manifest = verify(bundle, settings.trust)
    if not (bundle / FOLDER / NAME).exists():
        from serving.jobs.open import open_recommender

        open_recommender(bundle, settings)
    index = IndexManifest.read(bundle / FOLDER, manifest, settings.trust.keys)
    if settings.database is not None:
        check_collection(settings.database, index)
    return manifest
