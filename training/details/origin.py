"""Where a run comes from: settings that differ from their defaults, versions, and the commit of its folder."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from features.redaction import redacted
from towers.bundle.bundle import library_versions
from training.config import RunConfig
from training.details.examples import cut
from training.evaluation.details import ChangedSetting, Fact

MOST_SETTINGS = 150
_SECONDS_TO_ANSWER = 5


def changed_settings(config: RunConfig) -> tuple[ChangedSetting, ...]:
    """Return the settings that differ from their defaults, as `table.key`; of very many the first."""
    return tuple(_changed(config))[:MOST_SETTINGS]


def versions() -> tuple[Fact, ...]:
    """Return the versions of the libraries that decide the result."""
    return tuple(Fact(name, version) for name, version in library_versions().items())


def commit_of(folder: Path) -> str | None:
    """Return the commit of the git repository that a folder is in, and whether something differs from it.

    Returns:
        Twelve digits, and ` with changes` behind them if files of the repository were changed; None if it is in none.
    """
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return f"{head} with changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else head


def _git(folder: Path, *words: str) -> str:
    """Return what git says, nothing if it is not installed or fails."""
    command = ["git", "-C", str(folder), *words]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_TO_ANSWER, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def _changed(table: BaseModel, prefix: str = "") -> Iterator[ChangedSetting]:
    for name, field in type(table).model_fields.items():
        value, default = getattr(table, name), field.get_default(call_default_factory=True)
        if value == default:
            continue
        if isinstance(value, BaseModel):
            yield from _changed(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping) and all(isinstance(one, BaseModel) for one in value.values()):
            for key, one in value.items():
                yield ChangedSetting(f"{prefix}{name}.{key}", _written(one), None)
        else:
            known = None if default is PydanticUndefined else _written(default)
            yield ChangedSetting(f"{prefix}{name}", _written(value), known)


def _written(value: Any) -> str:
    """Return a value as in run.toml, a table with what differs from its defaults, without passwords."""
    if isinstance(value, BaseModel):
        parts = [f"{one.name} = {one.value}" for one in _changed(value)]
        return cut(f"{{ {', '.join(parts)} }}")
    if value is None:
        return "none"
    return cut(redacted(json.dumps(value, ensure_ascii=False, default=str)))
