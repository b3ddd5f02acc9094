from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from towers.process import (
    ALLOCATOR,
    THREADS,
    available_cores,
    garbage_collection_paused,
    own_python,
    prepared_environment,
    release_memory,
    restart_prepared,
    step_back,
    uses_glibc,
)

WITHOUT = {name: value for name, value in os.environ.items() if name not in ALLOCATOR | THREADS}
needs_glibc = pytest.mark.skipif(not uses_glibc(), reason="only glibc's allocator reads these settings")
SHOW = """
import os, sys
print("start", os.getpid(), flush=True)
from towers.process import restart_prepared
restart_prepared()
print("go", os.getpid(), os.environ.get("MALLOC_MMAP_MAX_"), sys.argv[1:])
"""


def groups(folder: Path, own: str, **files: str) -> dict[str, Path]:
    (folder / "own").write_text(f"1:cpu:/\n0::{own}\n")
    for name, text in files.items():
        path = folder / "fs" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"control_groups": folder / "fs", "own_group": folder / "own"}


@needs_glibc
def test_a_process_starts_itself_once_more_and_only_once() -> None:
    ended = subprocess.run([sys.executable, "-c", SHOW, "a b"], capture_output=True, text=True, env=WITHOUT, check=True)
    lines = ended.stdout.splitlines()
    process = lines[0].split()[1]
    assert lines == [f"start {process}", f"start {process}", f"go {process} 0 ['a b']"]


@needs_glibc
def test_the_interpreters_own_options_survive(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(SHOW + "print(sys.flags.dev_mode, sys.flags.utf8_mode)")
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-X", "utf8", "-m", "show", "x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=WITHOUT,
        check=True,
    )
    assert ended.stdout.splitlines()[-2:] == [ended.stdout.splitlines()[-2], "True 1"]
    assert ended.stdout.splitlines()[-2].endswith("0 ['x']")


def test_an_allocator_the_user_has_set_is_left_alone() -> None:
    own = {"MALLOC_MMAP_MAX_": "65536", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "ACTIVE"}
    assert prepared_environment(own) == own


@needs_glibc
def test_the_allocator_is_set_where_nobody_has() -> None:
    assert prepared_environment({"OMP_NUM_THREADS": "1", "HOME": "/root"}) == {
        "OMP_NUM_THREADS": "1",
        "HOME": "/root",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "8000000000",
        "MALLOC_ARENA_MAX": "1",
        "GOMP_SPINCOUNT": "2000",
    }


def test_threads_are_limited_where_a_container_grants_less_than_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(96)))
    monkeypatch.setattr("towers.process.available_cores", lambda: 4)
    assert prepared_environment({})["OMP_NUM_THREADS"] == "4"
    assert prepared_environment({"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_a_second_start_is_not_tried_when_all_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towers.process.prepared_environment", dict)
    monkeypatch.setattr("os.execve", lambda *given: pytest.fail("started again"))
    restart_prepared()


def test_cores_are_those_of_the_affinity_where_no_quota_is(tmp_path: Path) -> None:
    assert available_cores(**groups(tmp_path, "/", cpu_max="max 100000")) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "cores"), [("100000", 1), ("150000", 2), ("6400000", 64), ("1000", 1)])
def test_a_quota_is_rounded_up_to_whole_cores(tmp_path: Path, monkeypatch, quota: str, cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(96)))
    assert available_cores(**groups(tmp_path, "/", cpu_max=f"{quota} 100000")) == cores


def test_the_tightest_quota_on_the_way_to_the_root_counts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(96)))
    places = groups(tmp_path, "/a/b", cpu_max="max 100000", a__cpu_max="300000 100000", a__b__cpu_max="max 100000")
    assert available_cores(**places) == 3


def test_the_old_kind_of_control_group_is_read_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(96)))
    places = groups(tmp_path, "/", cpu__cpu_cfs_quota_us="400000\n")
    (tmp_path / "fs/cpu/cpu_cfs_quota_us").rename(tmp_path / "fs/cpu/cpu.cfs_quota_us")
    (tmp_path / "fs/cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(**places) == 4
    (tmp_path / "fs/cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert available_cores(**places) == 96


@pytest.mark.parametrize("words", [["-c", "import features, json; print('done')"], ["-m", "towers", "--version"]])
@needs_glibc
def test_a_process_of_ours_imports_nothing_from_its_working_folder(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "features").mkdir()
    for name in ("features/__init__.py", "json.py", "click.py", "serving.py", "towers.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    command = own_python(*words, folder=tmp_path)
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=WITHOUT, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@needs_glibc
def test_the_module_imports_nothing_from_its_working_folder_before_or_after_it_starts_itself_again(
    tmp_path: Path,
) -> None:
    for name in ("features.py", "json.py", "click.py", "serving.py", "training.py", "pathlib.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    command = [sys.executable, "-m", "towers", "export", "nowhere"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=WITHOUT, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: missing option '--output'; type: towers export --help\n")


def test_a_checkout_that_is_not_installed_still_finds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert own_python("-m", "towers") == [sys.executable, "-m", "towers"]


@needs_glibc
def test_memory_between_pieces_that_are_in_use_is_given_back():
    pieces = [bytearray(4000) for _ in range(30_000)]
    kept = pieces[::1000]
    before = psutil.Process().memory_info().rss
    del pieces
    release_memory()
    assert before - psutil.Process().memory_info().rss > 80_000_000
    assert len(kept) == 30


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell threads apart")
def test_a_thread_steps_back_alone():
    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found, before = [], priority()

    def work():
        step_back()
        found.append(priority())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (found, priority()) == ([max(before, 10)], before)


MAPPED = """
import ctypes
import numpy as np
from towers.process import keeping_memory

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in NAMES]})

def is_mapped():
    block = np.ones(1 << 23)
    return libc.mallinfo2().hblkhd >= block.nbytes

before = is_mapped()
with keeping_memory():
    inside = is_mapped()
print(before, inside, is_mapped())
"""


@needs_glibc
@pytest.mark.parametrize(
    ("environment", "printed"), [({}, "True False True"), ({"MALLOC_MMAP_MAX_": "0"}, "False False False")]
)
def test_a_running_program_keeps_large_blocks_while_it_trains(environment, printed):
    ended = subprocess.run(
        [sys.executable, "-c", MAPPED], env={**WITHOUT, **environment}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == printed


@pytest.mark.parametrize("was_enabled", [True, False])
def test_garbage_collection_is_paused_in_a_block_and_then_as_before(was_enabled: bool) -> None:
    def fail() -> None:
        with garbage_collection_paused():
            assert not gc.isenabled()
            raise KeyError

    if not was_enabled:
        gc.disable()
    try:
        with pytest.raises(KeyError):
            fail()
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()
