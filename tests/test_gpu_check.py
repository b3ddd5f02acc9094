"""`tests/gpu_check.sh`: it runs every step, says what differs, and ends with a status that says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.gpu import __main__ as script
from tests.benchmarks.gpu import report
from tests.benchmarks.gpu.lines import Line, at_least, difference, measured, said, same
from tests.benchmarks.gpu.run import SMALL, Run, SkippedError, StepError
from tests.benchmarks.gpu.trainings import Epoch, compared, epochs_in

SCRIPT = Path(__file__).with_name("gpu_check.sh")


def check(*flags: str, out: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([SCRIPT, *flags], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / report.LOGS).mkdir()
    return Run("cpu", SMALL, tmp_path, ends=time.time() + 600)


@pytest.mark.slow
def test_every_step_runs_and_the_cpu_agrees_with_itself(tmp_path: Path, warm: Path) -> None:
    """But for Ray, which takes long to start."""
    flags = ("--device", "cpu", "--small", "--minutes", "30", "--skip", "ray", "--towers", str(warm))
    ended = check(*flags, out=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = report.read(tmp_path / script.FIGURES)
    assert list(dict.fromkeys(line.step for line in lines)) == list(script.STEPS)
    for name in script.STEPS:
        own = [line for line in lines if line.step == name]
        assert all(str(line) in ended.stdout for line in own)
        if name == "ray":
            assert [line.verdict for line in own] == ["skipped"]
            continue
        assert {line.verdict for line in own} <= {"agrees", "measured"}, own
        assert own[-1].what == "time of the step"
        assert len(own) > 1
    assert {line.step for line in lines if line.bound and line.unit} >= {"training", "exact-search", "faiss"}
    assert "0 differ, 0 steps failed; 1 skipped: ray" in ended.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    ended = check(out=tmp_path / "out")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --device cuda: torch ")
    assert not (tmp_path / "out").exists()


def test_help_names_every_step(tmp_path: Path) -> None:
    said = check("--help", out=tmp_path).stdout
    assert all(f"\n  {name} " in said for name in script.STEPS)


@pytest.mark.parametrize(
    ("line", "agrees"),
    [
        (difference("", [1.0, 2.0], [1.0, 2.0009], 1e-3), True),
        (difference("", [1.0, 2.0], [1.0, 2.002], 1e-3), False),
        (difference("", [100.05], [100.0], 1e-3, relative=True), True),
        (difference("", [0.0105], [0.01], 1e-3, relative=True), False),
        (difference("", [np.nan], [1.0], 1e-3), False),
        (difference("", [1.0], [np.nan], 1e-3), False),
        (difference("", [1.0], [1.0, 2.0], 1e-3), False),
        (same("", [[1, 2], [3]], [[1, 2], [3]]), True),
        (same("", [[1, 2], [3]], [[2, 1], [3]]), False),
        (same("", [[1]], [[1], [3]]), False),
        (same("", [], [[1]]), False),
        (same("", [[1]], []), False),
        (at_least("", 0.98, 0.97), True),
        (at_least("", 0.96, 0.97), False),
        (at_least("", np.nan, 0.97), False),
    ],
)
def test_what_differs_too_much_differs(line: Line, agrees: bool) -> None:
    assert line.verdict == ("agrees" if agrees else "DIFFERS")


def test_a_rate_is_said_with_the_share_of_its_bound() -> None:
    text = str(measured("products", 250.0, "GFLOP/s", 1000.0).of("rates"))
    assert text.split() == [
        "rates",
        "products",
        "250",
        "GFLOP/s",
        "1,000",
        "GFLOP/s",
        "measured",
        *["(25.00%", "of", "the", "bound)"],
    ]
    assert said(None) == "-"


def test_epochs_of_trainings_are_compared(run: Run) -> None:
    expected = epochs_in("    1  3.5486          0.3679 *      1,265\n    2  2.7883          0.4201 *      1,291\n")
    assert [epoch.loss for epoch in expected] == [3.5486, 2.7883]
    assert [line.verdict for line in compared("", expected, expected)] == ["agrees", "agrees"]
    worse = [expected[0], Epoch(2, 2.79, 0.35, 1.0)]
    assert [line.verdict for line in compared("", worse, expected)] == ["agrees", "DIFFERS"]
    assert next(compared("", [], expected)).verdict == "DIFFERS"
    with pytest.raises(StepError, match="found no table of epochs"):
        next(compared("", [], []))


def good(run: Run) -> Iterator[Line]:
    yield same("rows", [1], [1])


def different(run: Run) -> Iterator[Line]:
    yield difference("losses", [1.0], [2.0], 0.1)


def broken(run: Run) -> Iterator[Line]:
    yield same("rows", [1], [1])
    raise RuntimeError("out of memory")


def crashed(run: Run) -> Iterator[Line]:
    os._exit(1)
    yield


def endless(run: Run) -> Iterator[Line]:
    time.sleep(60)
    yield


def left_out(run: Run) -> Iterator[Line]:
    raise SkippedError("no library")
    yield


def test_a_step_that_fails_is_named_and_the_others_go_on(run: Run) -> None:
    steps = {one.__name__: one for one in (broken, crashed, different, left_out, good)}
    lines = list(report.reported(steps, run, list(steps), []))
    found = {name: [line.verdict for line in lines if line.step == name][:-1] for name in steps}
    assert found == {
        "broken": ["agrees", "FAILED"],
        "crashed": ["FAILED"],
        "different": ["DIFFERS"],
        "left_out": ["skipped"],
        "good": ["agrees"],
    }
    assert report.failed(lines) == ["broken", "crashed", "different"]
    assert report.summary(lines).endswith(
        "1 differ, 2 steps failed; steps to look at: broken, crashed, different; 1 skipped: left_out"
    )
    assert "RuntimeError: out of memory" in (run.folder / report.LOGS / "broken.log").read_text(encoding="utf-8")
    report.write(run.folder / script.FIGURES, lines)
    assert report.read(run.folder / script.FIGURES) == lines
    assert json.loads((run.folder / script.FIGURES).read_text())[0]["step"] == "broken"


def test_on_a_gpu_a_step_begins_in_a_new_process(run: Run) -> None:
    """A copy of this one could not use the GPU, which it has asked for already."""
    lines = report.reported({"good": good}, replace(run, device="cuda"), ["good"], [])
    assert [line.verdict for line in lines] == ["agrees", "measured"]


def test_a_step_that_hangs_is_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SECONDS_TO_END", 0.1)
    lines = list(report.reported({"endless": endless}, replace(run, ends=time.time() + 0.2), ["endless"], []))
    assert [line.verdict for line in lines] == ["FAILED", "measured"]
    assert lines[0].note == "within the time of this check"


def test_what_no_time_is_left_for_counts_as_failed(tmp_path: Path) -> None:
    late = Run("cpu", SMALL, tmp_path, ends=0.0)
    lines = list(report.reported({"good": good, "other": good}, late, ["good", "other"], ["other"]))
    assert [line.verdict for line in lines] == ["FAILED", "skipped"]
    assert report.failed(lines) == ["good"]
