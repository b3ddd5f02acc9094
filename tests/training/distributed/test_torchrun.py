"""`torchrun -m towers train`: a lost process is started again, and an ordinary bundle comes out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.running import SECONDS, environment, write_small_shop
from towers.bundle.bundle import ModelBundle

RUN = """\
[features]
interactions = "interactions.parquet"
items = "items.parquet"

[features.item]
item_id = {kind = "id"}
title = {kind = "text"}

[towers]
embedding_dim = 8
history_encoder = "mean"

[training]
epochs = 8
checkpoint_seconds = 0
track = false
"""


def workers(launcher: int) -> list[psutil.Process]:
    """Return the processes that torchrun has started."""
    return [one for one in psutil.Process(launcher).children() if "towers" in one.cmdline()]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_small_shop(tmp_path, users=150, interactions=3_000)
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    return tmp_path


def test_a_killed_worker_does_not_end_the_training(shop: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
    command = ("-m", "towers", "train", "run.toml", "--output", "runs/together", "--no-baselines")
    process = subprocess.Popen(
        [sys.executable, *launcher, *command],
        cwd=shop,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    checkpoint = shop / "runs" / ".together.training" / "checkpoint.safetensors"
    deadline = time.monotonic() + SECONDS
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    victim = workers(process.pid)[-1]
    os.kill(victim.pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert said.count("interactions of 150 users") == 2  # once for each start
    assert "Traceback" not in said
    assert not checkpoint.parent.exists()
    assert ModelBundle.open(shop / "runs" / "together").report["protocol"]
