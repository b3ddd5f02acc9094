"""The JSON API: recommendations for someone known or described, items like another, and items by words.

Malformed JSON is 400; a well-formed request with a value that is not allowed is 422 and names each mistake.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app, g, request
from werkzeug.routing import BaseConverter

from features.messages import cut
from serving.http.auth import needs
from serving.http.contract.openapi import Documents
from serving.http.contract.problems import Problem, json_response
from serving.http.contract.schemas import ItemQuery
from serving.http.handlers import RecommendHandler, parsed_json
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest

_MAX_TYPE_CHARACTERS = 100

recommend_routes = Blueprint("api", __name__)


class IdConverter(BaseConverter):
    """An id in a path: anything at all, slashes at either end included."""

    regex = r"[\s\S]+"
    part_isolating = False


@recommend_routes.get("/recommendations/<id:user_id>")
def recommendations(user_id: str) -> Response:
    """Answer what to recommend to someone."""
    retriever, answers = current_retriever(), _answers()
    return json_response(answers.about_user(retriever, user_id, _wanted(answers.contract.query_for_user)))


@recommend_routes.post("/recommendations")
@needs("read")
def recommendations_for() -> Response:
    """Answer what to recommend to someone who is described in the body, or to several."""
    return json_response(_answers().about_body(current_retriever(), json_body()))


@recommend_routes.get("/items/<id:item_id>/similar")
def similar(item_id: str) -> Response:
    """Answer which items are most like one."""
    retriever, answers = current_retriever(), _answers()
    return json_response(answers.about_item(retriever, item_id, _wanted(answers.contract.query)))


@recommend_routes.get("/search")
def search() -> Response:
    """Answer which items are nearest to what is written."""
    return json_response(_answers().about_words(current_retriever(), dict(request.args.lists())))


@recommend_routes.get("/openapi.json")
def openapi() -> Response:
    """Answer what all of this is, as an OpenAPI document."""
    documents: Documents = current_app.extensions["towers_documents"]
    return Response(documents.of(current_retriever()), mimetype="application/json", direct_passthrough=True)


def current_retriever() -> Recommender:
    """Return what this request is answered from, the same from its beginning to its end.

    Raises:
        NotReady: It is not loaded.
    """
    if "retriever" not in g:
        g.retriever = current_app.extensions["towers_source"].get()
    retriever: Recommender = g.retriever
    return retriever


def _answers() -> RecommendHandler:
    answers: RecommendHandler = current_app.extensions["towers_answers"]
    return answers


def _wanted(kind: type[ItemQuery]) -> RecommendRequest:
    """Return what the query string wants of the answer."""
    return _answers().wanted(kind, current_retriever(), dict(request.args.lists()))


def json_body() -> Any:
    """Return the body of the request.

    Raises:
        Problem: It is not JSON, or not said to be.
    """
    if request.mimetype != "application/json":
        found = cut(request.mimetype, _MAX_TYPE_CHARACTERS) or "none"
        raise Problem(415, f"expected Content-Type application/json, found {found}")
    return parsed_json(request.get_data(cache=False))
