"""Headers that say which model and which index produced an answer."""

from __future__ import annotations

from flask import Flask, Response, g

from serving.recommend.recommender import Recommender

MODEL_HEADER, INDEX_HEADER, LIVE_HEADER = "Towers-Model", "Towers-Index", "Towers-Live"


def register_versions(app: Flask) -> None:
    """Let every answer say in its headers which model, which index and what of the log produced it."""

    def say(response: Response) -> Response:
        retriever: Recommender | None = g.get("retriever")
        if retriever is not None:
            response.headers.extend(version_headers(retriever))
        return response

    app.after_request(say)


def version_headers(retriever: Recommender) -> list[tuple[str, str]]:
    """Return the headers that say which model, which index and what of the log produced an answer."""
    headers = [(MODEL_HEADER, retriever.model), (INDEX_HEADER, retriever.index_version)]
    if retriever.state.position is not None:
        headers.append((LIVE_HEADER, str(retriever.state.position)))
    return headers
