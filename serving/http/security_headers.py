"""Security headers of every response, which protect users of browsers against attacks that use the page or the API.

Transport security (HSTS) is the task of the proxy that terminates TLS in front of this service.
"""

from __future__ import annotations

# The page loads its own style sheet and an empty icon, sends one form to itself, and runs no script.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
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
