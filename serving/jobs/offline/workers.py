"""What workers on other machines are given, and what they check."""

from __future__ import annotations

import socket
from pathlib import Path

from serving.config import ServingConfig
from towers.bundle.sealed_file import BundleError


def settings_of_workers(settings: ServingConfig) -> ServingConfig:
    """Return the settings without secrets, which such jobs do not need, and with paths that any folder can read."""
    keys = None if settings.trusted_keys is None else str(Path(settings.trusted_keys).absolute())
    secrets = {"live": None, "index": None, "index_key": None, "request_log_key": None}
    return settings.model_copy(update={**secrets, "trusted_keys": keys})


def check_same(bundle: Path, *, found: str, expected: str) -> None:
    """Check that a worker found what the job was started with.

    Raises:
        BundleError: It found something else.
    """
    if found != expected:
        raise BundleError(
            f"{bundle} on {socket.gethostname()}: found {found}, expected {expected}; all machines need the same folder"
        )
