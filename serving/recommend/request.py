"""What is asked of a `Recommender`: about whom, and what the answer must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.catalog.ids import ExternalId
from serving.recommend.rules import Rules
from serving.search.conditions import Filter


@dataclass(frozen=True, slots=True)
class UserProfile:
    """Someone as they are here and now, whoever they are.

    Attributes:
        history: What they had, oldest first. Unknown items are left aside and named in the answer.
        attributes: What is known of them, by column of the users' table; a value of None: nothing.
        times: When they had them, in Unix seconds, one for each of the history; read by models that look at the clock.
            None: unknown.
    """

    history: Sequence[ExternalId] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    times: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class RecommendRequest:
    """What an answer must be; the same for everyone who is asked about at once.

    Attributes:
        k: How many items.
        offset: How many of the best are passed over: those of the pages before.
        where: What must hold of the items.
        exclude: Items that must not be among them; those that are not in the catalogue are not, anyway.
        rules: How they are arranged. None: best first.
        reasons: How many items of somebody's history are named as reasons for each recommendation, at most.
    """

    k: int
    offset: int = 0
    where: Filter = ()
    exclude: Sequence[ExternalId] = ()
    rules: Rules | None = None
    reasons: int = 0

    @classmethod
    def of(cls, wanted: RecommendRequest | int) -> RecommendRequest:
        """Return what is wanted where perhaps only the number of items was said."""
        return wanted if isinstance(wanted, RecommendRequest) else cls(wanted)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is wanted but a page of the best."""
        return not (self.where or self.exclude or self.rules is not None or self.reasons)

    @property
    def depth(self) -> int:
        """How many of the best must be known."""
        return self.offset + self.k
