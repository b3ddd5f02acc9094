"""What pip would install with our wheel, held against the lock files that everything is tested with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from hatchling.metadata.core import ProjectMetadata
from hatchling.metadata.spec import get_core_metadata_constructors
from hatchling.plugin.manager import PluginManager
from packaging.metadata import parse_email
from packaging.requirements import Requirement
from packaging.version import Version

from features.errors import DataError, needing
from tests.test_house import imported

ROOT = Path(__file__).parents[1]
PACKAGES = ("features", "towers", "training", "serving")
NOT_IMPORTED = {
    "fbgemm-gpu": "torchrec's, pinned to the one that fits torch",
}
REPLACED = {"cpu": {"fbgemm-gpu": "fbgemm-gpu-cpu"}, "gpu": {"faiss-cpu": "faiss-gpu"}}
REPLACED_IN_LOCKS = {own: name for pairs in REPLACED.values() for name, own in pairs.items()}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(device: str) -> dict[str, str]:
    """The version of each package in a lock file."""
    lines = (ROOT / ".locks" / f"{device}.lock").read_text().splitlines()
    return dict(re.match(r"([\w.-]+)==([\w.+]+)", line).groups() for line in lines if re.match(r"\w", line))


def installed_by(text: str) -> list[str]:
    """The first package that each `pip install` of a text names; options, files and what code fills in are none."""
    options = r"(?:--(?:constraint|requirement|extra-index-url) \S+|--?[\w-]+)"
    return re.findall(rf"pip install(?>(?: {options})*) '?(?!\S*(?:/|\.whl))([A-Za-z][\w-]*)", text)


@pytest.fixture(scope="module")
def wanted() -> list[Requirement]:
    """What the wheel asks for, as hatchling writes it into the wheel."""
    project = ProjectMetadata(str(ROOT), PluginManager())
    raw, _ = parse_email(get_core_metadata_constructors()["2.4"](project))
    return [Requirement(line) for line in raw["requires_dist"]]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_wheel_and_development_ask_for_what_the_lock_has(wanted, device):
    development = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    versions = locked(device)
    for one in (*wanted, *map(Requirement, development)):
        name = REPLACED[device].get(normal(one.name), normal(one.name))
        assert name in versions, f"{one} is not in {device}.lock"
        assert one.specifier.contains(versions[name]), f"{one}, and {device}.lock has {versions[name]}"


def test_torch_and_what_is_compiled_for_it_are_pinned(wanted):
    exact = {normal(one.name) for one in wanted if re.fullmatch(r"==[\d.]+", str(one.specifier))}
    assert {"torch", "torchrec", "fbgemm-gpu"} <= exact


def test_what_is_asked_for_is_imported_and_what_is_imported_is_asked_for(wanted):
    modules = {module for package in PACKAGES for path in (ROOT / package).rglob("*.py") for module in imported(path)}
    owners = packages_distributions()
    used = [{REPLACED_IN_LOCKS.get(normal(owner), normal(owner)) for owner in owners.get(one, ())} for one in modules]
    asked = {normal(one.name) for one in wanted}
    assert [sorted(owned) for owned in used if owned and not owned & {*asked, "two-towers"}] == []
    assert asked - set().union(*used) == {*NOT_IMPORTED}


def test_the_stand_in_for_fbgemm_asks_for_the_build_for_a_cpu(wanted, tmp_path):
    [wheel] = WheelBuilder(str(ROOT / ".locks" / "fbgemm-cpu")).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as opened:
        [metadata] = [name for name in opened.namelist() if name.endswith("/METADATA")]
        stand_in, _ = parse_email(opened.read(metadata))
        # A file of its own would overwrite one of fbgemm-gpu-cpu.
        assert [name for name in opened.namelist() if ".dist-info/" not in name] == []
    [asked] = [one for one in wanted if one.name == stand_in["name"]]
    assert asked.specifier.contains(stand_in["version"])
    # pip prefers 1.8.0+cpu to the 1.8.0 of the package index, which needs NVIDIA's driver.
    assert Version(stand_in["version"]) > Version(stand_in["version"].partition("+")[0])
    assert stand_in["requires_dist"] == [f"fbgemm-gpu-cpu=={locked('cpu')['fbgemm-gpu-cpu']}"]


def test_every_pip_install_names_packages_that_the_locks_have():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    files += [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
    known = {*locked("cpu"), *locked("gpu"), "pip-audit", "bandit"}
    unknown = [
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in installed_by(path.read_text(encoding="utf-8"))
        if normal(name) not in known
    ]
    assert unknown == []


def test_every_package_says_that_it_has_types():
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"] == {
        "packages": [*PACKAGES]
    }


def test_mypy_sees_our_types_where_the_wheel_is_installed(tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    [site_packages] = (tmp_path / "venv" / "lib").glob("*/site-packages")
    zipfile.ZipFile(wheel).extractall(site_packages)
    program = tmp_path / "program.py"
    program.write_text(
        "from features.redaction import redacted\n"
        "from serving.errors import NotReady\n"
        "from towers.process import available_cores\n"
        "from training.evaluation.text_table import aligned\n"
        "import towers\n"
        "reveal_type(redacted('text'))\n"
        "reveal_type(NotReady('text').message)\n"
        "reveal_type(available_cores())\n"
        "reveal_type(aligned([]))\n"
        "reveal_type(towers.open('runs/latest'))\n"
        "reveal_type(towers.open('runs/latest').path)\n",
        encoding="utf-8",
    )
    # Libraries that the environment lacks are of no interest here; a package of ours without types would be Any.
    checked = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", "--ignore-missing-imports", "--python-executable", python, program],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert re.findall(r'Revealed type is "(.*)"', checked.stdout) == [
        "str",
        "str",
        "int",
        "list[str]",
        "towers.api.model.Model",
        "pathlib.Path",
    ], checked.stdout


def test_a_library_that_is_missing_is_told_with_the_rest_of_its_kind(monkeypatch):
    lines = ['not-there[fast]>=2,<3 ; extra == "text"', 'numpy>=1 ; extra == "text"', 'nor-this ; extra == "text"']
    monkeypatch.setattr("features.errors.requires", lambda name: [*lines, 'other ; extra == "more"'])
    with pytest.raises(DataError) as told, needing("graphs"):
        import not_there  # noqa: F401
    assert str(told.value) == "graphs need more libraries; type: pip install 'not-there[fast]<3,>=2' nor-this"


def test_a_library_that_is_there_and_does_not_load_leads_to_the_doctor():
    with pytest.raises(DataError, match=r"one cannot be loaded \(no\); type: towers doctor"), needing("graphs"):
        raise ImportError("no", name="numpy")
