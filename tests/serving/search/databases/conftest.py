from __future__ import annotations

import pytest

from tests import postgres as postgres_server


@pytest.fixture(scope="session")
def pgvector():
    """The address of a PostgreSQL server with pgvector; the test is skipped where there is none."""
    pytest.importorskip("pgvector", reason="pgvector is not installed")
    programs = postgres_server.with_pgvector()
    with postgres_server.server(str(programs / "initdb"), str(programs / "postgres"), "-c", "fsync=off") as (
        address,
        _,
    ):
        yield address
