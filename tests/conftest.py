"""What every test shares: shapes checked at run time, no network but our own, and the folder of public data."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.signatures import check_signatures, count_calls_again
from tests.stores import copy_new_stores
from tests.warm import warm_towers
from towers.warnings_filter import quiet_imports

quiet_imports()
os.environ.pop("MLFLOW_TRACKING_URI", None)  # a test's runs go nowhere else


check_signatures(["features", "towers", "training", "serving"])
copy_new_stores()

# The same examples in each run, and no deadline on machines that are busy.
settings.register_profile(
    "tests", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data sets as Parquet tables; the test is skipped where there is none."""
    folder = Path(os.environ.get("TOWERS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no public data sets here; set TOWERS_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A program `towers` whose commands start loaded."""
    with warm_towers(tmp_path_factory.mktemp("warm")) as program:
        yield program


def pytest_runtest_setup() -> None:
    """Let each test check the first calls that it makes."""
    count_calls_again()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: begun last, one of them keeps one worker busy when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_outside_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def connect_here(own: socket.socket, address: Any) -> None:
        if own.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}; tests stay on this machine")
        connect(own, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(autouse=True)
def _patient_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests to services of this process take a minute, unless a test sets their deadline.

    On a busy machine a process may stand still for the two seconds of the default.
    """
    from serving import deadline  # not above: what is imported before `check_signatures` is not checked
    from serving.config import ServingConfig

    start, default = deadline.start, ServingConfig.model_fields["timeout_seconds"].default
    monkeypatch.setattr(deadline, "start", lambda seconds: start(60 if seconds == default else seconds))
