"""Strict settings: the base of every table of `run.toml` and `serving.toml`; all errors are reported at once.

It imports no library that takes long, so that a service reads its settings in a moment.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from features.errors import DataError
from features.messages import shown

RecommendSeen = bool
"""Values of `recommend_seen`; `features.sequences.seen_items.SeenItems.of` returns the policy that one names."""


class StrictTable(BaseModel):
    """A frozen table of settings. Unknown keys and values of the wrong type are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


Table = TypeVar("Table", bound=BaseModel)


def parse_settings(kind: type[Table], values: dict[str, Any], source: str) -> Table:
    """Return `values` as a settings table.

    Raises:
        DataError: Names every mistake with its path, what was expected and what was found.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(str(part) for part in mistake['loc'])}: {_say(mistake)}" for mistake in error.errors()
        )
        raise DataError(f"{source}: {mistakes}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        DataError: The file is missing, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `towers init --interactions FILE` writes one") from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not valid TOML: {error}") from None


def _say(mistake: Any) -> str:
    if mistake["type"] == "extra_forbidden":
        return "no such setting (misspelt?); remove it"
    if mistake["type"] == "missing":
        return "missing; give it a value"
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    return f"{mistake['msg'][0].lower()}{mistake['msg'][1:]}, found {shown(mistake['input'])}"
