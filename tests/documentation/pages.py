"""README and the pages of `docs/` as data: their blocks, links, anchors and code spans."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape, unescape
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = ROOT / ".mkdocs.yml"
PYTHON_GUIDE = DOCS / "guides" / "python.md"

_FENCE = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and why it is not run (empty: it is)."""

    language: str
    text: str
    not_run: str

    @property
    def commands(self) -> list[str]:
        """The commands of a block of `sh`, continued lines joined, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = [re.sub(r"(^|\s{2,})#.*", "", line).strip() for line in lines]
        return [shlex.join(shlex.split(line)) if line.startswith("towers ") else line for line in commands if line]


@dataclass(frozen=True)
class Page:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        """Its whole text."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        """Its fenced blocks, in order."""
        return [Block(language, text, reason) for reason, language, text in _FENCE.findall(self.text)]

    @cached_property
    def prose(self) -> str:
        """Its text without fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def code_spans(self) -> list[str]:
        """What stands between single backticks, or as `<code>` in a table."""
        spans = [*_CODE_SPAN.findall(self.prose), *map(unescape, re.findall(r"<code>(.*?)</code>", self.prose))]
        return [" ".join(span.split()) for span in spans]

    @property
    def links(self) -> list[str]:
        """The targets of all links and pictures."""
        return re.findall(r"\]\(([^)\s]+)\)", _CODE_SPAN.sub("", self.prose))

    @property
    def headings(self) -> list[str]:
        """The headings, without their marks."""
        return re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)

    @property
    def anchors(self) -> set[str]:
        """The names by which links reach its headings."""
        return {slug(heading) for heading in self.headings}


def slug(heading: str) -> str:
    """Return the anchor of a heading, as MkDocs and GitHub make it where no two of its marks are neighbours."""
    text = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def in_table(text: str) -> str:
    """Return Markdown for a cell of a table; GitHub and MkDocs agree on pipes within code only where it is HTML."""
    return _CODE_SPAN.sub(lambda found: f"<code>{_html(found[1])}</code>" if "|" in found[1] else found[0], text)


def _html(text: str) -> str:
    return escape(text, quote=False).replace("|", "&#124;")


def site_order() -> list[Path]:
    """The pages of the site, in the order of its navigation."""
    return [DOCS / name for name in _leaves(yaml.safe_load(SITE.read_text(encoding="utf-8"))["nav"])]


def _leaves(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for inner in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _leaves(inner)


def pages() -> list[Page]:
    """README and the pages of the site, in the order of its navigation."""
    return [README, *map(Page, site_order())]


README = Page(ROOT / "README.md")
OTHERS = [Page(ROOT / name) for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
"""Documents whose links are checked as well."""
