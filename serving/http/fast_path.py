"""Plain requests for recommendations, answered without Flask around them.

Nearly all that a service is asked is `GET /recommendations/<id>` and `POST /recommendations`, and Flask's way to a view
and back takes longer than the search. So those are recognised before it, pass the same guards, and are answered by the
same `RecommendHandler` with the same headers and the same problems. Whatever is unusual about a request, be it only a
letter that is not ASCII, is left to Flask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.wrappers import Request

from serving.deploy.hot_reload import RecommenderProvider
from serving.http.auth import Guard
from serving.http.bodies import has_body
from serving.http.contract.problems import json_bytes, problem_of
from serving.http.handlers import RecommendHandler, parsed_json
from serving.http.version_headers import version_headers
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest

ROUTE = "towers.route"
"""Where a request's environment says its route, if Flask has not seen it."""

_PATH = "/recommendations"
_KNOWN, _DESCRIBED = "/recommendations/<id:user_id>", "/recommendations"
_MOST_REMEMBERED = 256
_Content = Callable[[WSGIEnvironment, Recommender], Any]


class FastPath:
    """An application with a short way through it.

    Args:
        inner: The application.
        source: What answers.
        answers: What is answered.
        guards: Who may ask, and how often.
    """

    def __init__(
        self,
        inner: WSGIApplication,
        source: RecommenderProvider,
        answers: RecommendHandler,
        guards: Sequence[Guard],
    ) -> None:
        self._inner = inner
        self._source = source
        self._answers = answers
        self._guards = guards
        self._plain: dict[str, RecommendRequest] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path.startswith(_PATH) and not environ.get("SCRIPT_NAME"):
            if method == "GET" and len(path) > len(_DESCRIBED) + 1 and path[len(_PATH)] == "/" and path.isascii():
                return self._answer(environ, start_response, _KNOWN, self._about_user)
            if method == "POST" and path == _DESCRIBED and _is_plain_body(environ):
                return self._answer(environ, start_response, _DESCRIBED, self._about_body)
        return self._inner(environ, start_response)

    def _answer(
        self, environ: WSGIEnvironment, start_response: StartResponse, route: str, content: _Content
    ) -> Iterable[bytes]:
        environ[ROUTE] = route
        versions: list[tuple[str, str]] = []
        try:
            for guard in self._guards:
                guard(environ, "read")
            retriever = self._source.get()
            versions = version_headers(retriever)
            body = json_bytes(content(environ, retriever))
        except Exception as error:
            problem = problem_of(error)
            problem.headers.extend(versions)
            return problem(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *versions])
        return [body]

    def _about_user(self, environ: WSGIEnvironment, retriever: Recommender) -> Any:
        query = environ.get("QUERY_STRING", "")
        wanted = self._plain.get(query) or self._wanted(environ, query, retriever)
        return self._answers.about_user(retriever, environ["PATH_INFO"][len(_PATH) + 1 :], wanted)

    def _wanted(self, environ: WSGIEnvironment, query: str, retriever: Recommender) -> RecommendRequest:
        """Return what a query string wants; remembered where that is the same for whatever catalogue."""
        given = dict(Request(environ, populate_request=False).args.lists())
        wanted = self._answers.wanted(self._answers.contract.query_for_user, retriever, given)
        is_plain = wanted == RecommendRequest(
            wanted.k, wanted.offset, reasons=wanted.reasons, exclude=wanted.exclude[:0]
        )
        if is_plain and len(self._plain) < _MOST_REMEMBERED:
            self._plain[query] = wanted
        return wanted

    def _about_body(self, environ: WSGIEnvironment, retriever: Recommender) -> Any:
        return self._answers.about_body(retriever, parsed_json(environ["wsgi.input"].read()))


def _is_plain_body(environ: WSGIEnvironment) -> bool:
    return environ.get("CONTENT_TYPE") == "application/json" and has_body(environ)
