"""Errors of the Python interface: the message, and no traceback through our code."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from features.errors import DataError, UnavailableError
from towers.bundle.sealed_file import BundleError

_MISTAKES = (DataError, BundleError, UnavailableError)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def plain_errors(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function so that errors that a user can correct start here, and not in the depths.

    `TOWERS_TRACEBACK=1` in the environment keeps the whole traceback, as on the command line. A function in which
    another such function fails adds nothing to its error.
    """

    @functools.wraps(function)
    def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except _MISTAKES as error:
            if os.environ.get("TOWERS_TRACEBACK"):
                raise
            raise error.with_traceback(None) from None

    return checked
