"""Reads the request log: the file and those that were renamed, as columns. What cannot be read is counted and named."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from features.errors import DataError
from serving.observability.request_log import LoggedAnswer, LoggedRequest

_LINE: TypeAdapter[LoggedRequest] = TypeAdapter(LoggedRequest)
_MOST_NAMED = 3
_COLUMNS = (
    *("time", "route", "model", "k", "offset", "milliseconds", "is_filtered", "is_first"),
    *("user", "unknown_items", "fallback", "returned", "history", "best"),
)


@dataclass(frozen=True)
class LoggedRequests:
    """The answers of a request log.

    Attributes:
        answers: One row per answer, in order of time: `time` (Unix seconds), `route`, `model`, `is_filtered`, `k`,
            `offset` and `milliseconds` of its request, `is_first` of the answers of that, and `user`, `history`
            (length; NaN: unknown), `unknown_items`, `fallback`, `returned` and `best` (score; NaN without items) as in
            `LoggedAnswer`.
        attributes: One row per attribute that a user was described with: `time`, `column`, `is_known`.
        shown: One row per item that was returned to a user with a hash, in order of time: `time`, `user_hash`,
            `item_id` (as text), `position` (from 1).
        num_lines: Number of lines, those that cannot be read included.
        unreadable: Where the lines are that cannot be read, such as `requests.jsonl.1, line 7`.
    """

    answers: pd.DataFrame
    attributes: pd.DataFrame
    shown: pd.DataFrame
    num_lines: int
    unreadable: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What the reader of a report must know of lines that cannot be read."""
        if not self.unreadable:
            return []
        named = "; ".join(self.unreadable[:_MOST_NAMED])
        more = "; ..." if len(self.unreadable) > _MOST_NAMED else ""
        of_all = f"{len(self.unreadable):,} of {self.num_lines:,} lines"
        return [f"request log: {of_all} cannot be read and are left out: {named}{more}"]


def read_requests(path: Path) -> LoggedRequests:
    """Read a request log.

    Args:
        path: The file that the service writes to; `FILE.1`, `FILE.2` and so on are read as well.

    Raises:
        DataError: There is no such file, it cannot be read, or none of its lines can.
    """
    answers: list[dict[str, Any]] = []
    attributes: list[tuple[float, str, bool]] = []
    shown: list[tuple[float, str, str, int]] = []
    unreadable, num_lines = [], 0
    with ExitStack() as stack:
        for file in _open_all(path, stack):
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                num_lines += 1
                try:
                    request = _LINE.validate_json(line, strict=True)
                except ValidationError:
                    unreadable.append(f"{Path(file.name).name}, line {number}")
                    continue
                moment = request["time"]
                for place, answer in enumerate(request["answers"]):
                    answers.append({**_row(request, answer), "is_first": place == 0})
                    attributes += [(moment, column, not unknown) for column, unknown in answer["attributes"].items()]
                    if (user := answer["user_hash"]) is not None:
                        places = enumerate(answer["items"], request["offset"] + 1)
                        shown += [(moment, user, str(item_id), position) for position, item_id in places]
    if num_lines and not answers:
        raise DataError(
            f"{path}: none of its {num_lines:,} lines can be read; name the file of the setting request_log, or leave "
            "the flag out"
        )
    return LoggedRequests(
        pd.DataFrame(answers, columns=list(_COLUMNS)).sort_values("time", kind="stable", ignore_index=True),
        pd.DataFrame(attributes, columns=["time", "column", "is_known"]),
        pd.DataFrame(shown, columns=["time", "user_hash", "item_id", "position"]).sort_values("time", kind="stable"),
        num_lines,
        tuple(unreadable),
    )


def _row(request: LoggedRequest, answer: LoggedAnswer) -> dict[str, Any]:
    return {
        **{name: request[name] for name in ("time", "route", "model", "k", "offset", "milliseconds")},
        "is_filtered": bool(request["filters"]),
        **{name: answer[name] for name in ("user", "unknown_items", "fallback", "returned")},
        "history": np.nan if answer["history"] is None else answer["history"],
        "best": np.nan if answer["scores"] is None else answer["scores"][0],
    }


def _open_all(path: Path, stack: ExitStack) -> list[BinaryIO]:
    """Open the files of a log, the newest first: one that is renamed meanwhile is met again, and left out."""
    found: dict[tuple[int, int], BinaryIO] = {}
    for number in count():
        name = path if number == 0 else path.with_name(f"{path.name}.{number}")
        try:
            file = stack.enter_context(name.open("rb"))
        except FileNotFoundError:
            # A service that has just renamed its file begins the next one with the next request.
            if number > 0:
                break
            continue
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror}); name the file of request_log") from None
        state = os.fstat(file.fileno())
        found.setdefault((state.st_dev, state.st_ino), file)
    if not found:
        raise DataError(f"{path}: no such file; a service with the setting request_log writes it")
    return list(found.values())
