"""The arguments of handlers: `Service`, the parts that all requests share, and `ApiRequest`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from wsgiref.types import WSGIEnvironment

import orjson
from werkzeug.wrappers import Request

from features.messages import cut
from serving.bounds import json_value
from serving.config import ServingConfig
from serving.deploy.hot_reload import RecommenderProvider
from serving.http.bodies import has_body
from serving.http.contract.problems import Problem
from serving.http.limits import ConcurrencyLimiter
from serving.http.recommend_handler import RecommendHandler
from serving.http.router import Reply, Route
from serving.observability.metrics import Metrics
from serving.observability.request_log import RequestLog
from serving.observability.timings import timed
from serving.recommend.recommender import Recommender

_MAX_TYPE_CHARACTERS = 100


@dataclass(frozen=True)
class Service:
    """The parts of one worker's service.

    Attributes:
        settings: The operator's settings.
        provider: Provides the current recommender, and the log of live writes.
        recommend: Turns a request's parameters into the content of a response.
        metrics: Counters and histograms.
        limiter: Limits the requests in progress.
        document: Returns the OpenAPI document, as JSON, for a recommender.
        request_log: Logs a sample of the requests. None: it is off.
    """

    settings: ServingConfig
    provider: RecommenderProvider
    recommend: RecommendHandler
    metrics: Metrics
    limiter: ConcurrencyLimiter
    document: Callable[[Recommender], bytes]
    request_log: RequestLog | None = None


class ApiRequest:
    """A request being answered.

    Attributes:
        environ: Its WSGI environment.
        route: Its route. None: there is none for its method and path.
        path_value: The value of `{name}` in the route's path.
        recommender: The recommender that answers the request. Set before a handler that needs it is called; a reload
            in the meantime does not change it.
    """

    __slots__ = ("environ", "path_value", "recommender", "route")
    recommender: Recommender

    def __init__(self, environ: WSGIEnvironment, route: Route | None, path_value: str) -> None:
        self.environ, self.route, self.path_value = environ, route, path_value

    @property
    def query_string(self) -> str:
        """The text after the `?`, as it was sent."""
        return str(self.environ.get("QUERY_STRING", ""))

    def query(self) -> dict[str, list[str]]:
        """Return the parameters of the query string, each with all its values."""
        return dict(Request(self.environ, populate_request=False).args.lists())

    def header(self, name: str) -> str:
        """Return the value of a header; empty if it was not sent."""
        return str(self.environ.get(f"HTTP_{name.upper().replace('-', '_')}", ""))

    def json(self) -> Any:
        """Return the content of the body.

        Raises:
            Problem: The body is not JSON, is nested too deep, or has another media type.
        """
        if self.environ.get("CONTENT_TYPE") != "application/json":
            media_type = Request(self.environ, populate_request=False).mimetype
            if media_type != "application/json":
                found = cut(media_type, _MAX_TYPE_CHARACTERS) or "none"
                raise Problem(415, f"expected Content-Type application/json, found {found}")
        try:
            return json_value(self.environ["wsgi.input"].read() if has_body(self.environ) else b"")
        except ValueError as error:
            raise Problem(400, f"the body is not valid JSON: {error}") from None


def json_reply(content: Any, status: int = 200) -> Reply:
    """Return a response with content as JSON."""
    with timed("serialise"):
        return Reply(orjson.dumps(content), status)
