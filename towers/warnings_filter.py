"""Filters warnings of libraries that users can do nothing about, each by its own text; others pass.

`quiet_imports` is called before torch, torchrec or MLflow are imported: by the command line, and by each module of ours
that imports torchrec, so that a notebook is as quiet as the command line.
"""

from __future__ import annotations

import logging
import os
import warnings

NO_NEED_TO_SAY = {
    # logger: how the message begins
    "torch.fx._symbolic_trace": "is_fx_tracing will return true",  # torchrec's own call, at its import
    "torchrec.distributed.planner": "",  # prints the plan of every table
    "mlflow.store.db.utils": "",  # each migration of a new store
    "mlflow.system_metrics": "",  # that there is no GPU to watch
}
"""Loggers whose messages up to INFO, or that begin with these words, are dropped."""

NO_STATISTICS = {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Variables without which MLflow and the Hugging Face hub's client send usage statistics; a user may set others."""


def quiet_imports() -> None:
    """Prepare this process for quiet imports of torch, torchrec, FAISS and MLflow. May be called again."""
    # One of fbgemm's modules configures logging to show all debug messages, unless the root already has a handler.
    # This is the one Python falls back to anyway: warnings and worse, on stderr.
    root = logging.getLogger()
    if not root.handlers and logging.lastResort is not None:
        root.addHandler(logging.lastResort)
    for name, beginning in NO_NEED_TO_SAY.items():
        logger = logging.getLogger(name)
        if not beginning:
            logger.setLevel(logging.WARNING)
        elif not any(isinstance(known, _Dropped) for known in logger.filters):
            logger.addFilter(_Dropped(beginning))
    for message in (
        "Sparse invariant checks are implicitly disabled",
        "Sparse CSR tensor support is in beta state",
        ".*Any type hint is inferred as AnyType",  # MLflow, of a class of its own
    ):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    for message in (
        r"`?torch\.distributed\..* is deprecated",
        "Please use DTensor instead",
    ):  # torchrec and checkpoints
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    for name, value in NO_STATISTICS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # towers prints one that opens on the run


class _Dropped(logging.Filter):
    """Drops the messages that begin with certain words."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)
