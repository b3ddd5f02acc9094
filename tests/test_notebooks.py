"""Each notebook asks one question, is stored with the outputs of a run, and runs from the first cell to the last."""

from __future__ import annotations

import ast
import re
import sys

import pytest

import towers
from tests.notebooks import FOLDER, NOTEBOOKS, executed, read
from tests.warm import warm_kernels

MOST_BYTES = 200_000
MOST_LINES = 32
"""Of a cell."""
LIBRARIES = {"matplotlib", "numpy", "pandas"}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def codes(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """The kinds of a cell's outputs, each once: text that comes in two pieces is text."""
    return {kind for output in cell.outputs for kind in (output.get("data") or {"stream": 0})}


def test_they_are_numbered_and_each_is_linked_from_the_documentation():
    assert [path.stem.partition("-")[0] for path in NOTEBOOKS] == [f"0{number}" for number in range(1, 8)]
    guide = (FOLDER.parent / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS] == re.findall(r"`notebooks/(\S+\.ipynb)`", guide)


@each
def test_it_begins_with_its_number_and_one_question(path):
    first = read(path).cells[0].source
    assert first.startswith(f"# {int(path.stem[:2])}. ")
    assert [text.endswith("?") for text in re.findall(r"\*\*(.+?)\*\*", first)] == [True]


@each
def test_its_links_lead_somewhere(path):
    text = "".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((\.\./docs/[^)#]+)", text)
    assert links, "it names its chapters"
    assert [link for link in links if not (FOLDER / link).is_file()] == []


@each
def test_it_uses_what_a_program_may_use(path):
    notebook = read(path)
    assert max(len(cell.source.splitlines()) for cell in codes(notebook)) <= MOST_LINES
    tree = ast.parse("\n".join(cell.source for cell in codes(notebook)))
    nodes = list(ast.walk(tree))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name for name in named if name.partition(".")[0] not in LIBRARIES | sys.stdlib_module_names}
    assert others <= {"towers", "features.shop"}
    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("towers.") and name.split(".")[1] not in towers.__all__} == set()
    assert not [name for name in used if "._" in name and "__" not in name]


@each
def test_it_is_stored_as_it_was_run(path):
    cells = codes(read(path))
    assert path.stat().st_size <= MOST_BYTES
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "in order, from a fresh start"
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*", "ignore::DeprecationWarning:zmq.*")
@each
def test_it_runs_quietly_and_shows_what_is_stored(path, tmp_path, warm, monkeypatch):
    monkeypatch.setenv("SHOP", "mini")  # smaller than the one of the outputs that are stored
    options = {} if path == NOTEBOOKS[0] else {"kernel_manager_class": warm_kernels(warm)}  # one loads by itself
    stored, run = read(path), executed(path, tmp_path, **options)
    errors = [output.text for cell in codes(run) for output in cell.outputs if output.get("name") == "stderr"]
    assert errors == []
    assert [kinds(cell) for cell in codes(run)] == [kinds(cell) for cell in codes(stored)]
