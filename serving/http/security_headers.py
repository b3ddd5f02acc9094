"""What browsers are told with every answer, so that the page and the answers can't be turned against who reads them.

Transport security (HSTS) belongs to whatever ends TLS before this service.
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
    """Add them to those of an answer; nobody may keep an answer, unless it says so itself (the style sheet)."""
    headers.extend(_HEADERS)
    if not any(name == "Cache-Control" for name, _ in headers):
        headers.append(("Cache-Control", "no-store"))
