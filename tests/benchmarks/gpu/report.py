"""Runs steps one after the other, each in a process of its own, and keeps what they report."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from tests.benchmarks.gpu.lines import BAD, Line, measured
from tests.benchmarks.gpu.run import Run, SkippedError, StepError
from towers.warnings_filter import quiet_imports

Step = Callable[[Run], Iterator[Line]]

LOGS = "steps"
"""Folder of what says in full why a step failed."""
SECONDS_TO_END = 10
"""Time for a step whose command was ended to say so."""


def reported(steps: Mapping[str, Step], run: Run, asked: Sequence[str], skipped: Sequence[str]) -> Iterator[Line]:
    """Yield the lines of each step that is asked for, one step after the other, whatever becomes of those before."""
    for name in asked:
        if name in skipped:
            yield Line("left out", "skipped", note="by --skip", step=name)
            continue
        if time.time() > run.ends:
            yield Line(
                "not begun", "FAILED", note="no time is left; run --only with this step, or more --minutes", step=name
            )
            continue
        began = time.monotonic()
        for line in _lines_of(steps[name], name, run):
            yield line.of(name)
        yield measured("time of the step", time.monotonic() - began, "s").of(name)


def _lines_of(step: Step, name: str, run: Run) -> list[Line]:
    """Return the lines of a step, computed in a process of its own: what breaks the state of a GPU ends with it."""
    context = multiprocessing.get_context("spawn" if run.is_gpu else "fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_lines, args=(sender, step, run, run.folder / LOGS / f"{name}.log"))
    process.start()
    sender.close()
    try:
        if receiver.poll(max(0.0, run.ends - time.time()) + SECONDS_TO_END):
            found: list[Line] = receiver.recv()
            return found
        return [Line("did not end", "FAILED", note="within the time of this check")]
    except EOFError:
        return [Line("its process", "FAILED", note="was killed, or crashed")]
    finally:
        process.kill()
        process.join()


def send_lines(sender: Connection, step: Step, run: Run, log: Path) -> None:
    """Send the lines of a step; the last one says why it was skipped or failed, which `log` says in full."""
    quiet_imports()
    run.shop.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    try:
        for line in step(run):
            lines.append(line)  # noqa: PERF402 (those before an error count)
    except SkippedError as reason:
        lines.append(Line("skipped", "skipped", note=str(reason)))
    except StepError as error:
        lines.append(Line("did not end", "FAILED", note=str(error)))
    except Exception as error:  # whatever it is, the other steps go on
        log.write_text(traceback.format_exc(), encoding="utf-8")
        said = " ".join(f"{type(error).__name__}: {error}".split())
        lines.append(Line("did not end", "FAILED", note=f"{said}; see {LOGS}/{log.name}"))
    sender.send(lines)


def failed(lines: Sequence[Line]) -> list[str]:
    """Return the steps that differ or failed, each once."""
    return list(dict.fromkeys(line.step for line in lines if line.verdict in BAD))


def summary(lines: Sequence[Line]) -> str:
    """Return how many comparisons agree, and which steps differ, failed or were skipped."""
    count = {verdict: sum(line.verdict == verdict for line in lines) for verdict in ("agrees", *BAD)}
    left_out = [line.step for line in lines if line.verdict == "skipped"]
    parts = [f"{count['agrees']} comparisons agree, {count['DIFFERS']} differ, {count['FAILED']} steps failed"]
    if bad := failed(lines):
        parts.append(f"steps to look at: {', '.join(bad)}")
    if left_out:
        parts.append(f"{len(left_out)} skipped: {', '.join(left_out)}")
    return "; ".join(parts)


def read(path: Path) -> list[Line]:
    """Return the lines that an earlier run has written; none if there was none."""
    return [Line(**line) for line in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def write(path: Path, lines: Sequence[Line]) -> None:
    """Write the lines as JSON, for `read` and for other programs."""
    path.write_text(json.dumps([asdict(line) for line in lines], indent=1), encoding="utf-8")
