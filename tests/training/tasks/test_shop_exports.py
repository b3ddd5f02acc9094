"""What shops' programs export: `towers init` is right without a flag, or says what to add."""

from __future__ import annotations

import tomllib

import pytest

from features.config import FeaturesConfig
from features.settings import parse_settings
from features.tables.tables import read_tables
from tests.shop_exports import EXPORTS, Export
from towers.cli.main import main


def init(export: Export, folder, monkeypatch, capsys) -> tuple[int, str, str]:
    """Write the tables, run `towers init` on them, and return its status and what it said."""
    monkeypatch.chdir(folder)
    tables = []
    for name, write in export.files.items():
        write(folder / name)
        tables += [f"--{name.partition('.')[0]}", name]
    status = main(["init", *tables, *(word for flag in export.flags.items() for word in flag)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_an_export_is_understood_or_the_remedy_is_said(export: Export, tmp_path, monkeypatch, capsys):
    status, out, err = init(export, tmp_path, monkeypatch, capsys)
    if export.refused:
        assert status == 2
        assert not (tmp_path / "run.toml").exists()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert all(any(part in line for line in errors) for part in export.refused), err
        return
    assert status == 0, err
    settings = tomllib.loads((tmp_path / "run.toml").read_text(encoding="utf-8"))["features"]
    assert export.roles.items() <= settings["columns"].items()
    kinds = {name: one["kind"] for name, one in settings["item"].items()}
    assert export.kinds.items() <= kinds.items()
    assert all(part in out + err for part in export.said), err
    config = parse_settings(FeaturesConfig, settings, "run.toml")
    assert len(read_tables(config, tmp_path).interactions) >= 14
