"""Whether a call prints what the command prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def printing(progress: bool) -> Iterator[None]:
    """Print what the functions of the commands print, or nothing."""
    with ExitStack() as stack:
        if not progress:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 (a device)
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield
