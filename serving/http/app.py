"""The web application: `create_app` puts the API and the page around a `Recommender`.

Any WSGI server can run it (`towers serve` starts one). A worker whose bundle cannot be opened keeps running, answers
503, and tries again: once the bundle is repaired, no restart is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from serving.config import ServingConfig
from serving.deploy.hot_reload import LastServed, RecommenderProvider, identity_of
from serving.errors import NotReady
from serving.http.contract.openapi import Documents
from serving.http.contract.requests import Contract
from serving.http.limits import ConcurrencyLimiter
from serving.http.middleware import RequestMiddleware, guards_of
from serving.http.page.documents import documents as pages
from serving.http.page.page import web_page
from serving.http.recommend_handler import RecommendHandler
from serving.http.router import Router
from serving.http.routes import ROUTES
from serving.http.service import Service
from serving.live.log import EventLog
from serving.live.open_log import open_log
from serving.observability.metrics import Metrics
from serving.observability.request_log import RequestLog, RotatedFile
from serving.recommend.recommender import Recommender
from serving.recommend.reranking import RerankStage
from serving.recommend.response import Fallback
from serving.search.faiss_index import set_num_threads
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle
from towers.bundle.private_copies import PrivateCopies

_log = logging.getLogger(__name__)


def create_app(
    source: Recommender | Path | str,
    settings: ServingConfig | None = None,
    shared: Path | None = None,
    copies: Path | None = None,
) -> Flask:
    """Return the application.

    Args:
        source: A recommender, or the folder of a bundle, which is then opened with one thread per search: this is what
            a server's worker does, after the fork.
        settings: The operator's settings. None: the defaults.
        shared: A folder in memory that all workers of one server share. None: there is one worker.
        copies: A folder for private copies of the served files, writable by this service only. None: files are read in
            place, and if one is truncated meanwhile, this process crashes.

    Raises:
        DataError: The file of API keys cannot be read.
    """
    settings = settings or ServingConfig()
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    # The middleware turns every error into a problem response.
    app.config |= {"PROPAGATE_EXCEPTIONS": True, "TRAP_HTTP_EXCEPTIONS": True}
    app.register_blueprint(web_page)
    app.register_blueprint(pages)
    metrics = Metrics(sorted({route.path for route in ROUTES}), get_args(Fallback), shared)
    on_fallback, on_rerank = (partial(metrics.count, f"towers_{name}_total") for name in ("fallbacks", "rerank"))
    request_log = _request_log(settings, metrics)
    recommend = RecommendHandler(Contract.of(settings), on_fallback, on_rerank, request_log)
    live = settings.live
    log = None if live is None else open_log(live.get_secret_value(), create=shared is None)
    private_copies = None if copies is None else PrivateCopies(copies)
    guards = guards_of(settings, metrics, shared)
    provider = _provider(source, settings, partial(_note_versions, metrics), log, private_copies, LastServed(shared))
    limiter = ConcurrencyLimiter(settings.threads, settings.queue_size, metrics.gauge("towers_requests_in_progress"))
    documents = Documents(ROUTES, recommend.contract, takes_writes=log is not None)
    service = Service(settings, provider, recommend, metrics, limiter, documents.of, request_log)
    app.extensions["towers"] = service
    page = ProxyFix(app.wsgi_app, x_for=0, x_proto=0, x_prefix=min(1, settings.trusted_proxies))
    app.wsgi_app = RequestMiddleware(service, Router(ROUTES), guards, page)  # type: ignore[method-assign]
    return app


def _request_log(settings: ServingConfig, metrics: Metrics) -> RequestLog | None:
    if settings.request_log is None:
        return None
    file = RotatedFile(Path(settings.request_log), settings.request_log_max_bytes, settings.request_log_files)
    key = None if settings.request_log_key is None else settings.request_log_key.get_secret_value()
    return RequestLog(file, settings.request_log_share, key, partial(metrics.count, "towers_request_log_lines_total"))


def _note_versions(metrics: Metrics, recommender: Recommender) -> None:
    """Record in the metrics which model and index this worker serves."""
    manifest = recommender.snapshot.manifest
    about = {} if manifest.trend_until is None else {"trend_until": manifest.trend_until}
    created = datetime.fromisoformat(manifest.created).timestamp()
    metrics.describe_worker(model=recommender.model, index=manifest.created, created=created, **about)


def _provider(
    source: Recommender | Path | str,
    settings: ServingConfig,
    note_versions: Callable[[Recommender], None],
    store: EventLog | None,
    copies: PrivateCopies | None,
    last: LastServed,
) -> RecommenderProvider:
    if isinstance(source, Recommender):
        opened = RecommenderProvider(lambda: source, note_versions, store)
        opened.get()
        return opened
    path = Path(source)
    # The workers share the cores already, and a library's threads do not survive a fork.
    torch.set_num_threads(1)
    set_num_threads(1)

    def on_open(recommender: Recommender) -> None:
        note_versions(recommender)
        last.note(recommender.bundle.path)

    def open_last() -> Recommender | None:
        bundle = last.bundle()
        return None if bundle is None else _open(bundle, settings, copies)

    opened = RecommenderProvider(
        lambda: _open(path, settings, copies), on_open, store, lambda: identity_of(path), open_last
    )
    try:
        opened.get()
    except NotReady:
        _log.warning("serving 503 until %s can be opened", path)
    if settings.watch_seconds:
        opened.watch(settings.watch_seconds)
    return opened


def _open(path: Path, settings: ServingConfig, copies: PrivateCopies | None) -> Recommender:
    # Resolved first: if the link is changed while the bundle opens, files of two bundles must not be mixed.
    recommender = Recommender.open(
        path.resolve(),
        device=settings.device,
        recommend_seen=settings.recommend_seen,
        filter_columns=settings.filter_columns,
        open_rerank=partial(_open_rerank, settings),
        database=settings.database,
        copies=copies,
        trust=settings.trust,
    )
    recommender.enable_micro_batching(settings.threads, settings.micro_batching)
    return recommender


def _open_rerank(settings: ServingConfig, bundle: ModelBundle, snapshot: Snapshot) -> RerankStage | None:
    if not settings.rerank:
        return None
    return RerankStage.open(bundle, snapshot, settings.rerank_candidates, settings.rerank_budget_ms / 1000)
