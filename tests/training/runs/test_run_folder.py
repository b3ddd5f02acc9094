"""Where runs are kept, and which one is resumed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from features.config import FeaturesConfig
from features.errors import DataError
from features.tables.tables import data_digests
from training.config import RunConfig, TrainingConfig, read_run_config
from training.runs.run_folder import Run, _held
from training.tasks.train import train_and_bundle


def config_of(seed: int = 0, track: bool = True) -> RunConfig:
    training = TrainingConfig(seed=seed, track=track)
    return RunConfig(features=FeaturesConfig(interactions="clicks.csv"), training=training)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finish(run: Run) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "manifest.json").write_text("{}")
    run.finish()


def test_runs_are_numbered_and_latest_points_to_the_newest() -> None:
    for number in (1, 2):
        run = Run.begin(config_of(), "run", None)
        assert run.folder == Path(f"runs/run-{number}")
        finish(run)
        assert Path("runs/latest").resolve() == run.folder.resolve()
        assert not run.workspace.exists()


def test_a_training_moves_nothing_that_is_served_and_writes_over_nothing_that_is() -> None:
    finish(Run.begin(config_of(), "run", None))
    Path("runs/production").symlink_to("run-1")
    finish(Run.begin(config_of(), "run", Path("runs/experiment")))
    assert Path("runs/latest").resolve().name == "experiment"
    assert Path("runs/production").resolve().name == "run-1"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["experiment", "latest", "production", "run-1"]
    with pytest.raises(DataError, match="runs/run-1: runs/production points to it, so it may be served; name another"):
        Run.begin(config_of(), "run", Path("runs/run-1"))
    Run.begin(config_of(), "run", Path("runs/experiment")).abandon()


def claimed_elsewhere(run: Run) -> bool:
    """Return whether another process may not train into the folder of a run."""
    code = f"import fcntl; fcntl.flock(open({str(run._lock)!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_do_not_train_into_one_folder(resume: bool) -> None:
    output = Path("runs/experiment")
    run = Run.begin(config_of(), "run", output)
    run.checkpoint.write_text("the other one's")
    assert claimed_elsewhere(run)
    held = _held.pop(run._lock)  # as if it were another process that holds it
    with pytest.raises(DataError, match=r"runs/experiment: another process trains into it; wait for its end"):
        (Run.unfinished if resume else Run.begin)(config_of(), "run", output)
    assert run.checkpoint.read_text() == "the other one's"
    os.close(held)
    assert Run.unfinished(config_of(), "run", output) == run
    run.release()
    assert sorted(path.name for path in Path("runs").iterdir()) == [".experiment.training"]
    assert Run.begin(config_of(), "run", None).folder == Path("runs/run-1")


def test_a_number_that_another_process_has_just_taken_is_left_out() -> None:
    Path("runs").mkdir()
    Path("runs/.run-1.lock").touch()
    assert Run.begin(config_of(), "run", None).folder == Path("runs/run-2")


def test_an_unfinished_run_is_found_by_its_settings() -> None:
    first, other = Run.begin(config_of(), "run", None), Run.begin(config_of(seed=1), "run", None)
    assert first.folder != other.folder
    for run in (first, other):
        run.checkpoint.write_text("")
    assert Run.unfinished(config_of(seed=1), "run", None) == other
    assert Run.unfinished(config_of(track=False), "run", None) == first  # recording does not change the weights


def test_a_run_is_not_resumed_with_other_tables() -> None:
    before = {"interactions": "one", "items": "two"}
    run = Run.begin(config_of(), "run", None, before)
    run.checkpoint.write_text("")
    assert Run.unfinished(config_of(), "run", None, before) == run
    with pytest.raises(
        DataError, match=r"clicks.csv: not the table that the unfinished run began with .*; put that one"
    ):
        Run.unfinished(config_of(), "run", None, {**before, "interactions": "three"})


def test_a_training_is_not_resumed_with_other_tables() -> None:
    Path("run.toml").write_text('[features]\ninteractions = "clicks.csv"\n')
    Path("clicks.csv").write_text("user_id,item_id\n" + "".join(f"{row % 6},{row % 7}\n" for row in range(40)))
    config = read_run_config(Path("run.toml"))
    run = Run.begin(config, "run", None, data_digests(config.features, Path()))
    run.checkpoint.write_text("")
    with Path("clicks.csv").open("a") as file:
        file.write("1,3\n")
    with pytest.raises(DataError, match=r"clicks.csv: not the table that the unfinished run began with"):
        train_and_bundle(Path("run.toml"), (), output=None, resume=True, device="cpu")
    assert run.checkpoint.is_file(), "nothing is lost"


def test_nothing_to_resume_is_said() -> None:
    Run.begin(config_of(), "run", None)  # died before its first checkpoint
    with pytest.raises(DataError, match="no unfinished run with these settings and a checkpoint; train without"):
        Run.unfinished(config_of(), "run", None)
    other = Run.begin(config_of(), "run", None, continued="weights")
    other.checkpoint.write_text("")
    with pytest.raises(DataError, match=rf" \({other.workspace} began with other settings, tables or weights\); train"):
        Run.unfinished(config_of(), "run", None)


def test_a_folder_that_is_no_bundle_is_not_replaced() -> None:
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="precious: exists and is not a bundle; name another folder, or remove it"):
        Run.begin(config_of(), "run", Path("precious"))


def test_outside_a_folder_of_runs_no_link_appears() -> None:
    finish(Run.begin(config_of(), "run", Path("models/mine")))
    assert [path.name for path in Path("models").iterdir()] == ["mine"]


def test_overrides_replace_settings_and_mistakes_are_told_together() -> None:
    Path("run.toml").write_text('[features]\ninteractions = "clicks.csv"\n')
    config = read_run_config(Path("run.toml"), ("training.seed=7", "towers.history_encoder=mean", "towers.dropout=0.5"))
    assert (config.training.seed, config.towers.history_encoder, config.towers.dropout) == (7, "mean", 0.5)
    with pytest.raises(DataError, match=r"towers.embedding_dim: .*found 'wide'; training.sead: no such setting"):
        read_run_config(Path("run.toml"), ("training.sead=7", "towers.embedding_dim=wide"))
    with pytest.raises(DataError, match=r"towers: num_heads = 3 does not divide embedding_dim = 64"):
        read_run_config(Path("run.toml"), ("towers.num_heads=3",))
    with pytest.raises(DataError, match=r"training: uniform_negatives and in_batch_negatives are both 0; raise one"):
        read_run_config(Path("run.toml"), ("training.uniform_negatives=0", "training.in_batch_negatives=0"))
    with pytest.raises(DataError, match=r"--set seed=7: expected table\.key=value"):
        read_run_config(Path("run.toml"), ("seed=7",))
