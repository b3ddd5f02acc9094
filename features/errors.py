"""The one exception for what a user can put right in a table or a setting."""

from __future__ import annotations


class DataError(ValueError):
    """A table or a setting cannot be used as it is.

    The message says what was expected, what was found, where, and what to do, in one line. The command line
    prints it and ends with status 2; nothing half-written is left behind.
    """
