"""Where a run comes from: a name that tells it from others, the version of the code, and its tables as data sets."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from features.config import FeaturesConfig
from features.locations.object_path import TablePath
from features.locations.table_path import table_path
from features.tables.tables import Tables
from training.config import RunConfig
from training.presets import PRESETS, preset_settings

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

LIBRARIES = ("two-towers", "torch", "torchrec", "mlflow")
MOST_DIGEST = 36
"""Longest digest of a data set; MLflow's own limit."""

_TYPES = {"i": "long", "u": "long", "f": "double", "b": "boolean", "M": "datetime"}


def run_name(config: RunConfig, folder: Path, name: str) -> str:
    """Return a name that tells a run from others: what it is, the preset (if it is one), the data and the time in UTC.

    Args:
        config: The settings.
        folder: What the paths in them are relative to.
        name: What the run is, such as the folder of its bundle.
    """
    parts = [preset_of(config), data_name(config.features, folder), f"{datetime.now(UTC):%Y-%m-%d %H:%M}"]
    return f"{name} ({', '.join(part for part in parts if part)})"


def preset_of(config: RunConfig) -> str | None:
    """Return the preset whose every setting is used; None if there is none."""
    sizes = {f"towers.{name}={value}" for name, value in config.towers.model_dump().items()}
    return next((preset for preset in PRESETS if sizes.issuperset(preset_settings(preset))), None)


def data_name(config: FeaturesConfig, folder: Path) -> str:
    """Return what the data is called: the folder in which the first table lies."""
    table = config.interactions or config.items or ""
    return table_path(folder, table).resolve().parent.name


def code_tags(folder: Path) -> dict[str, str]:
    """Return what ran: the user, the versions of the libraries, and the commit of a repository that `folder` is in."""
    from mlflow.utils.git_utils import get_git_branch, get_git_commit

    tags = {"mlflow.source.name": "towers", "mlflow.source.type": "LOCAL"}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):  # run from the sources without installing them
            tags[f"version.{library}"] = version(library)
    with suppress(OSError, KeyError):  # a user without a name, as in a container
        tags["mlflow.user"] = getpass.getuser()
    commit, branch = get_git_commit(str(folder)), get_git_branch(str(folder))
    return tags | ({"mlflow.source.git.commit": commit} if commit else {}) | ({"git.branch": branch} if branch else {})


def data_sets(config: FeaturesConfig, folder: Path, tables: Tables, digests: Mapping[str, str]) -> list[DatasetInput]:
    """Return the tables of a run as MLflow data sets, with digest, columns and profile.

    Args:
        config: The tables.
        folder: What the paths are relative to.
        tables: Their content, as it was read.
        digests: SHA-256 of each table, by its key in the settings.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    users = None if tables.users is None else tables.users.frame
    frames = {"interactions": tables.interactions.frame, "items": tables.catalog.frame, "users": users}
    paths = {"interactions": config.interactions, "items": config.items, "users": config.users}
    return [
        DatasetInput(
            Dataset(
                name=f"{data_name(config, folder)} {table}",
                digest=digests[table][:MOST_DIGEST],
                source_type=_source_type(table_path(folder, str(paths[table]))),
                source=json.dumps({"uri": str(table_path(folder, str(paths[table])).resolve())}),
                schema=json.dumps({"mlflow_colspec": [*_columns(frame)]}),
                profile=json.dumps(_profile(frame)),
            ),
            [InputTag("mlflow.data.context", "training"), InputTag("table", table)],
        )
        for table, frame in frames.items()
        if frame is not None and table in digests
    ]


def _source_type(path: TablePath) -> str:
    """Return what MLflow calls a place: `local`, `s3` or `gs`."""
    return "local" if isinstance(path, Path) else path.scheme


def _columns(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the columns as MLflow describes them."""
    for name in frame.columns:
        is_full = bool(frame[name].notna().all())
        yield {"name": str(name), "type": _TYPES.get(frame[name].dtype.kind, "string"), "required": is_full}


def _profile(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the size of a table, its empty cells and, of the interactions, users, items and times."""
    found: dict[str, Any] = {"num_rows": len(frame), "num_elements": frame.size}
    empty = {str(name): int(count) for name, count in frame.isna().sum().items() if count}
    if empty:
        found["empty_cells"] = empty
    if {"user_id", "item_id"} <= set(frame.columns):
        found |= {"num_users": int(frame["user_id"].nunique()), "num_items": int(frame["item_id"].nunique())}
        if "timestamp" in frame and len(frame):
            times = frame["timestamp"]
            found |= {"first_time": int(times.min()), "last_time": int(times.max())}
    return found
