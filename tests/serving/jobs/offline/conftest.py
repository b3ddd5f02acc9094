from __future__ import annotations

from importlib.util import find_spec

import pytest

from serving.jobs.offline.ray_engine import connected


@pytest.fixture(scope="module")
def ray():
    """Ray in this process; starting it takes seconds."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    with connected(None, num_cores=2):  # before it is imported, as some variables are read then
        import ray

        yield ray
