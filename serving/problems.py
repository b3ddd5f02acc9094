"""The one shape of every error over HTTP: `{"error": {"code": …, "message": …, "details": …}}`.

Also for errors that Flask and Werkzeug find themselves. What was our own mistake goes to the log, not to the caller.
"""

from __future__ import annotations

import logging
from typing import Any

import orjson
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from serving.errors import NotReady

RETRY_AFTER_SECONDS = 5

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "too_many_requests",
    500: "internal",
    503: "not_ready",
}
_log = logging.getLogger(__name__)


class Problem(Exception):  # noqa: N818 (what it becomes is an answer)
    """A request that cannot be answered.

    Attributes:
        status: Of the HTTP answer.
        message: What was expected, what was found, what to do.
        details: One entry for each mistake; None where there is nothing to add.
    """

    def __init__(self, status: int, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details


def json_response(content: Any, status: int = 200) -> Response:
    """Return an answer in JSON."""
    return Response(orjson.dumps(content), status, mimetype="application/json")


def register_problems(app: Flask) -> None:
    """Let every error of `app` have the one shape."""
    app.register_error_handler(Problem, lambda problem: _response(problem.status, problem.message, problem.details))
    app.register_error_handler(NotReady, _not_ready)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def _response(status: int, message: str, details: Any = None) -> Response:
    code = _CODES.get(status, "bad_request" if status < 500 else "internal")
    return json_response({"error": {"code": code, "message": message, "details": details}}, status)


def _not_ready(error: NotReady) -> Response:
    response = _response(503, str(error))
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def _http_error(error: HTTPException) -> Response:
    assert error.code is not None, "werkzeug gives every HTTP exception that it raises a code"
    response = _response(error.code, error.description or error.name)
    # Allow (405) and Location (redirects) belong to the answer; the type of the body is ours.
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _unexpected(error: Exception) -> Response:
    _log.error("unexpected error", exc_info=error)
    return _response(500, "the server made a mistake; its log says more")
