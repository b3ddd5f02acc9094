"""The web application: `create_app` puts the API and the page around a `Retriever`.

Any WSGI server can run it (`towers serve` starts one). A worker that finds nothing to answer from stays up, says 503,
and looks again: whoever mends the bundle need not restart anything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from flask import Flask

from features.errors import DataError
from serving.api import IdConverter, api
from serving.config import ServingConfig
from serving.contract import Contract
from serving.door import add_door
from serving.errors import NotReady
from serving.index import set_num_threads
from serving.metrics import Metrics
from serving.page import page
from serving.probes import probes
from serving.problems import register_problems
from serving.retriever import Retriever
from towers.bundle import BundleError

_SECONDS_BETWEEN_TRIES = 5.0
_log = logging.getLogger(__name__)


class Source:
    """Where requests get their `Retriever` from; opened once, and tried again now and then while that fails."""

    def __init__(
        self, open_retriever: Callable[[], Retriever], on_open: Callable[[Retriever], None] = lambda retriever: None
    ) -> None:
        self._open = open_retriever
        self._on_open = on_open
        self._retriever: Retriever | None = None
        self._next_try = 0.0
        self._turn = threading.Lock()

    def get(self) -> Retriever:
        """Return the retriever.

        Raises:
            NotReady: It cannot be opened at present; the log says why.
        """
        if self._retriever is None:
            with self._turn:
                self._try_to_open()
        if self._retriever is None:
            raise NotReady("the model and its index are not loaded; the server's log says why")
        return self._retriever

    def _try_to_open(self) -> None:
        if self._retriever is not None or time.monotonic() < self._next_try:
            return
        try:
            self._retriever = self._open()
            self._on_open(self._retriever)
        except (BundleError, DataError) as error:
            self._next_try = time.monotonic() + _SECONDS_BETWEEN_TRIES
            _log.error("not ready: %s", error)


def create_app(
    source: Retriever | Path | str, settings: ServingConfig | None = None, shared: Path | None = None
) -> Flask:
    """Return the application.

    Args:
        source: A retriever, or the folder of a bundle, which is then opened with one thread per search: this is what
            a server's worker does, after the fork.
        settings: What the operator decides. None: the defaults.
        shared: A folder in memory where the workers of one server meet. None: there is one worker.

    Raises:
        DataError: The file of keys cannot be read.
    """
    settings = settings or ServingConfig()
    app = Flask(__name__)
    app.url_map.merge_slashes = False
    app.url_map.converters["id"] = IdConverter
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.extensions["towers"] = settings
    app.extensions["towers_contract"] = Contract.of(settings)
    register_problems(app)
    app.register_blueprint(api)
    app.register_blueprint(page)
    app.register_blueprint(probes)
    metrics = add_door(app, settings, shared)
    app.extensions["towers_source"] = _source(source, settings, partial(_tell, metrics))
    return app


def _tell(metrics: Metrics, retriever: Retriever) -> None:
    """Let the metrics say what this worker answers from."""
    created = datetime.fromisoformat(retriever.snapshot.seal.created)
    metrics.tell(model=retriever.model, index=retriever.snapshot.seal.created, created=created.timestamp())


def _source(source: Retriever | Path | str, settings: ServingConfig, on_open: Callable[[Retriever], None]) -> Source:
    if isinstance(source, Retriever):
        opened = Source(lambda: source, on_open)
        opened.get()
        return opened
    path = Path(source)
    # The workers share the cores already, and a library's threads do not survive a fork.
    torch.set_num_threads(1)
    set_num_threads(1)

    def open_retriever() -> Retriever:
        retriever = Retriever.open(
            path,
            device=settings.device,
            recommend_seen=settings.recommend_seen,
            filter_columns=settings.filter_columns,
        )
        retriever.work_together(settings.threads, settings.batching)
        return retriever

    opened = Source(open_retriever, on_open)
    try:
        opened.get()
    except NotReady:
        _log.warning("serving 503 until %s can be opened", path)
    return opened
