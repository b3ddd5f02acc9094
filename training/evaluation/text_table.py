"""Tables as plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

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
