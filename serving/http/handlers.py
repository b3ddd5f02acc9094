"""From the parameters of a request for items to the content of its response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from features.errors import DataError
from features.schema import MAX_ID_CHARACTERS
from serving.catalog.ids import ExternalId
from serving.deadline import watched
from serving.http.contract.problems import Mistake, Problem
from serving.http.contract.schemas import (
    BatchRecommendations,
    BatchRecommendRequest,
    Contract,
    ItemBody,
    ItemQuery,
    ReasonBody,
    RecommendationsBody,
    SearchResponse,
    SimilarItems,
    UserRecommendations,
    parameters,
    wrong,
)
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.response import Reason, Recommendation, RecommendResponse

_Given = Mapping[str, Sequence[str]]
_Kind = TypeVar("_Kind", bound=ItemQuery)
_MAX_CACHED_QUERIES = 256


class RecommendHandler:
    """What a service answers; safe to use from several threads.

    Attributes:
        contract: What can be asked.
    """

    def __init__(
        self,
        contract: Contract,
        on_fallback: Callable[[str], None] = lambda fallback: None,
        on_rerank: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        """Take what can be asked.

        Args:
            contract: That.
            on_fallback: Called with the name of each fallback that answered in the model's place.
            on_rerank: Called with how each re-ranking ended: `done`, or `timeout`.
        """
        self.contract = contract
        self._on_fallback = on_fallback
        self._on_rerank = on_rerank
        self._plain: dict[str, RecommendRequest] = {}

    def plain(self, query_string: str) -> RecommendRequest | None:
        """Return what `wanted_by_user` found for the same query string, where that does not depend on the catalogue."""
        return self._plain.get(query_string)

    def wanted_by_user(self, recommender: Recommender, query_string: str, given: _Given) -> RecommendRequest:
        """Return what a query string wants of the recommendations for a user, and cache it for `plain`.

        Only a page without filters and rules is cached: anything else depends on the catalogue.

        Raises:
            Problem: A parameter is unknown or invalid.
        """
        wanted = self.wanted(self.contract.query_for_user, recommender, given)
        if wanted == RecommendRequest(wanted.k, wanted.offset, reasons=wanted.reasons, exclude=wanted.exclude[:0]):
            if len(self._plain) >= _MAX_CACHED_QUERIES:
                self._plain.clear()
            self._plain[query_string] = wanted
        return wanted

    def about_user(self, recommender: Recommender, user_id: str, wanted: RecommendRequest) -> UserRecommendations:
        """Return what to recommend to someone.

        Raises:
            Problem: The id is too long.
        """
        _refuse_long("user_id", user_id)
        answer = recommender.recommend(user_id, wanted)
        return {**self._known(recommender, user_id, answer), "model": recommender.model}

    def about_body(self, recommender: Recommender, content: Any) -> UserRecommendations | BatchRecommendations:
        """Return what to recommend to someone who is described, or to several.

        Raises:
            Problem: The body asks for what cannot be; says what and where.
        """
        asked = self.contract.body(content)
        wanted = self.contract.wanted(asked, recommender.state.filters)
        try:
            if isinstance(asked, BatchRecommendRequest):
                whom = asked.whom()
                answers = zip(whom, recommender.recommend_many(whom, wanted), strict=True)
                each = [self._about(recommender, who, answer) for who, answer in watched(answers)]
                return BatchRecommendations(answers=each, model=recommender.model)
            person = asked.person()
            return {
                **self._about(recommender, person, recommender.recommend(person, wanted)),
                "model": recommender.model,
            }
        except DataError as error:
            raise wrong(error) from None

    def about_item(self, recommender: Recommender, item_id: str, wanted: RecommendRequest) -> SimilarItems:
        """Return which items are most like one.

        Raises:
            Problem: There is no such item, or its id is too long.
        """
        _refuse_long("item_id", item_id)
        answer = recommender.similar(item_id, wanted)
        if answer is None:
            raise Problem(404, f"no item {item_id!r} in the catalogue")
        item = recommender.state.items.said(recommender.state.items.parse(item_id))
        return SimilarItems(
            item_id=item, items=self._items(recommender, answer), fallback=None, model=recommender.model
        )

    def about_words(self, recommender: Recommender, given: _Given) -> SearchResponse:
        """Return which items are nearest to what is written, as the parameters of a query say it.

        Raises:
            Problem: They ask for what cannot be, or the model reads no texts.
        """
        asked, wanted = self._asked(self.contract.query_in_words, recommender, given)
        try:
            answer = recommender.search(asked.q, wanted)
        except DataError as error:
            raise wrong(error) from None
        items = self._items(recommender, answer)
        content = SearchResponse(q=asked.q, items=items, fallback=answer.fallback, model=recommender.model)
        if answer.reranked is not None:
            content["reranked"] = answer.reranked
        return content

    def wanted(self, kind: type[ItemQuery], recommender: Recommender, given: _Given) -> RecommendRequest:
        """Return what the parameters of a query want of the answer.

        Args:
            kind: What they may ask.
            recommender: Whose columns the others may speak of.
            given: The parameters, each with all its values.

        Raises:
            Problem: They ask for what cannot be; says what and where.
        """
        return self._asked(kind, recommender, given)[1]

    def _asked(self, kind: type[_Kind], recommender: Recommender, given: _Given) -> tuple[_Kind, RecommendRequest]:
        """Return what the parameters of a query ask, and what they want of the answer."""
        asked = parameters(kind, {name: texts for name, texts in given.items() if name in kind.model_fields})
        try:
            conditions = recommender.state.filters.from_query(
                {name: texts for name, texts in given.items() if name not in kind.model_fields}
            )
        except DataError as error:
            raise wrong(error) from None
        return asked, self.contract.wanted(asked, recommender.state.filters, conditions)

    def _about(
        self, recommender: Recommender, who: ExternalId | UserProfile, answer: RecommendResponse
    ) -> RecommendationsBody:
        if not isinstance(who, UserProfile):
            return self._known(recommender, who, answer)
        unknown = [recommender.state.items.said(item_id) for item_id in answer.unknown_items]
        values = {column: list(given) for column, given in answer.unknown_values.items()}
        return {**self._recommended(recommender, None, answer), "unknown_items": unknown, "unknown_values": values}

    def _known(self, recommender: Recommender, user_id: ExternalId, answer: RecommendResponse) -> RecommendationsBody:
        return self._recommended(
            recommender, recommender.state.users.said(recommender.state.users.parse(user_id)), answer
        )

    def _recommended(
        self, recommender: Recommender, user_id: ExternalId | None, answer: RecommendResponse
    ) -> RecommendationsBody:
        content = RecommendationsBody(user_id=user_id, items=self._items(recommender, answer), fallback=answer.fallback)
        if answer.reranked is not None:
            content["reranked"] = answer.reranked
        return content

    def _items(self, recommender: Recommender, answer: RecommendResponse) -> list[ItemBody]:
        """Return the items of an answer; whatever answered in the model's place is told, and whether time was up."""
        if answer.fallback is not None:
            self._on_fallback(answer.fallback)
        elif answer.reranked is not None:
            self._on_rerank("done" if answer.reranked else "timeout")
        items = [_item(item) for item in answer.items]
        if not recommender.state.items.is_said_as_is:
            said = recommender.state.items.said
            for one in (*items, *(reason for item in items for reason in item.get("because", ()))):
                one["item_id"] = said(one["item_id"])
        return items


def _refuse_long(where: str, external_id: str) -> None:
    if len(external_id) > MAX_ID_CHARACTERS:
        detail = f"expected at most {MAX_ID_CHARACTERS} characters, found {len(external_id):,}"
        raise Problem.invalid(Mistake(field=where, detail=detail))


def _item(item: Recommendation) -> ItemBody:
    content = ItemBody(item_id=item.item_id, score=item.score, rank=item.rank)
    if item.title is not None:
        content["title"] = item.title
    if item.because is not None:
        content["because"] = [_because(reason) for reason in item.because]
    return content


def _because(reason: Reason) -> ReasonBody:
    content = ReasonBody(item_id=reason.item_id, contribution=reason.contribution)
    if reason.title is not None:
        content["title"] = reason.title
    return content
