"""One name for each idea: words of a private language in messages, help, docstrings, comments or documents are errors.

`python tests/test_vocabulary.py [FILE or FOLDER ...]` lists where they stand.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("features", "towers", "training", "serving")

FORBIDDEN = {
    r"anew|amiss|beside|hence|dear|dearly|told|nought|whilst|betwixt": "an old word; say it plainly",
    r"whoever|whomever|whom|nobody|somebody|everybody": "say which: the user, the client, the operator, no user",
    r"he|him|his|himself": "users are users, or they",
    r"had": "interacted with, in the history, interactions",
    r"who asks|is asked about|are asked about|asked about|who is asked|what is asked": "the user, the client; requests",
    r"the house|house rules?|a second look|by heart|out of hand|in hand": "a figure of speech; name the thing",
    r"where items begin|has the last word|errs": "personification or inversion",
    r"laid over|laid beside|kept up|gone on": "on top of, next to, follows, continued",
}
"""By pattern of whole words: what to write instead."""

_PATTERN = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in FORBIDDEN), re.IGNORECASE)


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that people read: all of a document, strings and comments of a program."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            yield from enumerate("".join(cell["source"]).splitlines(), start=1)
    elif path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
    else:
        kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds:
                yield from enumerate(token.string.splitlines(), start=token.start[0])


def forbidden_in(path: Path) -> list[str]:
    """Where a file has such words, as `file:line: word`."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return [f"{name}:{line}: {found}" for line, text in prose_of(path) for found in _PATTERN.findall(text)]


def files_of(place: Path) -> list[Path]:
    """The files below a folder that people read, or the file itself."""
    if place.is_file():
        return [place]
    endings = (".py", ".md", ".ipynb", ".html")
    return sorted(path for path in place.rglob("*") if path.suffix in endings and path.name != Path(__file__).name)


@pytest.mark.parametrize(
    "place", [*PACKAGES, "notebooks", "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
)
def test_no_word_of_a_private_language(place: str) -> None:
    assert [line for path in files_of(ROOT / place) for line in forbidden_in(path)] == []


def test_a_forbidden_word_is_found(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text('"""Whoever asks.\n\nNot made anew."""\nhis = told = 1  # what they had\n', encoding="utf-8")
    assert [line.rsplit(": ")[-1] for line in forbidden_in(program)] == ["Whoever", "anew", "had"]


if __name__ == "__main__":
    given = [Path(word).resolve() for word in sys.argv[1:]] or [ROOT / place for place in PACKAGES]
    print(*(line for place in given for path in files_of(place) for line in forbidden_in(path)), sep="\n")
