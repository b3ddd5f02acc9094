"""MLflow's stores for tests: a new one is a copy of the first of its process, because to make one takes seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path


def copy_new_stores() -> None:
    """Let each store but the first be a copy from now on."""
    from towers.tracking import store

    make, content = store._make_store, b""

    def copy(path: Path) -> None:
        nonlocal content
        if content:
            path.write_bytes(content)
        else:
            make(path)
            content = path.read_bytes()

    store._make_store = copy


def make_first_store() -> None:
    """Make the first one now, for the processes that are forked from this one."""
    from towers.tracking import store

    with tempfile.TemporaryDirectory() as folder:
        store.make_client(f"sqlite:///{folder}/mlflow.db")
