"""A bundle that is ready to be served: verified, with an index."""

from __future__ import annotations

from pathlib import Path

from serving.config import ServingConfig
from serving.snapshot.manifest import FOLDER, NAME, IndexManifest
from towers.bundle.manifest import Manifest, verify


def ensure_index(bundle: Path, settings: ServingConfig | None = None) -> Manifest:
    """Verify a bundle and its index, which is made first if there is none, and return the manifest of the bundle.

    Args:
        bundle: The bundle.
        settings: What it is trusted with. None: the defaults.

    Raises:
        BundleError: One of them cannot be used.
        DataError: There is no index and the tables cannot be read, or it could not be signed.
    """
    settings = settings or ServingConfig()
    manifest = verify(bundle, settings.trust)
    if not (bundle / FOLDER / NAME).exists():
        from serving.jobs.open import open_recommender

        open_recommender(bundle, settings)
    IndexManifest.read(bundle / FOLDER, manifest, settings.trust.keys)
    return manifest
