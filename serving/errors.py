"""Exceptions of a running service that cannot answer a request: no model is loaded, or the deadline passed."""

from __future__ import annotations


class NotReady(RuntimeError):  # noqa: N818 (a state, and a passing one)
    """The model, its index or the event log is not available at the moment.

    Over HTTP the response is a 503; on the command line the message is printed and the exit status is 2.

    Args:
        message: The message for clients.
        cause: The cause, such as a database driver's error, which is logged but not sent to clients.

    Attributes:
        message: The message for clients. The text of the exception, for the operator, includes the cause.
    """

    def __init__(self, message: str, cause: object = None) -> None:
        super().__init__(message if cause is None else f"{message} ({' '.join(str(cause).split())})")
        self.message = message


class DeadlineExceededError(RuntimeError):
    """A request exceeded its deadline, the setting `timeout_seconds`; over HTTP the response is a 503.

    Args:
        seconds: The deadline, in seconds from the arrival of the request.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the request exceeded the deadline timeout_seconds = {seconds:g} and was aborted; "
            "request fewer users, items or rules at once, or try again when the service is less busy"
        )
