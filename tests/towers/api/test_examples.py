from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import towers.api

MODULES = sorted(module.name for module in pkgutil.iter_modules(towers.api.__path__))
STATED = ("model", "train")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name, model, interactions, items, users, tmp_path, monkeypatch):
    monkeypatch.chdir(model.path.absolute().parents[1] if name == "model" else tmp_path)
    model.recommend(10002)  # builds the index, if there is none yet, and says so
    module = importlib.import_module(f"towers.api.{name}")
    given = {"towers": towers, "model": model, "interactions": interactions, "items": items, "users": users}
    result = doctest.testmod(module, extraglobs=given, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted or name not in STATED
