"""The route table: every endpoint, from which dispatch, API keys' scopes, metrics, OpenAPI and the reference follow."""

from __future__ import annotations

from serving.http.contract.schemas import (
    BatchRecommendations,
    BatchRecommendRequest,
    EventsAccepted,
    EventsRequest,
    ItemQuery,
    ItemWritten,
    Liveness,
    Readiness,
    SearchRequest,
    SearchResponse,
    SimilarItems,
    UserQuery,
    UserRecommendations,
    UserRecommendRequest,
)
from serving.http.live_routes import delete_item, post_events, put_item
from serving.http.probes import healthz, metrics, readyz
from serving.http.router import Reply, Route
from serving.http.service import ApiRequest, Service, json_reply

BODY_PROBLEMS = (400, 408, 413, 415, 422)
"""Statuses of errors of a request body: not JSON, too slow, too large, wrong media type, invalid."""


def recommend_for_user(service: Service, request: ApiRequest) -> Reply:
    """Answer a request for recommendations for one user."""
    recommend, recommender = service.recommend, request.recommender
    wanted = recommend.cached(request.query_string) or recommend.parse_for_user(
        recommender, request.query_string, request.query()
    )
    return json_reply(recommend.for_user(recommender, request.path_value, wanted))


def recommend_for_body(service: Service, request: ApiRequest) -> Reply:
    """Answer a request for recommendations for a user given by a profile, or for several users."""
    return json_reply(service.recommend.for_body(request.recommender, request.json()))


def similar(service: Service, request: ApiRequest) -> Reply:
    """Answer a request for items similar to one."""
    recommend, recommender = service.recommend, request.recommender
    wanted = recommend.parse(recommend.contract.query, recommender, request.query())
    return json_reply(recommend.similar(recommender, request.path_value, wanted))


def search(service: Service, request: ApiRequest) -> Reply:
    """Answer a text search for items."""
    return json_reply(service.recommend.search(request.recommender, request.query()))


def openapi(service: Service, request: ApiRequest) -> Reply:
    """Answer with the OpenAPI document."""
    return Reply(service.document(request.recommender))


ROUTES = (
    Route(
        "GET",
        "/recommendations/{user_id}",
        "Recommendations for a user",
        recommend_for_user,
        name="recommend",
        query=UserQuery,
        responses=(UserRecommendations,),
        problems=(422,),
    ),
    Route(
        "POST",
        "/recommendations",
        "Recommendations for a user given by a history and attributes, or for several users",
        recommend_for_body,
        name="recommend_described",
        body=(UserRecommendRequest, BatchRecommendRequest),
        responses=(UserRecommendations, BatchRecommendations),
        problems=BODY_PROBLEMS,
    ),
    Route(
        "GET",
        "/items/{item_id}/similar",
        "The items most similar to an item",
        similar,
        name="similar",
        query=ItemQuery,
        responses=(SimilarItems,),
        problems=(404, 422),
    ),
    Route(
        "GET",
        "/search",
        "The items most relevant to a text",
        search,
        name="search",
        query=SearchRequest,
        responses=(SearchResponse,),
        problems=(422,),
    ),
    Route(
        "PUT",
        "/items/{item_id}",
        "Add an item to the catalogue, or replace it",
        put_item,
        scope="write",
        name="put_item",
        body=("Cells",),
        responses=(ItemWritten,),
        created="The item is new in the catalogue",
        problems=BODY_PROBLEMS,
        is_write=True,
    ),
    Route(
        "DELETE",
        "/items/{item_id}",
        "Delete an item from the catalogue",
        delete_item,
        scope="write",
        name="delete_item",
        responses=(ItemWritten,),
        problems=(404,),
        is_write=True,
    ),
    Route(
        "POST",
        "/events",
        "Append events to users' histories",
        post_events,
        scope="write",
        name="post_events",
        body=(EventsRequest,),
        responses=(EventsAccepted,),
        problems=BODY_PROBLEMS,
        is_write=True,
    ),
    Route(
        "GET",
        "/healthz",
        "Liveness: 200 while requests complete",
        healthz,
        scope="none",
        name="alive",
        responses=(Liveness,),
        takes_turn=False,
        needs_recommender=False,
    ),
    Route(
        "GET",
        "/readyz",
        "Readiness: 200 once the model is loaded",
        readyz,
        scope="none",
        name="ready",
        responses=(Readiness,),
        takes_turn=False,
    ),
    Route(
        "GET",
        "/metrics",
        "Metrics of all workers, for Prometheus",
        metrics,
        takes_turn=False,
        needs_recommender=False,
    ),
    Route("GET", "/openapi.json", "This API as an OpenAPI document", openapi),
    Route("GET", "/docs", "This API in Swagger UI", None, needs_recommender=False),
    Route("GET", "/docs/{filename}", "Files of Swagger UI", None, needs_recommender=False),
    Route("GET", "/", "A web page in which requests can be tried", None),
    Route("GET", "/report", "The report of the model that is served", None),
    Route("GET", "/audit", "The audit that the setting `audit` names", None, needs_recommender=False),
    Route("GET", "/static/{filename}", "Files of the web page", None, needs_recommender=False),
)
"""If several paths match a request, the first is used: `/items/a/similar` returns items similar to `a`."""
