"""The file through which a server passes the bundle and the settings to its workers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from serving.config import ServingConfig

INSTRUCTIONS_FILE = "instructions.json"
"""Name of the file in the folder that the workers of one server share."""
_PATHS = ("bundle", "shared", "copies")


@dataclass(frozen=True)
class WorkerInstructions:
    """The bundle, settings and folders of a server and its workers.

    The settings may include the password of the database. So they are not passed by the environment, which every child
    inherits, crash reports often include, and /proc shows: the server reads them from an unnamed file in memory, the
    workers from a file in the shared folder that only its owner may read.

    Attributes:
        bundle: The folder of the bundle, or a link to it.
        settings: The operator's settings.
        alias: The alias that the bundle follows. None: the bundle is a folder or a link.
        shared: The folder that the workers share. None: not created yet.
        copies: The folder for private copies of the served files. None: not created yet.
        greeting: Printed on the terminal once the server accepts connections.
    """

    bundle: Path
    settings: ServingConfig
    alias: str | None = None
    shared: Path | None = None
    copies: Path | None = None
    greeting: str = ""

    @classmethod
    def read(cls, file: Path | int) -> WorkerInstructions:
        """Read the instructions from a file.

        Args:
            file: A path, or an open descriptor, which is closed.
        """
        with open(file, "rb") as opened:  # noqa: PTH123 (a descriptor has no path)
            content = json.loads(opened.read())
        bundle, shared, copies = (path and Path(path) for path in (content[name] for name in _PATHS))
        settings = ServingConfig.model_validate(content["settings"])
        return cls(bundle, settings, content["alias"], shared, copies, content["greeting"])

    def write(self, file: int) -> None:
        """Write the instructions to an open descriptor, which stays open."""
        settings = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self.settings.model_dump().items()
        }
        paths = {name: str(path) if (path := getattr(self, name)) else None for name in _PATHS}
        content = {"settings": settings, "alias": self.alias, "greeting": self.greeting, **paths}
        with os.fdopen(os.dup(file), "wb") as opened:
            opened.write(json.dumps(content).encode())
