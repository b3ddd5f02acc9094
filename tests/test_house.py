"""The guards of the house: rules that hold for the whole of the project, whoever writes it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from features.settings import StrictTable

ROOT = Path(__file__).parents[1]
TOP_PACKAGES = ("features", "towers", "training", "serving")
INTERFACE = "towers.api"
"""The Python interface, above all packages; the `__init__` of `towers` offers its names."""
SOURCES = sorted(path for package in TOP_PACKAGES for path in (ROOT / package).rglob("*.py"))
PACKAGES = sorted({path.parent for path in SOURCES})
TOP_LEVEL = {
    "Makefile",
    "LICENSE",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "pyproject.toml",
    "docs",
    "notebooks",
    "tests",
    *TOP_PACKAGES,
}


def imported(path: Path) -> set[str]:
    """The top-level packages a file imports, inside its functions, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in SOURCES}


def modules_imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, inside its functions and for its types, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= full & MODULES or {node.module}
    return (names & MODULES) - {module_of(path)}


def siblings(module: str, other: str) -> tuple[str, str]:
    """The folders, or files beside folders, in which two modules part: `serving.http` and `serving.live`."""
    mine, its = module.split("."), other.split(".")
    depth = next((at for at, pair in enumerate(zip(mine, its, strict=False)) if pair[0] != pair[1]), None)
    return (module, module) if depth is None else (".".join(mine[: depth + 1]), ".".join(its[: depth + 1]))


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_the_layers_of_the_packages_hold() -> None:
    ended = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("faiss", ("serving/search/faiss_index.py", "serving/search/inverted_lists.py")),
        ("flask", "serving/"),
        ("mlflow", ("training/", "towers/tracking/", "towers/api/pyfunc.py", "serving/deploy/mlflow_registry.py")),
        ("pickle", "nowhere"),
    ],
)
def test_a_library_is_imported_in_its_own_place_only(library: str, home: str | tuple[str, ...]) -> None:
    users = [path.relative_to(ROOT).as_posix() for path in SOURCES if library in imported(path)]
    assert [user for user in users if not user.startswith(home)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_says_in_a_few_lines_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no docstring"
    if module_of(path) in set(TOP_PACKAGES) - {"towers"}:
        assert len(tree.body) == 1, "a package's __init__ is a signpost and nothing else"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_reads_or_writes_pickle_by_a_side_door(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"torch\.(load|save)\(|allow_pickle=True|read_pickle|to_pickle|joblib", text)


def test_a_python_of_ours_is_started_in_one_way_only() -> None:
    """`own_python` keeps what lies in the working folder from being imported; `restart_prepared` needs none of that."""
    named = {path.relative_to(ROOT).as_posix() for path in SOURCES if "[sys.executable" in path.read_text("utf-8")}
    assert named == {"towers/process.py"}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_package_names_each_of_its_files_and_no_other(package: Path) -> None:
    there = {path.stem for path in package.glob("[!_]*") if path.suffix == ".py" or (path / "__init__.py").exists()}
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    text = " ".join((ast.get_docstring(tree) or "").split())
    listed = re.findall(r"((?:`[a-z0-9_]+`(?:, | and )?)+):", text)  # `negatives`, `losses`: what ...
    named = {name for names in listed for name in re.findall(r"`([a-z0-9_]+)`", names)}
    assert named == there


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_reader_sees_the_whole_of_a_folder(package: Path) -> None:
    assert len([path for path in package.glob("[!_]*") if path.is_file()]) <= 15


def test_no_files_and_no_folders_import_each_other_in_a_circle() -> None:
    imports = {module_of(path): modules_imported(path) for path in SOURCES}
    folders: dict[str, set[str]] = {}
    for module, used in imports.items():
        for other in used if not module.startswith(f"{INTERFACE}.") else ():
            mine, its = siblings(module, other)
            if mine != its:
                folders.setdefault(mine, set()).add(its)
    TopologicalSorter(imports).prepare()
    TopologicalSorter(folders).prepare()


@pytest.mark.parametrize("package", TOP_PACKAGES)
def test_every_setting_says_what_it_is(package: str) -> None:
    if not (ROOT / package / "config.py").exists():
        pytest.skip("this package has no settings")
    module = import_module(f"{package}.config")
    tables = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, StrictTable)]
    silent = [
        f"{table.__name__}.{name}"
        for table in tables
        for name, field in table.model_fields.items()
        if not field.description
    ]
    assert not silent


def test_nothing_unexpected_lies_at_the_top() -> None:
    top = {name.partition("/")[0] for name in tracked()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_the_chapter_on_threats_names_settings_that_there_are() -> None:
    from serving.config import ServingConfig

    text = (ROOT / "docs" / "operating" / "threats.md").read_text(encoding="utf-8")
    limits = text.partition("## Limits and deadlines")[2].partition("## ")[0]
    named = {name for row in re.findall(r"(?m)^\|.*\|([^|]*)\|$", limits) for name in re.findall(r"`(\w+)`", row)}
    assert len(named) > 12
    assert named <= set(ServingConfig.model_fields)
    assert {"trusted_keys", "encoder_hosts", "trusted_proxies"} <= set(re.findall(r"`(\w+)`", text))


def test_no_package_is_hidden_in_the_tests() -> None:
    # tests/features/__init__.py would take the place of the real package.
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_nothing_is_left_to_do_in_what_is_shipped() -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    assert [path for path in SOURCES if marks.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name", ["cpu", "gpu", "rivals"])
def test_a_lock_is_exact_and_names_no_address(name: str) -> None:
    lines = (ROOT / ".locks" / f"{name}.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^ ;/@]+( ; .+)?", pin) for pin in pins)
    assert not [line for line in lines if "://" in line or "index-url" in line or re.search(r"(^|\s)/", line)]


@pytest.mark.parametrize(
    ("device", "there", "away"),
    [
        ("cpu", {"fbgemm-gpu-cpu", "faiss-cpu"}, {"fbgemm-gpu", "faiss-gpu", "triton", "nvidia-cublas"}),
        ("gpu", {"fbgemm-gpu", "faiss-gpu", "triton"}, {"fbgemm-gpu-cpu", "faiss-cpu"}),
    ],
)
def test_each_lock_has_the_builds_for_its_device(device: str, there: set[str], away: set[str]) -> None:
    text = (ROOT / ".locks" / f"{device}.lock").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    assert pins.keys() >= there
    assert not pins.keys() & away
    assert (pins["torch"], pins["torchrec"]) == ("2.13.0", "1.8.0")


def test_the_rival_is_measured_on_the_same_torch() -> None:
    text = (ROOT / ".locks" / "rivals.lock").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    assert pins["torch"] == "2.13.0"
    assert pins["rectools"] == "0.19.0"


def test_every_path_and_name_in_contributing_exists() -> None:
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    known = {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    spans = re.findall(r"`([\w./-]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    spans = [span for span in spans if "NAME" not in span]
    of_runs = {"run.toml", "serving.toml", "ranker/"}
    paths = {span for span in spans if "/" in span or span.endswith((".py", ".toml"))}
    missing = {path for path in paths - of_runs if not (ROOT / path).exists()}
    assert sorted(missing - {file.name for file in files}) == []
    names = {word for span in set(spans) - paths for word in re.findall(r"\w+", span)}
    assert sorted(names - known) == []


def test_the_wheel_holds_the_four_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(TOP_PACKAGES)
    packed = {name for name in names if name.endswith(".py")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_shows_what_there_is() -> None:
    ended = subprocess.run(
        ["make", "--no-print-directory", "DEVICE=cpu"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    targets = [line.split()[1] for line in ended.stdout.splitlines()]
    assert targets == ["help", "install", "demo", "test", "docs", "wheel", "rivals", "lock", "format", "clean"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_device_that_does_not_exist_is_told_in_one_line() -> None:
    ended = subprocess.run(["make", "install", "DEVICE=tpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[0] == "error: there is no tpu set; DEVICE is cpu or gpu"


def test_every_name_is_defined():
    """As ruff's F821, which cannot be on: it takes the names in the shape of an array for forward references."""
    command = (sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "--output-format=json", str(ROOT))
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    lines = {name: Path(name).read_text(encoding="utf-8").splitlines() for name in {one["filename"] for one in found}}
    unknown = []
    for one in found:
        row, column = one["location"]["row"], one["location"]["column"]
        before = lines[one["filename"]][row - 1][: column - 1]
        if one["cell"] is None and before.count('"') % 2 == 0:
            unknown.append(f"{one['filename']}:{row}: {one['message']}")
    assert found, "names in shapes are always found"
    assert not unknown
