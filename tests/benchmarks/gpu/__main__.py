"""Runs every GPU path of Two Towers once, compares it with the CPU, and reports figures with their bounds.

    tests/gpu_check.sh                                  # on NVIDIA GPUs; under ten minutes on one
    tests/gpu_check.sh --only training resume           # some steps alone, in the folder of an earlier run (OUT)
    tests/gpu_check.sh --device cpu --small             # tries the script itself: the CPU against the CPU, minutes

Each line of the report has a step, what was compared or measured, the figure, its bound, and the verdict: `agrees` or
`DIFFERS` where the CPU has done the same, `measured` for rates and sizes. The bound of a difference is the largest that
rounding explains; the bound of a rate follows from the sizes and what the device multiplies and copies in a second,
measured by the step `rates`. A step that fails ends there, and the others go on.

The folder OUT gets figures.json (every line), commands.log (what each command said), steps/NAME.log (why a step
failed), and shop/ (tables, bundles, recommendations).

Exit status: 0 if all that ran agrees, 1 if a step differs or fails, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from pathlib import Path

from tests.benchmarks.gpu import machine, searches, trainings, vectors
from tests.benchmarks.gpu.lines import Line
from tests.benchmarks.gpu.report import LOGS, Step, failed, read, reported, summary, write
from tests.benchmarks.gpu.run import SMALL, Run, Sizes
from towers.warnings_filter import quiet_imports

STEPS: dict[str, Step] = {
    "machine": machine.machine,
    "rates": machine.rates,
    "data": machine.data,
    "steps": trainings.steps,
    "training": trainings.training,
    "resume": trainings.resume,
    "processes": trainings.processes,
    "commands": trainings.commands,
    "encoding": vectors.encoding,
    "texts": vectors.texts,
    "exact-search": searches.exact_search,
    "faiss": searches.faiss_indexes,
    "recommend": searches.recommend,
    "ray": searches.ray,
    "service": searches.service,
}
"""In their order: later ones read what earlier ones wrote to the folder."""
LIBRARIES = ("torchrec", "tests.benchmarks.harness", "tests.benchmarks.index", "tests.training.loop.test_fine_tuning")
"""Modules that import what takes long."""
MINUTES = 9.5
FIGURES = "figures.json"


def main() -> int:
    """Run the steps that are asked for, and return the exit status."""
    given = _arguments()
    quiet_imports()
    if given.device != "cpu" and (reason := _no_gpu()):
        print(
            f"error: {reason}; `towers doctor` says more, and --device cpu --small tries this script", file=sys.stderr
        )
        return 2
    folder = given.out.absolute()
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    run = Run(
        device=given.device,
        sizes=SMALL if given.small else Sizes(),
        folder=folder,
        ends=time.time() + 60 * given.minutes,
        program=given.towers,
        text_model=given.text_model,
    )
    if not run.is_gpu:
        for name in LIBRARIES:  # once for all steps, which begin as copies of this process
            import_module(name)
    began = time.monotonic()
    asked = [name for name in STEPS if name in (given.only or STEPS)]
    earlier, lines = [line for line in read(folder / FIGURES) if line.step not in asked], list[Line]()
    for line in reported(STEPS, run, asked, given.skip):
        lines.append(line)
        print(line, flush=True)
        write(folder / FIGURES, [*earlier, *lines])
    print(f"\n{summary(lines)}; {time.monotonic() - began:,.0f} s\n{folder / FIGURES}: every figure")
    return 1 if failed(lines) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/gpu_check.sh",
        description=f"{__doc__}\nSteps:\n{_said_steps()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="What is compared with the CPU.")
    parser.add_argument("--small", action="store_true", help="Small tables and few steps.")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help="Run these steps alone.")
    parser.add_argument("--skip", nargs="+", choices=STEPS, metavar="STEP", default=[], help="Leave these steps out.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"Time for all steps.  [default: {MINUTES}]")
    parser.add_argument(
        "--text-model", type=Path, metavar="FOLDER", help="Model of texts.  [default: a tiny one is made]"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-check")), help="Folder to write.")
    parser.add_argument("--towers", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _said_steps() -> str:
    return "\n".join(f"  {name:14}{(step.__doc__ or '').partition(chr(10))[0]}" for name, step in STEPS.items())


def _no_gpu() -> str:
    """Return why there is no GPU to check; "" if there is one."""
    import torch

    if torch.cuda.is_available():
        return ""
    built = f"built for CUDA {torch.version.cuda}, but finds no GPU" if torch.version.cuda else "built for a CPU"
    return f"--device cuda: torch {torch.__version__} is {built}"


if __name__ == "__main__":
    sys.exit(main())
