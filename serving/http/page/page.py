"""The page: finds a user or makes one of items, and shows what the API returns for them, with its controls.

Everything that it shows comes from the functions that answer the API's requests, with the same parameters and limits.
It works without JavaScript; the script only replaces the content instead of loading the page again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np
from flask import Blueprint, current_app, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from serving.deadline import watched
from serving.http.contract.problems import Problem
from serving.http.page.cards import Card, Cards
from serving.http.page.columns import CatalogColumns, ColumnsCache, shown_columns
from serving.http.page.documents import RECOMMENDER, pages_of
from serving.http.page.map_view import MapView
from serving.http.page.overview import overview
from serving.http.page.query import NUM_ITEMS, OWN, PageQuery, body_of
from serving.http.page.snippets import ApiCall
from serving.http.recommend_handler import RecommendHandler
from serving.http.security_headers import PAGE_POLICY
from serving.http.service import Service
from serving.recommend.recommender import Recommender
from serving.recommend.text_query import reads_texts
from towers.item_map import HEIGHT, WIDTH

web_page = Blueprint("page", __name__, template_folder="templates", static_folder="static", static_url_path="/static")

NUM_HISTORY = 12
NUM_EXAMPLES = 6
MAX_PAGE_K = 48
"""Maximum number of items that the control offers; an address may have any that the API allows."""
DISTINCT = (("0.99", "hide copies"), ("0.95", "hide very similar"), ("0.9", "hide similar"), ("0.8", "hide related"))
"""Values of `distinct` that the control offers, and what they do."""
_columns = ColumnsCache()


@dataclass(frozen=True)
class Answer:
    """What the page found.

    Attributes:
        call: The request of the API that returns the same.
        items: The items, best first.
        fallback: The fallback that was used; None: the model's own.
        reranked: Whether the best candidates were re-ranked in time; None without a re-ranker.
        unknown_items: Items of the history that are not in the catalogue.
    """

    call: ApiCall
    items: list[Card]
    fallback: str | None
    reranked: bool | None
    unknown_items: tuple[str, ...]


@web_page.get("/")
def home() -> Response:
    """Return the page for the user, the item, the text or the history that its address names."""
    service: Service = current_app.extensions["towers"]
    recommender: Recommender = request.environ[RECOMMENDER]
    given = request.args.to_dict(flat=False)
    problem, answer = None, None
    try:
        query = PageQuery.of(given)
    except Problem as error:
        query, problem = PageQuery.of({**given, "history": []}), error
    if "random" in given and len(recommender.indexed.users):
        chosen = secrets.choice(recommender.indexed.users.ids)
        return redirect(_address(query.about(user_id=str(chosen))))
    columns = _columns.of(recommender)
    shown = shown_columns(columns, query.values("show"))
    cards = Cards(recommender, columns, shown, service.settings.picture_origins)
    try:
        if problem is None:
            answer = _answer(service, recommender, query, cards)
    except Problem as error:
        problem = error
    content = {
        **_controls(service, recommender, query, columns),
        **_found(service, recommender, query, cards, answer),
        "shown": shown,
        "problem": problem,
    }
    if query.view:
        past, found = content["history"] or [], answer.items if answer else []
        content["drawn"] = MapView.of(recommender, columns, query.value("colour"), past, found)
    response = make_response(render_template("home.html", **content), problem.status if problem else 200)
    pictures = "".join(f" {origin}" for origin in service.settings.picture_origins)
    response.headers["Content-Security-Policy"] = PAGE_POLICY.format(pictures=pictures)
    return response


def _controls(service: Service, recommender: Recommender, query: PageQuery, columns: CatalogColumns) -> dict[str, Any]:
    """Return what the header, the forms and the footer of the page show."""
    filtering = {name for field in columns.fields for name in field.parameters}
    controlled = {"k", "diversity", "distinct", "reasons", "rerank", *OWN, *filtering}
    max_k = service.settings.max_k
    return {
        "query": query,
        "address": _address,
        "columns": columns,
        "distinct": DISTINCT,
        "k": query.value("k") if query.values("k") else min(NUM_ITEMS, max_k),
        "max_k": min(MAX_PAGE_K, max_k),
        "is_filtered": any(name in filtering for name, _ in query.settings),
        "others": [(name, value) for name, value in query.settings if name not in controlled],
        "searches": reads_texts(recommender.bundle),
        "has_ranker": recommender.rerank is not None,
        "has_map": recommender.snapshot.item_map is not None,
        "takes_writes": service.provider.store is not None,
        "recent": _recent_users(recommender),
        "facts": overview(recommender, time.time()),
        "pages": pages_of(service, recommender),
        "width": WIDTH,
        "height": HEIGHT,
    }


def _found(
    service: Service, recommender: Recommender, query: PageQuery, cards: Cards, answer: Answer | None
) -> dict[str, Any]:
    """Return what the page shows of a query: the answer, the history, and the lines to copy."""
    return {
        "answer": answer,
        "history": _history(recommender, query, cards),
        "item": cards.of_ids([query.item_id])[0] if query.item_id else None,
        "alike": _beginning_with(recommender, query.user_id),
        "lines": _lines(service, answer),
    }


def _address(query: PageQuery, *more: tuple[str, str]) -> str:
    """Return the address of the page for a query, with more parameters."""
    # Not by `url_for`, for which some names of parameters mean something.
    pairs = [*query.pairs, *more]
    return f"{url_for('page.home')}{'?' if pairs else ''}{urlencode(pairs)}"


def _answer(service: Service, recommender: Recommender, query: PageQuery, cards: Cards) -> Answer:
    """Return what the API returns for a query.

    Raises:
        Problem: A parameter is invalid, or there is no such item.
    """
    call, content = _called(service, recommender, query)
    return Answer(
        call,
        cards.of_response(content["items"]),
        content["fallback"],
        content.get("reranked"),
        tuple(str(item_id) for item_id in content.get("unknown_items", ())),
    )


def _called(service: Service, recommender: Recommender, query: PageQuery) -> tuple[ApiCall, Mapping[str, Any]]:
    """Return the request of the API for a query, and the content of its response.

    Raises:
        Problem: As `_answer` does.
    """
    # Without the counters of the API's own handler: a look at the page is no request of a client.
    handler = RecommendHandler(service.recommend.contract)
    contract, max_k = handler.contract, service.settings.max_k
    match query.kind:
        case "search":
            given = query.api(contract.text_query, max_k)
            return ApiCall.get("search", query=given), handler.search(recommender, given)
        case "similar":
            given = query.api(contract.query, max_k)
            wanted = handler.parse(contract.query, recommender, given)
            call = ApiCall.get("items", query.item_id, "similar", query=given)
            return call, handler.similar(recommender, query.item_id, wanted)
        case "user":
            given = query.api(contract.query_for_user, max_k)
            wanted = handler.parse(contract.query_for_user, recommender, given)
            call = ApiCall.get("recommendations", query.user_id, query=given)
            return call, handler.for_user(recommender, query.user_id, wanted)
    body = body_of(query.api(contract.query_for_user, max_k), _columns.of(recommender))
    items = recommender.state.items
    body["history"] = [items.to_json(items.parse(item_id)) for item_id in query.history]
    return ApiCall("/recommendations", {}, body), handler.for_body(recommender, body)


def _history(recommender: Recommender, query: PageQuery, cards: Cards) -> list[Card] | None:
    """Return the newest items of the user, or the items that a user is made of; None if there is no such user."""
    if query.kind == "user":
        items = recommender.history(query.user_id, NUM_HISTORY)
        return None if items is None else cards.of_ids([item.item_id for item in items])
    return cards.of_ids(query.history[::-1])


def _lines(service: Service, answer: Answer | None) -> dict[str, str]:
    """Return the same request as lines to copy, by language."""
    if answer is None:
        return {}
    root, needs_key = request.url_root.rstrip("/"), service.settings.api_keys_file is not None
    return {
        "curl": answer.call.curl(root, needs_key=needs_key),
        "Python": answer.call.python(root, needs_key=needs_key),
    }


def _recent_users(recommender: Recommender) -> list[str]:
    """Return ids of the users of the index with the newest events, or of some users where no times are known."""
    histories, ids = recommender.snapshot.histories, recommender.indexed.users.ids
    if histories.times is None or not histories.num_events:
        return [str(one) for one in ids[:: max(1, len(ids) // NUM_EXAMPLES)][:NUM_EXAMPLES]]
    users = np.flatnonzero(histories.lengths > 0)
    newest = histories.times[histories.offsets[users + 1] - 1]
    best = np.argpartition(newest, max(0, len(users) - NUM_EXAMPLES))[-NUM_EXAMPLES:]
    return [str(ids[users[place]]) for place in best[np.argsort(newest[best], kind="stable")[::-1]].tolist()]


def _beginning_with(recommender: Recommender, user_id: str) -> list[str]:
    """Return some ids of known users that begin like an unknown one."""
    if not user_id or recommender.state.users.row(user_id) is not None:
        return []
    found: list[str] = []
    for own_id in watched(recommender.indexed.users.ids):
        if str(own_id).startswith(user_id):
            found.append(str(own_id))
            if len(found) == NUM_EXAMPLES:
                break
    return found
