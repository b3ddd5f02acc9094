"""Presets: sizes that fit together, between run.toml and --set."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from training.commands import evaluate, train
from training.config import read_run_config
from training.presets import PRESETS, preset_settings
from training.tasks import evaluate as judging
from training.tasks import train as shipping


@pytest.fixture
def run_toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        '[features]\ninteractions = "i.csv"\n[towers]\nembedding_dim = 48\nnum_heads = 3\nhistory_encoder = "mean"\n'
    )
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_whatever_the_file_says(run_toml: Path, preset: str) -> None:
    config = read_run_config(run_toml, preset_settings(preset))
    assert config.towers.embedding_dim % config.towers.num_heads == 0
    assert config.towers.history_encoder == "mean"  # what is read, and how, is left to the file


def test_a_larger_preset_is_larger(run_toml: Path) -> None:
    sizes = [read_run_config(run_toml, preset_settings(preset)).towers for preset in ("small", "base", "large")]
    assert sorted(sizes, key=lambda towers: (towers.embedding_dim, towers.num_layers)) == sizes
    assert len({towers.embedding_dim for towers in sizes}) == 3


@pytest.mark.parametrize(
    ("command", "room", "does"), [(train, shipping, "train_and_bundle"), (evaluate, judging, "evaluate_run")]
)
def test_a_preset_replaces_the_file_and_set_replaces_the_preset(
    run_toml: Path, monkeypatch: pytest.MonkeyPatch, command: object, room: object, does: str
) -> None:
    class Seen(Exception):  # noqa: N818
        pass

    def see(settings: Path, overrides: tuple[str, ...], *rest: object, **more: object) -> None:
        raise Seen(read_run_config(settings, overrides).towers)

    monkeypatch.setattr(room, does, see)
    words = [str(run_toml), "--preset", "large", "--set", "towers.num_layers=7"]
    result = CliRunner().invoke(command, words)
    assert isinstance(result.exception, Seen)
    (towers,) = result.exception.args
    assert (towers.embedding_dim, towers.num_layers) == (128, 7)


def test_a_preset_that_does_not_exist_is_told_from_those_that_do(run_toml: Path) -> None:
    result = CliRunner().invoke(train, [str(run_toml), "--preset", "huge"])
    assert result.exit_code == 2
    assert "'huge' is not one of 'small', 'base', 'large'" in result.output
