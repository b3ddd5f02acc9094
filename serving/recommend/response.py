"""The output of a `Recommender`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from serving.catalog.ids import ExternalId

Fallback = Literal["popular"]


@dataclass(frozen=True, slots=True)
class Reason:
    """An item of the user's history that contributed to a recommendation.

    Attributes:
        item_id: The item of the history.
        contribution: Amount by which the recommended item's score would be lower without it.
        title: Its title; None if the catalogue has no titles.
    """

    item_id: ExternalId
    contribution: float
    title: str | None = None


class Recommendation(NamedTuple):
    """One item of a response; a tuple for speed, as a service creates many.

    Attributes:
        item_id: The item's id in the catalogue.
        score: Higher is better. Cosine of user and item, -1 to 1, to which a model with `towers.trend` adds recent
            popularity; with a fallback, the share of all interactions.
        rank: Position from 1.
        title: Its title; None if the catalogue has no titles.
        because: The history items that contributed most, the largest contribution first; None if not requested.
    """

    item_id: ExternalId
    score: float
    rank: int
    title: str | None = None
    because: tuple[Reason, ...] | None = None


@dataclass(frozen=True, slots=True)
class RecommendResponse:
    """The recommendations for one user, similar items, or search results.

    Attributes:
        items: The items, best first.
        fallback: The fallback that was used; None if the items come from the model.
        unknown_items: Items of a profile's history that are not in the catalogue; they were ignored.
        unknown_values: Values of a profile's attributes that the model did not see in training; they were ignored. By
            column.
        reranked: Whether the best candidates were re-ranked within the time budget; None without a re-ranker.
    """

    items: list[Recommendation]
    fallback: Fallback | None = None
    unknown_items: tuple[ExternalId, ...] = ()
    unknown_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reranked: bool | None = None
