"""Routes and how a request finds its own: `Route` is a row of the table in `serving.http.routes`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from wsgiref.types import StartResponse, WSGIEnvironment

from serving.http.key_file import Scope

STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


@dataclass(slots=True)
class Reply:
    """The response of a handler, as a WSGI application; not frozen, which takes longer to create.

    Attributes:
        body: The encoded content.
        status: The HTTP status.
        content_type: The media type of the body.
        headers: Further headers, as pairs of name and value.
    """

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send the response; to a HEAD request without its body."""
        headers = [("Content-Type", self.content_type), ("Content-Length", str(len(self.body))), *self.headers]
        start_response(STATUS_LINES[self.status], headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [self.body]


@dataclass(frozen=True)
class Route:
    """One endpoint; dispatch, API keys' scopes, metrics, the OpenAPI document and the reference follow from it.

    Attributes:
        method: The HTTP method. HEAD follows from GET, and every path has OPTIONS.
        path: The path; at most one `{name}`, which stands for any text of at least one character, slashes included.
        summary: What the endpoint does, in a line.
        handler: Called with the `Service` and the `ApiRequest`; returns a `Reply`. None: Flask answers (the page).
        scope: The scope that an API key must have, where the service asks for keys.
        name: The operation's id in the OpenAPI document. None: the document leaves the endpoint out.
        query: Schema of the query parameters. None: there are none.
        body: Schemas of the request body, by type, or by name where they depend on the catalogue. Empty: no body.
        responses: Schemas of a successful response's body.
        created: When the status is 201 instead of 200. None: never.
        problems: Statuses of the errors specific to this endpoint; those that any endpoint may have are left out.
        takes_turn: Whether the request counts against the concurrency limit and the deadline.
        needs_recommender: Whether the model has to be loaded; otherwise 503.
        is_write: Whether the endpoint appends to the log of live writes; there is none without the setting `live`.
    """

    method: str
    path: str
    summary: str
    handler: Callable[..., Reply] | None
    scope: Scope = "read"
    name: str | None = None
    query: type | None = None
    body: tuple[type | str, ...] = ()
    responses: tuple[type, ...] = ()
    created: str | None = None
    problems: tuple[int, ...] = ()
    takes_turn: bool = True
    needs_recommender: bool = True
    is_write: bool = False


class Router:
    """Finds the route of a request.

    Args:
        routes: The table. Where several paths match, the first that has the request's method is taken.

    Attributes:
        paths: The paths of all routes, in the order of the table.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Route]] = []
        self.paths = tuple(dict.fromkeys(route.path for route in routes))
        for route in (*routes, *map(_options_of, routes)):
            if "{" in route.path:
                before, _, rest = route.path.partition("{")
                after = rest.partition("}")[2]
                pattern = re.compile(rf"{re.escape(before)}([\s\S]+){re.escape(after)}")
                self._patterns.append((route.method, pattern, route))
            else:
                self._exact.setdefault((route.method, route.path), route)

    def match(self, method: str, path: str) -> tuple[Route | None, str]:
        """Return the route of a request (None if there is none) and the value of the `{name}` in its path."""
        method = "GET" if method == "HEAD" else method
        route = self._exact.get((method, path))
        if route is not None:
            return route, ""
        for own_method, pattern, route in self._patterns:
            if own_method == method:
                found = pattern.fullmatch(path)
                if found is not None:
                    return route, found[1]
        return None, ""

    def methods(self, path: str) -> list[str]:
        """Return the methods that a path has, for `Allow`; empty if there is no such path."""
        found = {method for method, exact in self._exact if exact == path}
        found |= {method for method, pattern, _ in self._patterns if pattern.fullmatch(path)}
        return sorted(found | {"HEAD"} if "GET" in found else found)


def _options_of(route: Route) -> Route:
    """Return the route of OPTIONS requests for the path of a route."""
    scope: Scope = "none" if route.scope == "none" else "read"
    return replace(route, method="OPTIONS", scope=scope, needs_recommender=False)
