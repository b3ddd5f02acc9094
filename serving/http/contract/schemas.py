"""Schemas of requests and responses over HTTP: every name, type and limit, in one place.

A parameter has the same name in a query string and in a body. The OpenAPI document is generated from these types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
    with_config,
)
from pydantic_core import CoreSchema, PydanticKnownError
from pydantic_core.core_schema import no_info_before_validator_function
from typing_extensions import TypedDict

from features.errors import DataError
from features.messages import shown
from features.schema import MAX_ID_CHARACTERS
from features.values.cells import size_of
from serving.bounds import MAX_MISTAKES, MAX_SEARCH_CHARACTERS, MAX_TEXT_CHARACTERS, json_value
from serving.config import ServingConfig
from serving.http.contract.problems import Mistake, Problem
from serving.recommend.interfaces import ItemFilters
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.rules import Boost, Rules
from serving.search.conditions import Filter, both

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
# Names of union members, which pydantic includes in the location of a mistake.
_MEMBERS = ("int", "constrained-int", "str", "constrained-str", "id", "person")


# Mutable defaults have factories: pydantic would copy them for each request.
class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_many(cls, content: Any) -> Any:
        """Reject an object of very many fields, before each of them is reported as a mistake."""
        return Length(len(cls.model_fields) + MAX_MISTAKES).check(content)


class BoostBody(_Message):
    """An amount that is added to the scores of some items before ranking."""

    filter: Conditions
    """Conditions that select the items, by column of the catalogue."""
    by: float = Field(ge=-2, le=2)
    """The amount. Scores are cosines, so 2 ranks the items before all others."""


class ItemQuery(_Message):
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


class SearchRequest(ItemQuery):
    """Parameters of a text search."""

    q: str = Field(min_length=1, max_length=MAX_SEARCH_CHARACTERS)
    """The text to search for."""


class ProfileBody(_Message):
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


class UserQuery(ItemQuery):
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


class EventBody(_Message):
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


class EventsRequest(_Message):
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
    """Higher is better. Cosine similarity of user and item, -1 to 1; with a fallback, the item's share of all
    interactions."""
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
    workers: WorkerCounts
    """Workers on this machine."""


_Limit = tuple[Any, Any]
"""The type of a field, and its pydantic `Field`."""

Message = TypeVar("Message", bound=_Message)


@dataclass(frozen=True)
class Contract:
    """Request schemas with the limits of one service's settings.

    Attributes:
        query: Query parameters of any request, without conditions on columns.
        query_for_user: Query parameters of a request for a user.
        text_query: Query parameters of a text search.
        one: Request body for one user.
        many: Request body for several users.
        settings: The operator's settings.
    """

    query: type[ItemQuery]
    query_for_user: type[UserQuery]
    text_query: type[SearchRequest]
    one: type[UserRecommendRequest]
    many: type[BatchRecommendRequest]
    settings: ServingConfig

    @classmethod
    def of(cls, settings: ServingConfig) -> Contract:
        """Return the schemas with the limits of these settings."""
        length = Length(settings.max_history)
        history: _Limit = (Annotated[list[Id], length], Field(default_factory=list))
        times: _Limit = (Annotated[list[Time], length] | None, Field(default=None))
        common: dict[str, _Limit] = {
            "k": (int, Field(default=settings.default_k, ge=1, le=settings.max_k)),
            "offset": (int, Field(default=0, ge=0, le=settings.max_offset)),
            "exclude": history,
        }
        user = _user(_limited(ProfileBody, history=history, times=times))
        users: _Limit = (
            Annotated[list[user], Length(settings.max_users, least=1)],  # type: ignore[valid-type]
            Field(),
        )
        return cls(
            query=_limited(ItemQuery, **common),
            query_for_user=_limited(UserQuery, **common),
            text_query=_limited(SearchRequest, **common),
            one=_limited(UserRecommendRequest, **common, history=history, times=times),
            many=_limited(BatchRecommendRequest, **common, users=users),
            settings=settings,
        )

    def limited(self, kind: type) -> type[ItemQuery]:
        """Return the schema of a query with the limits of this service, for one of the classes of this file."""
        limited = (self.query_for_user, self.text_query, self.query)
        return next(one for one in limited if one.__base__ is kind)

    def body(self, content: Any) -> UserRecommendRequest | BatchRecommendRequest:
        """Return a request body as its schema has it.

        Raises:
            Problem: The body is invalid; names the field.
        """
        is_many = isinstance(content, dict) and "users" in content
        return read(self.many if is_many else self.one, content)

    def wanted(self, query: ItemQuery, filters: ItemFilters, conditions: Filter = ()) -> RecommendRequest:
        """Return query parameters or a body as the argument of a `Recommender`.

        Args:
            query: The parameters, or the body.
            filters: The columns that conditions may name.
            conditions: Further conditions besides `query.filter`.

        Raises:
            Problem: A column or value is unknown, or the request exceeds a limit.
        """
        reasons = query.reasons if isinstance(query, UserQuery) else 0
        try:
            where = both(filters.parse(query.filter), conditions)
            wanted = RecommendRequest(query.k, query.offset, where, query.exclude, _rules(query, filters), reasons)
        except DataError as error:
            raise wrong(error) from None
        self._check_effort(wanted, len(query.users) if isinstance(query, BatchRecommendRequest) else 1)
        _refuse_much_text(query)
        return wanted

    def _check_effort(self, wanted: RecommendRequest, num_users: int) -> None:
        """Check that a request does not exceed the operator's limits of work per request."""
        settings, slots = self.settings, num_users * wanted.depth
        if wanted.rules is not None and slots > settings.max_slate_slots:
            raise _too_much("k", "slots (users x (offset + k)) with rules", "max_slate_slots", settings, slots)
        for field, is_used, setting in (
            ("at_most", wanted.rules is not None and wanted.rules.at_most, "max_limited_users"),
            ("distinct", wanted.rules is not None and wanted.rules.distinct, "max_limited_users"),
            ("reasons", wanted.reasons, "max_explained_users"),
        ):
            if is_used and num_users > getattr(settings, setting):
                raise _too_much(field, f"users in a request with {field}", setting, settings, num_users)


def _too_much(field: str, what: str, setting: str, settings: ServingConfig, found: int) -> Problem:
    """Return the error of a request that exceeds a setting."""
    detail = f"expected at most {getattr(settings, setting)} {what} (setting {setting}), found {found}"
    return Problem.invalid(Mistake(field=field, detail=detail))


def parameters(kind: type[Message], given: Mapping[str, Sequence[str]]) -> Message:
    """Return query parameters as their schema has them; list parameters are repeated, other values are JSON.

    Raises:
        Problem: A parameter is invalid; names it.
    """
    return read(kind, {name: _parameter(name, texts) for name, texts in given.items()})


def _parameter(name: str, texts: Sequence[str]) -> Any:
    if name in REPEATED:
        return texts
    if len(texts) > 1:
        raise Problem.invalid(Mistake(field=name, detail=f"expected once, found {len(texts)} times"))
    if name in AS_WRITTEN:
        return texts[0]
    try:
        return json_value(texts[0])
    except ValueError:
        return texts[0]


REPEATED = frozenset(("exclude", "pin"))
"""Query parameters that may be repeated."""
AS_WRITTEN = frozenset(("q",))
"""Query parameters that are text and never parsed as JSON."""


def _rules(query: ItemQuery, filters: ItemFilters) -> Rules | None:
    if not (query.diversity or query.distinct or query.pin or query.boost or query.demote or query.at_most):
        return None
    for column in query.at_most:
        filters.by_value(column, f"at_most.{column}")
    return Rules(
        diversity=query.diversity,
        distinct=query.distinct,
        pin=query.pin,
        boosts=[
            Boost(filters.parse(boost.filter, f"boost.{place}.filter"), boost.by)
            for place, boost in enumerate(query.boost)
        ],
        demote=[filters.parse(one, f"demote.{place}") for place, one in enumerate(query.demote)],
        at_most=list(query.at_most.items()),
    )


def _refuse_much_text(query: ItemQuery) -> None:
    """Check that a model need not encode too much text at once.

    Raises:
        Problem: The attributes of all users of the request have more than `MAX_TEXT_CHARACTERS`.
    """
    users = query.users if isinstance(query, BatchRecommendRequest) else [query]
    characters = sum(
        size_of(cell)[0] for one in users if isinstance(one, ProfileBody) for cell in one.attributes.values()
    )
    if characters > MAX_TEXT_CHARACTERS:
        detail = (
            f"expected at most {MAX_TEXT_CHARACTERS:,} characters in all attributes of a request, found {characters:,}"
        )
        raise Problem.invalid(Mistake(field="attributes", detail=detail))


def wrong(error: DataError) -> Problem:
    """Return the 422 for an error whose message has the form `field: detail`."""
    field, _, detail = str(error).partition(": ")
    return Problem.invalid(Mistake(field=field, detail=detail))


def _user(described: type[ProfileBody]) -> Any:
    """Return the type of one user of a batch; the discriminator lets errors name only the variant that was sent."""
    return Annotated[
        Annotated[Id, Tag("id")] | Annotated[described, Tag("person")],
        Discriminator(lambda user: "person" if isinstance(user, dict) else "id"),
    ]


def _limited(message: type[Message], **limits: _Limit) -> type[Message]:
    """Return a subclass of a message with other types and defaults of some fields."""
    fields: dict[str, Any] = {
        name: (Annotated[kind, Field(description=message.model_fields[name].description)], field)
        for name, (kind, field) in limits.items()
    }
    return create_model(message.__name__, __base__=message, __doc__=message.__doc__, **fields)


def read(kind: type[Message], content: Any) -> Message:
    """Return content validated by a schema.

    Raises:
        Problem: The content is invalid; names each mistake.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_context=False)
    if any(isinstance(mistake["input"], float) and mistake["input"].is_integer() for mistake in mistakes):
        try:
            return kind.model_validate(_without_points(content))
        except ValidationError as error:
            mistakes = error.errors(include_url=False, include_context=False)
    raise _invalid(mistakes)


def _without_points(content: Any) -> Any:
    """Return content with whole numbers such as 7.0 as integers, which are the same in JSON."""
    match content:
        case float() if content.is_integer():
            return int(content)
        case list():
            return [_without_points(one) for one in content]
        case dict():
            return {name: _without_points(one) for name, one in content.items()}
    return content


def _invalid(mistakes: Sequence[Any]) -> Problem:
    """Return the error with each field once: pydantic reports one mistake per member of a union."""
    found: dict[str, list[Any]] = {}
    for mistake in mistakes:
        found.setdefault(_field(mistake["loc"]), []).append(mistake)
    return Problem.invalid(*(Mistake(field=field, detail=_detail(mistakes)) for field, mistakes in found.items()))


def _field(loc: Sequence[int | str]) -> str:
    parts = (str(part) for part in loc if part not in _MEMBERS)
    return ".".join(part for part in parts if not part.startswith("union[")) or "body"


def _detail(mistakes: Sequence[Any]) -> str:
    """Return what is wrong with one field, of which each member of a union may expect something else."""
    match mistakes[0]["type"]:
        case "extra_forbidden":
            return "unknown field; correct its spelling or remove it"
        case "missing":
            return "required field is missing"
    expected = " or ".join(f"{mistake['msg'][0].lower()}{mistake['msg'][1:]}" for mistake in mistakes)
    return f"{expected}, found {shown(mistakes[0]['input'])}"
