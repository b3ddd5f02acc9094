"""Process setup of commands: orderly termination by signals, and an environment for heavy libraries.

glibc hands each large block back to the kernel and asks for it again a moment later, which costs a training step up to
2.6 times its time. The cure is read from the environment when a process starts, so the command line starts itself once
more. Used by `cli`, `doctor` and training; `release_memory` by what replaces models while it runs.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import ceil
from pathlib import Path
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that stop a command, besides Ctrl-C (SIGINT)."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_ARENA_MAX": "1"}
"""Keep large blocks in the process: memory stays at its peak, and is never cleared twice. One arena for all threads, or
what each of them has freed once would stay in an arena of its own."""
THREADS = {"GOMP_SPINCOUNT": "2000"}
"""Let a thread that waits for the others sleep soon. By itself it spins for milliseconds, which is no faster on idle
cores and makes a step several times as long when another process wants them."""
_STEPPED_BACK = 10
_PR_SET_PDEATHSIG = 1
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}
# Setting any of them ends glibc's own adjustment of the thresholds; these are the highest that it reaches.
_NOT_KEEPING = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65_536}
CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Folder of cgroup limits (containers)."""


class Stopped(KeyboardInterrupt):
    """A signal stops this process. Handled like Ctrl-C.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number

    def __str__(self) -> str:
        """Return the name of the signal."""
        return signal.Signals(self.signal).name


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Stopped` in this block, so that temporary files are removed.

    A signal that is ignored stays ignored, as under `nohup`. Outside of the main thread nothing changes.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    with handled(ENDING, end):
        yield


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let a function handle signals in this block, those excepted that are ignored.

    Args:
        numbers: The signals.
        handler: Called with the number and the frame, in the main thread. Outside of that thread none is called.
    """
    with ExitStack() as stack:
        for number in numbers if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, handler))
        yield


def restart_prepared() -> None:
    """Start this very command again in the prepared environment, in the same process.

    Returns only when there is nothing to prepare: a second call, an allocator the user has set, or no glibc. The
    process id, standard streams and interpreter options stay, so that `python -m towers` and torchrun notice nothing.
    """
    environment = prepared_environment(os.environ)
    if environment == dict(os.environ) or not sys.executable:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    by_module = getattr(sys.modules["__main__"], "__spec__", None)
    is_ours = by_module is not None and by_module.name == "towers.__main__" and not sys.flags.safe_path
    command = own_python() if is_ours else [sys.executable]  # another script may import modules of its own folder
    os.execve(sys.executable, [*command, *sys.orig_argv[1:]], environment)


def own_python(*words: str, folder: Path = Path()) -> list[str]:
    """Return the command of a Python process of ours with these words behind `python`.

    Whatever lies in the folder that it works in is data, and must not be imported (`-P`), however it is named. Only
    where this code itself lies there, as in a checkout that is not installed, it has to be.

    Args:
        words: A module, a program, their arguments.
        folder: Where the process works.
    """
    is_code = Path(__file__).resolve().parents[1] == folder.resolve()
    return [sys.executable, *([] if is_code else ["-P"]), *words]


def prepared_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with variables for computing processes; those set by the user are kept."""
    prepared = dict(environment)
    if uses_glibc() and not ALLOCATOR.keys() & environment.keys():
        prepared.update(ALLOCATOR)
    if not {*THREADS, "OMP_WAIT_POLICY"} & environment.keys():
        prepared.update(THREADS)
    if available_cores() < len(os.sched_getaffinity(0)):  # the libraries see the affinity by themselves, not a quota
        prepared.setdefault("OMP_NUM_THREADS", str(available_cores()))
    return prepared


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause Python's garbage collection in a block that imports: imports make many objects and hardly any garbage.

    What a service needs is imported in a seventh less time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def step_back() -> None:
    """Let this thread work only where no other wants its core, as far as the system tells threads apart (Linux)."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(_STEPPED_BACK, os.getpriority(os.PRIO_PROCESS, thread)))


def end_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when the one that started it ends for any reason (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def release_memory() -> None:
    """Return free memory to the system; glibc otherwise keeps free memory between used blocks.

    To be called after something large has been replaced, such as the model of a service.
    """
    if uses_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Keep freed blocks in the process while a block computes, then release them.

    What `ALLOCATOR` does for commands, for a program that is running already, such as a notebook. What the environment
    says of the allocator stays.
    """
    if not uses_glibc() or ALLOCATOR.keys() & os.environ.keys():
        yield
        return
    libc = ctypes.CDLL(None)
    for option, value in _KEEPING.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _NOT_KEEPING.items():
            libc.mallopt(option, value)
        release_memory()


def uses_glibc() -> bool:
    """Whether the C library is glibc, whose allocator reads the settings."""
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False


def available_cores(control_groups: Path = CONTROL_GROUPS, own_group: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process may really use: its affinity, and less where a container has a quota.

    Args:
        control_groups: Where the kernel shows control groups.
        own_group: Where it says which of them this process is in.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(ceil(quota) for quota in _quotas(control_groups, own_group))]))


def group_files(
    name: str, control_groups: Path = CONTROL_GROUPS, own_group: Path = Path("/proc/self/cgroup")
) -> list[list[str]]:
    """Return the lines of the file `name` of each control group from the process's own up to the root."""
    inside = next((line[3:] for line in _lines(own_group) if line.startswith("0::")), "/").strip("/")
    folder = control_groups / inside
    groups = [group for group in (folder, *folder.parents) if group.is_relative_to(control_groups)]
    return [lines for group in groups if (lines := _lines(group / name))]


def _quotas(control_groups: Path, own_group: Path) -> list[float]:
    """Cores granted by the control groups, of version 2 and version 1."""
    shares = [lines[0].split() for lines in group_files("cpu.max", control_groups, own_group)]
    old = control_groups / "cpu"
    shares.append([*_lines(old / "cpu.cfs_quota_us"), *_lines(old / "cpu.cfs_period_us")])
    return [
        int(share[0]) / int(share[1])
        for share in shares
        if len(share) == 2 and share[0].isdigit() and share[1].isdigit() and int(share[1]) > 0
    ]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
