"""What those who run the service ask it: is it alive, can it answer, what has it counted."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, request

from serving.errors import NotReady
from serving.http.auth import needs
from serving.http.contract.problems import json_response
from serving.http.contract.schemas import Liveness, Readiness, WorkerCounts
from serving.http.limits import ConcurrencyLimiter
from serving.http.routes import current_retriever
from serving.observability.metrics import Metrics

probes = Blueprint("probes", __name__)


@probes.get("/healthz")
@needs("none")
def healthz() -> Response:
    """Answer that the process is alive and gets on with its work; 503 where requests are in hand and none ends."""
    turns: ConcurrencyLimiter = current_app.extensions["towers_turns"]
    if turns.is_stuck():
        raise NotReady(f"{turns.in_hand} requests are in hand, and none has been answered for a minute")
    return json_response(Liveness(status="ok"))


@probes.get("/readyz")
@needs("none")
def readyz() -> Response:
    """Answer that recommendations can be given, and by how many of the workers, or 503."""
    seal = current_retriever().snapshot.seal
    workers = metrics_in_use().workers()
    return json_response(
        Readiness(
            status="ready",
            model=seal.model,
            items=seal.num_items,
            users=seal.num_users,
            index_created=seal.created,
            workers=WorkerCounts(living=len(workers), ready=sum(map(bool, workers))),
        )
    )


@probes.get("/metrics")
def metrics() -> Response:
    """Answer what all workers counted, in the format of Prometheus."""
    content, content_type = metrics_in_use().exposition(request.headers.get("Accept", ""))
    return Response(content, content_type=content_type)


def metrics_in_use() -> Metrics:
    """Return where this application counts."""
    metrics: Metrics = current_app.extensions["towers_metrics"]
    return metrics
