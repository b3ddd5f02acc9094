"""The exceptions of a service that is up and yet cannot give an answer: nothing to answer from, or no time for it."""

from __future__ import annotations


class NotReady(RuntimeError):  # noqa: N818 (a state, and a passing one)
    """The model or its index is not loaded, so no answer can be given now.

    Over HTTP it is a 503 in the one error shape; on the command line it is one line and exit status 2.

    Attributes:
        said: What callers are told. The exception's own text, for the operator, has the cause as well.
    """

    def __init__(self, said: str, cause: object = None) -> None:
        """Take what callers are told, and what only the log says, such as the words of a database's driver."""
        super().__init__(said if cause is None else f"{said} ({' '.join(str(cause).split())})")
        self.said = said


class DeadlineExceededError(RuntimeError):
    """A request was not answered in the time that the setting `timeout_seconds` allows; over HTTP it is a 503.

    Args:
        seconds: How long it had.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the request took longer than timeout_seconds = {seconds:g} allows and was ended; "
            "ask for fewer users, items or rules at once, or try again when the service is less busy"
        )
