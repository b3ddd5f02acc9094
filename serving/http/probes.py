"""Endpoints for operators: liveness, readiness and metrics."""

from __future__ import annotations

from datetime import UTC, datetime

from serving.errors import NotReady
from serving.http.contract.schemas import Liveness, Readiness, WorkerCounts
from serving.http.router import Reply
from serving.http.service import ApiRequest, Service, json_reply


def healthz(service: Service, request: ApiRequest) -> Reply:
    """Answer 200, or 503 if requests are in progress and none has been completed for a minute."""
    if service.limiter.is_stuck():
        in_progress = service.limiter.in_progress
        raise NotReady(f"{in_progress} requests are in progress, and none has been completed for a minute")
    return json_reply(Liveness(status="ok"))


def readyz(service: Service, request: ApiRequest) -> Reply:
    """Answer 200 with the version of the model and the number of ready workers; 503 if no model is loaded."""
    manifest = request.recommender.snapshot.manifest
    workers = service.metrics.workers()
    return json_reply(
        Readiness(
            status="ready",
            model=manifest.model,
            items=manifest.num_items,
            users=manifest.num_users,
            index_created=manifest.created,
            trend_until=None if manifest.trend_until is None else _iso(manifest.trend_until),
            workers=WorkerCounts(living=len(workers), ready=sum(map(bool, workers))),
        )
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def metrics(service: Service, request: ApiRequest) -> Reply:
    """Answer with the metrics of all workers in the format of Prometheus."""
    content, content_type = service.metrics.exposition(request.header("Accept"))
    return Reply(content, content_type=content_type)
