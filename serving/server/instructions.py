"""What a server tells its workers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from serving.config import ServingConfig

INSTRUCTIONS_FILE = "told.json"
"""Where the workers of one server find their instructions, in the folder where they meet."""
_PATHS = ("bundle", "shared", "copies")


@dataclass(frozen=True)
class WorkerInstructions:
    """What a server and its workers are told.

    It holds the password of the database. So it is never in the environment, which is handed on to every child, often
    written into reports of crashes, and shown by /proc: the server reads it from a file without a name, the workers
    from one that only its owner may read, in the folder where they meet.

    Attributes:
        bundle: What to serve.
        settings: What the operator decides.
        alias: The alias that the bundle follows. None: it is a folder or a link.
        shared: The folder where the workers meet. None: there is none yet.
        copies: The folder for copies of what is served. None: there is none yet.
        greeting: What is said on the terminal once the port listens.
    """

    bundle: Path
    settings: ServingConfig
    alias: str | None = None
    shared: Path | None = None
    copies: Path | None = None
    greeting: str = ""

    @classmethod
    def read(cls, file: Path | int) -> WorkerInstructions:
        """Return what a file says.

        Args:
            file: Its path, or an open descriptor, which is closed.
        """
        with open(file, "rb") as opened:  # noqa: PTH123 (a descriptor has no path)
            content = json.loads(opened.read())
        bundle, shared, copies = (path and Path(path) for path in (content[name] for name in _PATHS))
        settings = ServingConfig.model_validate(content["settings"])
        return cls(bundle, settings, content["alias"], shared, copies, content["greeting"])

    def write(self, file: int) -> None:
        """Write it into an open descriptor."""
        settings = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self.settings.model_dump().items()
        }
        paths = {name: str(path) if (path := getattr(self, name)) else None for name in _PATHS}
        content = {"settings": settings, "alias": self.alias, "greeting": self.greeting, **paths}
        with os.fdopen(os.dup(file), "wb") as opened:
            opened.write(json.dumps(content).encode())
