from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from features.errors import DataError
from features.files import atomic_folder
from towers.cli import main as cli

TOWERS = Path(sys.executable).with_name("towers")


def towers(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "towers", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        check=False,
        timeout=60,
    )


@pytest.fixture
def command_that_raises(monkeypatch: pytest.MonkeyPatch):
    """Make `towers train` raise what it is given, and return the exit status of the command line."""

    def run(error: BaseException) -> int:
        @click.command()
        def train() -> None:
            raise error

        monkeypatch.setattr(cli, "load", lambda entry: train)
        return cli.main(["train"])

    return run


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_of_the_table_is_found_and_has_help(name: str) -> None:
    command = cli.load(cli.COMMANDS[name])
    assert command.name == name
    assert command.get_short_help_str()
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help, f"{name}: {option.name} has no help"


def test_help_lists_every_command_and_imports_none_of_them() -> None:
    program = "import sys; from towers.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in ended.stdout for name in cli.COMMANDS)
    assert not {"torch", "pandas", "numpy", "pydantic", "training.commands"} & set(ended.stderr.split())


def test_help_for_a_command_needs_none_of_the_heavy_libraries() -> None:
    program = """
import sys
from towers.cli import main as cli
for name, entry in cli.COMMANDS.items():
    cli.load(entry)
    print(name, *{"torch", "torchrec", "mlflow", "faiss", "sklearn"} & sys.modules.keys())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == list(cli.COMMANDS)


def test_help_answers_in_a_fraction_of_a_second() -> None:
    # Best of three, since the machine may be busy; it takes 0.05 s on an idle one.
    def seconds() -> float:
        start = time.perf_counter()
        assert towers("--help").returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_script_and_the_module_are_the_same_command() -> None:
    by_script = subprocess.run([TOWERS, "--help"], capture_output=True, text=True, check=True)
    assert by_script.stdout == towers("--help").stdout


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "Usage: towers [OPTIONS] COMMAND" in capsys.readouterr().out


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("two-towers 0.")


def test_a_misspelt_command_gets_the_nearest_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recomend"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no command 'recomend'; did you mean 'recommend'?; type: towers --help\n"
    )


def test_a_command_like_no_other_gets_them_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["xyzzy"]) == 2
    assert "there are demo, init, prepare, plan, train" in capsys.readouterr().err


def test_an_unknown_option_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--loud"]) == 2
    assert capsys.readouterr().err == "error: no such option '--loud'; type: towers --help\n"


def test_what_the_user_can_mend_ends_with_2_and_one_line(command_that_raises, capsys) -> None:
    assert command_that_raises(DataError("clicks.csv: no column\n  'item_id'")) == 2
    assert capsys.readouterr().err == "error: clicks.csv: no column 'item_id'\n"


@pytest.mark.parametrize(("name", "room"), [("BundleError", "towers.bundle.bundle"), ("NotReady", "serving.errors")])
def test_our_other_named_exceptions_are_known_without_importing_them(command_that_raises, capsys, name, room) -> None:
    error = type(name, (ValueError,), {"__module__": room})("the bundle is broken; train again")
    assert command_that_raises(error) == 2
    assert capsys.readouterr().err == "error: the bundle is broken; train again\n"


def test_an_exception_of_the_same_name_from_a_library_is_not_taken_for_ours(command_that_raises, capsys) -> None:
    error = type("DataError", (ValueError,), {"__module__": "sqlalchemy.exc"})("odd")
    assert command_that_raises(error) == 1
    assert "DataError: odd (this is a bug in Two Towers" in capsys.readouterr().err


def test_anything_else_is_a_bug_in_one_line_with_the_way_to_see_more(command_that_raises, capsys) -> None:
    assert command_that_raises(KeyError("x")) == 1
    assert capsys.readouterr().err == (
        "error: KeyError: 'x' (this is a bug in Two Towers; TOWERS_TRACEBACK=1 before the command shows where)\n"
    )


def test_the_traceback_is_shown_when_asked_for(command_that_raises, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TOWERS_TRACEBACK", "1")
    assert command_that_raises(KeyError("x")) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_ends_with_130_and_one_line(command_that_raises, capsys, error) -> None:
    assert command_that_raises(error) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_in_order(monkeypatch, capsys, tmp_path, number) -> None:
    @click.command()
    def train() -> None:
        with atomic_folder(tmp_path / "out"):
            os.kill(os.getpid(), number)
            time.sleep(60)

    monkeypatch.setattr(cli, "load", lambda entry: train)
    before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it
    try:
        assert cli.main(["train"]) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "terminated\n"
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_so(monkeypatch) -> None:
    @click.command()
    def train() -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(cli, "load", lambda entry: train)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert cli.main(["train"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_is_not_our_bug(command_that_raises, capsys) -> None:
    assert command_that_raises(OSError(errno.ENOSPC, "No space left on device", "runs/a")) == 2
    assert (
        capsys.readouterr().err
        == "error: runs/a: no space left on device; free space there, or write to another disk\n"
    )


@pytest.mark.parametrize(
    "error",
    [ImportError("Could not load this library: x.so", name="faiss"), OSError("Could not load this library: x.so")],
)
def test_a_broken_library_leads_to_the_doctor(command_that_raises, capsys, error) -> None:
    assert command_that_raises(error) == 2
    assert capsys.readouterr().err == (
        "error: a library cannot be loaded: Could not load this library: x.so; type: towers doctor\n"
    )


def test_a_room_that_does_not_import_is_a_bug(command_that_raises, capsys) -> None:
    assert command_that_raises(ImportError("no name 'x'", name="training.loop.trainer")) == 1
    assert "this is a bug" in capsys.readouterr().err


def test_the_exit_status_a_command_asks_for_is_kept(command_that_raises) -> None:
    assert command_that_raises(click.exceptions.Exit(7)) == 7


def test_a_reader_that_stops_reading_is_not_an_error() -> None:
    # `head -0` ends at once; more than a pipe's buffer (64 KiB) must be written for the writer to notice.
    program = (
        "import sys, time, click; from towers.cli import main as cli\n"
        "@click.command()\n"
        "def train():\n"
        "    time.sleep(0.3); print('x' * 1_000_000)\n"
        "cli.load = lambda entry: train\n"
        "status = cli.main(['train'])\n"
        "print('status', status, file=sys.stderr)"
    )
    ended = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" | head -c 0', sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.stderr == "status 141\n"


def test_a_broken_connection_elsewhere_is_told(command_that_raises, capsys) -> None:
    assert command_that_raises(BrokenPipeError(errno.EPIPE, "Broken pipe")) == 1
    assert "BrokenPipeError" in capsys.readouterr().err
