"""Follows an alias of the model registry, in a separate process next to the workers of a server."""

from __future__ import annotations

import logging
import logging.config
import os
import signal
import sys
from pathlib import Path

from serving.deploy.mlflow_registry import Alias, follow
from serving.observability import logs
from serving.server.instructions import WorkerInstructions


def main(path: str, server_pid: str) -> None:
    """Follow the alias of a server as long as the server runs; Ctrl-C is left to the server.

    Args:
        path: The file with the instructions.
        server_pid: The server's process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    instructions = WorkerInstructions.read(Path(path))
    logging.config.dictConfig(logs.configuration(instructions.settings.log_format))
    alias = Alias.parse(instructions.alias or "")
    assert alias is not None, f"{instructions.alias} is not an alias"
    follow(alias, instructions.settings, lambda: str(os.getppid()) == server_pid)


if __name__ == "__main__":
    main(*sys.argv[1:])
