"""A hook of the site's build: names with a hyphen are not broken where a line ends, as `--` and `items` were."""

from __future__ import annotations

import re

_CODE_IN_TEXT = re.compile(r"(?<!</span>)<code>[^<]*</code>")
_HYPHENATED = re.compile(r"(?<![^\s>])[^\s<>]*-[^\s<>]*")
_MOST = 36
"""Longer words may be broken: a narrow screen has room for 40 letters."""


def on_page_content(html: str, **_: object) -> str:
    """Return the page with each such word in a span that `docs/site.css` keeps whole."""
    return _CODE_IN_TEXT.sub(lambda code: _HYPHENATED.sub(_whole, code[0]), html)


def _whole(word: re.Match[str]) -> str:
    return f'<span class="whole">{word[0]}</span>' if len(word[0]) <= _MOST else word[0]
