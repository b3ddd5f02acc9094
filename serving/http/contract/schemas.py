"""Schemas of requests and responses over HTTP: every name, type and limit, in one place.

A query string and a body ask for the same things by the same names. The OpenAPI document is made from what stands here.
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

from features.schema import MAX_ID_CHARACTERS
from serving.bounds import MAX_MISTAKES, MAX_SEARCH_CHARACTERS
from serving.recommend.request import UserProfile

MOST_LIMITS = 4
"""How many columns a request may limit by `at_most`."""
MOST_OF_A_VALUE = 2**31 - 1
"""The highest such limit."""
MOST_EVENTS = 10_000
"""Events of one request."""
NAMED = "x-named"
"""In a JSON schema: the name of another that stands in its place."""


@dataclass(frozen=True)
class Length:
    """How many elements a list or an object may have: counted first, so that one that is too long is not read.

    Attributes:
        most: At most.
        least: At least.
    """

    most: int
    least: int = 0

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of a list or an object that is counted before; a list is read up to its first mistake."""
        inner: Any = handler(source)
        if inner["type"] == "list":
            inner |= {"max_length": self.most, "fail_fast": True}
            inner |= {"min_length": self.least} if self.least else {}
        return no_info_before_validator_function(self.check, inner)

    def check(self, content: Any) -> Any:
        """Return what was given; an error where it is too long."""
        if isinstance(content, list | dict) and len(content) > self.most:
            kind = type(content).__name__.capitalize()
            raise PydanticKnownError(
                "too_long", {"field_type": kind, "max_length": self.most, "actual_length": len(content)}
            )
        return content


Id = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]
Time = Annotated[int, Field(ge=0, lt=2**40)]
# What these may hold depends on the catalogue and on the model: `openapi` says it in the place of the names.
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


# Defaults that can change have factories: pydantic would copy them for each request.
class Message(BaseModel):
    """Base of what a client sends: no unknown fields, and no conversion between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_many(cls, content: Any) -> Any:
        """Refuse an object of very many fields, before each of them is a mistake of its own."""
        return Length(len(cls.model_fields) + MAX_MISTAKES).check(content)


class BoostBody(Message):
    """A sum that is added to the score of some items before they are ranked."""

    filter: Conditions
    """What must hold of them, by column of the catalogue."""
    by: float = Field(ge=-2, le=2)
    """How much. Scores are cosines, so that 2 puts them before all others."""


class ItemQuery(Message):
    """What any request for items may ask."""

    k: int = 10
    """How many items. An answer has fewer only where no more fit."""
    offset: int = 0
    """How many of the best items to skip: those of earlier pages."""
    filter: Conditions = Field(default_factory=dict)
    """What must hold of the items, by column of the catalogue."""
    exclude: list[Id] = Field(default_factory=list)
    """Items to leave out."""
    diversity: float = Field(default=0.0, ge=0, le=1)
    """How much it counts for an item to be unlike those before it (maximal marginal relevance); 0: not at all."""
    distinct: float | None = Field(default=None, gt=0, le=1)
    """Of items with a cosine of at least so much only the first is given. Null: however alike they are."""
    pin: Annotated[list[Id], Length(100)] = Field(default_factory=list)
    """Items that come first, in this order, as far as they may be recommended at all."""
    boost: Annotated[list[BoostBody], Length(8)] = Field(default_factory=list)
    """Sums that are added to scores before ranking; of several that an item fits, the first counts."""
    demote: Annotated[list[Conditions], Length(8)] = Field(default_factory=list)
    """Items that fit any of these come after all others."""
    at_most: AtMost = Field(default_factory=dict)
    """How many items of each value of a column there may be, by column."""


class SearchRequest(ItemQuery):
    """Parameters of a text search."""

    q: str = Field(min_length=1, max_length=MAX_SEARCH_CHARACTERS)
    """The words to search for."""


class ProfileBody(Message):
    """A user described by a history and attributes."""

    history: list[Id] = Field(default_factory=list)
    """Ids of the user's items, oldest first."""
    times: list[Time] | None = None
    """When, in Unix seconds, one for each of the history; read by models that look at the clock."""
    attributes: Attributes = Field(default_factory=dict)
    """What is known of them, by column of the users' table."""

    def person(self) -> UserProfile:
        """Return them as a `Recommender` takes them."""
        return UserProfile(self.history, self.attributes, self.times)


class UserQuery(ItemQuery):
    """Parameters of a request for recommendations."""

    reasons: int = Field(default=0, ge=0, le=10)
    """How many items of the user's history are named as reasons for each item, at most."""


class UserRecommendRequest(UserQuery, ProfileBody):
    """What to recommend to someone who is described."""


class BatchRecommendRequest(UserQuery):
    """What to recommend to several, each known or described, in one answer."""

    users: list[Id | ProfileBody]
    """Who they are: ids of known users, or descriptions."""

    def whom(self) -> list[int | str | UserProfile]:
        """Return them as a `Recommender` takes them."""
        return [user.person() if isinstance(user, ProfileBody) else user for user in self.users]


class EventBody(Message):
    """An interaction of a user with an item."""

    user_id: UserId
    """Who, known or new."""
    item_id: ItemId
    """What; it must be in the catalogue."""
    time: Annotated[int, Field(ge=0)] | None = None
    """When, in Unix seconds; null: now."""
    event_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """What the sender calls it: an event that is sent again under the same name is not counted again. Without a name,
    an event of the same user, item and given time is the same."""


class EventsRequest(Message):
    """What happened."""

    events: Annotated[list[EventBody], Length(MOST_EVENTS, least=1)]
    """Each, oldest first; all of it is taken or, if one of them is wrong, none."""


@_described
class ItemWritten(TypedDict):
    """An item was put, or deleted."""

    item_id: int | str
    """The item, as the catalogue calls it."""
    position: int
    """Where that stands in the log of live writes."""
    unknown_values: NotRequired[dict[str, list[str]]]
    """Values of an item that was put that the model does not know, and so does not read, by column."""


@_described
class EventsAccepted(TypedDict):
    """Events were taken."""

    accepted: int
    """Number of events appended."""
    repeated: int
    """Number of events that were already in the log."""
    position: int
    """Where the last of them stands in the log of live writes."""


@_described
class ReasonBody(TypedDict):
    """An item of the user's history that spoke for an item of an answer."""

    item_id: int | str
    """The item of the user's history."""
    contribution: float
    """How much lower the item would have scored without it."""
    title: NotRequired[str]
    """What to call it, where the catalogue has titles."""


@_described
class ItemBody(TypedDict):
    """One item of an answer."""

    item_id: int | str
    """The item, as the catalogue calls it."""
    score: float
    """Higher is better: the cosine of user and item, -1 to 1; of a fallback the share of all interactions."""
    rank: int
    """Its place, from 1; it goes on from page to page."""
    title: NotRequired[str]
    """What to call it, where the catalogue has titles."""
    because: NotRequired[list[ReasonBody]]
    """What spoke most for it, the strongest first, where `reasons` were asked for."""


@_described
class RecommendationsBody(TypedDict):
    """What one user is recommended."""

    user_id: int | str | None
    """Who; null for someone who was described."""
    items: list[ItemBody]
    """Best first."""
    fallback: Literal["popular"] | None
    """What answered in the model's place, because it knows nothing of them; null where the model did."""
    reranked: NotRequired[bool]
    """Whether the first items were put into a better order in time, where the service has what does that."""
    unknown_items: NotRequired[list[int | str]]
    """History items that are not in the catalogue; they were ignored."""
    unknown_values: NotRequired[dict[str, list[str]]]
    """Values of their attributes that the model does not know, and so were not heard, by attribute."""


@_described
class UserRecommendations(RecommendationsBody):
    """The answer about one user."""

    model: str
    """The version of the model."""


@_described
class BatchRecommendations(TypedDict):
    """The answer about several users."""

    answers: list[RecommendationsBody]
    """One for each of `users`, in that order."""
    model: str
    """The version of the model."""


@_described
class SimilarItems(TypedDict):
    """The items most like one."""

    item_id: int | str
    """That one."""
    items: list[ItemBody]
    """Best first."""
    fallback: None
    """Always null: there is none."""
    model: str
    """The version of the model."""


@_described
class SearchResponse(TypedDict):
    """The items nearest to what is written."""

    q: str
    """What was searched for."""
    items: list[ItemBody]
    """Best first."""
    fallback: Literal["popular"] | None
    """What answered in the model's place, because it knows none of the words; null where the model did."""
    reranked: NotRequired[bool]
    """Whether the first items were put into a better order in time, where the service has what does that for words."""
    model: str
    """The version of the model."""


@_described
class Liveness(TypedDict):
    """The process is alive."""

    status: Literal["ok"]
    """Always `ok`."""


@_described
class WorkerCounts(TypedDict):
    """The processes of a service on one machine."""

    living: int
    """How many there are."""
    ready: int
    """How many of them can give recommendations."""


@_described
class Readiness(TypedDict):
    """Recommendations can be given."""

    status: Literal["ready"]
    """Always `ready`."""
    model: str
    """The version of the model."""
    items: int
    """How many items there are."""
    users: int
    """How many users are known."""
    index_created: str
    """When the index was made, ISO 8601 in UTC."""
    workers: WorkerCounts
    """How many processes answer here."""
