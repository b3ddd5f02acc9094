"""What browsers are told with every answer, so that the page and the answers can't be turned against who reads them.

Transport security (HSTS) belongs to whatever ends TLS before this service.
"""

from __future__ import annotations

# The page loads its own style sheet and an empty icon, sends one form to itself, and runs no script.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""They, by name."""
_PAIRS = list(HEADERS.items())
_NOT_KEPT = ("Cache-Control", "no-store")


def add_headers(headers: list[tuple[str, str]]) -> None:
    """Add them to those of an answer; nobody may keep an answer, unless it says so itself (the style sheet)."""
    headers.extend(_PAIRS)
    if not any(name == _NOT_KEPT[0] for name, _ in headers):
        headers.append(_NOT_KEPT)
