"""The JSON API: recommendations for someone known, for someone described, and items like another.

Malformed JSON is 400; a well-formed request with a value that is not allowed is 422 and names each mistake.
"""

from __future__ import annotations

from typing import Any

import orjson
from flask import Blueprint, Response, current_app, g, request
from werkzeug.routing import BaseConverter

from features.errors import DataError
from serving.contract import (
    Asked,
    AskedForMany,
    Because,
    Contract,
    Item,
    Recommended,
    RecommendedMany,
    RecommendedOne,
    Similar,
    parameters,
    wrong,
)
from serving.ids import ExternalId
from serving.keys import needs
from serving.openapi import document
from serving.problems import Problem, json_response
from serving.retriever import Answer, Reason, Recommendation, Retriever
from serving.wanted import Person, Wanted

api = Blueprint("api", __name__)


class IdConverter(BaseConverter):
    """An id in a path: anything at all, slashes at either end included."""

    regex = r"[\s\S]+"
    part_isolating = False


@api.get("/recommendations/<id:user_id>")
def recommendations(user_id: str) -> Response:
    """Answer what to recommend to someone."""
    retriever = current_retriever()
    answer = retriever.recommend(user_id, _query(_contract().query_for_user, retriever))
    content: RecommendedOne = {**_recommended(retriever.users.parse(user_id), answer), "model": retriever.model}
    return json_response(content)


@api.post("/recommendations")
@needs("read")
def recommendations_for() -> Response:
    """Answer what to recommend to someone who is described in the body, or to several."""
    retriever = current_retriever()
    contract = _contract()
    asked = contract.body(json_body())
    wanted = contract.wanted(asked, retriever.filters)
    try:
        if isinstance(asked, AskedForMany):
            whom = asked.whom()
            answers = [
                _described(answer) if isinstance(who, Person) else _recommended(retriever.users.parse(who), answer)
                for who, answer in zip(whom, retriever.recommend_many(whom, wanted), strict=True)
            ]
            return json_response(RecommendedMany(answers=answers, model=retriever.model))
        one: RecommendedOne = {**_described(retriever.recommend(asked.person(), wanted)), "model": retriever.model}
        return json_response(one)
    except DataError as error:
        raise wrong(error) from None


@api.get("/items/<id:item_id>/similar")
def similar(item_id: str) -> Response:
    """Answer which items are most like one."""
    retriever = current_retriever()
    answer = retriever.similar(item_id, _query(_contract().query, retriever))
    if answer is None:
        raise Problem(404, f"no item {item_id!r} in the catalogue")
    items = [_item(item) for item in answer.items]
    content = Similar(item_id=retriever.items.parse(item_id), items=items, fallback=None, model=retriever.model)
    return json_response(content)


@api.get("/openapi.json")
def openapi() -> Response:
    """Answer what all of this is, as an OpenAPI document."""
    return json_response(document(_contract(), current_retriever()))


def current_retriever() -> Retriever:
    """Return what this request is answered from, the same from its beginning to its end.

    Raises:
        NotReady: It is not loaded.
    """
    if "retriever" not in g:
        g.retriever = current_app.extensions["towers_source"].get()
    retriever: Retriever = g.retriever
    return retriever


def _recommended(user_id: ExternalId | None, answer: Answer) -> Recommended:
    if answer.fallback is not None:
        current_app.extensions["towers_metrics"].count("towers_fallbacks_total", answer.fallback)
    return Recommended(user_id=user_id, items=[_item(item) for item in answer.items], fallback=answer.fallback)


def _described(answer: Answer) -> Recommended:
    return {**_recommended(None, answer), "unknown_items": list(answer.unknown_items)}


def _item(item: Recommendation) -> Item:
    content = Item(item_id=item.item_id, score=item.score, rank=item.rank)
    if item.title is not None:
        content["title"] = item.title
    if item.because is not None:
        content["because"] = [_because(reason) for reason in item.because]
    return content


def _because(reason: Reason) -> Because:
    content = Because(item_id=reason.item_id, contribution=reason.contribution)
    if reason.title is not None:
        content["title"] = reason.title
    return content


def _contract() -> Contract:
    contract: Contract = current_app.extensions["towers_contract"]
    return contract


def _query(kind: type[Asked], retriever: Retriever) -> Wanted:
    """Return what the query string wants of the answer."""
    given = dict(request.args.lists())
    asked = parameters(kind, {name: texts for name, texts in given.items() if name in kind.model_fields})
    try:
        conditions = retriever.filters.from_query(
            {name: texts for name, texts in given.items() if name not in kind.model_fields}
        )
    except DataError as error:
        raise wrong(error) from None
    return _contract().wanted(asked, retriever.filters, conditions)


def json_body() -> Any:
    """Return the body of the request.

    Raises:
        Problem: It is not JSON, or not said to be.
    """
    if request.mimetype != "application/json":
        raise Problem(415, f"expected Content-Type application/json, found {request.mimetype or 'none'}")
    try:
        return orjson.loads(request.get_data(cache=False))
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None
