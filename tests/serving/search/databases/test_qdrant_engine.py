"""Qdrant's engine in the process over damaged files."""

from __future__ import annotations

import numpy as np
import pytest

from features.errors import UnavailableError
from serving.search.databases.database import Asked
from serving.search.databases.open_database import open_database
from serving.search.databases.settings import DatabaseSettings
from tests.serving.search.databases import test_database_search as contract

pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")


def test_damaged_files_are_one_line(tmp_path):
    database = open_database(DatabaseSettings(f"qdrant:///{tmp_path}?collection=items"))
    sealed = contract.seal(num_items=100, columns={})
    database.write("items_one", sealed, contract.Points(np.arange(100), contract.VECTORS[:100]), lambda written: None)
    database.close()
    for file in (tmp_path / "items_one").rglob("status.dat"):
        file.write_bytes(file.read_bytes()[:4])  # over which the engine panics
    with pytest.raises(UnavailableError, match="Qdrant's engine in "):
        database.nearest("items_one", {}, Asked(contract.QUERIES[:1], 10, 100))
    (tmp_path / "items_one" / "seal.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UnavailableError, match=r"seal\.json: cannot be read"):
        database.seal("items_one")
    database.close()
    open_database.cache_clear()
