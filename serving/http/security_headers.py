"""Security headers of every response, which protect users of browsers against attacks that use the page or the API.

`Cors` lets pages of other origins read responses, where the operator allows it. Transport security (HSTS) is the task
of the proxy that terminates TLS in front of this service.
"""

from __future__ import annotations

from collections.abc import Collection
from wsgiref.types import WSGIEnvironment

_NOTHING = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
_POLICY = f"{_NOTHING}; form-action 'none'"
PAGE_POLICY = (
    f"{_NOTHING}; script-src 'self'; style-src 'self'; img-src 'self' data:{{pictures}}; connect-src 'self'; "
    "form-action 'self'"
)
"""Policy of the page: its own script and style sheet, and pictures from `pictures`, origins after a space each."""
DOCS_POLICY = (
    f"{_NOTHING}; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'"
)
"""Policy of Swagger UI, which sets styles of elements."""
SANDBOX_POLICY = (
    f"{_NOTHING}; sandbox allow-scripts allow-popups; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; form-action 'none'"
)
"""Policy of a page with scripts of its own, which thereby has no origin: it can read nothing of this service."""
_READABLE = "Retry-After, Towers-Index, Towers-Live, Towers-Model, X-Request-Id"
_VARY = (("Vary", "Origin"),)
_ASKED_METHOD = "HTTP_ACCESS_CONTROL_REQUEST_METHOD"
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


def add_headers(headers: list[tuple[str, str]]) -> None:
    """Add the security headers to a response's headers, where it has none of its own, and forbid caching likewise."""
    own = {name for name, _ in headers}
    if "Cache-Control" not in own:
        headers.append(("Cache-Control", "no-store"))
    if "Content-Security-Policy" not in own:
        headers.append(("Content-Security-Policy", _POLICY))
    headers.extend(_HEADERS)


class Cors:
    """Lets pages of other origins read responses (the CORS protocol of the Fetch standard), without cookies.

    Args:
        origins: The allowed origins, such as `https://shop.example.com`. `*`: every origin.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def headers(self, environ: WSGIEnvironment) -> list[tuple[str, str]]:
        """Return the headers of the response to a request; caches must tell origins apart."""
        if not self._origins:
            return []
        origin = environ.get("HTTP_ORIGIN")
        if "*" not in self._origins and origin not in self._origins:
            return [*_VARY]
        allowed = "*" if "*" in self._origins else str(origin)
        return [("Access-Control-Allow-Origin", allowed), ("Access-Control-Expose-Headers", _READABLE), *_VARY]

    def is_preflight(self, environ: WSGIEnvironment) -> bool:
        """Return whether a browser asks if it may send a request; it sends no API key with this question."""
        return bool(self._origins) and _ASKED_METHOD in environ and "HTTP_ORIGIN" in environ


def preflight_headers(methods: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Return the headers that answer a preflight: what a browser may send to a path with these methods."""
    return (
        ("Access-Control-Allow-Methods", ", ".join(methods)),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id"),
        ("Access-Control-Max-Age", "600"),
    )
