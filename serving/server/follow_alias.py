"""Follows an alias of the model registry beside the workers of a server, in a process of its own."""

from __future__ import annotations

import logging
import logging.config
import os
import signal
import sys
from pathlib import Path

from serving.deploy.mlflow_registry import Alias, follow
from serving.observability import logs
from serving.server.told import WorkerInstructions


def main(told: str, server: str) -> None:
    """Follow the alias that a server was told, as long as that lives; Ctrl-C is for the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = WorkerInstructions.read(Path(told))
    logging.config.dictConfig(logs.configuration(given.settings.log_format))
    alias = Alias.parse(given.alias or "")
    assert alias is not None, f"{given.alias} is no alias"
    follow(alias, given.settings, lambda: str(os.getppid()) == server)


if __name__ == "__main__":
    main(*sys.argv[1:])
