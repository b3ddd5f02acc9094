"""Schemas of requests and responses over HTTP: every name, type and limit, in one place.

A parameter has the same name in a query string and in a body. The OpenAPI document is generated from these types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
    model_validator,
    with_config,
)
from pydantic_core import CoreSchema, PydanticKnownError
from pydantic_core.core_schema import no_info_before_validator_function
from typing_extensions import TypedDict

from features.ids import MAX_ID_CHARACTERS
from serving.bounds import MAX_MISTAKES, MAX_SEARCH_CHARACTERS
from serving.recommend.request import UserProfile

MOST_LIMITS = 4
"""Maximum number of columns that a request may limit by `at_most`."""
MOST_OF_A_VALUE = 2**31 - 1
"""Maximum value of such a limit."""
MOST_EVENTS = 10_000
"""Maximum number of events in one request."""
NAMED = "x-named"
"""Key in a JSON schema for the name of another schema that replaces it."""


@dataclass(frozen=True)
class Length:
    """Limits of the number of elements of a list or object, checked before its elements are validated.

    Attributes:
        most: Maximum number of elements.
        least: Minimum number of elements.
    """

    most: int
    least: int = 0

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that checks the length first; a list is validated up to its first mistake."""
        inner: Any = handler(source)
        if inner["type"] == "list":
            inner |= {"max_length": self.most, "fail_fast": True}
            inner |= {"min_length": self.least} if self.least else {}
        return no_info_before_validator_function(self.check, inner)

    def check(self, content: Any) -> Any:
        """Return the content; raises a `PydanticKnownError` if it is too long."""
        if isinstance(content, list | dict) and len(content) > self.most:
            kind = type(content).__name__.capitalize()
            raise PydanticKnownError(
                "too_long", {"field_type": kind, "max_length": self.most, "actual_length": len(content)}
            )
        return content


Id = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]
Time = Annotated[int, Field(ge=0, lt=2**40)]
# The content of these depends on the catalogue and the model: `openapi` replaces the names by the schemas.
Conditions = Annotated[dict[str, Any], WithJsonSchema({NAMED: "Filter"})]
Attributes = Annotated[dict[str, Any], WithJsonSchema({NAMED: "Attributes"})]
AtMost = Annotated[
    dict[str, Annotated[int, Field(ge=1, le=MOST_OF_A_VALUE)]],
    Length(MOST_LIMITS),
    WithJsonSchema({NAMED: "AtMost"}),
]

UserId = Annotated[Id, WithJsonSchema({NAMED: "UserId"})]
ItemId = Annotated[Id, WithJsonSchema({NAMED: "ItemId"})]

_described = with_config(ConfigDict(use_attribute_docstrings=True))


# Mutable defaults have factories: pydantic would copy them for each request.
class Message(BaseModel):
    """Base of what a client sends: no unknown fields, and no conversion between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_many(cls, content: Any) -> Any:
        """Reject an object of very many fields, before each of them is reported as a mistake."""
        return Length(len(cls.model_fields) + MAX_MISTAKES).check(content)


class BoostBody(Message):
    """An amount that is added to the scores of some items before ranking."""

    filter: Conditions
    """Conditions that select the items, by column of the catalogue."""
    by: float = Field(ge=-2, le=2)
    """The amount. Scores are cosines, so 2 ranks the items before all others, unless the model has `towers.trend`."""


class ItemQuery(Message):
    """Parameters of every request for items."""

    k: int = 10
    """Number of items. A response has fewer only if no more are allowed."""
    offset: int = 0
    """Number of best items to skip: those of earlier pages."""
    filter: Conditions = Field(default_factory=dict)
    """Conditions on the items, by column of the catalogue."""
    exclude: list[Id] = Field(default_factory=list)
    """Items to leave out."""
    diversity: float = Field(default=0.0, ge=0, le=1)
    """Weight of diversity against relevance (maximal marginal relevance). 0: relevance only."""
    distinct: float | None = Field(default=None, gt=0, le=1)
    """Of items whose cosine similarity is at least this, only the first is returned. Null: near-duplicates are kept."""
    pin: Annotated[list[Id], Length(100)] = Field(default_factory=list)
    """Items to put first, in this order, if the filter and exclusions allow them."""
    boost: Annotated[list[BoostBody], Length(8)] = Field(default_factory=list)
    """Amounts added to scores before ranking; if an item matches several, the first applies."""
    demote: Annotated[list[Conditions], Length(8)] = Field(default_factory=list)
    """Items that match any of these filters come after all others."""
    at_most: AtMost = Field(default_factory=dict)
    """Maximum number of items with the same value of a column, by column."""


class RerankedQuery(ItemQuery):
    """Parameters of a request whose best candidates may be re-ranked."""

    rerank: bool = True
    """Whether the best candidates are re-ranked, if the service has a ranker."""


class SearchRequest(RerankedQuery):
    """Parameters of a text search."""

    q: str = Field(min_length=1, max_length=MAX_SEARCH_CHARACTERS)
    """The text to search for."""


class ProfileBody(Message):
    """A user given by a history and attributes instead of an id."""

    history: list[Id] = Field(default_factory=list)
    """Ids of the user's items, oldest first."""
    times: list[Time] | None = None
    """Times of the interactions in Unix seconds, one for each item of `history`; used by models with time features."""
    attributes: Attributes = Field(default_factory=dict)
    """The user's attributes, by column of the users table."""

    def profile(self) -> UserProfile:
        """Return the user as the argument of `Recommender.recommend`."""
        return UserProfile(self.history, self.attributes, self.times)


class UserQuery(RerankedQuery):
    """Parameters of a request for recommendations."""

    reasons: int = Field(default=0, ge=0, le=10)
    """Maximum number of history items returned as reasons for each recommended item."""


class UserRecommendRequest(UserQuery, ProfileBody):
    """A request for recommendations for a user given by a profile."""


class BatchRecommendRequest(UserQuery):
    """A request for recommendations for several users."""

    users: list[Id | ProfileBody]
    """The users, each as an id or a profile."""

    def ids_and_profiles(self) -> list[int | str | UserProfile]:
        """Return the users as the argument of `Recommender.recommend_many`."""
        return [user.profile() if isinstance(user, ProfileBody) else user for user in self.users]


class EventBody(Message):
    """An interaction of a user with an item."""

    user_id: UserId
    """The user, known or new."""
    item_id: ItemId
    """The item; it must be in the catalogue."""
    time: Annotated[int, Field(ge=0)] | None = None
    """Time of the interaction in Unix seconds. Null: now."""
    event_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Idempotency key: an event sent again with the same id is not counted again. Without an id, events with the same
    user, item and `time` count as the same event."""


class EventsRequest(Message):
    """Events to append."""

    events: Annotated[list[EventBody], Length(MOST_EVENTS, least=1)]
    """The events, oldest first. If one of them is invalid, none is appended."""


@_described
class ItemWritten(TypedDict):
    """An item was added, replaced or deleted."""

    item_id: int | str
    """The item's id in the catalogue."""
    position: int
    """Position of the write in the log."""
    unknown_values: NotRequired[dict[str, list[str]]]
    """Values of the item that the model did not see in training and ignores, by column."""


@_described
class EventsAccepted(TypedDict):
    """Events were appended."""

    accepted: int
    """Number of events appended."""
    repeated: int
    """Number of events that were already in the log."""
    position: int
    """Position of the last event in the log."""


@_described
class ReasonBody(TypedDict):
    """An item of the user's history that contributed to a recommendation."""

    item_id: int | str
    """The item of the user's history."""
    contribution: float
    """Amount by which the recommended item's score would be lower without it."""
    title: NotRequired[str]
    """The item's title, if the catalogue has titles."""


@_described
class ItemBody(TypedDict):
    """One item of a response."""

    item_id: int | str
    """The item's id in the catalogue."""
    score: float
    """Higher is better. Cosine similarity of user and item, -1 to 1, to which a model with `towers.trend` adds recent
    popularity, so that it may be greater; with a fallback, the item's share of all interactions."""
    rank: int
    """Position from 1, continued from page to page."""
    title: NotRequired[str]
    """The item's title, if the catalogue has titles."""
    because: NotRequired[list[ReasonBody]]
    """The history items that contributed most, the largest contribution first, if `reasons` were requested."""


@_described
class RecommendationsBody(TypedDict):
    """Recommendations for one user."""

    user_id: int | str | None
    """The user's id; null for a profile."""
    items: list[ItemBody]
    """Best first."""
    fallback: Literal["popular"] | None
    """`popular`: the most popular items, because nothing is known about the user. Null: the model's recommendations."""
    reranked: NotRequired[bool]
    """Whether the first items were re-ranked within the time budget; absent if the service has no ranker."""
    unknown_items: NotRequired[list[int | str]]
    """History items that are not in the catalogue; they were ignored."""
    unknown_values: NotRequired[dict[str, list[str]]]
    """Attribute values that the model did not see in training; they were ignored. By attribute."""


@_described
class UserRecommendations(RecommendationsBody):
    """Response for one user."""

    model: str
    """The version of the model."""


@_described
class BatchRecommendations(TypedDict):
    """Response for several users."""

    answers: list[RecommendationsBody]
    """One for each of `users`, in that order."""
    model: str
    """The version of the model."""


@_described
class SimilarItems(TypedDict):
    """The items most similar to an item."""

    item_id: int | str
    """The given item."""
    items: list[ItemBody]
    """Best first."""
    fallback: None
    """Always null."""
    model: str
    """The version of the model."""


@_described
class SearchResponse(TypedDict):
    """The items most relevant to a text."""

    q: str
    """The text that was searched for."""
    items: list[ItemBody]
    """Best first."""
    fallback: Literal["popular"] | None
    """`popular`: the most popular items, because the model knows none of the words. Null: the model's results."""
    reranked: NotRequired[bool]
    """Whether the first items were re-ranked within the time budget; absent if the service has no ranker for texts."""
    model: str
    """The version of the model."""


@_described
class Liveness(TypedDict):
    """The process is alive."""

    status: Literal["ok"]
    """Always `ok`."""


@_described
class WorkerCounts(TypedDict):
    """The worker processes of the service on this machine."""

    living: int
    """Number of running workers."""
    ready: int
    """Number of workers that have a model loaded."""


@_described
class Readiness(TypedDict):
    """The service has a model loaded."""

    status: Literal["ready"]
    """Always `ready`."""
    model: str
    """The version of the model."""
    items: int
    """Number of items in the index."""
    users: int
    """Number of known users."""
    index_created: str
    """Time when the index was built, ISO 8601 in UTC."""
    trend_until: str | None
    """Time until which events count in the recent popularity of the items, ISO 8601 in UTC; null if the model does not
    read it."""
    workers: WorkerCounts
    """Workers on this machine."""
