"""The notebooks run from the first cell to the last, and are kept without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.running import environment

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SAID = {
    "01-from-tables-to-recommendations": ("two towers reaches", "(77): popular items", "recommended"),
    "02-search-duplicates-clusters-audit": ("pairs above 0.8 in", "slices by", "image/png"),
}
"""What a reader of each must find."""
PROGRESS = re.compile(
    r"|note: .*|[\d,]+ interactions of .*|leave-one-out, seed 0: .*|epoch +loss .*| +\d+ [ .\d*,]+|"
    r".*: (100|\d\d?)%\|.*| *[\d,]+ s  .*|evaluating .*|choosing .*"
)
"""A line that training prints about its progress."""


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*", "ignore::DeprecationWarning:zmq.*")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_quietly_from_the_first_cell_to_the_last(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment(TMPDIR=str(tmp_path)))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert [line for line in errors.splitlines() if not PROGRESS.fullmatch(line)] == []
    said = "".join(output.get("text", "") + str(output.get("data", "")) for output in outputs)
    for words in SAID[path.stem]:
        assert words in said
    assert not list(tmp_path.glob("two-towers-*")), "it removes what it made"
