"""The reference of the command line, from click."""

from __future__ import annotations

import inspect
import re
import signal
from html import escape

import click

from serving.commands import DRIFT_FOUND
from tests.documentation.pages import in_table
from towers.api.commands import REFUSED
from towers.cli import main as cli
from training.commands import GATE_FAILED

_INTRODUCTION = """\
# Command line

Every command of `towers`, with its arguments and options. `towers COMMAND --help` shows the same in a terminal.

| exit status | meaning |
|---|---|
{statuses}

`towers demo` ends with the status of the command that failed in it.

| command | what it does |
|---|---|
"""
_STATUSES = (
    (0, "done"),
    (1, "a bug in Two Towers; `TOWERS_TRACEBACK=1` before the command shows where"),
    (1, "`towers doctor` found errors"),
    (1, "`towers serve`: no worker could start"),
    (2, "something that you can correct, in one line with the remedy"),
    (GATE_FAILED, "a condition of `towers audit --fail-if` holds"),
    (DRIFT_FOUND, "`towers drift` found drift"),
    (REFUSED, "`towers promote` did not promote"),
    (128 + signal.SIGHUP, "the terminal was closed (SIGHUP)"),
    (128 + signal.SIGINT, "Ctrl-C (SIGINT)"),
    (128 + signal.SIGPIPE, "the reader of the output, such as `head`, has gone (SIGPIPE)"),
    (128 + signal.SIGTERM, "SIGTERM"),
)
"""What each exit status means."""
_KINDS = {
    "integer": "N",
    "integer range": "N",
    "float range": "NUMBER",
    "path": "PATH",
    "directory": "FOLDER",
    "file": "FILE",
}
"""What stands for a value, by click's name of its type."""
_DEFAULT = re.compile(r"\s*(?:\[default: (.*)\]|Default: (.*)\.)$")


def command_line_page() -> str:
    """Return the page."""
    table = [f"| [`towers {name}`](#towers-{name}) | {entry.help} |" for name, entry in cli.COMMANDS.items()]
    statuses = "\n".join(f"| {status} | {meaning} |" for status, meaning in _STATUSES)
    parts = [_INTRODUCTION.format(statuses=statuses) + "\n".join(table) + "\n"]
    for name, entry in cli.COMMANDS.items():
        parts += _sections(f"towers {name}", cli.load(entry), "##")
    return "\n".join(parts)


def options_of(command: click.Command) -> set[str]:
    """Return the flags of a command, and of the commands below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {flag for one in command.params if isinstance(one, click.Option) for flag in (*one.opts, *one.secondary_opts)}
    return own.union({"--help"}, *map(options_of, below))


def _sections(name: str, command: click.Command, marks: str) -> list[str]:
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    options = [one for one in command.params if isinstance(one, click.Option)]
    usage = " ".join(
        [name, *(one.make_metavar(click.Context(command)) for one in arguments), *(["[OPTIONS]"] if options else [])]
    )
    parts = [f"{marks} {name}\n"]
    if not isinstance(command, click.Group):
        parts.append(f"```text\n{usage}\n```\n")
    parts += [f"{_plain(text)}\n" for text in _paragraphs(command)]
    if options:
        rows = ["| option | values | default | what it does |", "|---|---|---|---|"]
        parts.append("\n".join([*rows, *map(_row, options)]) + "\n")
    for inner, one in command.commands.items() if isinstance(command, click.Group) else ():
        parts += _sections(f"{name} {inner}", one, f"{marks}#")
    return parts


def _paragraphs(command: click.Command) -> list[str]:
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    return [" ".join(part.split()) for part in [*text.split("\n\n"), command.epilog or ""] if part]


def _row(option: click.Option) -> str:
    help_text = " ".join((option.help or "").split())
    found = _DEFAULT.search(help_text)
    what = _DEFAULT.sub("", help_text)
    if option.envvar:
        what += f" Environment variable: `{option.envvar}`."
    if option.required:
        default = "required"
    elif found is not None:
        default = _plain(found[1] or found[2])
    elif option.is_flag or option.multiple or not isinstance(option.default, str | int | float):
        default = f"`{option.default}`" if option.show_default and option.default is not None else ""
    else:
        default = f"`{option.default}`"
    flags = ", ".join(f"`{flag}`" for flag in option.opts)
    return f"| {flags} | {_values(option)} | {default} | {_plain(what)} |"


def _values(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return ", ".join(f"`{choice}`" for choice in option.type.choices)
    kind = option.metavar or _KINDS.get(option.type.name, "TEXT")
    limits = []
    if isinstance(option.type, click.IntRange | click.FloatRange):
        for bound, is_open, signs in (
            (option.type.min, option.type.min_open, "≥>"),
            (option.type.max, option.type.max_open, "≤<"),
        ):
            if bound is not None:
                limits.append(f"{signs[is_open]} {bound:g}")
    return " ".join([f"`{kind}`", ", ".join(limits)]).strip()


def _plain(text: str) -> str:
    """Return text of a terminal as Markdown: outside of code spans nothing of it is markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return in_table("".join(part if at % 2 else _escaped(part) for at, part in enumerate(parts)))


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]|])", r"\\\1", escape(text, quote=False))
