"""The input of a `Recommender`: a user's profile, and the parameters of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.catalog.ids import ExternalId
from serving.recommend.rules import Rules
from serving.search.conditions import Filter


@dataclass(frozen=True, slots=True)
class UserProfile:
    """A user given by a history and attributes instead of an id.

    Attributes:
        history: Ids of the user's items, oldest first. Unknown items are ignored and listed in the response.
        attributes: The user's attributes, by column of the users table; None: the value is unknown.
        times: Times of the interactions in Unix seconds, one for each item of the history; used by models with time
            features. None: unknown.
    """

    history: Sequence[ExternalId] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    times: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class RecommendRequest:
    """The parameters of a request; the same for all users of a batch.

    Attributes:
        k: Number of items.
        offset: Number of best items to skip: those of earlier pages.
        where: Conditions on the items.
        exclude: Ids of items to leave out; unknown ones are ignored.
        rules: Rules for the order. None: best first.
        reasons: Maximum number of history items returned as reasons for each recommendation.
        rerank: Whether the best candidates are re-ranked, if there is a re-ranker.
    """

    k: int
    offset: int = 0
    where: Filter = ()
    exclude: Sequence[ExternalId] = ()
    rules: Rules | None = None
    reasons: int = 0
    rerank: bool = True

    @classmethod
    def of(cls, wanted: RecommendRequest | int) -> RecommendRequest:
        """Return a request for a number of items; a `RecommendRequest` is returned unchanged."""
        return wanted if isinstance(wanted, RecommendRequest) else cls(wanted)

    @property
    def is_plain(self) -> bool:
        """Whether the request has neither filters, exclusions, rules nor reasons."""
        return not (self.where or self.exclude or self.rules is not None or self.reasons)

    @property
    def depth(self) -> int:
        """Number of best items needed to answer the request."""
        return self.offset + self.k
