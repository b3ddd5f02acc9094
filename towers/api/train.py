"""`towers.train`: DataFrames or paths to a `Model`, through what `towers init` and `towers train` do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from features.errors import DataError
from towers.api.errors import plain_errors
from towers.api.model import Device, Model, open_model
from towers.api.printing import printing
from towers.api.tables import Inputs, Table, as_overrides, by_full_name, stored
from towers.process import keeping_memory
from training.distributed.launch import is_launched
from training.presets import PRESETS, Preset, preset_settings
from training.tasks.init import propose, write_proposal
from training.tasks.train import train_and_bundle

Settings: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""The path of a run.toml, or settings by name."""


@plain_errors
def train(
    interactions: Table | None = None,
    *,
    items: Table | None = None,
    users: Table | None = None,
    documents: Table | None = None,
    queries: Table | None = None,
    pairs: Table | None = None,
    settings: Settings | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    time_format: str | None = None,
    preset: Preset | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: Device = "auto",
    progress: bool = True,
    baselines: bool = True,
    baseline_minutes: float = 2,
    **values: Any,
) -> Model:
    """Train a model, as `towers init` and `towers train` do, and return it.

    Without a run.toml, the tables are inspected as `towers init` does, and it is printed how each column is used.
    DataFrames are written to `runs/inputs/DIGEST/` together with the run.toml that was made for them, so that the
    bundle can be indexed and evaluated later; the same tables are written once. The bundle goes to `runs/run-N`, and
    `runs/latest` points to it, as on the command line.

    Ctrl-C stops after the current step and leaves a checkpoint; the same call with `resume=True` continues exactly from
    there. On a CPU the same tables, settings and number of threads give the same weights as the command.

    Args:
        interactions: Interactions of users with items: a DataFrame (pandas, polars, or another with Arrow's interface),
            or the path of a CSV or Parquet file, a folder of such files, or a pattern.
        items: The catalogue, likewise. None: the items of the interactions.
        users: Attributes of users, likewise.
        documents: Of a search: what there is; a table or a folder of .md and .txt files.
        queries: Of a search: queries to train on.
        pairs: Of a search: which document answers which query.
        settings: The path of a run.toml, which then says how tables are read, and which, unless they are given; or
            settings that replace the proposed ones, as in run.toml: `{"training": {"epochs": 3}}`, or
            `{"features.item.title.frozen_dim": 64}`.
        user_column: User-id column of the interactions, if it is not detected.
        item_column: Item-id column of the interactions.
        time_column: Timestamp column of the interactions.
        time_format: Format of the timestamps: `dmy`, `mdy`, or a pattern such as `%d.%m.%y`.
        preset: Size of the model: `small`, `base` or `large`.
        output: Folder of the bundle. None: the next free `runs/run-N`.
        resume: Whether to continue the newest unfinished run with these tables and settings.
        device: Device to train on.
        progress: Whether to print what the commands print.
        baselines: Whether the report compares with baselines. False for trainings that are compared with each other.
        baseline_minutes: Time for choosing the hyperparameters of the baselines. 0: each is fitted once.
        **values: Settings by their own names, such as `epochs=3` or `embedding_dim=32`; they replace all others.

    Raises:
        DataError: The tables or the settings are wrong; names the table, the column and the row (from 1), and what to
            do. A re-indexed DataFrame has the row in `frame.iloc[row - 1]`.

    Example:
        >>> model = towers.train(interactions, items=items, users=users, epochs=1, track=False, progress=False)
        >>> str(model.path)
        'runs/run-1'
        >>> towers.train(interactions.head(0), items=items, progress=False)
        Traceback (most recent call last):
        ...
        features.errors.DataError: interactions: no rows below the column names; expected at least one
    """
    if isinstance(interactions, str | os.PathLike) and Path(interactions).suffix == ".toml":
        raise DataError(f"{interactions}: holds settings; type: towers.train(settings={str(interactions)!r})")
    if preset is not None and preset not in PRESETS:
        raise DataError(f"preset: expected one of {', '.join(PRESETS)}, found {preset!r}")
    if is_launched():
        raise DataError("towers.train: trains in one process; of several, run `torchrun -m towers train run.toml`")
    tables = {"interactions": interactions, "items": items, "users": users}
    search = {"documents": documents, "queries": queries, "pairs": pairs}
    with stored({**tables, **search}) as inputs, printing(progress), keeping_memory():
        overrides = preset_settings(preset)
        if isinstance(settings, str | os.PathLike):
            run_toml = Path(settings)
            overrides += _tables_as_overrides(inputs, tables)
        else:
            columns = {"user_id": user_column, "item_id": item_column, "timestamp": time_column}
            run_toml = _proposed(inputs, columns, time_format)
            overrides += as_overrides(settings or {})
        overrides += as_overrides(by_full_name(values))
        folder = Path(output) if output is not None else None
        bundle = train_and_bundle(
            run_toml,
            overrides,
            output=folder,
            resume=resume,
            device=device,
            baselines=baselines,
            baseline_minutes=baseline_minutes,
        )
    return open_model(bundle)


def _proposed(inputs: Inputs, columns: Mapping[str, str | None], time_format: str | None) -> Path:
    """Write the run.toml that `towers init` proposes, and return its path; the tables are kept with it."""
    run_toml = inputs.folder / "run.toml"
    if not inputs.paths:
        raise DataError(
            "no tables: give interactions (and items, users) of a recommender, documents (and queries with pairs) of a "
            'search, or settings="run.toml"'
        )
    names = ("interactions", "items", "users", "documents", "queries", "pairs")
    proposal = propose(
        run_toml,
        **{name: inputs.paths.get(name) for name in names},
        named={name: column for name, column in columns.items() if column is not None},
        time_format=time_format,
    )
    write_proposal(proposal, run_toml)
    inputs.keep()
    return inputs.folder / "run.toml"


def _tables_as_overrides(inputs: Inputs, tables: Mapping[str, Table | None]) -> tuple[str, ...]:
    """Return the settings that put the given tables in the place of those of a run.toml."""
    other = next((name for name in inputs.paths if name not in tables), None)
    if other is not None:
        raise DataError(f"{other}: not with a run.toml, in which a search has interactions, items and users as well")
    if inputs.names:
        inputs.keep()
    paths = {f"features.{name}": str(path.absolute()) for name, path in inputs.paths.items()}
    return as_overrides(paths)
