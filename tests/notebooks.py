"""Runs the notebooks as a reader would: `python -m tests.notebooks` stores their outputs.

python -m tests.notebooks 03 05                                # of some of them
SHOP=small python -m tests.notebooks --output /tmp/larger      # on a larger shop, beside those that are stored
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.running import environment

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 1_800
"""How long one cell may take."""


def read(path: Path) -> NotebookNode:
    """Return a notebook."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def executed(path: Path, folder: Path, **options: Any) -> NotebookNode:
    """Return a notebook with the outputs of a run from its first cell to its last.

    Args:
        path: The notebook; it is not changed.
        folder: Where it runs and writes its models.
        **options: Of `NotebookClient`.
    """
    notebook = read(path)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=SECONDS, record_timing=False, resources=resources, **options)
    client.execute(env=environment(TMPDIR=str(folder), no_proxy="127.0.0.1"))
    notebook.metadata.language_info = NotebookNode(name="python")  # and not the version that it happened to be
    return notebook


def main() -> None:
    """Run the notebooks whose names begin as said, all without a name, and write them with their outputs."""
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks")
    parser.add_argument("names", nargs="*", help="how the name of a notebook begins, such as 03; all without a name")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to write them to (default: notebooks)")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for path in NOTEBOOKS:
        if path.name.startswith(tuple(given.names or [""])):
            began = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="two-towers-") as folder:
                nbformat.write(executed(path, Path(folder)), given.output / path.name)
            print(f"{given.output / path.name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
