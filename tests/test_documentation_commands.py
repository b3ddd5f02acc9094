"""The commands and Python of README and `docs/` run in the order of the site, and the answers look as they are shown.

All pages share one folder, so that each goes on where the pages before it ended; a command that stands on several pages
runs once, unless Python ran in between. The tutorial has a folder and tables of its own; the guide to Python has
a test of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pandas as pd
import pytest

from features.shop import SIZES, generate_shop
from tests import running
from tests.documentation.pages import DOCS, PYTHON_GUIDE, Page, pages

TUTORIAL = DOCS / "tutorial.md"
NOTES = ("tea", "coffee", "bread", "soup", "rice", "pasta", "beans", "cake")
QUICK = "--set training.epochs=1 --baseline-minutes 0"
SECONDS_TO_FINISH = 900
"""How long a command may take on a machine that is busy."""
SECONDS_TO_RELOAD = 60
"""Until a service answers with a new index, or has time for a request."""


class Story:
    """A folder in which the blocks of pages run one after the other.

    Attributes:
        folder: The working folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._port = running.free_port()
        self._server: subprocess.Popen[str] | None = None
        self._done: set[str] = set()
        self._asked: tuple[str, dict[str, Any]] = "", {}

    def run(self, page: Page) -> None:
        """Run the blocks of a page; an error names the page and the command."""
        namespace: dict[str, Any] = {}
        for block in page.blocks:
            if block.not_run:
                continue
            if block.language == "python":
                self._check_answered(page)
                exec(compile(self._addressed(block.text), page.name, "exec"), namespace)
                self._done.clear()  # it may have changed what commands read
            elif block.language == "json":
                self._compare(page, json.loads(block.text))
            elif block.language == "sh":
                for line in block.commands:
                    self._check_answered(page)
                    self._command(page, line)
        self._check_answered(page)

    def _check_answered(self, page: Page) -> None:
        """Check that the last answer was no error, unless the page shows it."""
        line, answer = self._asked
        assert "code" not in answer, f"{page.name}: {line}: {answer}"

    def close(self) -> None:
        """End the server, which must end well."""
        if self._server is not None:
            self._server.terminate()
            said, _ = self._server.communicate(timeout=60)
            assert self._server.returncode == 0, said
            self._server = None

    def _command(self, page: Page, line: str) -> None:
        if line.startswith("curl "):
            deadline = time.monotonic() + SECONDS_TO_RELOAD
            while (answer := self._ask(page, line)).get("status") == 503 and time.monotonic() < deadline:
                time.sleep(0.2)  # as clients are told to do
            self._asked = line, answer
            return
        assert line.startswith("towers "), f"{page.name}: what is {line!r}?"
        if line in self._done:
            return
        self._done.add(line)
        if line.startswith("towers serve"):
            self._serve(line)
        else:
            self._finish(page, line)

    def _serve(self, line: str) -> None:
        self.close()
        self._server = self._bash(f"exec {line} --port {self._port}")
        running.wait_until_ready(self._server, f"http://127.0.0.1:{self._port}")

    def _finish(self, page: Page, line: str) -> str:
        process = self._bash(line)
        said, _ = process.communicate(timeout=SECONDS_TO_FINISH)
        assert process.returncode == 0, f"{page.name}: {line}: {said}"
        return said

    def _ask(self, page: Page, line: str) -> Any:
        """Return the answer to a line of curl, by curl itself where there is one."""
        line = self._addressed(line)
        if shutil.which("curl"):
            return json.loads(self._finish(page, line.replace("curl ", "curl --silent ", 1)))
        words = shlex.split(line)
        options = dict(pairwise(words))
        body = options.get("--data")
        request = Request(
            next(word for word in words if word.startswith("http")),
            None if body is None else body.encode(),
            {"Content-Type": "application/json"} if body else {},
            method=options.get("--request", "GET" if body is None else "POST"),
        )
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=30) as response:
                return json.load(response)
        except HTTPError as error:
            return json.load(error)

    def _compare(self, page: Page, shown: Any) -> None:
        """Compare the last answer, asking again where it differs: a new index is loaded within seconds."""
        line, answer = self._asked
        deadline = time.monotonic() + SECONDS_TO_RELOAD
        while shape(answer) != shape(shown) and line.startswith("curl 'http") and time.monotonic() < deadline:
            time.sleep(0.2)
            answer = self._ask(page, line)
        assert shape(answer) == shape(shown), f"{page.name}: {line}: {answer}"
        if "code" in shown:
            assert answer == shown, "an error is the same to the letter"
        self._asked = line, {}

    def _addressed(self, text: str) -> str:
        return text.replace(":8000", f":{self._port}")

    def _bash(self, line: str) -> subprocess.Popen[str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TOWERS_", "MLFLOW_"))}
        path = f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}"
        return subprocess.Popen(
            ["/bin/bash", "-c", line],
            cwd=self.folder,
            env={**own, "OMP_NUM_THREADS": "1", "PATH": path, "no_proxy": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def shape(value: object) -> object:
    """The keys and kinds of an answer, without its values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory, warm: Path) -> Path:
    """The real `towers`, but it starts loaded, makes a mini shop, trains for an epoch or on 100 queries, tunes less."""
    program = tmp_path_factory.mktemp("bin") / "towers"
    program.write_text(
        "#!/bin/bash\n"
        'case "$1" in\n'
        '  dataset) set -- "$@" --size mini ;;\n'
        f'  train | evaluate) set -- "$@" {QUICK} ;;\n'
        '  train-ranker) set -- "$@" --eval-queries 100 ;;\n'
        "esac\n"
        f'exec {shlex.quote(str(warm))} "$@"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def story(tmp_path: Path, towers: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    """A story in an empty folder, which is also the working folder of its Python."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "towers").symlink_to(towers)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with closing(Story(tmp_path)) as own:
        yield own


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


def write_own_tables(folder: Path) -> None:
    """The two files of the tutorial, with the columns that it shows, and enough lines to learn from."""
    shop = generate_shop(0, *SIZES["tiny"])
    orders, products = (
        pd.DataFrame(
            {
                "customer": shop.interactions["user_id"],
                "sku": shop.interactions["item_id"],
                "bought_at": pd.to_datetime(shop.interactions["timestamp"], unit="s").dt.strftime("%Y-%m-%d %H:%M"),
            }
        ),
        pd.DataFrame(
            {
                "sku": shop.items["item_id"],
                "name": shop.items["title"],
                "brand": shop.items["brand"],
                "price": shop.items["price"],
                "average_rating": 4 + shop.items["price"].rank(pct=True).round(2),
            }
        ),
    )
    shown = [block.text.splitlines()[0] for block in Page(TUTORIAL).blocks if block.language == "text"]
    assert [",".join(table.columns) for table in (orders, products)] == shown
    orders.to_csv(folder / "orders.csv", index=False)
    products.to_csv(folder / "products.csv", index=False)


@pytest.mark.slow
def test_the_pages_run_in_order_and_the_answers_look_as_they_are_shown(story):
    write_notes(story.folder)
    for page in pages():
        if page.path not in (TUTORIAL, PYTHON_GUIDE):
            story.run(page)
    files = next(block.text for block in Page(DOCS / "reference" / "files.md").blocks if "runs/run-1/" in block.text)
    named = {line.split()[0].rstrip("/") for line in files.splitlines()[1:]}
    there = {path.name for path in (story.folder / "runs" / "small").iterdir()}
    assert named - {"index", "ranker", "encoders", "validation_users.safetensors"} <= there, (
        "what not every bundle has is left aside"
    )
    assert there - {"report.html", "tokenizer.json"} <= named
    files = next(
        block.text for block in Page(DOCS / "reference" / "files.md").blocks if block.text.startswith("index/")
    )
    named = {line.split()[0] for line in files.splitlines()[1:]}
    assert {path.name for path in (story.folder / "runs" / "production" / "index").iterdir()} <= named
    assert (story.folder / "candidates.parquet").exists()
    users = pd.read_parquet(story.folder / "candidates.parquet")["user_id"]
    assert len(users)
    assert 10002 not in set(users), "docs/operating/privacy.md deletes this user"


@pytest.mark.slow
def test_the_tutorial_runs_on_files_as_it_shows_them(story):
    write_own_tables(story.folder)
    story.run(Page(TUTORIAL))
    settings = (story.folder / "run.toml").read_text(encoding="utf-8")
    assert "average_rating" in settings, "it says why it is left out"
