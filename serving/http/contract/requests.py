"""Reads a body or a query string as a request of `serving.http.contract.schemas`, within the operator's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationError, create_model

from features.errors import DataError
from features.messages import shown
from features.values.cells import size_of
from serving.bounds import MAX_TEXT_CHARACTERS, json_value
from serving.config import ServingConfig
from serving.http.contract.problems import Mistake, Problem
from serving.http.contract.schemas import (
    BatchRecommendRequest,
    Id,
    ItemQuery,
    Length,
    Message,
    ProfileBody,
    SearchRequest,
    Time,
    UserQuery,
    UserRecommendRequest,
)
from serving.recommend.interfaces import ItemFilters
from serving.recommend.request import RecommendRequest
from serving.recommend.rules import Boost, Rules
from serving.search.conditions import Filter, both

# What pydantic calls the members of a union, where it says in which of them a mistake is.
_MEMBERS = ("int", "constrained-int", "str", "constrained-str", "id", "person")


REPEATED = frozenset(("exclude", "pin"))
"""Query parameters that may be given several times."""
AS_WRITTEN = frozenset(("q",))
"""Query parameters that are text, whatever they look like."""
_Limit = tuple[Any, Any]
"""The type of a field, and its pydantic `Field`."""
_Kind = TypeVar("_Kind", bound=Message)


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

    def limited(self, kind: type) -> type:
        """Return a type of `serving.http.contract.schemas` with the limits of this service, where it has some."""
        limited = (self.query_for_user, self.query_in_words, self.query, self.one, self.many)
        return next((one for one in limited if one.__base__ is kind), kind)

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


def parameters(kind: type[_Kind], given: Mapping[str, Sequence[str]]) -> _Kind:
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


def _limited(message: type[_Kind], **limits: _Limit) -> type[_Kind]:
    """Return a kind of message with other types and defaults of some of its fields."""
    fields: dict[str, Any] = {
        name: (Annotated[kind, Field(description=message.model_fields[name].description)], field)
        for name, (kind, field) in limits.items()
    }
    return create_model(message.__name__, __base__=message, __doc__=message.__doc__, **fields)


def read(kind: type[_Kind], content: Any) -> _Kind:
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
