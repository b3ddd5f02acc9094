"""Tables as plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

WIDEST_NAME = 24


def aligned(rows: Sequence[Sequence[str]], widest: int = WIDEST_NAME) -> list[str]:
    """Return the rows as lines: the first column to the left, the others to the right, a rule under the head.

    Args:
        rows: The cells, the head first.
        widest: Letters of the first column, at most; what is longer goes on in the next line.

    Example:
        >>> for line in aligned([["", "R@10"], ["popularity of late", "0.25"]], widest=12):
        ...     print(line)
                    R@10
        ────────────────
        popularity  0.25
          of late
    """
    names = [wrap(row[0], widest, subsequent_indent="  ") or [""] for row in rows]
    _, *columns = zip(*rows, strict=True)
    widths = [max(len(line) for name in names for line in name), *(max(map(len, column)) for column in columns)]
    lines = [
        ["  ".join([name[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip(), *name[1:]]
        for name, row in zip(names, rows, strict=True)
    ]
    head, *body = lines
    return [*head, "─" * (sum(widths) + 2 * len(widths) - 2), *(line for row in body for line in row)]
