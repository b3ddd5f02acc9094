"""The JSON API: recommendations for someone known, for someone described, and items like another.

Malformed JSON is 400; a well-formed request with a value that is not allowed is 422 and names each mistake.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import orjson
from flask import Blueprint, Response, current_app, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from werkzeug.routing import BaseConverter

from features.errors import DataError
from serving.config import ServingConfig
from serving.filters import Filter
from serving.problems import Problem, json_response
from serving.retriever import Answer, Recommendation, Retriever

api = Blueprint("api", __name__)


class IdConverter(BaseConverter):
    """An id in a path: anything at all, slashes at either end included."""

    regex = ".+"
    part_isolating = False


Fields = TypeVar("Fields", bound=BaseModel)


class Query(BaseModel):
    """What may stand behind the `?` beside conditions on the columns of the catalogue."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    k: int | None = None
    """How many items; None: as many as the operator set."""


class Described(BaseModel):
    """The body of `POST /recommendations`: someone as they are here and now."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    history: list[int | str] = []
    """What they had, oldest first."""
    times: list[Annotated[int, Field(ge=0, lt=2**40)]] | None = None
    """When, in Unix seconds, one for each of the history; read by models that look at the clock."""
    attributes: dict[str, Any] = {}
    """What is known of them, by column of the users' table."""
    filter: dict[str, Any] = {}
    """What must hold of the items, by column of the catalogue."""
    k: int | None = None
    """How many items; None: as many as the operator set."""


_PARAMETERS = frozenset(Query.model_fields)


@api.get("/recommendations/<id:user_id>")
def recommendations(user_id: str) -> Response:
    """Answer what to recommend to someone."""
    retriever = current_retriever()
    k, where = _query(retriever)
    answer = retriever.recommend(user_id, k, where)
    return json_response({"user_id": retriever.users.parse(user_id), **_content(answer, retriever)})


@api.post("/recommendations")
def recommendations_for() -> Response:
    """Answer what to recommend to someone who is described in the body."""
    described = _body()
    k = _k(described.k)
    retriever = current_retriever()
    try:
        where = retriever.filters.of(described.filter)
        answer = retriever.recommend_for(described.history, described.attributes, k, described.times, where)
    except DataError as error:
        raise Problem(422, str(error)) from None
    content = _content(answer, retriever)
    return json_response({"user_id": None, **content, "unknown_items": answer.unknown_items})


@api.get("/items/<id:item_id>/similar")
def similar(item_id: str) -> Response:
    """Answer which items are most like one."""
    retriever = current_retriever()
    k, where = _query(retriever)
    answer = retriever.similar(item_id, k, where)
    if answer is None:
        raise Problem(404, f"no item {item_id!r} in the catalogue")
    return json_response({"item_id": retriever.items.parse(item_id), **_content(answer, retriever)})


@api.get("/healthz")
def healthz() -> Response:
    """Answer that the process is alive."""
    return json_response({"status": "ok"})


@api.get("/readyz")
def readyz() -> Response:
    """Answer that recommendations can be given, or 503."""
    seal = current_retriever().snapshot.seal
    about = {"model": seal.model, "items": seal.num_items, "users": seal.num_users, "index_created": seal.created}
    return json_response({"status": "ready", **about})


def current_retriever() -> Retriever:
    """Return what this application answers from.

    Raises:
        NotReady: It is not loaded.
    """
    retriever: Retriever = current_app.extensions["towers_source"].get()
    return retriever


def _content(answer: Answer, retriever: Retriever) -> dict[str, Any]:
    items = [_item(item) for item in answer.items]
    return {"items": items, "fallback": answer.fallback, "model": retriever.model}


def _item(item: Recommendation) -> dict[str, Any]:
    content = {"item_id": item.item_id, "score": item.score, "rank": item.rank}
    return content if item.title is None else {**content, "title": item.title}


def _k(asked: int | None) -> int:
    settings: ServingConfig = current_app.extensions["towers"]
    k = settings.default_k if asked is None else asked
    if not 1 <= k <= settings.max_k:
        raise Problem(422, f"k: expected 1 to {settings.max_k}, found {k}", [{"field": "k", "found": k}])
    return k


def _query(retriever: Retriever) -> tuple[int, Filter]:
    """Return how many items are asked for, and what must hold of them."""
    given = dict(request.args.lists())
    own = {name: values if len(values) > 1 else values[0] for name, values in given.items() if name in _PARAMETERS}
    try:
        query = Query.model_validate_strings(own)
        where = retriever.filters.from_query({name: given[name] for name in given if name not in _PARAMETERS})
    except ValidationError as error:
        raise _invalid(error) from None
    except DataError as error:
        raise Problem(422, str(error), [{"field": str(error).partition(":")[0], "message": str(error)}]) from None
    return _k(query.k), where


def _body() -> Described:
    if request.mimetype != "application/json":
        raise Problem(415, f"expected Content-Type application/json, found {request.mimetype or 'none'}")
    try:
        content = orjson.loads(request.get_data(cache=False))
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None
    try:
        return Described.model_validate(content)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> Problem:
    mistakes: dict[str, dict[str, Any]] = {}
    for mistake in error.errors(include_url=False, include_context=False, include_input=False):
        # A list's element that is neither a number nor text is one mistake, though it misses both.
        field = ".".join(str(part) for part in mistake["loc"] if part not in ("int", "str")) or "body"
        mistakes.setdefault(field, {"field": field, "message": mistake["msg"]})
    first = next(iter(mistakes.values()))
    return Problem(422, f"{first['field']}: {first['message']}", list(mistakes.values()))
