"""Schemas of requests and responses over HTTP: every name, type and limit, in one place.

A query string and a body ask for the same things by the same names. The OpenAPI document is made from what stands here.
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
# What pydantic calls the members of a union, where it says in which of them a mistake is.
_MEMBERS = ("int", "constrained-int", "str", "constrained-str", "id", "person")


# Defaults that can change have factories: pydantic would copy them for each request.
class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_many(cls, content: Any) -> Any:
        """Refuse an object of very many fields, before each of them is a mistake of its own."""
        return Length(len(cls.model_fields) + MAX_MISTAKES).check(content)


class BoostBody(_Message):
    """A sum that is added to the score of some items before they are ranked."""

    filter: Conditions
    """What must hold of them, by column of the catalogue."""
    by: float = Field(ge=-2, le=2)
    """How much. Scores are cosines, so that 2 puts them before all others."""


class ItemQuery(_Message):
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


class ProfileBody(_Message):
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


class EventBody(_Message):
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


class EventsRequest(_Message):
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


_Limit = tuple[Any, Any]
"""The type of a field, and its pydantic `Field`."""

Message = TypeVar("Message", bound=_Message)


@dataclass(frozen=True)
class Contract:
    """The requests, with the limits of one service.

    Attributes:
        query: Query parameters of any request; conditions on columns come in addition.
        query_for_user: The same about a user.
        query_in_words: The same of a search.
        one: The body about one user.
        many: The body about several.
        settings: What the operator decided.
    """

    query: type[ItemQuery]
    query_for_user: type[UserQuery]
    query_in_words: type[SearchRequest]
    one: type[UserRecommendRequest]
    many: type[BatchRecommendRequest]
    settings: ServingConfig

    @classmethod
    def of(cls, settings: ServingConfig) -> Contract:
        """Return the requests that an operator allows."""
        length = Length(settings.max_history)
        history: _Limit = (Annotated[list[Id], length], Field(default_factory=list))
        times: _Limit = (Annotated[list[Time], length] | None, Field(default=None))
        common: dict[str, _Limit] = {
            "k": (int, Field(default=settings.default_k, ge=1, le=settings.max_k)),
            "offset": (int, Field(default=0, ge=0, le=settings.max_offset)),
            "exclude": history,
        }
        someone = _user(_limited(ProfileBody, history=history, times=times))
        users: _Limit = (
            Annotated[list[someone], Length(settings.max_users, least=1)],  # type: ignore[valid-type]
            Field(),
        )
        return cls(
            query=_limited(ItemQuery, **common),
            query_for_user=_limited(UserQuery, **common),
            query_in_words=_limited(SearchRequest, **common),
            one=_limited(UserRecommendRequest, **common, history=history, times=times),
            many=_limited(BatchRecommendRequest, **common, users=users),
            settings=settings,
        )

    def limited(self, kind: type) -> type[ItemQuery]:
        """Return the schema of a query with the limits of this service, for one of the classes of this file."""
        limited = (self.query_for_user, self.query_in_words, self.query)
        return next(one for one in limited if one.__base__ is kind)

    def body(self, content: Any) -> UserRecommendRequest | BatchRecommendRequest:
        """Return what a body asks.

        Raises:
            Problem: It asks for what cannot be; says what and where.
        """
        is_many = isinstance(content, dict) and "users" in content
        return read(self.many if is_many else self.one, content)

    def wanted(self, asked: ItemQuery, filters: ItemFilters, conditions: Filter = ()) -> RecommendRequest:
        """Return what a request wants of its answer.

        Args:
            asked: The request.
            filters: The columns that it may speak of.
            conditions: What it says of them outside of `asked.filter`.

        Raises:
            Problem: It speaks of a column or a value that cannot be, or asks for too much at once.
        """
        reasons = asked.reasons if isinstance(asked, UserQuery) else 0
        try:
            where = both(filters.parse(asked.filter), conditions)
            wanted = RecommendRequest(asked.k, asked.offset, where, asked.exclude, _rules(asked, filters), reasons)
        except DataError as error:
            raise wrong(error) from None
        self._check_effort(wanted, len(asked.users) if isinstance(asked, BatchRecommendRequest) else 1)
        _refuse_much_text(asked)
        return wanted

    def _check_effort(self, wanted: RecommendRequest, num_users: int) -> None:
        """Make sure that a request does not ask for more than the operator allows at once."""
        settings, places = self.settings, num_users * wanted.depth
        if wanted.rules is not None and places > settings.max_slate_slots:
            raise _too_much(
                "k", "places (users x (offset + k)) where there are rules", "max_slate_slots", settings, places
            )
        for field, is_asked, setting in (
            ("at_most", wanted.rules is not None and wanted.rules.at_most, "max_limited_users"),
            ("distinct", wanted.rules is not None and wanted.rules.distinct, "max_limited_users"),
            ("reasons", wanted.reasons, "max_explained_users"),
        ):
            if is_asked and num_users > getattr(settings, setting):
                raise _too_much(field, f"users where {field} is asked", setting, settings, num_users)


def _too_much(field: str, what: str, setting: str, settings: ServingConfig, found: int) -> Problem:
    """Return the problem of a request that asks for more than a setting allows."""
    detail = f"expected at most {getattr(settings, setting)} {what}, found {found}; the limit is {setting}"
    return Problem.invalid(Mistake(field=field, detail=detail))


def parameters(kind: type[Message], given: Mapping[str, Sequence[str]]) -> Message:
    """Return what the parameters of a query ask: lists repeated, everything else as in JSON.

    Raises:
        Problem: They ask for what cannot be; says what and where.
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
"""Parameters of a query that may stand there several times."""
AS_WRITTEN = frozenset(("q",))
"""Those that are text, whatever it looks like."""


def _rules(asked: ItemQuery, filters: ItemFilters) -> Rules | None:
    if not (asked.diversity or asked.distinct or asked.pin or asked.boost or asked.demote or asked.at_most):
        return None
    for column in asked.at_most:
        filters.by_value(column, f"at_most.{column}")
    return Rules(
        diversity=asked.diversity,
        distinct=asked.distinct,
        pin=asked.pin,
        boosts=[
            Boost(filters.parse(boost.filter, f"boost.{place}.filter"), boost.by)
            for place, boost in enumerate(asked.boost)
        ],
        demote=[filters.parse(one, f"demote.{place}") for place, one in enumerate(asked.demote)],
        at_most=list(asked.at_most.items()),
    )


def _refuse_much_text(asked: ItemQuery) -> None:
    """Make sure that a model need not encode too much text at once.

    Raises:
        Problem: The attributes of everyone in a request have more.
    """
    people = asked.users if isinstance(asked, BatchRecommendRequest) else [asked]
    characters = sum(
        size_of(cell)[0] for one in people if isinstance(one, ProfileBody) for cell in one.attributes.values()
    )
    if characters > MAX_TEXT_CHARACTERS:
        detail = f"expected at most {MAX_TEXT_CHARACTERS:,} characters in all of a request, found {characters:,}"
        raise Problem.invalid(Mistake(field="attributes", detail=detail))


def wrong(error: DataError) -> Problem:
    """Return the problem of an error that says `field: what is wrong`."""
    field, _, detail = str(error).partition(": ")
    return Problem.invalid(Mistake(field=field, detail=detail))


def _user(described: type[ProfileBody]) -> Any:
    """Return the type of one of several users, so that an error names the variant that was meant."""
    return Annotated[
        Annotated[Id, Tag("id")] | Annotated[described, Tag("person")],
        Discriminator(lambda user: "person" if isinstance(user, dict) else "id"),
    ]


def _limited(message: type[Message], **limits: _Limit) -> type[Message]:
    """Return a kind of message with other types and defaults of some of its fields."""
    fields: dict[str, Any] = {
        name: (Annotated[kind, Field(description=message.model_fields[name].description)], field)
        for name, (kind, field) in limits.items()
    }
    return create_model(message.__name__, __base__=message, __doc__=message.__doc__, **fields)


def read(kind: type[Message], content: Any) -> Message:
    """Return what a body or a query asks.

    Raises:
        Problem: It asks for what cannot be; says what and where.
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
    """Return whole numbers that are written as 7.0, which in JSON is the same as 7, as 7."""
    match content:
        case float() if content.is_integer():
            return int(content)
        case list():
            return [_without_points(one) for one in content]
        case dict():
            return {name: _without_points(one) for name, one in content.items()}
    return content


def _invalid(mistakes: Sequence[Any]) -> Problem:
    """Return every mistake once: what fits no member of a union misses each of them."""
    found: dict[str, list[Any]] = {}
    for mistake in mistakes:
        found.setdefault(_place(mistake["loc"]), []).append(mistake)
    return Problem.invalid(*(Mistake(field=field, detail=_say(mistakes)) for field, mistakes in found.items()))


def _place(loc: Sequence[int | str]) -> str:
    parts = (str(part) for part in loc if part not in _MEMBERS)
    return ".".join(part for part in parts if not part.startswith("union[")) or "body"


def _say(mistakes: Sequence[Any]) -> str:
    """Return what is wrong in one place, where one thing of several was expected."""
    match mistakes[0]["type"]:
        case "extra_forbidden":
            return "no such field (misspelt?); remove it"
        case "missing":
            return "missing; give it a value"
    said = " or ".join(f"{mistake['msg'][0].lower()}{mistake['msg'][1:]}" for mistake in mistakes)
    return f"{said}, found {shown(mistakes[0]['input'])}"
