"""The front door keeps its word: its commands run in order, its paths exist, and every setting is in its tables.

`python tests/test_readme.py` writes the tables of settings and of endpoints from the settings and the route table.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from pydantic_core import PydanticUndefined

from features.config import ColumnSettings, EncoderSettings, FeaturesConfig, FeatureSettings, StrictTable
from serving.config import ServingConfig
from serving.http.routes import ROUTES
from towers.cli import main as cli
from towers.config import TowersConfig
from training.config import TrainingConfig

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLES: dict[str, tuple[type[StrictTable], str]] = {
    "[features]": (FeaturesConfig, "tables and features"),
    "[features.columns]": (ColumnSettings, "names of the columns of users, items and times"),
    "[features.item]` and `[features.user]": (
        FeatureSettings,
        'one line per feature, such as `brand = { kind = "category" }`',
    ),
    "[features.encoders.<name>]": (EncoderSettings, "a pretrained text encoder, by a name of your choice"),
    "[towers]": (TowersConfig, "architecture of the two towers"),
    "[training]": (TrainingConfig, "data, loss, optimisation and tracking of training"),
    "serving.toml": (ServingConfig, "or `TOWERS_<KEY>` in the environment"),
}
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->"
ROUTES_BEGIN, ROUTES_END = "<!-- routes -->\n", "<!-- /routes -->"
NOTES = ("tea", "coffee", "bread", "soup", "rice", "pasta", "beans", "cake")
QUICK = "--set training.epochs=1"


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands after the fence, and its lines."""

    info: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(info, text) for info, text in found]


def commands(info: str) -> list[str]:
    """The commands of all blocks of a kind, continued lines joined."""
    text = "\n".join(block.text for block in blocks() if block.info == info).replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in text.splitlines() if line.strip()]


def settings_tables() -> str:
    """Every table of settings, from the settings themselves."""
    parts = []
    for head, (table, what) in TABLES.items():
        rows = ["", f"**`{head}`**, {what}", "", "| key | default | what |", "|---|---|---|"]
        parts += rows + [_row(table, name) for name in table.model_fields if not _is_shown_apart(table, name)]
    return "\n".join(parts).lstrip() + "\n"


def _is_shown_apart(table: type[StrictTable], name: str) -> bool:
    return table is FeaturesConfig and name in ("columns", "item", "user", "encoders")


def _row(table: type[StrictTable], name: str) -> str:
    field = table.model_fields[name]
    default = field.get_default(call_default_factory=True)
    shown = (
        "required" if default is PydanticUndefined else "none" if default in (None, {}) else f"`{json.dumps(default)}`"
    )
    what = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | {shown} | {what} |"


def routes_table() -> str:
    """The table of endpoints, from the route table."""
    rows = ["| endpoint | API key | what it does |", "|---|---|---|"]
    rows += [f"| `{route.method} {route.path}` | {route.scope} | {route.summary} |" for route in ROUTES]
    return "\n".join(rows) + "\n"


def between(text: str, begin: str, end: str, content: str) -> str:
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{content}\n{end}{after}"


def written(text: str) -> str:
    """The README with the tables of settings and of endpoints as they should be."""
    return between(between(text, BEGIN, END, settings_tables()), ROUTES_BEGIN, ROUTES_END, routes_table())


def test_the_tables_of_settings_and_endpoints_are_up_to_date():
    text = README.read_text(encoding="utf-8")
    assert text == written(text), "update them: python tests/test_readme.py"
    for table, _ in TABLES.values():
        for name in table.model_fields:
            assert f"| `{name}` |" in text or f"[features.{name}]" in text, f"{table.__name__}.{name}"


def paths() -> Iterator[str]:
    """Every path of this repository that the README names: links, and the tree of folders."""
    text = README.read_text(encoding="utf-8")
    yield from (link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link)
    tree = next(block.text for block in blocks() if block.text.startswith("features/"))
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        yield folder + name if line.startswith(" ") else name


@pytest.mark.parametrize("path", sorted(set(paths())))
def test_every_path_that_it_names_exists(path):
    assert (ROOT / path).exists()


def test_every_command_of_the_command_line_is_in_it():
    text = README.read_text(encoding="utf-8")
    for name in cli.COMMANDS:
        assert f"towers {name}" in text or f"make {name}" in text, name


def test_every_protocol_and_every_target_of_make_that_it_names_exists():
    from training.commands import PROTOCOLS

    text = README.read_text(encoding="utf-8")
    assert {protocol for protocol in PROTOCOLS if f"| `{protocol}`" in text} == set(PROTOCOLS)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {target for target in re.findall(r"\bmake ([a-z]+)", text) if target != "it"} <= targets


@pytest.mark.parametrize("line", [line for line in commands("sh not-run") if line.startswith("towers ")])
def test_a_command_that_needs_more_than_this_machine_has_is_at_least_understood(line):
    name, *words = shlex.split(line)[1:]
    command = cli.load(cli.COMMANDS[name])
    assert isinstance(command.make_context(name, words), click.Context)


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a `towers` that is the real one, but makes a tiny shop and trains for one epoch."""
    from tests.warm import warm_towers

    program = tmp_path / "bin" / "towers"
    program.parent.mkdir()
    write_notes(tmp_path)
    with warm_towers(tmp_path_factory.mktemp("warm")) as loaded:
        program.write_text(
            "#!/bin/bash\n"
            'case "$1" in\n'
            '  dataset) set -- "$@" --size tiny ;;\n'
            f'  train | evaluate) set -- "$@" {QUICK} ;;\n'
            "esac\n"
            f'exec {shlex.quote(str(loaded))} "$@"\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        yield tmp_path


def write_notes(folder: Path) -> None:
    """A folder of documents, and queries that they answer."""
    notes = {name: f"# {name}\n{name} takes {minutes} minutes.\n" for minutes, name in enumerate(NOTES)}
    (folder / "notes").mkdir()
    for name, text in notes.items():
        (folder / "notes" / f"{name}.md").write_text(text)
    rows = range(4 * len(NOTES))
    asked = [f"{row},how long for {NOTES[row % len(NOTES)]} number {row}" for row in rows]
    answered = [f"{row},{NOTES[row % len(NOTES)]}.md#1" for row in rows]
    (folder / "queries.csv").write_text("\n".join(["query_id,text", *asked]))
    (folder / "pairs.csv").write_text("\n".join(["query_id,document_id", *answered]))


def bash(folder: Path, line: str, **options: object) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TOWERS_", "MLFLOW_"))}
    path = f"{folder / 'bin'}:{os.environ.get('PATH', '')}"
    return subprocess.Popen(
        ["/bin/bash", "-c", line],
        cwd=folder,
        env={**own, "OMP_NUM_THREADS": "1", "PATH": path, "no_proxy": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"{process.args}: {said}"
    return said


def ask(folder: Path, line: str, port: int) -> dict:
    """What a curl line gets, by curl itself where there is one."""
    import shutil

    from tests import running

    line = line.replace(":8000", f":{port}")
    if shutil.which("curl"):
        return json.loads(finish(bash(folder, line.replace("curl ", "curl --silent ", 1))))
    words = shlex.split(line)
    url = next(word for word in words if word.startswith("http"))
    return running.ask(url, json.loads(words[words.index("--data") + 1]) if "--data" in words else None)


def shape(value: object) -> object:
    """The keys and kinds of an answer, without its values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.slow
def test_its_commands_run_in_order_and_its_answers_look_as_it_says(folder):
    from tests import running

    port = running.free_port()
    server = None
    asked = []
    try:
        for line in commands("sh"):
            if line.startswith("towers serve"):
                assert server is None
                server = bash(folder, f"exec {line} --port {port}")
                running.wait_until_ready(server, f"http://127.0.0.1:{port}")
            elif line.startswith("curl "):
                asked.append(ask(folder, line, port))
            else:
                assert line.startswith("towers "), f"what is {line!r}?"
                finish(bash(folder, line))
    finally:
        if server is not None:
            server.terminate()
            said, _ = server.communicate(timeout=60)
            assert server.returncode == 0, said
    shown = [json.loads(block.text) for block in blocks() if block.info == "json"]
    assert [shape(answer) for answer in asked[1:]] == [shape(answer) for answer in shown]
    assert asked[-1] == shown[-1], "an error is the same to the letter"
    bundle = next(block.text for block in blocks() if block.text.startswith("runs/run-1/"))
    named = {line.split()[0].rstrip("/") for line in bundle.splitlines()[1:]}
    there = {path.name for path in (folder / "runs" / "small").iterdir()}
    assert named - {"index", "ranker", "encoders"} <= there, "what not every bundle has is left aside"
    assert there - {"report.html", "tokenizer.json"} <= named
    assert (folder / "candidates.parquet").exists()


def test_it_says_the_licence_that_the_project_has():
    assert "Apache-2.0" in README.read_text(encoding="utf-8")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
