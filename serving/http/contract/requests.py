"""Reads a body or a query string as a request of `serving.http.contract.schemas`, within the operator's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
    RerankedQuery,
    SearchRequest,
    Time,
    UserQuery,
    UserRecommendRequest,
)
from serving.recommend.interfaces import ItemFilters
from serving.recommend.request import RecommendRequest
from serving.recommend.rules import Boost, Rules
from serving.search.conditions import Filter, both

# Names of union members, which pydantic includes in the location of a mistake.
_MEMBERS = ("int", "constrained-int", "str", "constrained-str", "id", "person")

REPEATED = frozenset(("exclude", "pin"))
"""Query parameters that may be repeated."""
AS_WRITTEN = frozenset(("q",))
"""Query parameters that are text and never parsed as JSON."""
_Limit = tuple[Any, Any]
"""The type of a field, and its pydantic `Field`."""
_Kind = TypeVar("_Kind", bound=Message)


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
        limits = (settings.default_k, settings.max_k, settings.max_offset, settings.max_history, settings.max_users)
        return cls(*_schemas(*limits), settings)

    def limited(self, kind: type) -> type:
        """Return a type of `serving.http.contract.schemas` with the limits of this service, if it has any."""
        limited = (self.query_for_user, self.text_query, self.query, self.one, self.many)
        return next((one for one in limited if one.__base__ is kind), kind)

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
        rerank = query.rerank if isinstance(query, RerankedQuery) else True
        try:
            where = both(filters.parse(query.filter), conditions)
            rules = _rules(query, filters)
            wanted = RecommendRequest(query.k, query.offset, where, query.exclude, rules, reasons, rerank)
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


@lru_cache(maxsize=8)
def _schemas(
    default_k: int, max_k: int, max_offset: int, max_history: int, max_users: int
) -> tuple[
    type[ItemQuery], type[UserQuery], type[SearchRequest], type[UserRecommendRequest], type[BatchRecommendRequest]
]:
    """Return the schemas of a `Contract`, in its order; to make them takes pydantic half a second."""
    length = Length(max_history)
    history: _Limit = (Annotated[list[Id], length], Field(default_factory=list))
    times: _Limit = (Annotated[list[Time], length] | None, Field(default=None))
    common: dict[str, _Limit] = {
        "k": (int, Field(default=default_k, ge=1, le=max_k)),
        "offset": (int, Field(default=0, ge=0, le=max_offset)),
        "exclude": history,
    }
    user = _user(_limited(ProfileBody, history=history, times=times))
    users: _Limit = (
        Annotated[list[user], Length(max_users, least=1)],  # type: ignore[valid-type]
        Field(),
    )
    return (
        _limited(ItemQuery, **common),
        _limited(UserQuery, **common),
        _limited(SearchRequest, **common),
        _limited(UserRecommendRequest, **common, history=history, times=times),
        _limited(BatchRecommendRequest, **common, users=users),
    )


def _too_much(field: str, what: str, setting: str, settings: ServingConfig, found: int) -> Problem:
    """Return the error of a request that exceeds a setting."""
    detail = f"expected at most {getattr(settings, setting)} {what} (setting {setting}), found {found}"
    return Problem.invalid(Mistake(field=field, detail=detail))


def parameters(kind: type[_Kind], given: Mapping[str, Sequence[str]]) -> _Kind:
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


def _limited(message: type[_Kind], **limits: _Limit) -> type[_Kind]:
    """Return a subclass of a message with other types and defaults of some fields."""
    fields: dict[str, Any] = {
        name: (Annotated[kind, Field(description=message.model_fields[name].description)], field)
        for name, (kind, field) in limits.items()
    }
    return create_model(message.__name__, __base__=message, __doc__=message.__doc__, **fields)


def read(kind: type[_Kind], content: Any) -> _Kind:
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
