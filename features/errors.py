"""Exceptions for errors that a user can correct: in tables, settings, or the installation."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from types import TracebackType

from packaging.requirements import Requirement


class DataError(ValueError):
    """A table or a setting is invalid.

    The message says what was expected, what was found, where, and what to do, in one line. The command line
    prints it and ends with status 2; nothing half-written is left behind.
    """


class UnavailableError(RuntimeError):
    """An external service does not respond; the request can be retried later.

    On the command line it is one line and exit status 2, over HTTP a 503.
    """


class CellError(DataError):
    """The cells of a column cannot be read; the caller adds the file and the line.

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


class CombinedDataError(DataError):
    """Several errors that a user can correct, reported together.

    Attributes:
        problems: Each by itself.
    """

    def __init__(self, problems: Sequence[DataError]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def renamed(error: DataError, names: Mapping[str, str]) -> DataError:
    """Return an error in whose messages the keys of `names`, such as paths, are replaced by their values."""
    problems = [_replaced(str(one), names) for one in getattr(error, "problems", (error,))]
    return DataError(problems[0]) if len(problems) == 1 else CombinedDataError([DataError(one) for one in problems])


def _replaced(message: str, names: Mapping[str, str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        message = message.replace(name, names[name])
    return message


class Problems:
    """Collects errors, so that all of them are reported at once."""

    def __init__(self, found: Iterable[DataError] = ()) -> None:
        self.found = list(found)

    def __enter__(self) -> Problems:
        """Return a context in which a `DataError` is collected instead of raised."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Keep a `DataError` of the block."""
        if isinstance(error, CombinedDataError):
            self._add(*error.problems)
        elif isinstance(error, DataError):
            self._add(error)
        return isinstance(error, DataError)

    def _add(self, *problems: DataError) -> None:
        known = set(map(str, self.found))
        self.found.extend(one for one in problems if str(one) not in known)

    def raise_all(self) -> None:
        """Raise what was found, if anything was.

        Raises:
            DataError: The only one, or all in a `CombinedDataError`.
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise CombinedDataError(self.found)


@contextmanager
def needing(what: str) -> Iterator[None]:
    """Import optional libraries inside this block: a missing one becomes a `DataError` with the install command.

    Args:
        what: What needs them, in the plural, such as "cross-encoders".

    Raises:
        DataError: A library cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        packages = _missing_with((error.name or "").partition(".")[0])
        if packages:
            remedy = f"type: pip install {shlex.join(packages)}"
        else:
            remedy = f"one cannot be loaded ({error}); type: towers doctor"
        raise DataError(f"{what} need more libraries; {remedy}") from None


def _missing_with(module: str) -> list[str]:
    """Return what pip has to install so that `module` and the rest of its extra are there, `[name and versions]`."""
    try:
        wanted = [Requirement(line) for line in requires("two-towers") or []]
    except PackageNotFoundError:
        return [module.replace("_", "-")] if module else []
    named = [one for one in wanted if one.name.replace("-", "_") == module]
    if named and named[0].marker is None:
        return []  # it is there with every installation, under this name or another
    together = [one for one in wanted if named and str(one.marker) == str(named[0].marker)]
    return [_as_typed(one) for one in together if not _is_installed(one.name)]


def _as_typed(wanted: Requirement) -> str:
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    return f"{wanted.name}{extras}{wanted.specifier}"


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
