"""How much a request may hold: every text and list has a limit, and lengths are compared before anything is read.

Time to read grows with length, and faster than it where a pattern or a parser is unlucky, so that no body, however
small, may reach one whole. The OpenAPI document states these limits where a schema can.
"""

from __future__ import annotations

from typing import Any
from wsgiref.types import WSGIEnvironment

import orjson
from werkzeug.exceptions import RequestURITooLarge

MAX_VALUE_CHARACTERS = 512
"""A text that a column is compared with."""
MAX_NUMBER_CHARACTERS = 64
"""A number or a date that is written as text."""
MAX_CONDITIONS = 64
"""Columns of one filter."""
MAX_FILTER_VALUES = 10_000
"""Values of one filter, all its conditions together."""
MAX_QUERY_CHARACTERS = 65_536
"""All that stands behind the `?`, as it is sent."""
MAX_HEADER_CHARACTERS = 4_096
"""A header that is read."""
MAX_SEARCH_CHARACTERS = 10_000
"""A text to search for."""
MAX_TEXT_CHARACTERS = 131_072
"""All text of one request that a model encodes: the cells of an item, or the attributes of everyone in it."""
MAX_DEPTH = 32
"""Lists and objects within each other in JSON."""
MAX_BRACKETS = 32_768
"""Brackets of JSON that open a list or an object: each costs the reader, and Python's garbage collector, much more than
its byte."""
MAX_MISTAKES = 20
"""Mistakes that one answer names."""


def query_guard(environ: WSGIEnvironment, _needed: object = None) -> None:
    """Refuse a query string that is too long, before it is split into parameters.

    Raises:
        RequestURITooLarge: It is.
    """
    length = len(environ.get("QUERY_STRING", ""))
    if length > MAX_QUERY_CHARACTERS:
        raise RequestURITooLarge(f"expected at most {MAX_QUERY_CHARACTERS:,} characters after the ?, found {length:,}")


def json_value(text: bytes | str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: It is not JSON, or it has too many lists and objects, or they are nested too deep.
    """
    # Brackets within texts count as well: it is the only count that costs less than reading.
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
