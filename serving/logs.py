"""What a service writes to its log: one line for each event, as JSON for machines or as text for people.

Every line that is written while a request is in hand bears that request's id, wherever it comes from.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

Format = Literal["auto", "json", "text"]

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class _Current(threading.local):
    """The request that this thread has in hand."""

    request_id: str | None = None


current = _Current()
"""`current.request_id` is the id of the request that this thread has in hand; None between requests."""


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
            "message": record.getMessage(),
        }
        if current.request_id is not None:
            content["request_id"] = current.request_id
        content |= getattr(record, "fields", {})
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(content, default=str).decode()


class TextFormatter(logging.Formatter):
    """A line for people: time, level, message, what the event adds, and the request's id in brackets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the exception, if any, below it."""
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        request_id = "" if current.request_id is None else f" [{current.request_id}]"
        line = f"{when} {record.levelname.lower()}: {record.getMessage()}{fields}{request_id}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


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
