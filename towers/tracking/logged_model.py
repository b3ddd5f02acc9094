"""A bundle as an MLflow model: a *pyfunc* made from code, with signature and input example, registered as a version.

MLflow stores the model as a folder with the bundle in `artifacts/NAME`; nothing in it is pickled. The code is
`towers/api/pyfunc.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

ARTIFACTS = "artifacts"
"""Folder of an MLflow model that has the bundle, under its own name."""
MODEL = "model"
MOST_DESCRIPTION = 5_000
"""Longest description of a version; MLflow's own limit."""
CARD = "README.md"

_EXAMPLE_ITEMS = 3
_REGISTERED = (
    "Two-tower recommenders, one version for each bundle, with its model card as description. `towers promote` and "
    "`towers deploy` move an alias, such as `champion`, which a service follows: `towers serve models:/NAME@champion`."
)


@dataclass(frozen=True)
class Examples:
    """Inputs that a model answers, which decide the types of its signature.

    Attributes:
        items: Ids of a few items of the catalogue.
        query: A text. None: the model reads histories.
        user: The id of a user, for its type only; it is not stored.
    """

    items: Sequence[Any]
    query: str | None = None
    user: Any = ""

    @classmethod
    def of(cls, item_ids: np.ndarray, titles: Sequence[str], user_ids: np.ndarray, *, reads_history: bool) -> Examples:
        """Return examples from the head of a catalogue.

        Args:
            item_ids: Ids of the items.
            titles: What each is called.
            user_ids: Ids of users; there may be none.
            reads_history: Whether the model reads histories; if not, it is asked by texts.
        """
        user = user_ids[:1].tolist()[0] if len(user_ids) else ""
        return cls(item_ids[:_EXAMPLE_ITEMS].tolist(), None if reads_history else titles[0], user)

    @property
    def frame(self) -> pd.DataFrame:
        """The input example: a query, or a history, which names no user."""
        return pd.DataFrame({"history": [self.items]} if self.query is None else {"query": [self.query]})

    @property
    def signature(self) -> ModelSignature:
        """The columns that the model reads and returns, and its parameter `k`."""
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
        from mlflow.types.schema import Array

        item = _type_of(self.items[0])
        if self.query is None:
            asked: list[ColSpec | TensorSpec] = [
                ColSpec(_type_of(self.user), "user_id", required=False),
                ColSpec(Array(item), "history", required=False),
            ]
        else:
            asked = [ColSpec(DataType.string, "query")]
        given: list[ColSpec | TensorSpec] = [
            ColSpec(DataType.long, "request"),
            ColSpec(item, "item_id"),
            ColSpec(DataType.double, "score"),
            ColSpec(DataType.long, "rank"),
        ]
        return ModelSignature(Schema(asked), Schema(given), ParamSchema([ParamSpec("k", DataType.long, 10)]))


def log_bundle(
    client: MlflowClient,
    experiment: str,
    run: str,
    bundle: Path,
    examples: Examples,
    *,
    name: str,
    tags: Mapping[str, str],
    step: int = 0,
) -> str:
    """Log a bundle as a model of a run, register it, and return its version.

    Args:
        client: Of the store.
        experiment: Id of the run's experiment.
        run: Id of the run.
        bundle: The folder.
        examples: Inputs that it answers.
        name: Name of the registered model, which is made if there is none.
        tags: Tags of the model and of the version.
        step: Training steps at which the weights were taken.

    Raises:
        mlflow.exceptions.MlflowException: The store does not respond, or refuses it.
        OSError: There is no space for the copy.
    """
    from mlflow.entities.logged_model_output import LoggedModelOutput

    model = client.create_logged_model(experiment, MODEL, source_run_id=run, tags=dict(tags), model_type="two-tower")
    try:
        with tempfile.TemporaryDirectory(prefix="towers-mlflow-") as temporary:
            folder = Path(temporary) / MODEL
            _write(folder, bundle, examples, model.model_id, run)
            client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(model.model_id, step)])
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=_REGISTERED)
    # A server looks a model up by its id. Without one MLflow does so in this process, but in its default store.
    source = f"models:/{model.model_id}" if client.tracking_uri.startswith("http") else model.artifact_location
    made = client.create_model_version(
        name,
        source,
        run,
        tags=dict(tags),
        description=card_of(bundle)[:MOST_DESCRIPTION],
        model_id=model.model_id,
    )
    return str(made.version)


def card_of(bundle: Path) -> str:
    """Return the model card of a bundle; empty if it has none."""
    path = bundle / CARD
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def bundle_in(folder: Path) -> Path:
    """Return the bundle in a folder that was downloaded from the registry: in an MLflow model, or by itself."""
    if not (folder / "MLmodel").is_file():
        return folder
    kept = [path for path in (folder / ARTIFACTS).glob("*") if path.is_dir() and not path.is_symlink()]
    return kept[0] if len(kept) == 1 else folder / ARTIFACTS


def registered_name(experiment: str) -> str:
    """Return the name of the registered model of an experiment: MLflow takes no `/`, `:` or `@` there.

    Example:
        >>> registered_name("/Shared/two-towers")
        '-Shared-two-towers'
    """
    return "".join("-" if letter in "/:@'\"" else letter for letter in experiment)


def _write(folder: Path, bundle: Path, examples: Examples, model_id: str, run: str) -> None:
    """Write the MLflow model of a bundle."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    with as_file(files("towers") / "api" / "pyfunc.py") as code:
        save_model(
            str(folder),
            python_model=str(code),
            artifacts={"bundle": str(bundle.resolve())},
            mlflow_model=Model(run_id=run, model_id=model_id),
            signature=examples.signature,
            input_example=examples.frame,
            pip_requirements=[f"two-towers=={version('two-towers')}"],
        )


def _type_of(value: Any) -> Any:
    from mlflow.types import DataType

    return DataType.long if isinstance(value, int) else DataType.string
