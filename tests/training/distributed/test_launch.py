"""A process that torchrun started among the others, before it exchanges anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed import HashStore

from features.errors import DataError
from training.distributed.launch import _check_backend, process_group


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR"])
def test_variables_that_torchrun_did_not_set_are_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(DataError, match=f"{missing} expected, but not set"), process_group(torch.device("cpu")):
        pass


def test_a_process_without_the_gpu_that_the_first_has_is_refused_before_it_waits() -> None:
    store = HashStore()
    _check_backend(store, 0, "cpu:gloo,cuda:nccl")
    _check_backend(store, 1, "cpu:gloo,cuda:nccl")
    with pytest.raises(DataError, match="process 2 exchanges by gloo, and process 0 by cpu:gloo,cuda:nccl"):
        _check_backend(store, 2, "gloo")


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    child = "import pathlib, sys, time, towers.process as own; own.end_with_parent()"
    child += "; pathlib.Path(sys.argv[1]).write_text(str(own.os.getpid())); time.sleep(60)"
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]).wait()"
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", code, child, str(told)])
    deadline = time.monotonic() + 30
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    process = int(told.read_text())
    while psutil.pid_exists(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE
