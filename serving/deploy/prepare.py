"""Makes a bundle ready to be served: verifies it, and builds its index if there is none."""

from __future__ import annotations

from pathlib import Path

from serving.config import ServingConfig
from serving.snapshot.manifest import FOLDER, NAME, IndexManifest
from towers.bundle.manifest import Manifest, verify


def ensure_index(bundle: Path, settings: ServingConfig | None = None) -> Manifest:
    """Verify a bundle and its index, which is built first if there is none, and return the manifest of the bundle.

    Args:
        bundle: The folder of the bundle.
        settings: The settings of the service, of which its `trust` counts. None: the defaults.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: There is no index and the tables cannot be read, or the index cannot be signed.
    """
    settings = settings or ServingConfig()
    manifest = verify(bundle, settings.trust)
    if not (bundle / FOLDER / NAME).exists():
        from serving.jobs.open import open_recommender

        open_recommender(bundle, settings)
    IndexManifest.read(bundle / FOLDER, manifest, settings.trust.keys)
    return manifest
