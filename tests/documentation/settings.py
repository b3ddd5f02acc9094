"""The reference of settings, from the pydantic models that read them."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from features.config import ColumnSettings, EncoderSettings, FeaturesConfig, FeatureSettings
from features.settings import StrictTable
from serving.config import ServingConfig
from tests.documentation.pages import in_table
from towers.config import TowersConfig
from training.config import ContinuationConfig, PromotionConfig, SearchRange, TrainingConfig

_TUNE = """\
Settings that `towers tune` searches, each with a list of values, such as `towers.num_layers = [1, 2, 4]`, or with a
range, such as `towers.dropout = { low = 0.0, high = 0.5 }`, which has these keys. No other command uses the table."""
RUN_TABLES: dict[str, tuple[type[StrictTable], str]] = {
    "[features]": (FeaturesConfig, "Tables and features."),
    "[features.columns]": (ColumnSettings, "Names of the columns of users, items and times."),
    "[features.item] and [features.user]": (
        FeatureSettings,
        'One line for each feature, such as `brand = { kind = "category" }`.',
    ),
    "[features.encoders.NAME]": (EncoderSettings, "A pretrained text encoder, by a name of your choice."),
    "[towers]": (TowersConfig, "Architecture of the two towers."),
    "[training]": (TrainingConfig, "Data, loss, optimisation and tracking of training."),
    "[continuation]": (ContinuationConfig, "Steps and replay of `towers train --continue`."),
    "[promotion]": (PromotionConfig, "Conditions under which `towers promote` replaces the bundle in service."),
    "[tune]": (SearchRange, _TUNE),
}
_SHOWN_APART = ("columns", "item", "user", "encoders")
_INTRODUCTION = """\
# Settings

Every key of the two settings files, with its default. A key that does not exist is an error.

- **`run.toml`** belongs to those who train. `towers init` writes it, with a comment for each choice; it travels in the
  bundle. `--set table.key=value` of `towers train` and `towers evaluate` overrides a key for one command.
- **`serving.toml`** belongs to those who operate, in the folder where `towers serve` is called. An environment variable
  `TOWERS_<KEY>`, such as `TOWERS_PORT=9000`, overrides it, and a flag of the command overrides both. Every key is
  optional, and so is the file.
"""


def settings_page() -> str:
    """Return the page."""
    parts = [_INTRODUCTION, "## run.toml\n"]
    for head, (table, what) in RUN_TABLES.items():
        parts.append(f"### {head}\n\n{what}\n\n{_rows(table)}")
    parts.append(f"## serving.toml\n\n{_rows(ServingConfig)}")
    return "\n".join(parts)


def known_settings() -> set[str]:
    """Return the name of every key."""
    tables = [table for table, _ in RUN_TABLES.values()]
    return {name for table in (*tables, ServingConfig) for name in table.model_fields}


def _rows(table: type[StrictTable]) -> str:
    lines = ["| key | values | default | what it does |", "|---|---|---|---|"]
    for name, field in table.model_fields.items():
        if table is FeaturesConfig and name in _SHOWN_APART:
            continue
        what = in_table(" ".join((field.description or "").split()))
        lines.append(f"| `{name}` | {_values(field)} | {_default(field)} | {what} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    return "none" if default in (None, {}) else f"`{json.dumps(default)}`"


def _values(field: FieldInfo) -> str:
    if field.examples:  # built-in choices, to which programs may add
        return f"{', '.join(f'`{json.dumps(value)}`' for value in field.examples)}, or your own"
    return _with_limits(" or ".join(dict.fromkeys(_kinds(field.annotation))), field.metadata)


def _kinds(annotation: Any) -> Iterator[str]:
    """Yield the kinds of values of a type, without None."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield ", ".join(f"`{json.dumps(value)}`" for value in get_args(annotation))
    elif origin in (Union, types.UnionType):
        for one in get_args(annotation):
            if one is not type(None):
                yield from _kinds(one)
    elif origin is dict:
        yield "table"
    elif origin in (list, tuple):
        inner = " or ".join(_kinds(get_args(annotation)[0]))
        yield f"list of {_PLURALS.get(inner, inner)}"
    elif hasattr(annotation, "__metadata__"):
        yield _with_limits(" or ".join(_kinds(get_args(annotation)[0])), annotation.__metadata__)
    else:
        yield _NAMES[annotation]


_NAMES: dict[Any, str] = {
    bool: "`true`, `false`",
    int: "integer",
    float: "number",
    str: "text",
    SecretStr: "text",
    Path: "path",
}
_PLURALS = {"integer": "integers", "text": "texts"}


def _with_limits(kind: str, metadata: Any) -> str:
    limits = []
    for one in metadata:
        for name, sign in ((annotated_types.Ge, "≥"), (annotated_types.Gt, ">"), (annotated_types.Le, "≤")):
            if isinstance(one, name):
                limits.append(f"{sign} {getattr(one, name.__name__.lower()):g}")
        if isinstance(one, annotated_types.Lt):
            limits.append(f"< {one.lt:g}")
    return " ".join([kind, ", ".join(limits)]).strip()
