"""What a service writes to its log: one line for each event, as JSON for machines or as text for people.

Every line that is written while a request is in hand bears that request's id, wherever it comes from. What a caller
sends may be in a line, but never as more than text of it, and never much of it.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import secrets
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from features.redaction import LONGEST, redacted

Format = Literal["auto", "json", "text"]

# The most characters of each part of a line. Of an exception the last frames say most, and of a text both ends.
_MAX_FIELD, _MAX_MESSAGE, _MAX_EXCEPTION = 1_024, 4_096, 16_384
_QUOTED = re.compile(r"[\s\"=]")
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class _Current(threading.local):
    """The request that this thread has in hand."""

    request_id: str | None = None
    ended_by: Literal["deadline", "memory"] | None = None


current = _Current()
"""`current.request_id` is the id of the request that this thread has in hand; None between requests.
`current.ended_by` is the limit that ended it before it was answered."""


class RequestIds:
    """Ids of requests: the caller's own where it gave one that can stand in a log, else a new one."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def of(self, given: str | None) -> str:
        """Return the id of a request that came with `given`."""
        if given is not None and _ACCEPTED_ID.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._numbers):x}"


class JsonFormatter(logging.Formatter):
    """A line of JSON: `time`, `level`, `logger`, `message`, `request_id`, and what the event adds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(record.getMessage(), _MAX_MESSAGE),
        }
        if current.request_id is not None:
            content["request_id"] = current.request_id
        content |= {name: _field(value) for name, value in getattr(record, "fields", {}).items()}
        if record.exc_info:
            content["exception"] = _bounded(self.formatException(record.exc_info), _MAX_EXCEPTION)
        # Outside of texts all of JSON prints, so that what does not is in one and may be escaped as JSON has it.
        return _printable(orjson.dumps(content, default=str).decode(), lambda letter: json.dumps(letter)[1:-1])


class TextFormatter(logging.Formatter):
    """A line for people: time, level, message, what the event adds, and the request's id in brackets.

    Nothing that came with a request can end the line, look like another field or move the cursor of a terminal:
    characters that do not print are escaped, and fields with these or with blanks stand in quotes, as in JSON.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the exception, if any, below it, indented."""
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={_spoken(value)}" for name, value in getattr(record, "fields", {}).items())
        request_id = "" if current.request_id is None else f" [{current.request_id}]"
        message = _printable(_bounded(record.getMessage(), _MAX_MESSAGE))
        lines = [f"{when} {record.levelname.lower()}: {message}{fields}{request_id}"]
        if record.exc_info:
            exception = _bounded(self.formatException(record.exc_info), _MAX_EXCEPTION)
            lines += [f"  {_printable(line)}" for line in exception.splitlines()]
        return "\n".join(lines)


def _field(value: Any) -> Any:
    return _bounded(value, _MAX_FIELD) if isinstance(value, str) else value


def _spoken(value: Any) -> str:
    """Return the value of a field for people."""
    text = _bounded(str(value), _MAX_FIELD)
    needs_quotes = isinstance(value, str) and (_QUOTED.search(text) or not text.isprintable())
    return _printable(json.dumps(text, ensure_ascii=False) if needs_quotes else text)


def _bounded(text: str, most: int) -> str:
    """Return a text that can be written, without secrets, whole or, if it is longer than `most`, both its ends."""
    if len(text) <= most:
        text = redacted(text)
    else:
        half = most // 2
        start, end = redacted(text[: half + LONGEST])[:half], redacted(text[-half - LONGEST :])[-half:]
        text = f"{start} ... {len(text) - 2 * half:,} characters left out ... {end}"
    return text.encode("utf-8", "backslashreplace").decode()


def _printable(
    text: str, escaped: Callable[[str], str] = lambda letter: letter.encode("unicode_escape").decode()
) -> str:
    """Return a text in which nothing ends a line, changes a terminal or the direction of writing."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else escaped(letter) for letter in text)


class _Advice(logging.Filter):
    """Drops granian's advice about the number of threads: all but a few of ours only ever wait."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Configuration allows spawning up to")


def configuration(form: Format) -> dict[str, Any]:
    """Return how everything in a server's processes logs, as `logging.config.dictConfig` reads it.

    Args:
        form: `auto`: text where somebody watches in a terminal, JSON elsewhere.
    """
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    formatter = JsonFormatter if form == "json" else TextFormatter
    # The servers' own loggers have handlers of their own, unless told otherwise.
    own = ("_granian", "granian.access", "gunicorn.error", "gunicorn.access")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "filters": {"advice": {"()": _Advice}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "filters": ["advice"],
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        # Gunicorn would write a line for each request, granian does not.
        "loggers": {name: {"handlers": [], "propagate": True, "level": "WARNING"} for name in own}
        | {"serving": {"level": "INFO"}},
    }
