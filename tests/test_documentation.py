"""README and `docs/` keep their word: links lead somewhere, names exist, and what is generated is up to date.

`python -m tests.documentation` writes what is generated; `test_documentation_commands.py` runs the commands.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import towers
from serving.http.routes import ROUTES
from serving.jobs.drift import METRICS as DRIFT_METRICS
from tests.documentation.command_line import options_of
from tests.documentation.diagrams import imports_within, levels
from tests.documentation.generated import GENERATED
from tests.documentation.metrics import service_metrics
from tests.documentation.pages import DOCS, OTHERS, README, ROOT, SITE, Page, pages, site_order
from tests.documentation.python_api import documented
from tests.documentation.settings import RUN_TABLES, known_settings
from tests.documentation.whole_words import on_page_content
from towers.cli import main as cli
from training.commands import PROTOCOLS
from training.evaluation.metrics import METRICS

MOST_LINES = 250
"""Of the README."""
ALL = [*pages(), *OTHERS]
OWN = ("features", "towers", "training", "serving", "tests", "docs", "notebooks", ".locks")
"""How a code span begins that is a path of this repository."""

each_page = pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
each_document = pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)


def reference(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(README.text.splitlines()) <= MOST_LINES


def test_every_page_is_in_the_navigation_once():
    order = site_order()
    assert sorted(order) == sorted(set(order))
    assert set(order) == set(DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_generated_is_up_to_date(name):
    assert (DOCS / name).read_text(encoding="utf-8") == GENERATED[name](), "type: python -m tests.documentation"


def test_a_picture_of_a_package_changes_with_its_imports():
    imports = imports_within("serving")
    assert {"http", "search"} <= imports.keys()
    rows = levels(imports)
    height = {name: at for at, row in enumerate(rows) for name in row}
    assert all(height[other] < height[name] for name, others in imports.items() for other in others)
    assert levels({"a": {"b"}, "b": set(), "c": set()}) == [["b", "c"], ["a"]]


@each_document
def test_every_link_leads_somewhere(page):
    for link in page.links:
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), link
        if page.path.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{link} is not part of the site"
        if anchor:
            assert anchor in Page(target).anchors, link


@each_document
def test_every_heading_has_an_anchor_of_its_own(page):
    assert len(page.anchors) == len(page.headings)


@each_page
def test_a_page_begins_with_its_title_and_what_it_is_for(page):
    assert re.match(r"# [^\n]+\n\n[^#|`<\s]", page.text)


@each_document
def test_every_path_in_a_code_span_exists(page):
    for span in page.code_spans:
        for word in re.split(r"[\s,]+", span):
            if re.fullmatch(rf"({'|'.join(map(re.escape, OWN))})/[\w./-]*", word) and "NAME" not in word:
                assert (ROOT / word).exists(), word


def test_the_layout_in_the_readme_exists():
    tree = next(block.text for block in README.blocks if block.text.startswith("features/"))
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        assert (ROOT / (folder + name if line.startswith(" ") else name)).is_dir(), name


def lines_of(page: Page) -> Iterator[str]:
    """The commands of a page, in blocks and code spans, run or not."""
    yield from (line for block in page.blocks if block.language == "sh" for line in block.commands)
    yield from page.code_spans


@each_document
def test_every_command_has_the_options_that_it_is_shown_with(page):
    for line in lines_of(page):
        words = re.split(r"\s+", line)
        if words[0] != "towers" or len(words) < 2 or not re.fullmatch(r"[a-z-]+", words[1]):
            continue
        assert words[1] in cli.COMMANDS, line
        options = options_of(cli.load(cli.COMMANDS[words[1]]))
        assert {word for word in words if re.fullmatch(r"--[a-z-]+", word)} <= options, line


@each_page
def test_a_command_that_is_not_run_is_at_least_understood(page):
    for block in page.blocks:
        for line in block.commands if block.language == "sh" and block.not_run else ():
            words = shlex.split(line)
            if words[0] == "towers":
                command = cli.load(cli.COMMANDS[words[1]])
                assert isinstance(command.make_context(words[1], words[2:]), click.Context)


@each_document
def test_every_target_of_make_exists(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = [line for block in page.blocks for line in block.text.splitlines()] + page.code_spans
    assert {found[1] for line in named if (found := re.match(r"make ([a-z]+)", line))} <= targets


def is_setting(name: str) -> bool:
    """Whether `towers.dropout` or `features.item.title.frozen_dim` is a setting."""
    table, *rest = name.split(".")
    if table == "features" and rest[0] in ("item", "user", "encoders") and len(rest) == 3:
        head = "[features.encoders.NAME]" if rest[0] == "encoders" else "[features.item] and [features.user]"
        return rest[2] in RUN_TABLES[head][0].model_fields
    if table == "features" and rest[0] == "columns" and len(rest) == 2:
        return rest[1] in RUN_TABLES["[features.columns]"][0].model_fields
    return rest[-1] in RUN_TABLES[f"[{table}]"][0].model_fields and len(rest) == 1


def is_name(name: str) -> bool:
    """Whether a dotted name is one of our modules, or of what stands in one."""
    module, _, attribute = name.rpartition(".")
    found = importlib.util.find_spec(module)
    return found is not None and (
        importlib.util.find_spec(name) is not None or hasattr(importlib.import_module(module), attribute)
        if found.submodule_search_locations
        else hasattr(importlib.import_module(module), attribute)
    )


@each_document
def test_every_setting_in_a_code_span_exists(page):
    known = known_settings()
    for span in page.code_spans:
        if re.fullmatch(r"(features|towers|training|promotion)(\.[A-Za-z_]+)+", span):
            assert is_setting(span.replace("NAME", "name")) or is_name(span), span
        elif found := re.fullmatch(r"([a-z_.]{4,}) = (true|false|\[.*\]|\".*\"|[\d.]+)", span):
            assert found[1].rpartition(".")[2] in known, span


@each_page
def test_every_block_of_settings_is_one(page):
    for block in page.blocks:
        if block.language == "toml":
            for name in _leaves(tomllib.loads(block.text)):
                assert name in known_settings(), name


def _leaves(table: dict, inside: str = "") -> Iterator[str]:
    """The keys of a block of settings; the names of features and encoders are free."""
    for name, value in table.items():
        if not isinstance(value, dict):
            yield name
        else:
            yield from _leaves(value, name)


@each_page
def test_every_block_of_python_can_be_compiled(page):
    for block in page.blocks:
        if block.language == "python":
            ast.parse(block.text)


def test_every_setting_is_in_the_reference():
    text = reference("settings")
    for name in known_settings() - {"columns", "item", "user", "encoders"}:
        assert f"| `{name}` |" in text, name


def test_every_name_of_the_python_interface_is_in_the_reference():
    assert sorted(documented()) == sorted(towers.__all__)


def test_every_command_and_every_option_is_in_the_reference():
    sections = dict(
        re.findall(r"^## towers (\S+)\n(.*?)(?=^## |\Z)", reference("command-line"), re.DOTALL | re.MULTILINE)
    )
    assert list(sections) == list(cli.COMMANDS)
    for name, entry in cli.COMMANDS.items():
        for option in options_of(cli.load(entry)) - {"--help"}:
            assert f"`{option}`" in sections[name], f"{name} {option}"


def test_every_command_is_in_the_readme_or_a_guide():
    text = "".join(page.text for page in pages() if "reference" not in page.name)
    for name in cli.COMMANDS:
        assert f"towers {name}" in text or f"make {name}" in text, name


def test_every_route_is_in_the_reference():
    text = reference("http-api")
    for route in ROUTES:
        assert f"`{route.method} {route.path}`" in text, route
        assert route.name is None or f"## {route.method} {route.path}\n" in text, route


def test_every_metric_is_in_the_reference_and_no_other():
    text = reference("metrics")
    known = {name for name, *_ in service_metrics()}
    assert {name for name in known if f"| `{name}` |" in text} == known
    assert set(METRICS) == {name for name in METRICS if f"| `{name}` |" in text}
    shown = {name for page in pages() for name in re.findall(r"\btowers_[a-z_]+(?=[{\[`) ])", page.text)}
    series = known | {f"{name}_bucket" for name in known}
    assert shown - {"towers_about", "towers_log", "towers_indexes", "towers_vector"} <= series | {*DRIFT_METRICS}


def test_every_protocol_is_explained():
    for name in ("guides/evaluate.md", "concepts/evaluation.md"):
        text = (DOCS / name).read_text(encoding="utf-8")
        assert {protocol for protocol in PROTOCOLS if f"| `{protocol}`" in text} == set(PROTOCOLS)


def test_the_formats_are_those_of_the_code():
    from serving.snapshot import manifest as index
    from towers.bundle import manifest as bundle
    from towers.rerankers import manifest as ranker
    from training.audit import ranks
    from training.loop import checkpoint

    formats = dict(re.findall(r"^\| (\w+)[^|]*\| (\d+) \|", reference("compatibility"), re.MULTILINE))
    assert {name: int(number) for name, number in formats.items()} == {
        "bundle": bundle.FORMAT_VERSION,
        "index": index.FORMAT_VERSION,
        "re": ranker.FORMAT_VERSION,
        "checkpoint": checkpoint.FORMAT,
        "ranks": ranks.FORMAT,
    }


def test_the_glossary_is_the_same_in_both_places():
    rows = README.text.partition("| word | meaning |\n")[2].partition("\n\n")[0]
    assert len(rows.splitlines()) > 20
    assert rows in (DOCS / "glossary.md").read_text(encoding="utf-8")


def test_every_question_of_the_readers_has_its_page_near_the_front():
    questions = Page(DOCS / "contributing" / "questions.md")
    assert len(re.findall(r"^\| [^|]+\? \| \[|^\| [^|]+\. [^|]+\? \| \[", questions.text, re.MULTILINE)) == 26


def test_it_says_the_licence_that_the_project_has():
    assert "Apache-2.0" in README.text
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_site_keeps_options_in_its_text_whole_and_leaves_blocks_as_they_are():
    html = "<p><code>towers index --recall 0.99</code></p><pre><span></span><code>towers index --recall</code></pre>"
    assert on_page_content(html) == html.replace("--recall 0", '<span class="whole">--recall</span> 0')


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: make install")
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", SITE, "--site-dir", tmp_path]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
