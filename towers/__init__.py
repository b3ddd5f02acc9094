"""Two Towers: recommendations from two tables.

In Python:

    import towers

    model = towers.train(interactions, items=items)   # DataFrames or paths
    model.evaluate(output="report")                   # against baselines
    towers.audit("report")                            # where it fails
    model.recommend([10001, 10002], k=10)             # a DataFrame, with pictures in a notebook
    model.similar("P000024"); model.search("red lamp")
    model.save("models/first"); towers.open("models/first")
    model.serve(port=8000)                            # over HTTP, until Ctrl-C

The package is the model: two towers, their bundle on disk, re-rankers, the command line and the Python interface.

- `config`: `TowersConfig`, the `[towers]` table of run.toml.
- `model`: the network; `bundle`: a trained model on disk, sealed and signed.
- `rerankers`: models that score candidates; `export`: ONNX and sentence-transformers; `tracking`: MLflow.
- `cli`: the command `towers`; `api`: what `import towers` offers, loaded when it is used.
- `item_map`: positions of the items in the plane, for the service's page and for reports.
- `process`: child processes, memory and priority; `warnings_filter`: warnings of libraries that users can do nothing
  about.

Imports `features`; only `api` knows `training` and `serving`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.errors import DataError as DataError
    from towers.api.evaluations import audit as audit
    from towers.api.evaluations import compare as compare
    from towers.api.model import Model as Model
    from towers.api.model import open_model as open  # noqa: A004
    from towers.api.parts import LOSSES as LOSSES
    from towers.api.parts import AllowedItems as AllowedItems
    from towers.api.parts import AuditReport as AuditReport
    from towers.api.parts import ComparisonReport as ComparisonReport
    from towers.api.parts import DriftReport as DriftReport
    from towers.api.parts import EvaluationReport as EvaluationReport
    from towers.api.parts import Hits as Hits
    from towers.api.parts import Loss as Loss
    from towers.api.parts import Searcher as Searcher
    from towers.api.results import Recommendations as Recommendations
    from towers.api.train import train as train
    from towers.bundle.sealed_file import BundleError as BundleError
    from towers.model.history import HISTORY_ENCODERS as HISTORY_ENCODERS
    from towers.model.history import HistoryEncoder as HistoryEncoder
    from towers.rerankers.reranker import Reranker as Reranker
    from towers.rerankers.reranker import Shortlist as Shortlist

__version__: str
_PLACES = {
    "AllowedItems": "towers.api.parts",
    "AuditReport": "towers.api.parts",
    "BundleError": "towers.bundle.sealed_file",
    "ComparisonReport": "towers.api.parts",
    "DataError": "features.errors",
    "DriftReport": "towers.api.parts",
    "EvaluationReport": "towers.api.parts",
    "HISTORY_ENCODERS": "towers.model.history",
    "HistoryEncoder": "towers.model.history",
    "Hits": "towers.api.parts",
    "LOSSES": "towers.api.parts",
    "Loss": "towers.api.parts",
    "Model": "towers.api.model",
    "Recommendations": "towers.api.results",
    "Reranker": "towers.rerankers.reranker",
    "Searcher": "towers.api.parts",
    "Shortlist": "towers.rerankers.reranker",
    "audit": "towers.api.evaluations",
    "compare": "towers.api.evaluations",
    "open": "towers.api.model:open_model",
    "train": "towers.api.train",
}
"""Where each public name is defined; imported when it is first used, so that `import towers` is quick."""
__all__ = [
    "HISTORY_ENCODERS",
    "LOSSES",
    "AllowedItems",
    "AuditReport",
    "BundleError",
    "ComparisonReport",
    "DataError",
    "DriftReport",
    "EvaluationReport",
    "HistoryEncoder",
    "Hits",
    "Loss",
    "Model",
    "Recommendations",
    "Reranker",
    "Searcher",
    "Shortlist",
    "audit",
    "compare",
    "open",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or read the version."""
    if name == "__version__":
        from importlib.metadata import version

        return version("two-towers")
    if name not in _PLACES:
        raise AttributeError(f"module 'towers' has no attribute {name!r}; it has {', '.join(__all__)}")
    from towers.warnings_filter import quiet_imports

    quiet_imports()
    module, _, attribute = _PLACES[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute or name)
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
