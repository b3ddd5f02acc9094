"""Strict settings: the base of every table of `run.toml` and `serving.toml`; all errors are reported at once.

It imports no library that takes long, so that a service reads its settings in a moment.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from features.errors import DataError
from features.messages import did_you_mean, shown

RecommendSeen = bool
"""Values of `recommend_seen`; `features.sequences.seen_items.SeenItems.of` returns the policy that one names."""


class StrictTable(BaseModel):
    """A frozen table of settings. Unknown keys and values of the wrong type are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


Table = TypeVar("Table", bound=BaseModel)
_OWN_NAME = "NAME"
_TABLE_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq")


def parse_settings(kind: type[Table], values: dict[str, Any], source: str) -> Table:
    """Return `values` as a settings table.

    Raises:
        DataError: Names every mistake with its path, what was expected and what was found.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(str(part) for part in mistake['loc'])}: {_say(mistake, kind)}" for mistake in error.errors()
        )
        raise DataError(f"{source}: {mistakes}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        DataError: The file is missing, a table instead of settings, not UTF-8 or not TOML.
    """
    if path.name.lower().endswith(_TABLE_ENDINGS):
        raise DataError(
            f"{path}: a file of settings (.toml) is expected here, not a table; `towers init --interactions {path}` "
            "writes run.toml for a table"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = did_you_mean(path.name, sorted(other.name for other in path.parent.glob("*.toml")))
        raise DataError(f"{path}: no such file{near or '; `towers init --interactions FILE` writes one'}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not valid TOML: {error}") from None


def _say(mistake: Any, kind: type[BaseModel]) -> str:
    if mistake["type"] == "extra_forbidden":
        return f"no such setting{_nearest(mistake['loc'], kind) or '; remove it'}"
    if mistake["type"] == "missing":
        return "missing; give it a value"
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    return f"{mistake['msg'][0].lower()}{mistake['msg'][1:]}, found {shown(mistake['input'])}"


def _nearest(place: Sequence[str | int], kind: type[BaseModel]) -> str:
    """Return where a setting that is not there may have been meant: another table, or a name that is like it."""
    *_, name = path = [str(part) for part in place]
    known = [*_places(kind)]
    if hint := did_you_mean(name, [found[-1] for found in known if _is_sibling(found, path)]):
        return hint
    tables = [table for *table, found in known if found == name]
    return f"; {name!r} belongs in [{'.'.join(tables[0])}]" if tables and tables[0] else ""


def _places(kind: type[BaseModel], table: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each setting; `NAME` stands for a name of the user's own, as in `features.item.NAME.kind`."""
    for name, field in kind.model_fields.items():
        path = (*table, name)
        yield path
        inner = field.annotation
        if inner is not None and get_args(inner):
            inner, path = get_args(inner)[-1], (*path, _OWN_NAME)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _places(inner, path)


def _is_sibling(known: Sequence[str], path: Sequence[str]) -> bool:
    return len(known) == len(path) and all(
        one in (_OWN_NAME, other) for one, other in zip(known[:-1], path[:-1], strict=True)
    )
