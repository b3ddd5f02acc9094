"""The exceptions of a service that is up and yet cannot give an answer: nothing to answer from, or no time for it."""

from __future__ import annotations


class NotReady(RuntimeError):  # noqa: N818 (a state, and a passing one)
    """The model or its index is not loaded, so no answer can be given now.

    Over HTTP it is a 503 in the one error shape; on the command line it is one line and exit status 2.

    Attributes:
        said: The message for clients. The exception's own text, for the operator, has the cause as well.
    """

    def __init__(self, said: str, cause: object = None) -> None:
        """Take the message for clients, and the cause, which only the log names, such as a database driver's error."""
        super().__init__(said if cause is None else f"{said} ({' '.join(str(cause).split())})")
        self.said = said


class DeadlineExceededError(RuntimeError):
    """A request was not answered in the time that the setting `timeout_seconds` allows; over HTTP it is a 503.

    Args:
        seconds: The time limit that it exceeded.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the request took longer than timeout_seconds = {seconds:g} allows and was ended; "
            "ask for fewer users, items or rules at once, or try again when the service is less busy"
        )
