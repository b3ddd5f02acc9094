"""A folder of documents as a table of passages: what there is, for a search over Markdown and plain text.

A document is cut where its headings are, and where a section is long, between paragraphs: a passage is about one thing,
and a vector of it can say so. The rows are made again each time the folder is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePath

import pandas as pd
import pyarrow as pa
from markdown_it import MarkdownIt
from markdown_it.token import Token

from features.errors import DataError
from features.locations.object_path import TablePath
from features.locations.table_path import files_below, name_in
from features.values.text import word_starts

ENDINGS = (".md", ".markdown", ".txt")
PASSAGE_WORDS = 200
"""Words of a passage at most, but for its title."""

_LITERAL = ("fence", "code_block", "html_block")


def read_documents(folder: TablePath) -> pd.DataFrame:
    """Return the passages of a folder's documents, subfolders included, in the order of their names.

    Columns: `document_id` (the file's name in the folder, `#`, and the number of the passage), `title` (the file's
    first heading and those above the passage), `text`, and `file`. Hidden files and folders are left out.

    Raises:
        DataError: There is no document, or one is not UTF-8.
    """
    files = [path for path in files_below(folder) if _is_document(name_in(folder, path)) and path.is_file()]
    rows = [
        (f"{name}#{number}", title, text, name)
        for path in files
        for name in [name_in(folder, path).as_posix()]
        for number, (title, text) in enumerate(passages(_content(path), path.stem), start=1)
    ]
    if not rows:
        inside = ", ".join(sorted(child.name for child in folder.glob("*"))[:3]) or "nothing"
        raise DataError(
            f"{folder}: a folder, expected a CSV or Parquet file, or documents ({', '.join(ENDINGS)}) in it; name a "
            f"file in it (it holds {inside})"
        )
    columns = zip(("document_id", "title", "text", "file"), zip(*rows, strict=True), strict=True)
    return pd.DataFrame({name: pd.Series(cells, dtype=pd.ArrowDtype(pa.large_string())) for name, cells in columns})


def passages(content: str, name: str) -> list[tuple[str, str]]:
    r"""Return the title and the text of each passage of a document.

    Args:
        content: Markdown, or plain text.
        name: What to call it where it has no heading.

    Example:
        >>> passages("# Tea\nBoil water.\n\n## Green\nCooler water.", "tea")
        [('Tea', 'Boil water.'), ('Tea: Green', 'Cooler water.')]
    """
    sections = [(heading, paragraphs) for heading, paragraphs in _sections(content) if paragraphs]
    first = next((heading for heading, _ in _sections(content) if heading), name)
    return [
        (first if heading in ("", first) else f"{first}: {heading}", "\n\n".join(part))
        for heading, paragraphs in sections
        for part in _dealt(paragraphs)
    ]


def _is_document(path: PurePath) -> bool:
    return path.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in path.parts)


def _content(path: TablePath) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _sections(content: str) -> list[tuple[str, list[str]]]:
    """Return each heading with the paragraphs below it; what stands before the first has the heading ``.

    Headings and code are where CommonMark says they are. A paragraph ends at a blank line, unless that is code.
    """
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = _front_matter(lines)
    blocks = MarkdownIt("commonmark").parse("\n".join([""] * first + lines[first:]))
    headings = {span[0]: (span[1], _plain(text)) for span, text in _headings(blocks)}
    literal = {line for block in blocks if block.type in _LITERAL and block.map for line in range(*block.map)}
    sections: list[tuple[str, list[str]]] = [("", [])]
    paragraph: list[str] = []

    def end_paragraph() -> None:
        if paragraph:
            sections[-1][1].append("\n".join(paragraph))
            paragraph.clear()

    line = 0
    while line < len(lines):
        if line in headings:
            end_paragraph()
            line, text = headings[line]
            sections.append((text, []))
            continue
        if lines[line].strip() or line in literal:
            paragraph.append(lines[line].rstrip())
        else:
            end_paragraph()
        line += 1
    end_paragraph()
    return sections


def _front_matter(lines: list[str]) -> int:
    """Return how many lines hold the fields that sites put before a document, between two lines of three hyphens."""
    if lines[0].rstrip() != "---":
        return 0
    return next((line + 1 for line in range(1, len(lines)) if lines[line].rstrip() == "---"), 0)


def _headings(blocks: list[Token]) -> Iterator[tuple[list[int], Token]]:
    """Yield the lines and the text of each heading of the document itself, not of what it quotes or lists."""
    for block, inline in pairwise(blocks):
        if block.type == "heading_open" and block.level == 0 and block.map is not None:
            yield block.map, inline


def _plain(inline: Token) -> str:
    """Return what a reader sees of a line of Markdown."""
    shown = (" " if one.type in ("softbreak", "hardbreak") else one.content for one in inline.children or ())
    return " ".join("".join(shown).split())


def _dealt(paragraphs: list[str]) -> Iterator[list[str]]:
    """Yield paragraphs in parts of `PASSAGE_WORDS` at most; a longer paragraph is cut between words."""
    part: list[str] = []
    num_words = 0
    for paragraph in (piece for whole in paragraphs for piece in _pieces(whole)):
        length = len(word_starts(paragraph))
        if part and num_words + length > PASSAGE_WORDS:
            yield part
            part, num_words = [], 0
        part.append(paragraph)
        num_words += length
    yield part


def _pieces(paragraph: str) -> list[str]:
    starts = word_starts(paragraph)
    if len(starts) <= PASSAGE_WORDS:
        return [paragraph]
    cuts = [0, *starts[PASSAGE_WORDS::PASSAGE_WORDS], len(paragraph)]
    return [paragraph[start:end].strip() for start, end in pairwise(cuts)]
