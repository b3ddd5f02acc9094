"""The one exception for what the user can put right in a table or a setting."""

from __future__ import annotations


class DataError(ValueError):
    """A table or a setting cannot be used as it is.

    The message says what was expected, what was found, where, and what to do, in one line. The command line
    prints it and ends with status 2; nothing half-written is left behind.
    """


class CellError(DataError):
    """The cells of a column cannot be read; whoever knows the file adds its name and the line.

    Attributes:
        found: What was expected and what was found.
        remedy: What to do.
        row: 0-based position of the first such cell; None where it is about the column as a whole.
    """

    def __init__(self, found: str, remedy: str, row: int | None = None) -> None:
        super().__init__(f"{'' if row is None else f'row {row + 1:,}: '}{found}; {remedy}")
        self.found = found
        self.remedy = remedy
        self.row = row
