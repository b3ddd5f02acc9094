"""A folder of documents as a table of passages: what there is, for a search over Markdown and plain text.

A document is cut where its headings are, and where a section is long, between paragraphs: a passage is about one thing,
and a vector of it can say so. The rows are made anew each time that the folder is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa

from features.errors import DataError

ENDINGS = (".md", ".markdown", ".txt")
PASSAGE_WORDS = 200
"""Words of a passage at most, but for its title."""

_HEADING = re.compile(r"#{1,6}\s+(?P<text>.*?)\s*#*$")
_FENCE = re.compile(r"\s*(```|~~~)")


def read_documents(folder: Path) -> pd.DataFrame:
    """Return the passages of a folder's documents, subfolders included, in the order of their names.

    Columns: `document_id` (the file's name in the folder, `#`, and the number of the passage), `title` (the file's
    first heading and those above the passage), `text`, and `file`. Hidden files and folders are left out.

    Raises:
        DataError: There is no document, or one is not UTF-8.
    """
    files = sorted(path for path in folder.rglob("*") if _is_document(path.relative_to(folder)) and path.is_file())
    rows = [
        (f"{name}#{number}", title, text, name)
        for path in files
        for name in [path.relative_to(folder).as_posix()]
        for number, (title, text) in enumerate(passages(_content(path), path.stem), start=1)
    ]
    if not rows:
        inside = ", ".join(sorted(child.name for child in folder.iterdir())[:3]) or "nothing"
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


def _is_document(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in path.parts)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _sections(content: str) -> list[tuple[str, list[str]]]:
    """Return each heading with the paragraphs below it; what stands before the first has the heading ``."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    lines: list[str] = []
    is_code = False

    def end_paragraph() -> None:
        if lines:
            sections[-1][1].append("\n".join(lines))
            lines.clear()

    for line in content.splitlines():
        is_code ^= bool(_FENCE.match(line))
        heading = None if is_code else _HEADING.match(line)
        if heading or not (line.strip() or is_code):
            end_paragraph()
        else:
            lines.append(line.rstrip())
        if heading:
            sections.append((heading["text"], []))
    end_paragraph()
    return sections


def _dealt(paragraphs: list[str]) -> Iterator[list[str]]:
    """Yield paragraphs in parts of so many words; a longer one is cut between words."""
    part: list[str] = []
    num_words = 0
    for paragraph in (piece for whole in paragraphs for piece in _pieces(whole)):
        length = len(paragraph.split())
        if part and num_words + length > PASSAGE_WORDS:
            yield part
            part, num_words = [], 0
        part.append(paragraph)
        num_words += length
    yield part


def _pieces(paragraph: str) -> list[str]:
    words = paragraph.split()
    if len(words) <= PASSAGE_WORDS:
        return [paragraph]
    return [" ".join(words[start : start + PASSAGE_WORDS]) for start in range(0, len(words), PASSAGE_WORDS)]
