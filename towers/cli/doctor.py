"""`towers doctor`: checks the installation and this machine, and shows a command that corrects each error.

Small programs look at the libraries in another process. One that is missing, broken or crashes that process spoils
neither the others, which go on in a new one, nor the doctor.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import (
    PackageNotFoundError,
    distributions,
    packages_distributions,
    requires,
    version,
)
from pathlib import Path, PurePath
from typing import Any, Literal
from urllib.parse import urlsplit

import click

from features.redaction import redacted
from towers.process import ALLOCATOR, available_cores, group_files, own_python, uses_glibc

CHECKOUT = Path(__file__).parents[2]
"""Folder of the repository, whose Makefile installs; that of an installed wheel has no Makefile."""
PROBE_SECONDS = 120.0
"""Timeout of the import of a library, for slow disks and busy machines."""
ONE_FOLDER = (("fbgemm-gpu", "fbgemm-gpu-cpu"), ("faiss-cpu", "faiss-gpu"))
"""Distributions that own the same folder: of each pair exactly one may be installed."""
REPLACED_BY = {"faiss-cpu": "faiss-gpu", "fbgemm-gpu": "fbgemm-gpu-cpu"}
PROBED = {"torch", "torchrec", "mlflow", "pandas", "pyarrow", "flask", "granian", "gunicorn"}.union(*ONE_FOLDER)
"""Distributions that `PROBES` look at."""
DRIVER = re.compile(r"lib(?:nvidia-ml|cuda)\.so(?:\.\d+)?")
"""Libraries that no package brings: they come with NVIDIA's driver."""

PROBES = {
    "torch": """
import torch
assert (torch.ones(2, 3) @ torch.ones(3, 1)).sum().item() == 6
found = {"version": torch.__version__, "built_for_cuda": torch.version.cuda, "cuda": torch.cuda.is_available()}
""",
    "fbgemm": """
import torch, fbgemm_gpu
sums = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2]))
assert sums.tolist() == [0, 1, 3], sums
found = {"version": getattr(fbgemm_gpu, "__version__", "")}
""",
    "torchrec": """
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=3, feature_names=["f"])
bags = KeyedJaggedTensor.from_lengths_sync(keys=["f"], values=torch.tensor([0, 1, 2]), lengths=torch.tensor([1, 2]))
assert EmbeddingBagCollection(tables=[table])(bags)["f"].shape == (2, 4)
import torchrec
found = {"version": torchrec.__version__}
""",
    "faiss": """
import numpy, faiss
index = faiss.IndexFlatIP(2)
index.add(numpy.eye(2, dtype=numpy.float32))
assert index.search(numpy.array([[0, 1]], dtype=numpy.float32), 1)[1].item() == 1
found = {"version": faiss.__version__, "gpus": getattr(faiss, "get_num_gpus", lambda: 0)()}
""",
    "mlflow": "import mlflow; found = {'version': mlflow.__version__}",
    "pandas": "import pandas, pyarrow; found = {'version': f'{pandas.__version__}, pyarrow {pyarrow.__version__}'}",
    "flask": "import flask, importlib.metadata; found = {'version': importlib.metadata.version('flask')}",
    "granian": "import granian, importlib.metadata; found = {'version': importlib.metadata.version('granian')}",
    "gunicorn": "import gunicorn; found = {'version': gunicorn.__version__}",
}
"""Small programs that use a library for what we need of it and leave what they saw in `found`."""

_PROBER = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library may print when it is loaded
for program in json.loads(sys.argv[1]):
    names, failure = {}, None
    try:
        exec(program, names)
    except BaseException:
        failure = traceback.format_exc()
    print(json.dumps({"found": names.get("found", {}), "failure": failure}), file=answers, flush=True)
"""
"""The program that runs probes, and writes a line for each."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    `error`: a command will fail. `note`: everything works, but could be improved.
    """

    name: str
    text: str
    state: Literal["ok", "note", "error"] = "ok"
    remedy: str | None = None
    """The command that corrects it, or an instruction."""


@dataclass(frozen=True)
class Probe:
    """Result of a probe; `failure` is the one-line error if it failed."""

    found: Mapping[str, Any]
    failure: str | None = None


@click.command()
@click.option("--installation", is_flag=True, help="Only import every library, and name those that cannot be imported.")
def doctor(installation: bool) -> None:
    """Check the installation and this machine, and print a fix for each error.

    Exit status: 0 without errors, 1 with errors. Notes do not count.
    """
    errors = 0
    for finding in examine_installation() if installation else examine():
        click.echo(f"{finding.state:<5}  {finding.name:<9}  {finding.text}")
        if finding.remedy:
            click.echo(f"{'':<5}  {'':<9}  -> {finding.remedy}")
        errors += finding.state == "error"
    if errors:
        click.echo(f"\n{errors} error{'' if errors == 1 else 's'} found.")
        raise click.exceptions.Exit(1)
    if not installation:
        click.echo("\nAll is well.")


def examine() -> Iterator[Finding]:
    """Yield the findings of all examinations, as they come; none of them raises."""
    yield from _examined("python", _python)
    yield from _examined("packages", _packages)
    seen: dict[str, Probe] = {}
    for name, result in probe(PROBES):
        seen[name] = result
        yield from _examined(name, partial(_library, name, result))
    yield from _examined("GPU", lambda: _gpu(seen["torch"], seen["faiss"], gpus()))
    for name, examination in (
        ("tracking", _tracking),
        ("allocator", _allocator),
        ("threads", _threads),
        ("memory", _memory),
        ("folder", _folder),
        ("data", _data),
    ):
        yield from _examined(name, examination)


def examine_installation() -> Iterator[Finding]:
    """Yield errors of the installation: packages, and libraries that cannot be imported.

    A library that only lacks NVIDIA's driver is a note: it will load on the machine that has one.
    """
    yield from (found for found in _examined("packages", _packages) if found.state == "error")
    failures = {name: seen.failure for name, seen in probe(PROBES | _imports()) if seen.failure}
    waiting = {name: found[0] for name, failure in failures.items() if (found := DRIVER.search(failure))}
    if waiting:
        text = f"{' and '.join(waiting)} cannot be imported without {', '.join(sorted({*waiting.values()}))}"
        yield Finding("driver", text, "note", "install NVIDIA's driver, which brings it, or use a machine that has it")
    for name, failure in failures.items():
        if name not in waiting:
            yield Finding(name, failure, "error", reinstall())


def _imports() -> dict[str, str]:
    """Return programs that import what `PROBES` leave out: what two-towers needs, and each of its extras."""
    from packaging.requirements import Requirement

    modules: dict[str, list[str]] = {}
    for module, owners in packages_distributions().items():
        for owner in owners if module.isidentifier() and not module.startswith("_") else ():
            modules.setdefault(_normal(owner), []).append(module)
    programs: dict[str, list[str]] = {}
    for wanted in map(Requirement, _required()):
        name = _normal(wanted.name)
        if name not in PROBED:
            extra = "libraries" if wanted.marker is None else str(wanted.marker).split('"')[1]
            found = modules.get(name, [])
            # With the module of its own name a library may bring adapters to others, which nothing asks for.
            programs.setdefault(extra, []).extend([one for one in found if _normal(one) == name] or found)
    return {name: f"import {', '.join(found)}; found = {{}}" for name, found in programs.items() if found}


def reinstall(device: Literal["", "cpu", "gpu"] = "") -> str:
    """Return the command that reinstalls the libraries, for a CPU or a GPU."""
    if (CHECKOUT / "Makefile").is_file():
        return f"make clean install DEVICE={device}" if device else "make clean install"
    pins = {name: f"{name}{specifier}" for name, specifier in _pins()}
    fbgemm = pins.get("fbgemm-gpu", "fbgemm-gpu")
    if device == "cpu":
        wanted = fbgemm.replace("fbgemm-gpu", "fbgemm-gpu-cpu")
        return f"pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu, then: pip install {wanted}"
    if device == "gpu":
        torch = pins.get("torch", "torch").replace("==", "===")
        faiss = pins.get("faiss-cpu", "faiss-cpu").replace("faiss-cpu", "faiss-gpu")
        return (
            "pip uninstall --yes torch fbgemm-gpu fbgemm-gpu-cpu faiss-cpu, then: "
            f"pip install {shlex.join([torch, fbgemm, faiss])}"
        )
    return "install two-towers once more, into an empty environment"


def _pins() -> list[tuple[str, str]]:
    from packaging.requirements import Requirement

    return [(wanted.name, str(wanted.specifier)) for wanted in map(Requirement, _required())]


def _required() -> list[str]:
    """Return the requirements of two-towers, extras included; empty if it is not installed."""
    try:
        return requires("two-towers") or []
    except PackageNotFoundError:
        return []


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def probe(programs: Mapping[str, str]) -> Iterator[tuple[str, Probe]]:
    """Run probes in another Python, and yield the result of each; after a failure the rest runs in a new one.

    Args:
        programs: Program of each probe, by name.
    """
    left = dict(programs)
    while left:
        for name, result in _probed_until_failure(dict(left)):
            del left[name]
            yield name, result


def _probed_until_failure(programs: Mapping[str, str]) -> Iterator[tuple[str, Probe]]:
    try:
        process = subprocess.Popen(
            own_python("-c", _PROBER, json.dumps([*programs.values()])),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        yield from ((name, Probe({}, f"cannot be looked at: {error.strerror}")) for name in programs)
        return
    with process:
        try:
            for name in programs:
                result = _next_result(process)
                yield name, result
                if result.failure:
                    return
        finally:
            process.kill()


def _next_result(process: subprocess.Popen[bytes]) -> Probe:
    """Wait for the next line of a prober."""
    assert process.stdout is not None
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        process.kill()

    timer = threading.Timer(PROBE_SECONDS, give_up)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if line:
        seen = json.loads(line)
        return Probe(seen["found"], _cause(seen["failure"]) if seen["failure"] else None)
    if is_late.is_set():
        return Probe({}, f"does not load within {PROBE_SECONDS:.0f} seconds")
    status = process.wait()
    if status < 0:
        return Probe({}, f"crashes its process (signal {-status})")
    return Probe({}, f"ends with status {status}" if status else "says nothing when it is loaded")


def _cause(trace: str) -> str:
    """The line of the exception that came first: those after it are its consequences."""
    lines = trace.strip().splitlines()
    causes = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception|Exit)\b", line)]
    return (causes or lines[-1:] or [""])[0]


def gpus() -> list[str]:
    """Return a line for each NVIDIA GPU that the driver knows: name, memory, driver."""
    try:
        ended = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return ended.stdout.strip().splitlines() if ended.returncode == 0 else []


def _examined(name: str, examination: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return examination()
    except Exception as error:  # a failing check is shown as an error, too
        return [Finding(name, f"cannot be examined: {type(error).__name__}: {error}", "error", reinstall())]


def _python() -> list[Finding]:
    text = f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}"
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return [Finding("python", text, "error", f"install Python 3.11, 3.12 or 3.13, then: {reinstall()}")]
    if platform.system() != "Linux":
        return [Finding("python", text, "error", "torchrec is published for Linux only: use Linux, or a container")]
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        remedy = "unset PYTHONDONTWRITEBYTECODE"
        return [Finding("python", f"{text}; what is not compiled yet is compiled at each start", "note", remedy)]
    return [Finding("python", text)]


def _packages() -> list[Finding]:
    """Check that all requirements are installed, and that no two packages own one folder."""
    from packaging.requirements import Requirement

    found = {_normal(name): known for known in distributions() if (name := known.metadata["Name"])}
    installed = {*found}
    clashes = [
        pair for pair in ONE_FOLDER if all(name in found and _has_modules(found[name].files or ()) for name in pair)
    ]
    if clashes:
        text = "; ".join(f"{one} and {other} overwrite each other" for one, other in clashes)
        return [Finding("packages", text, "error", reinstall("gpu" if gpus() else "cpu"))]
    try:
        asked = [Requirement(line) for line in requires("two-towers") or []]
    except PackageNotFoundError:
        return [Finding("packages", "two-towers itself is not installed", "error", "make install")]
    # Packages of extras are checked only if they are installed.
    wanted = [one for one in asked if one.marker is None or _normal(one.name) in installed]
    faults = [fault for requirement in wanted if (fault := _fault(requirement, installed))]
    if faults:
        return [Finding("packages", "; ".join(faults), "error", reinstall())]
    return [Finding("packages", f"two-towers {version('two-towers')}, and all {len(wanted)} packages it asks for")]


def _has_modules(files: Iterable[PurePath]) -> bool:
    """Whether a distribution has files of its own; the stand-in for fbgemm-gpu on a CPU only asks for the other one."""
    return any(not file.parts[0].endswith(".dist-info") for file in files)


def _fault(requirement: Any, installed: set[str]) -> str | None:
    name = requirement.name
    if name not in installed:
        name = REPLACED_BY.get(name, name)
    if name not in installed:
        return f"{requirement.name} is missing"
    found = version(name)
    return None if requirement.specifier.contains(found, prereleases=True) else f"{requirement}, found {found}"


def _library(name: str, seen: Probe) -> list[Finding]:
    if seen.failure:
        needs_gpu = name in ("fbgemm", "torchrec") and _is_installed("fbgemm-gpu") and not gpus()
        return [Finding(name, seen.failure, "error", reinstall("cpu" if needs_gpu else ""))]
    return [Finding(name, f"{seen.found['version']}{_build(name, seen.found)}")]


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _build(name: str, found: Mapping[str, Any]) -> str:
    match name:
        case "torch":
            return f", built for CUDA {found['built_for_cuda']}" if found["built_for_cuda"] else ", built for CPU"
        case "faiss":
            return f", {found['gpus']} GPU" if found["gpus"] else ", searches on the CPU"
        case "fbgemm":
            return ", its operators load"
        case _:
            return ""


def _gpu(torch: Probe, faiss: Probe, found: list[str]) -> list[Finding]:
    """Whether the GPU, if there is one, is of use to torch and to faiss."""
    if not found:
        return [Finding("GPU", "none found; everything runs on the CPU")]
    text = "; ".join(found)
    if torch.failure:
        return [Finding("GPU", text)]
    if not torch.found.get("built_for_cuda"):
        return [Finding("GPU", f"{text}; not used by this torch", "note", reinstall("gpu"))]
    if not torch.found.get("cuda"):
        remedy = f"update NVIDIA's driver, or: {reinstall('cpu')}"
        text = f"{text}; torch's CUDA {torch.found['built_for_cuda']} does not start on it"
        return [Finding("GPU", text, "error", remedy)]
    if not faiss.failure and not faiss.found.get("gpus"):
        return [Finding("GPU", f"{text}; used by torch, not by faiss", "note", reinstall("gpu"))]
    return [Finding("GPU", f"{text}; used by torch and faiss")]


def _tracking() -> list[Finding]:
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        return [Finding("tracking", "runs are recorded in mlflow.db where towers train is called")]
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return [Finding("tracking", f"runs are recorded in {redacted(address)}")]
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=3).close()
    except (OSError, ValueError):
        remedy = "start the server, or: unset MLFLOW_TRACKING_URI"
        return [Finding("tracking", f"{redacted(address)} does not answer", "note", remedy)]
    return [Finding("tracking", f"runs are recorded by {redacted(address)}, which answers")]


def _allocator() -> list[Finding]:
    if not uses_glibc():
        return [Finding("allocator", "not glibc's; left as it is")]
    own = {name: value for name in ALLOCATOR if (value := os.environ.get(name)) is not None}
    if own and own != ALLOCATOR:
        text = "set by you: " + " ".join(f"{name}={value}" for name, value in own.items())
        remedy = f"for the faster one: unset {' '.join(own)}"
        return [Finding("allocator", text, "note", remedy)]
    return [Finding("allocator", "glibc's, kept from returning memory in the commands that compute")]


def _threads() -> list[Finding]:
    cores = available_cores()
    text = f"{cores} {'core' if cores == 1 else 'cores'}"
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if not wanted:
        return [Finding("threads", f"{text}, all used")]
    if not wanted.isdigit() or int(wanted) != cores:
        return [Finding("threads", f"{text}, but OMP_NUM_THREADS={wanted}", "note", "unset OMP_NUM_THREADS")]
    return [Finding("threads", f"{text}, OMP_NUM_THREADS={wanted}")]


def _memory() -> list[Finding]:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    granted = [int(lines[0]) for lines in group_files("memory.max") if lines[0].isdigit()]
    used = [int(lines[0]) for lines in group_files("memory.current")]
    if granted and used:
        total, free = min(total, *granted), min(free, max(0, min(granted) - used[0]))
    text = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}"
    if free < 2 * 2**30:
        return [Finding("memory", text, "note", "end other programs; a small catalogue needs 2 GiB")]
    return [Finding("memory", text)]


def _folder() -> list[Finding]:
    """Check that runs can be written in the working directory."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free / 2**30
    text = f"{here}, {free:.1f} GiB free"
    if not os.access(here, os.W_OK):
        return [Finding("folder", f"{text}; nothing can be written here", "error", "go to a folder of your own")]
    if free < 1:
        return [Finding("folder", text, "note", "make room: a run takes 0.1 to 1 GiB")]
    return [Finding("folder", text)]


def _data() -> list[Finding]:
    given = os.environ.get("TOWERS_DATA")
    if not given:
        return [Finding("data", "no folder of public data sets (TOWERS_DATA is not set; only tests look for it)")]
    folder = Path(given)
    if not folder.is_dir():
        return [Finding("data", f"TOWERS_DATA={given} is not a folder", "note", "unset TOWERS_DATA, or correct it")]
    sets = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return [Finding("data", f"{folder}: {', '.join(sets) or 'empty'}")]
