"""The command `towers`: which commands there are, where each of them lives, and how a failure ends.

A command's package is imported when the command is called, so that `towers --help` answers in a tenth of a second. Exit
status: 0 done; 2 something the user can mend, in one line on stderr; 3 a condition of an audit or a promotion failed,
or drift was found; 130 interrupted; 143 terminated; 1 a bug of ours.
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from towers.process import Stopped, ended_by_signals, garbage_collection_paused

PACKAGES = ("features", "towers", "training", "serving")
MISTAKES = ("DataError", "BundleError", "NotReady", "UnavailableError")
"""Our exceptions whose message is shown without a traceback. By name, so that nothing is imported."""
_NO_RIGHTS = "change its permissions, or name another place"
_NO_ROOM = "free space there, or write to another disk"
_NO_FOLDER = "a file is where a folder is needed: remove it, or name another place"
REMEDIES = {
    errno.EACCES: _NO_RIGHTS,
    errno.EPERM: _NO_RIGHTS,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: "a folder is where a file is needed: remove it, or name another place",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: f"raise the limit (ulimit -f), or {_NO_ROOM}",
    errno.EIO: "look for errors of the disk in the system's log",
    errno.ESTALE: "mount the file system again",
}
"""Failures of the file system that are not ours, and what to do: permissions, a full disk, one that is broken."""


@dataclass(frozen=True)
class Entry:
    """The function of a command, and its one-line help."""

    target: str
    help: str
    computes: bool = False
    """Whether it runs in an environment prepared for heavy work."""


COMMANDS = {
    "demo": Entry("towers.cli.demo:demo", "Show the whole of it on a generated shop, command by command."),
    "init": Entry("training.commands:init", "Look at the tables and write run.toml."),
    "prepare": Entry(
        "training.commands:prepare", "Sort interactions on disk that are larger than memory.", computes=True
    ),
    "plan": Entry("training.commands:plan", "Show what a training will take: memory, disk, time.", computes=True),
    "train": Entry(
        "training.commands:train", "Train on the tables of run.toml; the result is a bundle.", computes=True
    ),
    "tune": Entry("training.commands:tune", "Search for better settings; the result is a run.toml.", computes=True),
    "train-ranker": Entry("training.commands:train_ranker", "Train a re-ranker for a bundle.", computes=True),
    "evaluate": Entry(
        "training.commands:evaluate", "Evaluate the settings of run.toml against baselines.", computes=True
    ),
    "audit": Entry("training.commands:audit", "Find the slices in which an evaluated recommender fails."),
    "compare": Entry("training.commands:compare", "Compare evaluations on the same questions."),
    "index": Entry("serving.commands:index", "Build a bundle's search index over the catalogue.", computes=True),
    "drift": Entry("serving.commands:drift", "Compare today's tables with those of the training.", computes=True),
    "duplicates": Entry("serving.commands:duplicates", "Find items that are nearly the same.", computes=True),
    "clusters": Entry("serving.commands:clusters", "Divide the catalogue into groups, and name them.", computes=True),
    "recommend": Entry("serving.commands:recommend", "Write recommendations for all users to a table.", computes=True),
    "search": Entry("serving.commands:search", "Show the items nearest to some words.", computes=True),
    "export": Entry(
        "towers.export.command:export", "Write a pretrained model of a bundle as an ONNX graph.", computes=True
    ),
    "serve": Entry("serving.commands:serve", "Answer over HTTP."),
    "key": Entry("serving.commands:key", "Make, list and remove the keys that a service asks for."),
    "deploy": Entry("serving.commands:deploy", "Deploy a bundle to a running service."),
    "promote": Entry(
        "towers.api.commands:promote", "Deploy a bundle if it is better than the one in service.", computes=True
    ),
    "rollback": Entry("serving.commands:rollback", "Let a running service go back to the bundle it served before."),
    "keygen": Entry("towers.cli.commands:keygen", "Make the keys with which bundles are signed, and trusted."),
    "sign": Entry("towers.cli.commands:sign", "Sign a bundle, its index and its ranker."),
    "dataset": Entry("features.commands:dataset", "Write a public data set or a generated shop as tables."),
    "doctor": Entry("towers.cli.doctor:doctor", "Check the installation and print fixes."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by the table above and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of use rather than of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name.

        Raises:
            click.UsageError: There is none; the message suggests the nearest.
        """
        if cmd_name not in COMMANDS:
            raise click.UsageError(f"there is no command {cmd_name!r}{_nearest(cmd_name)}", ctx)
        return load(COMMANDS[cmd_name])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *given: _version(*given),
    help="Show the version.",
)
def towers() -> None:
    """From two tables to served recommendations.

    \b
    Start here:  towers init --interactions FILE --items FILE
                 towers train run.toml
                 towers serve runs/run-1
    """  # noqa: D301 (click wants the character itself)


def load(entry: Entry) -> click.Command:
    """Return the command that an entry of the table points to."""
    from towers.warnings_filter import quiet_imports

    quiet_imports()
    module, _, name = entry.target.partition(":")
    with garbage_collection_paused():
        command = getattr(importlib.import_module(module), name)
    assert isinstance(command, click.Command), f"{entry.target} is not a click command"
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: What follows `towers`. None: those of this process, which may then start itself once more to run in
            a prepared environment.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if instruction := os.environ.get("_TOWERS_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(towers, {}, "towers", "_TOWERS_COMPLETE", instruction)
    try:
        if arguments is None and _computes(given):
            from towers.process import restart_prepared

            restart_prepared()
        with ended_by_signals(), towers.make_context("towers", given) as context:
            towers.invoke(context)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return _end(error)
    return 0


def _computes(given: Sequence[str]) -> bool:
    name = next((argument for argument in given if not argument.startswith("-")), "")
    return name in COMMANDS and COMMANDS[name].computes and "--help" not in given


def _end(error: BaseException) -> int:
    """Tell what ended the command, in a line, and return the exit status."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return 0
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its end
        return 128 + 13
    if os.environ.get("TOWERS_TRACEBACK"):
        import traceback

        click.echo(_without_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        number = error.signal if isinstance(error, Stopped) else signal.SIGINT
        said = "interrupted" if number == signal.SIGINT else "terminated"
        click.echo(f"\n{said}" if sys.stderr.isatty() else said, err=True)
        return 128 + number
    for one in getattr(error, "problems", [error]):
        message, status = _message(one)
        click.echo(f"error: {_without_secrets(' '.join(message.split()))}", err=True)
    return status


def _without_secrets(text: str) -> str:
    from features.redaction import passwords_of, redacted

    return redacted(text, *passwords_of(os.environ))


def _message(error: BaseException) -> tuple[str, int]:
    """The message of `error`, and the exit status."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "towers"
        return f"{_lower(error.format_message()).rstrip('.')}; type: {command} --help", 2
    if isinstance(error, click.ClickException):
        return _lower(error.format_message()), 2
    if _is_mistake(error):
        return str(error), 2
    if isinstance(error, OSError) and error.errno in REMEDIES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{_lower(error.strerror or 'not possible')}; {REMEDIES[error.errno]}", 2
    if _is_broken_library(error):
        return f"a library cannot be loaded: {error}; type: towers doctor", 2
    shown = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{shown} (this is a bug in Two Towers; TOWERS_TRACEBACK=1 before the command shows where)", 1


def _is_mistake(error: BaseException) -> bool:
    return any(
        kind.__name__ in MISTAKES and kind.__module__.partition(".")[0] in PACKAGES for kind in type(error).__mro__
    )


def _is_broken_library(error: BaseException) -> bool:
    if isinstance(error, ImportError):
        return (error.name or "").partition(".")[0] not in PACKAGES
    return isinstance(error, OSError) and str(error).startswith("Could not load this library")  # as torch says it


def _reader_is_gone() -> bool:
    """Whether the reader of our standard output, such as `head`, has closed it (and not some other pipe)."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {found[0]!r}?" if found else f"; there are {', '.join(COMMANDS)}"


def _version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"two-towers {version('two-towers')}")
        context.exit()


def _lower(text: str) -> str:
    """The message in the style of all our errors: no capital at the start, unless it is a name."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
