"""Limits of the content of a request: every text and list has a maximum length, checked before it is parsed.

Parsing time grows with the length of the input, for some patterns and parsers faster than linearly, so the length is
limited first. The OpenAPI document states these limits where a schema can.
"""

from __future__ import annotations

from typing import Any
from wsgiref.types import WSGIEnvironment

import orjson
from werkzeug.exceptions import RequestURITooLarge

MAX_VALUE_CHARACTERS = 512
"""Maximum length of a text value in a filter."""
MAX_NUMBER_CHARACTERS = 64
"""Maximum length of a number or a date written as text."""
MAX_CONDITIONS = 64
"""Maximum number of columns in one filter."""
MAX_FILTER_VALUES = 10_000
"""Maximum number of values in all conditions of one filter."""
MAX_QUERY_CHARACTERS = 65_536
"""Maximum length of a query string, as it is sent."""
MAX_HEADER_CHARACTERS = 4_096
"""Maximum length of a header that is parsed."""
MAX_SEARCH_CHARACTERS = 10_000
"""Maximum length of a text to search for."""
MAX_TEXT_CHARACTERS = 131_072
"""Maximum total length of texts that one request lets the model encode: an item's cells, or all users' attributes."""
MAX_DEPTH = 32
"""Maximum nesting of lists and objects in JSON."""
MAX_BRACKETS = 32_768
"""Maximum number of lists and objects in JSON: each costs the parser, and Python's garbage collector, much more time
than its byte suggests."""
MAX_MISTAKES = 20
"""Maximum number of mistakes that one error response lists."""


def query_guard(environ: WSGIEnvironment, _needed: object = None) -> None:
    """Check the length of a query string, before it is split into parameters.

    Raises:
        RequestURITooLarge: It has more than `MAX_QUERY_CHARACTERS`.
    """
    length = len(environ.get("QUERY_STRING", ""))
    if length > MAX_QUERY_CHARACTERS:
        raise RequestURITooLarge(
            f"expected a query string of at most {MAX_QUERY_CHARACTERS:,} characters, found {length:,}"
        )


def json_value(text: bytes | str) -> Any:
    """Return the parsed content of JSON.

    Raises:
        ValueError: The text is not JSON, or has too many lists and objects, or nests them too deep.
    """
    # Counts brackets within strings, too: an exact count would cost as much as parsing.
    brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if brackets > MAX_BRACKETS:
        raise ValueError(f"expected at most {MAX_BRACKETS:,} lists and objects, found {brackets:,} brackets")
    content = orjson.loads(text)
    if brackets > MAX_DEPTH and _is_deep(content):
        raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")
    return content


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer if isinstance(outer, list) else outer.values())
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return False
    return True
