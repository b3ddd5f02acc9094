"""What the operator allows bundles to do; they may come from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from features.encoders.policy import NOTHING, RemotePolicy, origins_of
from features.errors import DataError


@dataclass(frozen=True)
class Trust:
    """By default no signature is required, and bundles cannot access the network.

    Attributes:
        remote: The services that its encoders may send texts and keys to.
        keys: File of the public keys of which one must have signed it, its index and its ranker. None: none need have.
    """

    remote: RemotePolicy = NOTHING
    keys: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Trust:
        """Read the environment variables of the settings of the same names in serving.toml.

        Raises:
            DataError: An entry is not a host.
        """
        given = os.environ if environment is None else environment

        def listed(name: str) -> tuple[str, ...]:
            return tuple(entry.strip() for entry in given.get(name, "").split(",") if entry.strip())

        hosts, keys = listed("TOWERS_ENCODER_HOSTS"), given.get("TOWERS_TRUSTED_KEYS")
        for host in hosts:
            try:
                origins_of(host)
            except ValueError as error:
                raise DataError(f"environment: TOWERS_ENCODER_HOSTS: {error}") from None
        return cls(RemotePolicy(hosts, listed("TOWERS_ENCODER_KEY_VARIABLES")), Path(keys) if keys else None)


DEFAULT_TRUST = Trust()
