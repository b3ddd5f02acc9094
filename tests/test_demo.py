"""`towers demo`, run as a person runs it, and stopped in the middle as a person would.

The one that runs to its end starts loaded, with the commands that it starts; those that are stopped start cold.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import click
import psutil
import pytest

from tests.running import command_of
from towers.cli.demo import EPOCHS, SIZES, Terminal
from towers.cli.main import main

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("TOWERS_", "MLFLOW_"))}


def start_demo(folder: Path, *flags: str, program: Path | None = None) -> subprocess.Popen[str]:
    temporary = folder / "tmp"
    temporary.mkdir()
    return subprocess.Popen(
        [*command_of(program), "demo", *flags],
        cwd=folder,
        env={**ENVIRONMENT, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """Undo what a shell does to what it starts in the background, these tests perhaps: it lets them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_it_offers_every_size_that_there_is():
    from features.shop import SIZES as SHOPS

    assert list(SHOPS) == list(SIZES)


@pytest.mark.slow
def test_it_shows_each_command_runs_it_and_leaves_nothing_running(tmp_path, warm):
    process = start_demo(tmp_path, "--size", "mini", "--seed", "3", "--keep", "shown", program=warm)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    commands = re.findall(r"^\$ (towers \w+|curl )", said, re.MULTILINE)
    assert commands == [
        *(f"towers {name}" for name in ("dataset", "init", "evaluate", "train", "deploy", "serve")),
        *(["curl "] * 6),
        "towers recommend",
    ]
    assert "$ towers dataset shop --seed 3 --size mini" in said
    assert f"$ towers train run.toml --set training.epochs={EPOCHS} --set training.seed=3" in said
    share = re.search(r"The two towers reach (\d+)% of the best possible recall@10", said)
    assert share is not None
    assert int(share[1]) > 20
    assert '("fallback": "popular")' in said
    assert "ended with status 0" in said
    assert "Traceback" not in said
    assert not re.search(r"W\d{4} |Warning", said)  # glog's and Python's

    address = re.search(r"at (http://127\.0\.0\.1:\d+) with", said)
    assert address is not None
    listening = {connection.laddr.port for connection in psutil.net_connections("tcp") if connection.status == "LISTEN"}
    assert int(address[1].rpartition(":")[2]) not in listening
    kept = tmp_path / "shown"
    for name in ("run.toml", "runs/latest/report.html", "candidates.parquet", "mlflow.db", "evaluation/report.json"):
        assert (kept / name).exists()
    assert f"sqlite:///{kept}/mlflow.db" in said
    next_steps = r"init --interactions FILE .*\n.*train run.toml\n.*deploy runs/latest\n.*serve runs/production\n$"
    assert re.search(next_steps, said)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_stops_what_it_started_and_removes_its_folder(tmp_path, how, status):
    process = start_demo(tmp_path, "--size", "tiny")
    assert process.stdout is not None
    for line in process.stdout:
        if "training interactions" in line:
            break
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    process.send_signal(how)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == status, said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive
    assert not list((tmp_path / "tmp").glob("two-towers-*"))


def test_a_command_that_fails_ends_it_with_its_status_and_its_words(tmp_path, capfd):
    with pytest.raises(click.exceptions.Exit) as ended:
        Terminal(tmp_path).run("towers", "train", "run.toml")
    assert ended.value.exit_code == 2
    out, err = capfd.readouterr()
    assert out == "\n$ towers train run.toml\n"
    first, second = err.splitlines()
    assert first.startswith("error: run.toml: no such file")
    assert second == (
        "error: the demo stops here: `towers train run.toml` ended with status 2; what it said stands above"
    )


def test_a_folder_with_files_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert main(["demo", "--keep", str(tmp_path)]) == 2
    assert "expected an empty or new folder, found files in it; name another with --keep" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
