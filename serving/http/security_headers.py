"""Security headers of every response, which protect users of browsers against attacks that use the page or the API.

`Cors` lets pages of other origins read responses, where the operator allows it. Transport security (HSTS) is the task
of the proxy that terminates TLS in front of this service.
"""

from __future__ import annotations

from collections.abc import Collection
from wsgiref.types import WSGIEnvironment

# The page loads its own style sheet and an empty icon, sends one form to itself, and runs no script.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_READABLE = "Retry-After, Towers-Index, Towers-Live, Towers-Model, X-Request-Id"
_VARY = (("Vary", "Origin"),)
_ASKED_METHOD = "HTTP_ACCESS_CONTROL_REQUEST_METHOD"
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", _POLICY),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


def add_headers(headers: list[tuple[str, str]]) -> None:
    """Add the security headers to a response's headers, and forbid caching unless the response has its own policy."""
    if "Cache-Control" not in dict(headers):
        headers.append(("Cache-Control", "no-store"))
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
