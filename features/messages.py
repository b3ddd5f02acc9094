"""Parts of error messages: shortened values from outside, and suggestions of similar names.

A message may be about a value of any size, so a value is cut before it is written out.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

from features.redaction import LONGEST, redacted

ACCEPT = "--accept-changed-columns"
"""The flag of `towers index` and `towers recommend` that accepts what the contract of columns refuses."""
_MAX_SHOWN = 60
# Comparing names takes time that grows with the product of their lengths.
_MAX_COMPARED = 100


class _Short(reprlib.Repr):
    """Without sorting what is not shown."""

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(redacted(x[:LONGEST]), level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)


_short = _Short()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxlong, _short.maxother = 3, 10, 6, _MAX_SHOWN, _MAX_SHOWN


def shown(value: Any) -> str:
    """Return a value as Python writes it, without passwords, what does not print escaped, cut to about 60."""
    if isinstance(value, str):
        # Before it is cut to size, which would take away what a password is known by.
        text = redacted(value[:LONGEST])
        is_whole = len(text) <= _MAX_SHOWN and len(value) <= LONGEST
        return repr(text) if is_whole else f"{text[:_MAX_SHOWN]!r}... ({len(value):,} characters)"
    return cut(_short.repr(value), _MAX_SHOWN)


def cut(text: str, most: int) -> str:
    """Return the first `most` characters of a text, with dots behind them where there are more."""
    return text if len(text) <= most else f"{text[:most]}..."


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that is most like this one, in whatever case; None where none is like it."""
    folded = {one.casefold(): one for one in reversed(known) if len(one) <= _MAX_COMPARED}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6) if len(name) <= _MAX_COMPARED else []
    return folded[near[0]] if near else None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'price'?` where a known name is like this one, else nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) if len(name) <= _MAX_COMPARED else []
    return f"; did you mean {near[0]!r}?" if near else ""
