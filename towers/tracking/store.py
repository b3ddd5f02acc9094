"""The MLflow store: its address, a client, experiments, and the addresses of its pages.

MLflow's pages show either language models and agents or trained models, and begin with the former. Which of them is a
choice of the browser, so that no tag of an experiment changes it; the address of a page can, with `workflowType`.
"""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from features.files import create_once
from features.redaction import redacted
from towers.warnings_filter import quiet_imports

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
LOCAL_PAGES = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows a local store, unless it gets another port."""

_SQLITE = "sqlite:///"
_TRAINED_MODELS = {"mlflow.experimentKind": "custom_model_development"}
"""Tells MLflow before 3.10 what to show of an experiment; newer versions read `workflowType` of the address."""


def tracking_uri(folder: Path | None = None) -> str:
    """Return the address of the store: that of MLFLOW_TRACKING_URI, else `mlflow.db` in a folder.

    Args:
        folder: None: the working folder.
    """
    return os.environ.get(VARIABLE) or f"{_SQLITE}{(folder or Path.cwd()).resolve()}/mlflow.db"


def make_client(uri: str) -> MlflowClient:
    """Return a client of a store; importing MLflow takes a second, so not before it is needed."""
    quiet_imports()
    for name in ("alembic", "mlflow.store", "mlflow.tracking", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    place = uri.removeprefix(_SQLITE).partition("?")[0] if uri.startswith(_SQLITE) else ""
    if place not in ("", ":memory:"):
        create_once(Path(place), _make_store)
    return MlflowClient(uri, uri)


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Return the id of the experiment; a new one in SQLite keeps its files next to the database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith(_SQLITE):
        location = (Path(uri.removeprefix(_SQLITE)).resolve().parent / "mlartifacts").as_uri()
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=location, tags=_TRAINED_MODELS))
    except MlflowException:
        made_meanwhile = client.get_experiment_by_name(name)
        if made_meanwhile is None:
            raise
        return str(made_meanwhile.experiment_id)


def how_to_open(uri: str, experiment: str, run: str | None = None) -> str:
    """Return the address of the page of an experiment's runs or of one run, with the command that serves local ones.

    Args:
        uri: The store.
        experiment: Id of the experiment.
        run: Id of the run. None: all runs of the experiment.

    Example:
        >>> how_to_open("https://mlflow.example.org/", "7", "abc")
        'https://mlflow.example.org/#/experiments/7/runs/abc?workflowType=machine_learning'
    """
    page = f"#/experiments/{experiment}/runs{'' if run is None else f'/{run}'}?workflowType=machine_learning"
    if uri.startswith(("http://", "https://")):
        return f"{redacted(uri).rstrip('/')}/{page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(redacted(uri))}, then {LOCAL_PAGES}/{page}"


def _make_store(path: Path) -> None:
    """Make an empty SQLite store. To make one takes dozens of migrations, which spoil each other if two run at once."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"{_SQLITE}{path.resolve()}", "./mlruns").engine.dispose()
