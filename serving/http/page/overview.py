"""Which model and index are served, how old they are, and how good the model was when it was evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serving.recommend.recommender import Recommender

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


@dataclass(frozen=True)
class Fact:
    """One figure of the overview.

    Attributes:
        name: What it is.
        value: The figure.
        note: What it means, or compares with; empty: nothing.
    """

    name: str
    value: str
    note: str = ""


def overview(recommender: Recommender, now: float) -> list[Fact]:
    """Return what is served.

    Args:
        recommender: The model and the index.
        now: The time in Unix seconds.
    """
    index, model = recommender.snapshot.manifest, recommender.bundle.manifest
    facts = [*_quality(recommender.bundle.report)]
    facts.append(Fact("Model", recommender.model, f"trained {_age(_seconds(model.created), now)}"))
    facts.append(Fact("Index", recommender.index_version, f"built {_age(_seconds(index.created), now)}"))
    facts.append(Fact("Search", index.plan.kind, f"recall@100 {index.recall_at_100:.3f}"))
    newest = "" if index.newest_event is None else f"the newest {_age(index.newest_event, now)}"
    facts.append(Fact("Items", f"{index.num_items:,}"))
    facts.append(Fact("Users", f"{index.num_users:,}"))
    facts.append(Fact("Interactions", f"{index.num_interactions:,}", newest))
    if recommender.state.position is not None:
        facts.append(Fact("Live writes", f"{recommender.state.position:,}", "position of the log"))
    return facts


def _quality(report: dict[str, Any]) -> list[Fact]:
    """Return the model's primary metric, and the best baseline's; nothing if the model was not evaluated."""
    metric = "ndcg_at_10"
    values = [
        (str(row["name"]), float(row["metrics"][metric]["mean"]))
        for row in report.get("rows", ())
        if metric in row.get("metrics", {})
    ]
    if not values:
        return []
    (_, own), *others = values
    name, best = max(others, key=lambda one: one[1], default=("", 0.0))
    return [Fact("NDCG@10", f"{own:.3f}", f"best baseline: {name} {best:.3f}" if others else "no baseline")]


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _age(moment: float, now: float) -> str:
    """Return how long ago a moment was, in words; a date if that is longer than a month, or in the future."""
    seconds = now - moment
    if seconds < -_MINUTE or seconds >= 31 * _DAY:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"
    for size, unit in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"
