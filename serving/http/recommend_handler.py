"""Turns the parameters of a request for items into the content of its response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from features.errors import DataError
from features.ids import MAX_ID_CHARACTERS
from serving.catalog.ids import ExternalId
from serving.deadline import watched
from serving.http.contract.problems import Mistake, Problem
from serving.http.contract.requests import Contract, parameters, wrong
from serving.http.contract.schemas import (
    BatchRecommendations,
    BatchRecommendRequest,
    ItemBody,
    ItemQuery,
    ReasonBody,
    RecommendationsBody,
    SearchResponse,
    SimilarItems,
    UserRecommendations,
)
from serving.observability.request_log import MOST_ITEMS, LoggedAnswer, RequestedItems, RequestLog
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.response import Reason, Recommendation, RecommendResponse

_Given = Mapping[str, Sequence[str]]
_Kind = TypeVar("_Kind", bound=ItemQuery)
_MAX_CACHED_QUERIES = 256


class RecommendHandler:
    """Answers requests for items; safe to use from several threads.

    Args:
        contract: Request schemas and limits.
        on_fallback: Called with the name of the fallback of each response that has one.
        on_rerank: Called with the outcome of each re-ranking: `done` or `timeout`.
        request_log: Logs a sample of the answers. None: nothing is logged.

    Attributes:
        contract: Request schemas and limits.
    """

    def __init__(
        self,
        contract: Contract,
        on_fallback: Callable[[str], None] = lambda fallback: None,
        on_rerank: Callable[[str], None] = lambda outcome: None,
        request_log: RequestLog | None = None,
    ) -> None:
        self.contract = contract
        self._on_fallback = on_fallback
        self._on_rerank = on_rerank
        self._request_log = request_log
        self._cached: dict[str, RecommendRequest] = {}

    def cached(self, query_string: str) -> RecommendRequest | None:
        """Return the request that `parse_for_user` cached for the same query string; None if there is none."""
        return self._cached.get(query_string)

    def parse_for_user(self, recommender: Recommender, query_string: str, given: _Given) -> RecommendRequest:
        """Return the request that a query string describes, and cache it.

        Only requests without filters and rules are cached: others depend on the catalogue.

        Raises:
            Problem: A parameter is unknown or invalid.
        """
        wanted = self.parse(self.contract.query_for_user, recommender, given)
        if wanted == RecommendRequest(wanted.k, wanted.offset, reasons=wanted.reasons, exclude=wanted.exclude[:0]):
            if len(self._cached) >= _MAX_CACHED_QUERIES:
                self._cached.clear()
            self._cached[query_string] = wanted
        return wanted

    def for_user(self, recommender: Recommender, user_id: str, wanted: RecommendRequest) -> UserRecommendations:
        """Return recommendations for a user by id.

        Raises:
            Problem: The id is too long.
        """
        _refuse_long("user_id", user_id)
        answer = recommender.recommend(user_id, wanted)
        return {**self._recommendations(recommender, user_id, wanted, answer), "model": recommender.model}

    def for_body(self, recommender: Recommender, content: Any) -> UserRecommendations | BatchRecommendations:
        """Return recommendations for a user given by a profile, or for several users.

        Raises:
            Problem: The body is invalid; names the field.
        """
        body = self.contract.body(content)
        wanted = self.contract.wanted(body, recommender.state.filters)
        try:
            if isinstance(body, BatchRecommendRequest):
                users = body.ids_and_profiles()
                answers = zip(users, recommender.recommend_many(users, wanted), strict=True)
                each = [self._recommendations(recommender, user, wanted, answer) for user, answer in watched(answers)]
                return BatchRecommendations(answers=each, model=recommender.model)
            profile = body.profile()
            answer = recommender.recommend(profile, wanted)
            return {**self._recommendations(recommender, profile, wanted, answer), "model": recommender.model}
        except DataError as error:
            raise wrong(error) from None

    def similar(self, recommender: Recommender, item_id: str, wanted: RecommendRequest) -> SimilarItems:
        """Return the items most similar to an item.

        Raises:
            Problem: There is no such item, or the id is too long.
        """
        _refuse_long("item_id", item_id)
        answer = recommender.similar(item_id, wanted)
        if answer is None:
            raise Problem(404, f"no item {item_id!r} in the catalogue")
        self._note(recommender, wanted, answer)
        item = recommender.state.items.to_json(recommender.state.items.parse(item_id))
        return SimilarItems(
            item_id=item, items=self._items(recommender, answer), fallback=None, model=recommender.model
        )

    def search(self, recommender: Recommender, given: _Given) -> SearchResponse:
        """Return the items most relevant to a text, the parameter `q`.

        Raises:
            Problem: A parameter is invalid, or the model has no text features.
        """
        query, wanted = self._parsed(self.contract.text_query, recommender, given)
        try:
            answer = recommender.search(query.q, wanted)
        except DataError as error:
            raise wrong(error) from None
        self._note(recommender, wanted, answer)
        items = self._items(recommender, answer)
        content = SearchResponse(q=query.q, items=items, fallback=answer.fallback, model=recommender.model)
        if answer.reranked is not None:
            content["reranked"] = answer.reranked
        return content

    def parse(self, kind: type[ItemQuery], recommender: Recommender, given: _Given) -> RecommendRequest:
        """Return the request that query parameters describe.

        Args:
            kind: The schema of the parameters.
            recommender: Its catalogue has the columns that conditions may name.
            given: The parameters, each with all its values.

        Raises:
            Problem: A parameter is unknown or invalid; names it.
        """
        return self._parsed(kind, recommender, given)[1]

    def _parsed(self, kind: type[_Kind], recommender: Recommender, given: _Given) -> tuple[_Kind, RecommendRequest]:
        """Return query parameters as their schema has them, and the request that they describe."""
        query = parameters(kind, {name: texts for name, texts in given.items() if name in kind.model_fields})
        try:
            conditions = recommender.state.filters.from_query(
                {name: texts for name, texts in given.items() if name not in kind.model_fields}
            )
        except DataError as error:
            raise wrong(error) from None
        return query, self.contract.wanted(query, recommender.state.filters, conditions)

    def _recommendations(
        self,
        recommender: Recommender,
        user: ExternalId | UserProfile,
        wanted: RecommendRequest,
        answer: RecommendResponse,
    ) -> RecommendationsBody:
        self._note(recommender, wanted, answer, user)
        if not isinstance(user, UserProfile):
            user_id = recommender.state.users.to_json(recommender.state.users.parse(user))
            return self._recommended(recommender, user_id, answer)
        unknown = [recommender.state.items.to_json(item_id) for item_id in answer.unknown_items]
        values = {column: list(given) for column, given in answer.unknown_values.items()}
        return {**self._recommended(recommender, None, answer), "unknown_items": unknown, "unknown_values": values}

    def _recommended(
        self, recommender: Recommender, user_id: ExternalId | None, answer: RecommendResponse
    ) -> RecommendationsBody:
        content = RecommendationsBody(user_id=user_id, items=self._items(recommender, answer), fallback=answer.fallback)
        if answer.reranked is not None:
            content["reranked"] = answer.reranked
        return content

    def _note(
        self,
        recommender: Recommender,
        wanted: RecommendRequest,
        answer: RecommendResponse,
        user: ExternalId | UserProfile | None = None,
    ) -> None:
        """Add an answer to the request log, if this request is in its sample."""
        log = self._request_log
        if log is None or not log.is_sampled:
            return
        logged = _logged(recommender, answer)
        if isinstance(user, UserProfile):
            unknown = set(answer.unknown_items)
            logged["user"], logged["history"] = "described", len(user.history)
            logged["unknown_items"] = sum(item_id in unknown for item_id in user.history)
            given = (column for column, value in user.attributes.items() if value is not None)
            logged["attributes"] = {column: len(answer.unknown_values.get(column, ())) for column in given}
        elif user is not None:
            users = recommender.state.users
            row = users.row(user)
            logged["user"], logged["user_hash"] = "unknown", log.user_hash(users.parse(user))
            if row is not None:
                histories = recommender.state.user_store.histories(np.array([row]))
                logged["user"], logged["history"] = "known", len(histories.items_of(0))
        filters = list(dict.fromkeys(condition.column for condition in wanted.where))
        log.note(RequestedItems(k=wanted.k, offset=wanted.offset, filters=filters), logged)

    def _items(self, recommender: Recommender, answer: RecommendResponse) -> list[ItemBody]:
        """Return the items of a response; reports its fallback and the outcome of re-ranking to the metrics."""
        if answer.fallback is not None:
            self._on_fallback(answer.fallback)
        elif answer.reranked is not None:
            self._on_rerank("done" if answer.reranked else "timeout")
        items = [_item(item) for item in answer.items]
        if not recommender.state.items.is_json_safe:
            to_json = recommender.state.items.to_json
            for one in (*items, *(reason for item in items for reason in item.get("because", ()))):
                one["item_id"] = to_json(one["item_id"])
        return items


def _refuse_long(where: str, external_id: str) -> None:
    if len(external_id) > MAX_ID_CHARACTERS:
        detail = f"expected at most {MAX_ID_CHARACTERS} characters, found {len(external_id):,}"
        raise Problem.invalid(Mistake(field=where, detail=detail))


def _logged(recommender: Recommender, answer: RecommendResponse) -> LoggedAnswer:
    """Return an answer as the request log has it, without its user."""
    to_json = recommender.state.items.to_json
    scores = sorted((item.score for item in answer.items), reverse=True)
    return LoggedAnswer(
        user=None,
        user_hash=None,
        history=None,
        unknown_items=0,
        attributes={},
        fallback=answer.fallback,
        reranked=answer.reranked,
        returned=len(scores),
        scores=(scores[0], scores[len(scores) // 2], scores[-1]) if scores else None,
        items=[to_json(item.item_id) for item in answer.items[:MOST_ITEMS]],
    )


def _item(item: Recommendation) -> ItemBody:
    item_id, score, rank, title, because = item
    content: ItemBody = {"item_id": item_id, "score": score, "rank": rank}
    if title is not None:
        content["title"] = title
    if because is not None:
        content["because"] = [_because(reason) for reason in because]
    return content


def _because(reason: Reason) -> ReasonBody:
    content = ReasonBody(item_id=reason.item_id, contribution=reason.contribution)
    if reason.title is not None:
        content["title"] = reason.title
    return content
