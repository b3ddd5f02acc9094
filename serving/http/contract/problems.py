"""Error responses, all in the format of RFC 9457 (`application/problem+json`).

`{"type": "about:blank", "title": …, "status": …, "detail": …, "code": …, "errors": [{"field": …, "detail": …}]}`

`title` is the name of the status, `code` is for programs, `detail` for people, and `errors` lists up to twenty mistakes
one by one. Errors raised by Flask and Werkzeug have the same format. Details of internal errors are logged, not sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import orjson
from typing_extensions import TypedDict
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from features.errors import UnavailableError
from features.messages import cut
from features.redaction import redacted
from serving.bounds import MAX_MISTAKES
from serving.errors import DeadlineExceededError, NotReady
from serving.observability.logs import current

RETRY_AFTER_SECONDS = 5

PROBLEM_TYPE = "application/problem+json"

# By status: the code for programs, and the title as in RFC 9110.
CODES = {
    400: ("bad_request", "Bad Request"),
    401: ("no_key", "Unauthorized"),
    403: ("forbidden", "Forbidden"),
    404: ("not_found", "Not Found"),
    405: ("method_not_allowed", "Method Not Allowed"),
    408: ("too_slow", "Request Timeout"),
    413: ("too_large", "Content Too Large"),
    414: ("uri_too_long", "URI Too Long"),
    415: ("unsupported_media_type", "Unsupported Media Type"),
    422: ("invalid", "Unprocessable Content"),
    429: ("too_many_requests", "Too Many Requests"),
    500: ("internal", "Internal Server Error"),
    503: ("busy", "Service Unavailable"),
}
CODES_OF_503 = {
    "busy": "too many requests are in progress, or too many large bodies are being received",
    "not_ready": "the model is not loaded, the log of live writes cannot be used, or an embeddings service does not "
    "respond; of `/healthz`: no request has been completed for a minute",
    "deadline_exceeded": "the request took longer than `timeout_seconds`",
    "out_of_memory": "there was not enough memory for the request",
}
"""The codes of 503, and what each means for clients."""
# Lengths to which parts of a request are cut where an error response repeats them.
_MAX_FIELD_CHARACTERS = 200
_MAX_DETAIL_CHARACTERS = 1_000
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA out of memory", "std::bad_alloc")
_log = logging.getLogger(__name__)


class Mistake(TypedDict):
    """One mistake in a request."""

    field: str
    """The invalid parameter, or the path in the body, such as `history.0`."""
    detail: str
    """What was expected there, and what was found."""


class Problem(Exception):  # noqa: N818 (it becomes a response)
    """An error of the request, for its client.

    Attributes:
        status: HTTP status of the response.
        detail: What was expected, what was found, what to do.
        errors: The mistakes one by one, at most `MAX_MISTAKES`; empty if `detail` is enough.
    """

    def __init__(self, status: int, detail: str, errors: Sequence[Mistake] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors)

    @classmethod
    def invalid(cls, *mistakes: Mistake) -> Problem:
        """Return the 422 for a request that is well-formed but has invalid values."""
        named = [_bounded(mistake) for mistake in mistakes[:MAX_MISTAKES]]
        more = len(mistakes) - len(named)
        also = f" (and {more:,} more mistakes than `errors` lists)" if more else ""
        return cls(422, f"{named[0]['field']}: {named[0]['detail']}{also}", named)


def _bounded(mistake: Mistake) -> Mistake:
    field, detail = cut(mistake["field"], _MAX_FIELD_CHARACTERS), cut(mistake["detail"], _MAX_DETAIL_CHARACTERS)
    return Mistake(field=field, detail=detail)


class ProblemContent(TypedDict):
    """An error in the format of RFC 9457."""

    type: str
    """Always `about:blank`: the kind of error is given by the status."""
    title: str
    """The name of the status."""
    status: int
    """The HTTP status of the response."""
    detail: str
    """What was expected, what was found, what to do."""
    code: str
    """The kind of error in a word, for programs."""
    errors: list[Mistake]
    """The mistakes one by one; empty if `detail` is enough."""


def problem_of(error: Exception) -> Response:
    """Return the response for an error."""
    match error:
        case Problem():
            return _response(error.status, error.detail, error.errors)
        case NotReady():
            return _not_ready(error)
        case UnavailableError():
            return _not_ready(NotReady("the embeddings service that encodes texts does not respond", error))
        case DeadlineExceededError():
            current.ended_by = "deadline"
            return _try_again(str(error), "deadline_exceeded")
        case HTTPException():
            return http_problem(error)
    if is_out_of_memory(error):
        current.ended_by = "memory"
        message = cut(" ".join(str(error).split()), _MAX_DETAIL_CHARACTERS)
        _log.error("a request ran out of memory and was aborted: %s", message)
        return _try_again("not enough memory for this request; request fewer users or items at once", "out_of_memory")
    return _unexpected(error)


def _response(status: int, detail: str, errors: Sequence[Mistake] = (), code: str | None = None) -> Response:
    usual_code, title = CODES.get(status) or CODES[400 if status < 500 else 500]
    content = ProblemContent(
        type="about:blank",
        title=title,
        status=status,
        detail=cut(detail, 2 * _MAX_DETAIL_CHARACTERS),
        code=code or usual_code,
        errors=list(errors),
    )
    return Response(orjson.dumps(content), status, mimetype=PROBLEM_TYPE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch raises a `RuntimeError` for that."""
    is_from_torch = isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    return is_from_torch or isinstance(error, MemoryError)


def _not_ready(error: NotReady) -> Response:
    if error.message != str(error):
        _log.error("%s", error)
    return _try_again(redacted(error.message), "not_ready")


def _try_again(detail: str, code: str) -> Response:
    """Return a 503 with `Retry-After`."""
    response = _response(503, detail, code=code)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def http_problem(error: HTTPException) -> Response:
    """Return the response for an error of Werkzeug, with its headers."""
    assert error.code is not None, "werkzeug gives every HTTP exception that it raises a code"
    response = _response(error.code, error.description or error.name)
    # Allow (405) and Location (redirects) are kept; the media type of the body is ours.
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers.add(name, value)
    return response


def _unexpected(error: Exception) -> Response:
    _log.error("unexpected error", exc_info=error)
    return _response(500, "internal error; see the server's log")
