"""What browsers are told with every answer, so that the page and the answers can't be turned against who reads them.

Transport security (HSTS) belongs to whatever ends TLS before this service.
"""

from __future__ import annotations

from flask import Flask, Response

# The page loads its own style sheet and an empty icon, sends one form to itself, and runs no script.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""They, by name."""
CACHING = "Cache-Control"


def register_headers(app: Flask) -> None:
    """Let every answer of `app` carry them; nobody may keep an answer, unless it says so itself (the style sheet)."""
    app.after_request(add_headers)


def add_headers(response: Response) -> Response:
    """Return the answer, with the headers."""
    for name, value in HEADERS.items():
        response.headers.add(name, value)
    response.headers.setdefault(CACHING, "no-store")
    return response
