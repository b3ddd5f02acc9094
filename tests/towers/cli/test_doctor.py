from __future__ import annotations

import socket
from importlib.metadata import PackageNotFoundError, distributions
from pathlib import Path

import pytest
from click.testing import CliRunner

from towers.cli import doctor as clinic
from towers.cli.doctor import Finding, Probe, doctor, examine, probe


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every library answers at once, so that a test is about one examination alone."""
    answer = Probe({"version": "1.0", "built_for_cuda": None, "cuda": False, "gpus": 0})
    monkeypatch.setattr(clinic, "probe", lambda programs: ((name, answer) for name in programs))
    monkeypatch.setattr(clinic, "gpus", list)


def finding(name: str) -> Finding:
    return next(found for found in examine() if found.name == name)


def test_all_is_well_where_make_has_installed_everything() -> None:
    ended = CliRunner().invoke(doctor)
    assert "error " not in ended.output
    assert ended.output.endswith("\nAll is well.\n")
    assert ended.exit_code == 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13: cannot open"),
        ("raise SystemExit('no')", "no"),
        (
            "raise OSError('Could not load this library') from OSError('libx.so: not found')",
            "OSError: libx.so: not found",
        ),
        ("import os; os.abort()", "crashes its process (signal 6)"),
        ("import os; os._exit(3)", "ends with status 3"),
        ("import os; os._exit(0)", "says nothing when it is loaded"),
        ("class IndexFlatIP: pass", "TypeError: IndexFlatIP() takes no arguments"),
        ("}", "SyntaxError: unmatched '}'"),
    ],
)
def test_a_broken_library_is_told_in_one_line_with_the_remedy(
    tmp_path: Path, monkeypatch, body: str, told: str
) -> None:
    (tmp_path / "faiss.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(clinic, "PROBES", {"torch": "found = {}", "faiss": clinic.PROBES["faiss"]})
    found = next(found for found in examine() if found.name == "faiss")
    assert found.state == "error"
    assert told in found.text
    assert "\n" not in found.text
    assert found.remedy == "make clean install"


@pytest.mark.parametrize("library", clinic.PROBES)
def test_each_library_that_is_missing_is_noticed(tmp_path: Path, monkeypatch, library: str) -> None:
    module = {"fbgemm": "fbgemm_gpu"}.get(library, library)
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module named {module}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [(_, seen)] = probe({library: clinic.PROBES[library]})
    assert seen.failure == f"ModuleNotFoundError: No module named {module}"


@pytest.mark.parametrize(("found", "remedy"), [([], "make clean install DEVICE=cpu"), (["H200"], "make clean install")])
def test_the_gpu_set_on_a_machine_without_a_gpu_is_to_be_replaced(
    monkeypatch: pytest.MonkeyPatch, found, remedy
) -> None:
    monkeypatch.setattr(clinic, "gpus", lambda: found)
    monkeypatch.setattr(clinic, "version", lambda name: "1.8.0")
    monkeypatch.setattr(
        clinic, "PROBES", {"torch": "found = {}", "faiss": "found = {}", "fbgemm": "raise OSError('libcuda')"}
    )
    assert finding("fbgemm") == Finding("fbgemm", "OSError: libcuda", "error", remedy)


def test_a_library_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "PROBE_SECONDS", 0.2)
    seen = dict(probe({"slow": "import time; time.sleep(60)", "next": "found = {}"}))
    assert seen["slow"].failure == "does not load within 0 seconds"
    assert seen["next"].failure is None


def test_a_library_that_fails_or_prints_spoils_none_after_it() -> None:
    programs = {
        "prints": "import os; print('loaded'); os.write(1, b'again'); found = {'version': '1'}",
        "half": "import sys, types; sys.modules['broken'] = types.ModuleType('broken'); raise ImportError('half')",
        "after": "import sys; found = {'is_clean': 'broken' not in sys.modules}",
        "crash": "import os; os.abort()",
        "last": "found = {'version': '2'}",
    }
    assert dict(probe(programs)) == {
        "prints": Probe({"version": "1"}),
        "half": Probe({}, "ImportError: half"),
        "after": Probe({"is_clean": True}),
        "crash": Probe({}, "crashes its process (signal 6)"),
        "last": Probe({"version": "2"}),
    }


@pytest.mark.usefixtures("quick")
def test_an_error_ends_with_1_and_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "probe", lambda programs: ((name, Probe({}, "ImportError: gone")) for name in programs))
    ended = CliRunner().invoke(doctor)
    assert ended.exit_code == 1
    assert "error  torchrec   ImportError: gone\n                  -> make clean install\n" in ended.output
    assert ended.output.endswith(f"\n{len(clinic.PROBES)} errors found.\n")


@pytest.mark.usefixtures("quick")
def test_an_examination_that_fails_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "_memory", lambda: [][0])
    found = {found.name: found for found in examine()}
    assert found["memory"].text == "cannot be examined: IndexError: list index out of range"
    assert found["data"].state == "ok"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("version", "state"), [((3, 10, 4), "error"), ((3, 13, 0), "ok"), ((3, 14, 0), "error")])
def test_a_python_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch, version, state: str) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setattr("sys.version_info", version)
    assert clinic._python()[0].state == state


def test_another_system_than_linux_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert clinic._python()[0].remedy == "torchrec is published for Linux only: use Linux, or a container"


@pytest.mark.parametrize("clash", [True, False])
def test_two_packages_that_own_one_folder_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clash: bool
) -> None:
    files = {
        "torch": ["torch/__init__.py"],
        "fbgemm_gpu-cpu": ["fbgemm_gpu/__init__.py"],
        # The stand-in that `make wheel` builds for a CPU has no files but its metadata.
        "fbgemm_gpu": ["fbgemm_gpu/__init__.py"] if clash else ["fbgemm_gpu-1.8.0.dist-info/METADATA"],
    }
    for name, paths in files.items():
        folder = tmp_path / f"{name.replace('-', '_')}-1.8.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 1.8.0\n")
        (folder / "RECORD").write_text("".join(f"{path},,\n" for path in paths))
        for path in paths:  # importlib_metadata, where a library has loaded it, leaves out what does not exist
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).touch()
    monkeypatch.setattr(clinic, "distributions", lambda: distributions(path=[str(tmp_path)]))
    monkeypatch.setattr(clinic, "requires", lambda name: [])
    found = clinic._packages()[0]
    expected = ("error", "fbgemm-gpu and fbgemm-gpu-cpu overwrite each other")
    assert ((found.state, found.text) == expected) is clash
    assert (found.state == "ok") is not clash


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "requires", lambda name: ["torch==1.0.0", "not-there>=2", "click>=8"])
    found = clinic._packages()[0]
    assert found.state == "error"
    assert found.text.startswith("torch==1.0.0, found 2.")
    assert found.text.endswith("; not-there is missing")


def test_a_project_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(clinic, "requires", missing)
    assert clinic._packages() == [Finding("packages", "two-towers itself is not installed", "error", "make install")]


CUDA = {"version": "2", "built_for_cuda": "13.0", "cuda": True}


@pytest.mark.parametrize(
    ("torch", "faiss_gpus", "state", "told"),
    [
        (CUDA, 1, "ok", "used by torch and faiss"),
        (CUDA, 0, "note", "used by torch, not by faiss"),
        ({**CUDA, "cuda": False}, 0, "error", "torch's CUDA 13.0 does not start on it"),
        ({**CUDA, "built_for_cuda": None}, 0, "note", "not used by this torch"),
    ],
)
def test_a_gpu_that_is_not_used_is_told(torch, faiss_gpus: int, state: str, told: str) -> None:
    found = clinic._gpu(Probe(torch), Probe({"version": "1", "gpus": faiss_gpus}), ["H200, 143771 MiB, 580.1"])[0]
    assert found.state == state
    assert found.text == f"H200, 143771 MiB, 580.1; {told}"
    assert (found.remedy is None) == (state == "ok")


def test_no_gpu_is_no_fault() -> None:
    assert clinic._gpu(Probe({}), Probe({}), [])[0].state == "ok"


def test_a_tracking_server_that_does_not_answer_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        assert clinic._tracking()[0] == Finding(
            "tracking", f"runs are recorded by http://me:***@127.0.0.1:{port}, which answers"
        )
    found = clinic._tracking()[0]
    assert (found.state, found.text) == ("note", f"http://me:***@127.0.0.1:{port} does not answer")


def test_an_allocator_of_the_users_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "uses_glibc", lambda: True)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "9")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    assert clinic._allocator()[0].remedy == "for the faster one: unset MALLOC_MMAP_MAX_"


@pytest.mark.parametrize(("wanted", "state"), [("", "ok"), ("4", "ok"), ("64", "note"), ("4,2", "note")])
def test_threads_that_do_not_fit_the_cores_are_told(monkeypatch: pytest.MonkeyPatch, wanted: str, state: str) -> None:
    monkeypatch.setattr(clinic, "available_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert clinic._threads()[0].state == state


def test_memory_is_what_the_container_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"memory.max": [["max"], [str(3 * 2**30)]], "memory.current": [[str(2 * 2**30)]]}
    monkeypatch.setattr(clinic, "group_files", groups.__getitem__)
    found = clinic._memory()[0]
    assert (found.state, found.text) == ("note", "1.0 GiB free of 3.0")


def test_a_folder_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert clinic._folder()[0].remedy == "go to a folder of your own"


def test_the_folder_of_public_data_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ml-1m").mkdir()
    monkeypatch.setenv("TOWERS_DATA", str(tmp_path))
    assert clinic._data()[0].text == f"{tmp_path}: ml-1m"
    monkeypatch.setenv("TOWERS_DATA", str(tmp_path / "gone"))
    assert clinic._data()[0].state == "note"


def programs(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    monkeypatch.setattr(clinic, "PROBES", found)
    monkeypatch.setattr(clinic, "_imports", dict)


def test_an_installation_that_loads_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    programs(monkeypatch, torch="found = {}")
    ended = CliRunner().invoke(doctor, ["--installation"])
    assert (ended.output, ended.exit_code) == ("", 0)


def test_an_installation_without_a_driver_names_what_is_missing_and_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = "raise OSError('libnvidia-ml.so.1: cannot open shared object file')"
    programs(monkeypatch, torch="found = {}", fbgemm=missing, torchrec=missing)
    ended = CliRunner().invoke(doctor, ["--installation"])
    assert ended.exit_code == 0
    assert ended.output.splitlines()[0].endswith("fbgemm and torchrec cannot be imported without libnvidia-ml.so.1")
    assert ended.output.count("\n") == 2


def test_an_installation_that_does_not_load_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    programs(monkeypatch, torch="found = {}", fbgemm="raise OSError('undefined symbol: _ZN3c10')")
    ended = CliRunner().invoke(doctor, ["--installation"])
    assert ended.exit_code == 1
    assert "error  fbgemm     OSError: undefined symbol: _ZN3c10\n" in ended.output


def test_every_package_that_is_asked_for_is_imported_by_a_program() -> None:
    found = clinic._imports()
    assert {"libraries", "text", "postgres", "pgvector", "qdrant", "scale", "tune", "baselines", "ray"} == found.keys()
    assert "adbc_driver_duckdb" not in found["scale"], "an adapter of DuckDB to what nothing asks for"
    assert "sentence_transformers" in found["text"]
    assert all(name in found["libraries"] for name in ("sklearn", "orjson", "prometheus_client"))


def test_what_a_wheel_brought_is_mended_with_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clinic, "CHECKOUT", tmp_path)
    monkeypatch.setattr(clinic, "requires", lambda name: ["torch==2.1", "fbgemm-gpu==1.8.0", "faiss-cpu<2"])
    remedy = "pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu, then: pip install fbgemm-gpu-cpu==1.8.0"
    assert clinic.reinstall("cpu") == remedy
    assert clinic.reinstall("gpu").endswith("pip install torch===2.1 fbgemm-gpu==1.8.0 'faiss-gpu<2'")
    assert clinic.reinstall() == "install two-towers once more, into an empty environment"


def test_an_extra_that_is_not_installed_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "requires", lambda name: ["click>=8", 'not-there>=2 ; extra == "text"'])
    assert clinic._packages()[0].state == "ok"
