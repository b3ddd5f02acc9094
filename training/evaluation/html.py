"""Layout of reports: tables for the terminal, and self-contained HTML pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDEST_NAME = 24


def aligned(rows: Sequence[Sequence[str]], widest: int = WIDEST_NAME) -> list[str]:
    """Return the rows as lines: the first column to the left, the others to the right, a rule under the head.

    Args:
        rows: The cells, the head first.
        widest: Letters of the first column, at most; what is longer is cut off.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], widest)
    lines = [
        "  ".join([row[0][: widths[0]].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    return [lines[0], "─" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


def html_table(head: Sequence[str], rows: Sequence[str]) -> str:
    """Return a table of rows that are HTML already, under a head of plain text."""
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join(rows)
    return f"<table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def html_paragraphs(lines: Sequence[str]) -> str:
    """Return a paragraph for each line of plain text."""
    return "\n".join(f"<p>{escape(line)}</p>" for line in lines)


def html_page(title: str, *parts: str) -> str:
    """Return a page under a title of plain text, its parts HTML already."""
    return _PAGE.format(title=escape(title), parts="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.1rem; }} h2 {{ font-size: 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }}
th, td {{ padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }}
th[scope=row] {{ text-align: left; font-weight: normal; }}
tbody tr:first-child th {{ font-weight: bold; }}
.best {{ font-weight: bold; }} .bound {{ font-style: italic; }} small {{ opacity: .65; }}
.bar {{ background: linear-gradient(90deg, #4a90d955 var(--share), transparent var(--share)); min-width: 9rem; }}
.apart {{ font-weight: bold; }} .few {{ opacity: .55; }}
</style>
</head>
<body>
<h1>{title}</h1>
{parts}
</body>
</html>
"""
