from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import towers

SECONDS_TO_IMPORT = 0.2
HEAVY = ("torch", "pandas", "numpy", "pyarrow", "pydantic", "click", "training", "serving", "features")


def python(program):
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=240)
    assert ended.stderr == ""
    return ended.stdout


def test_the_import_is_quick_and_loads_nothing_heavy():
    program = (
        "import time; began = time.process_time(); import towers; seconds = time.process_time() - began\n"
        f"import sys; print(seconds, sorted(set({HEAVY}) & set(sys.modules)))"
    )
    seconds, _, loaded = python(program).strip().partition(" ")
    assert float(seconds) < SECONDS_TO_IMPORT
    assert loaded == "[]"


def test_what_is_offered_is_what_types_and_dir_name():
    tree = ast.parse(Path(towers.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    places = {
        alias.asname: node.module + (f":{alias.name}" if alias.name != alias.asname else "")
        for node in checked.body
        for alias in node.names
    }
    assert places == towers._PLACES
    assert sorted(towers.__all__) == sorted(places)
    assert set(dir(towers)) == {*places, "__version__"}
    for name in towers.__all__:
        assert getattr(towers, name).__doc__


def test_a_name_that_is_not_offered_is_told():
    with pytest.raises(AttributeError, match=r"module 'towers' has no attribute 'fit'; it has .*train"):
        towers.fit  # noqa: B018
