"""The steps that every request goes through, whatever its endpoint.

In this order: request id, route, body, deadline, concurrency limit, query length, API key, rate limit, the handler;
then the headers of every response, and the metrics, the log line and, of a sample, the line of the request log. Any
error on the way becomes a problem response. Preflights of browsers (CORS) are answered before the API key is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, ServiceUnavailable, TooManyRequests
from werkzeug.wrappers import Response

from serving import deadline
from serving.bounds import query_guard
from serving.config import ServingConfig
from serving.http.auth import Guard, Keys, key_guard
from serving.http.bodies import Bodies, has_body
from serving.http.contract.problems import http_problem, problem_of
from serving.http.key_file import Scope
from serving.http.limits import RateLimiter, retry_after
from serving.http.page.documents import RECOMMENDER
from serving.http.router import Reply, Router
from serving.http.security_headers import Cors, add_headers, preflight_headers
from serving.http.service import ApiRequest, Service
from serving.observability import timings as stages
from serving.observability.logs import RequestIds, current
from serving.observability.metrics import UNMATCHED, Metrics
from serving.recommend.recommender import Recommender

MODEL_HEADER, INDEX_HEADER, LIVE_HEADER = "Towers-Model", "Towers-Index", "Towers-Live"

_SECONDS_TO_RETRY = 1
_REJECTIONS = {408: "slow", 503: "busy"}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_log = logging.getLogger(__name__)


class RequestMiddleware:
    """The WSGI application of the service.

    Args:
        service: Passed to handlers.
        router: Finds the route of a request.
        guards: Reject requests before their handler is called.
        page: The WSGI application of the routes without a handler: Flask.
    """

    def __init__(self, service: Service, router: Router, guards: Sequence[Guard], page: WSGIApplication) -> None:
        self._service = service
        self._router = router
        self._guards = guards
        self._page = page
        self._settings = service.settings
        self._metrics = service.metrics
        self._limiter = service.limiter
        self._request_log = service.request_log
        self._bodies = Bodies(self._settings.max_body_bytes, self._settings.body_seconds)
        self._cors = Cors(self._settings.cors_origins)
        self._ids = RequestIds()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        began = perf_counter()
        current.ended_by = None
        current.request_id = request_id = self._ids.of(environ.get("HTTP_X_REQUEST_ID"))
        stages.begin()
        if self._request_log is not None:
            self._request_log.begin()
        request = ApiRequest(environ, *self._router.match(environ["REQUEST_METHOD"], _path(environ)))
        status = "500"

        def start(line: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            nonlocal status
            status = line
            add_headers(headers)
            headers.append(("X-Request-Id", request_id))
            headers.extend(_version_headers(request))
            headers.extend(self._cors.headers(environ))
            return start_response(line, headers, *error)

        try:
            try:
                return self._answer(request, start)
            except Exception as error:
                return problem_of(error)(environ, start)
        finally:
            self._note(request, int(status[:3]), perf_counter() - began)
            current.request_id = None

    def _answer(self, request: ApiRequest, start: StartResponse) -> Iterable[bytes]:
        """Answer a request within its limits; probes have none, so that they are answered even under overload."""
        environ = request.environ
        if request.route is not None and not request.route.takes_turn:
            return self._dispatch(request, start)
        if has_body(environ):
            try:
                self._bodies.receive(environ)
            except HTTPException as error:
                return self._without_body(error)(environ, start)
        deadline.start(self._settings.timeout_seconds)
        try:
            if not self._limiter.take(deadline.left()):
                deadline.check()
                self._metrics.count("towers_rejected_total", "busy")
                raise ServiceUnavailable("too many requests are in progress; try again", retry_after=_SECONDS_TO_RETRY)
            try:
                return self._dispatch(request, start)
            finally:
                self._limiter.give_back()
        finally:
            deadline.clear()

    def _dispatch(self, request: ApiRequest, start: StartResponse) -> Iterable[bytes]:
        """Check a request with the guards, and call the handler of its route."""
        environ, route = request.environ, request.route
        if environ["REQUEST_METHOD"] == "OPTIONS" and self._cors.is_preflight(environ):
            return self._allowed_methods(environ)(environ, start)
        scope: Scope = "read" if environ["REQUEST_METHOD"] in _SAFE_METHODS else "write"
        for guard in self._guards:
            guard(environ, scope if route is None else route.scope)
        if route is None or route.method == "OPTIONS":
            return self._allowed_methods(environ)(environ, start)
        if route.needs_recommender:
            request.recommender = self._service.provider.get(current=route.is_write)
        if route.handler is not None:
            return route.handler(self._service, request)(environ, start)
        environ[RECOMMENDER] = getattr(request, "recommender", None)
        return self._page(environ, start)

    def _allowed_methods(self, environ: WSGIEnvironment) -> Reply:
        """Return the response to OPTIONS.

        Raises:
            NotFound: There is no such path.
            MethodNotAllowed: The path has other methods.
        """
        methods = self._router.methods(_path(environ))
        if not methods:
            raise NotFound(f"no such path; this service has {', '.join(self._router.paths)}")
        if environ["REQUEST_METHOD"] != "OPTIONS":
            raise MethodNotAllowed(methods)
        allowed = (("Allow", ", ".join(methods)),)
        more = preflight_headers(methods) if self._cors.is_preflight(environ) else ()
        return Reply(b"", content_type="text/html; charset=utf-8", headers=(*allowed, *more))

    def _without_body(self, error: HTTPException) -> Response:
        """Return the response to a request whose body was not received; the connection is closed after it."""
        if error.code in _REJECTIONS:
            self._metrics.count("towers_rejected_total", _REJECTIONS[error.code])
        problem = http_problem(error)
        problem.headers["Connection"] = "close"
        return problem

    def _note(self, request: ApiRequest, status: int, seconds: float) -> None:
        """Count a request in the metrics, and log it if `log_requests` says so."""
        environ, route = request.environ, UNMATCHED if request.route is None else request.route.path
        spent = stages.spent()
        self._metrics.answered(route, status, seconds, spent)
        if current.ended_by is not None:
            self._metrics.count("towers_rejected_total", current.ended_by)
        if self._request_log is not None and self._request_log.is_sampled:
            recommender: Recommender | None = getattr(request, "recommender", None)
            if recommender is not None:
                self._request_log.end(route, status, seconds, recommender.model, recommender.index_version)
        if self._is_logged(status, seconds):
            fields = {
                "method": environ["REQUEST_METHOD"],
                "path": environ["PATH_INFO"],
                "route": route,
                "status": status,
                "seconds": round(seconds, 6),
                "stages": {stage: round(lasted, 6) for stage, lasted in spent.items()},
                "client": _client_of(environ, self._settings.trusted_proxies),
            }
            if current.ended_by is not None:
                fields["ended_by"] = current.ended_by
            _log.log(logging.ERROR if status == 500 else logging.INFO, "request", extra={"fields": fields})

    def _is_logged(self, status: int, seconds: float) -> bool:
        match self._settings.log_requests:
            case "all":
                return True
            case "problems":
                return status >= 500 or seconds >= self._settings.slow_seconds
            case "none":
                return False


def _path(environ: WSGIEnvironment) -> str:
    """Return the path of a request as text: WSGI decodes its bytes as Latin-1."""
    path: str = environ["PATH_INFO"]
    return path if path.isascii() else path.encode("latin-1").decode(errors="replace")


def _version_headers(request: ApiRequest) -> list[tuple[str, str]]:
    """Return the headers with the versions of the model and index and the log position that a response is based on."""
    recommender: Recommender | None = getattr(request, "recommender", None)
    if recommender is None:
        return []
    headers = [(MODEL_HEADER, recommender.model), (INDEX_HEADER, recommender.index_version)]
    position = recommender.state.position
    if position is not None:
        headers.append((LIVE_HEADER, str(position)))
    return headers


def guards_of(settings: ServingConfig, metrics: Metrics, shared: Path | None = None) -> list[Guard]:
    """Return the guards of a service: query length, API key (with `api_keys_file`) and rate limit (with `rate`).

    Args:
        settings: The operator's settings.
        metrics: Where rejections are counted.
        shared: A folder that the workers of one server share. None: there is one worker.

    Raises:
        DataError: The file of API keys cannot be read.
    """
    by_rate = None
    if settings.rate is not None:
        count = partial(metrics.count, "towers_rejected_total", "rate")
        by_rate = rate_guard(RateLimiter(settings.rate, settings.burst, shared), settings.trusted_proxies, count)
    if settings.api_keys_file is None:
        return [query_guard] if by_rate is None else [query_guard, by_rate]

    def on_rejection(environ: WSGIEnvironment) -> None:
        """Count a request without a valid key; if its address exceeds the rate limit, the client gets 429 instead."""
        metrics.count("towers_rejected_total", "key")
        if by_rate is not None:
            by_rate(environ, "read")

    by_key = key_guard(Keys(Path(settings.api_keys_file)), on_rejection)
    return [query_guard, by_key] if by_rate is None else [query_guard, by_key, by_rate]


def client_address(environ: WSGIEnvironment, trusted_proxies: int) -> str:
    """Return the client address of a request, as the outermost trusted proxy saw it.

    Args:
        environ: The request.
        trusted_proxies: Number of proxies in front of the service that append to `X-Forwarded-For`. Entries before
            theirs may be forged and are ignored.
    """
    if trusted_proxies:
        hops = [hop.strip() for hop in environ.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
        if len(hops) >= trusted_proxies:
            return str(hops[-trusted_proxies])
    return str(environ.get("REMOTE_ADDR") or "unknown")


def _client_of(environ: WSGIEnvironment, trusted_proxies: int) -> str:
    """Return the client of a request: the name of its API key, or its address without one."""
    return environ.get("towers.client") or client_address(environ, trusted_proxies)


def rate_guard(rates: RateLimiter, trusted_proxies: int, on_rejection: Callable[[], None]) -> Guard:
    """Return a guard that rejects requests of clients that exceed the rate limit; API keys count as clients."""

    def check(environ: WSGIEnvironment, needed: Scope) -> None:
        if needed == "none":
            return
        seconds = rates.wait(_client_of(environ, trusted_proxies))
        if seconds:
            on_rejection()
            raise TooManyRequests("too many requests; try again later", retry_after=retry_after(seconds))

    return check
