"""What every request passes on its way in and out: an id, its body, a turn, a limit, headers, a note of how it went.

The door stands before Flask, as WSGI middleware, so that a request that is refused costs next to nothing and one that
fails inside is noted all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, get_args
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask, Response
from werkzeug.exceptions import HTTPException, ServiceUnavailable, TooManyRequests

from serving import deadline
from serving.config import ServingConfig
from serving.errors import DeadlineExceededError
from serving.http.auth import Guard, Keys, key_guard
from serving.http.bodies import Bodies, has_body
from serving.http.contract.problems import http_problem, problem_of
from serving.http.fast_path import ROUTE
from serving.http.key_file import Scope
from serving.http.limits import ConcurrencyLimiter, RateLimiter, retry_after
from serving.http.security_headers import add_headers
from serving.observability import timings as stages
from serving.observability.logs import RequestIds, current
from serving.observability.metrics import UNMATCHED, Metrics
from serving.recommend.response import Fallback

PROBES = frozenset(("/healthz", "/readyz", "/metrics"))
"""Paths that take no turn: an operator can ask when nobody else can."""

_SECONDS_TO_RETRY = 1
_REFUSALS = {408: "slow", 503: "busy"}
_log = logging.getLogger(__name__)


class RequestMiddleware:
    """The application, with all that.

    Args:
        inner: The application.
        settings: What the operator decides.
        metrics: Where requests are counted.
        turns: The requests in hand.
    """

    def __init__(
        self, inner: WSGIApplication, settings: ServingConfig, metrics: Metrics, turns: ConcurrencyLimiter
    ) -> None:
        self._inner = inner
        self._bodies = Bodies(settings.max_body_bytes, settings.body_seconds)
        self._settings = settings
        self._metrics = metrics
        self._turns = turns
        self._ids = RequestIds()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        began = perf_counter()
        current.ended_by = None
        current.request_id = request_id = self._ids.of(environ.get("HTTP_X_REQUEST_ID"))
        stages.begin()
        status, route = "500", UNMATCHED

        def start(said: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            nonlocal status, route
            status, route = said, _route(environ)  # which Flask forgets as soon as it has answered
            headers.append(("X-Request-Id", request_id))
            add_headers(headers)
            return start_response(said, headers, *error)

        try:
            return self._answer(environ, start)
        finally:
            self._note(environ, route, int(status[:3]), perf_counter() - began)
            current.request_id = None

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] in PROBES:
            return self._inner(environ, start)
        if has_body(environ):
            try:
                self._bodies.receive(environ)
            except HTTPException as error:
                return self._without_its_body(error)(environ, start)
        deadline.start(self._settings.timeout_seconds)
        try:
            if not self._turns.take(deadline.left()):
                deadline.check()
                self._metrics.count("towers_rejected_total", "busy")
                return http_problem(_busy())(environ, start)
            try:
                return self._inner(environ, start)
            finally:
                self._turns.give_back()
        except (DeadlineExceededError, MemoryError) as error:
            return problem_of(error)(environ, start)
        finally:
            deadline.clear()

    def _without_its_body(self, error: HTTPException) -> Response:
        """Return the answer to a request whose body was not received: the last of its connection."""
        if error.code in _REFUSALS:
            self._metrics.count("towers_rejected_total", _REFUSALS[error.code])
        problem = http_problem(error)
        problem.headers["Connection"] = "close"
        return problem

    def _note(self, environ: WSGIEnvironment, route: str, status: int, seconds: float) -> None:
        spent = stages.spent()
        self._metrics.answered(route, status, seconds, spent)
        if current.ended_by is not None:
            self._metrics.count("towers_rejected_total", current.ended_by)
        if self._is_worth_a_line(status, seconds):
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

    def _is_worth_a_line(self, status: int, seconds: float) -> bool:
        match self._settings.log_requests:
            case "all":
                return True
            case "problems":
                return status >= 500 or seconds >= self._settings.slow_seconds
            case "none":
                return False


def metrics_of(app: Flask, shared: Path | None = None) -> Metrics:
    """Return where the requests of an application are counted that has all its routes.

    Args:
        app: The application.
        shared: Where the workers of one server meet. None: there is one worker.
    """
    return Metrics(sorted({rule.rule for rule in app.url_map.iter_rules()}), get_args(Fallback), shared)


def guards_of(settings: ServingConfig, metrics: Metrics, shared: Path | None = None) -> list[Guard]:
    """Return who keeps requests away: who has no key for them, where keys are asked for, and who asks too often.

    Args:
        settings: What the operator decides.
        metrics: Where refusals are counted.
        shared: Where the workers of one server meet. None: there is one worker.

    Raises:
        DataError: The file of keys cannot be read.
    """
    by_rate = None
    if settings.rate is not None:
        refused = partial(metrics.count, "towers_rejected_total", "rate")
        by_rate = rate_guard(RateLimiter(settings.rate, settings.burst, shared), settings.trusted_proxies, refused)
    if settings.api_keys_file is None:
        return [] if by_rate is None else [by_rate]

    def refuse(environ: WSGIEnvironment) -> None:
        """Count a request without a key; where the address that it came from sent too many, that is what it is told."""
        metrics.count("towers_rejected_total", "key")
        if by_rate is not None:
            by_rate(environ, "read")

    by_key = key_guard(Keys(Path(settings.api_keys_file)), refuse)
    return [by_key] if by_rate is None else [by_key, by_rate]


def add_middleware(app: Flask, settings: ServingConfig, metrics: Metrics) -> None:
    """Put the door before an application."""
    turns = ConcurrencyLimiter(
        settings.threads, settings.queue_size, partial(metrics.hold, "towers_requests_in_progress")
    )
    app.extensions |= {"towers_metrics": metrics, "towers_turns": turns}
    app.wsgi_app = RequestMiddleware(app.wsgi_app, settings, metrics, turns)  # type: ignore[method-assign]


def _route(environ: WSGIEnvironment) -> str:
    if ROUTE in environ:
        return str(environ[ROUTE])
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return UNMATCHED if rule is None else str(rule.rule)


def client_address(environ: WSGIEnvironment, trusted_proxies: int) -> str:
    """Return where a request comes from, as the outermost of the trusted proxies saw it.

    Args:
        environ: The request.
        trusted_proxies: How many proxies before the service add to `X-Forwarded-For`. What stands there beyond them
            anybody may have written.
    """
    if trusted_proxies:
        hops = [hop.strip() for hop in environ.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
        if len(hops) >= trusted_proxies:
            return str(hops[-trusted_proxies])
    return str(environ.get("REMOTE_ADDR") or "unknown")


def _client_of(environ: WSGIEnvironment, trusted_proxies: int) -> str:
    """Return who asks: the name of the key, where one was presented, else the address."""
    return environ.get("towers.client") or client_address(environ, trusted_proxies)


def rate_guard(rates: RateLimiter, trusted_proxies: int, on_refusal: Callable[[], None]) -> Guard:
    """Return a guard that refuses the requests of a client that are too many; with keys, the client is the key."""

    def check(environ: WSGIEnvironment, needed: Scope) -> None:
        if needed == "none":
            return
        seconds = rates.wait(_client_of(environ, trusted_proxies))
        if seconds:
            on_refusal()
            raise TooManyRequests("too many requests; try again later", retry_after=retry_after(seconds))

    return check


def _busy() -> ServiceUnavailable:
    return ServiceUnavailable("too many requests are in hand; try again", retry_after=_SECONDS_TO_RETRY)
