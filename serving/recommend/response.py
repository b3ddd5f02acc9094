"""What was recommended, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from serving.catalog.ids import ExternalId

Fallback = Literal["popular"]


@dataclass(frozen=True, slots=True)
class Reason:
    """An item of somebody's history that spoke for a recommendation.

    Attributes:
        item_id: That item.
        contribution: How much lower the recommended item would have scored without it.
        title: What to call it; None where the catalogue has no titles.
    """

    item_id: ExternalId
    contribution: float
    title: str | None = None


class Recommendation(NamedTuple):
    """One item of an answer; a tuple, because it is what a service makes most of.

    Attributes:
        item_id: The item, as the catalogue calls it.
        score: Higher is better. The cosine of user and item, -1 to 1; of a fallback the share of all interactions.
        rank: Its place, from 1.
        title: What to call it; None where the catalogue has no titles.
        because: What spoke most for it, the strongest first; None where nobody asked.
    """

    item_id: ExternalId
    score: float
    rank: int
    title: str | None = None
    because: tuple[Reason, ...] | None = None


@dataclass(frozen=True, slots=True)
class RecommendResponse:
    """What was recommended, and how it came about.

    Attributes:
        items: Best first.
        fallback: What answered in the model's place; None where the model did.
        unknown_items: Items of a given history that are not in the catalogue, and so were not heard.
        unknown_values: Values of given attributes that the model does not know, and so were not heard, by column.
        reranked: Whether the first candidates were put into a better order in time; None where nothing does that.
    """

    items: list[Recommendation]
    fallback: Fallback | None = None
    unknown_items: tuple[ExternalId, ...] = ()
    unknown_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reranked: bool | None = None
