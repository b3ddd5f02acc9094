"""What a report shows beyond the metrics: where the run comes from, how it trained, on which data, and examples.

Plain values, so that the page can be made without the model or the tables; `training.details` collects them. All of
them are bounded: a run with a million users has a report as long as one with a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass

from towers.item_map import HEIGHT, WIDTH
from training.evaluation.report_rows import Estimate


@dataclass(frozen=True)
class Fact:
    """Something to know, as a label and a text."""

    label: str
    text: str


@dataclass(frozen=True)
class ChangedSetting:
    """A setting that differs from its default; None where there is no default."""

    name: str
    value: str
    default: str | None


@dataclass(frozen=True)
class CurvePoint:
    """One epoch of a training.

    Attributes:
        epoch: Epochs done; 0 before the first.
        loss: Mean training loss of the epoch; None before the first.
        quality: N@10 on validation questions after it; None where none was measured.
    """

    epoch: int
    loss: float | None
    quality: float | None


@dataclass(frozen=True)
class LearningCurve:
    """One training, epoch by epoch.

    Attributes:
        seed: Of the training.
        points: In their order.
        best_epoch: The epoch whose weights were kept; None if unknown.
        decay_epochs: After which epochs the learning rates were lowered.
    """

    seed: int
    points: tuple[CurvePoint, ...]
    best_epoch: int | None
    decay_epochs: tuple[int, ...] = ()


@dataclass(frozen=True)
class SliceMetric:
    """A metric on a part of the held-out items, of the recommender and of its strongest baseline.

    Attributes:
        facet: What the parts are by, such as `activity`.
        value: Which part.
        num_questions: Questions with a held-out item in it.
        ours: Of the evaluated recommender.
        other: Of the strongest baseline; None if there is none.
    """

    facet: str
    value: str
    num_questions: int
    ours: Estimate
    other: Estimate | None


@dataclass(frozen=True)
class PopularityShare:
    """A class of items by popularity: its share of the catalogue, of what was chosen, and of the recommendations."""

    label: str
    catalog: float
    chosen: float
    ours: float
    other: float | None


@dataclass(frozen=True)
class ShownItem:
    """An item that is recommended often: to which share of the questions, and its interactions in the training data."""

    title: str
    share: float
    interactions: int


@dataclass(frozen=True)
class RankRange:
    """How many held-out items have a rank between two, both included; a range without a rank is `never`."""

    label: str
    ours: int
    other: int | None


@dataclass(frozen=True)
class ScoreRange:
    """Recommendations with a score between two: how many there are, and which share of them was right."""

    low: float
    high: float
    num_items: int
    right: Estimate


@dataclass(frozen=True)
class HeldOut:
    """An item that was held out.

    Attributes:
        title: What it is called.
        rank: Its place among all items, from 1; None if it is never recommended.
        interactions: How many it has in the training data.
    """

    title: str
    rank: int | None
    interactions: int


@dataclass(frozen=True)
class Recommended:
    """A recommended item, and whether it was held out, so that to recommend it was right."""

    title: str
    is_right: bool


@dataclass(frozen=True)
class Example:
    """One question and its answer.

    Attributes:
        user_id: Whose.
        attributes: What is known of the user.
        history: Titles, the newest first.
        num_history: How many interactions there are in all.
        recommended: The first of the recommendations.
        held_out: What the user really chose next.
        num_held_out: How many items those are in all.
    """

    user_id: str
    attributes: tuple[Fact, ...]
    history: tuple[str, ...]
    num_history: int
    recommended: tuple[Recommended, ...]
    held_out: tuple[HeldOut, ...]
    num_held_out: int


@dataclass(frozen=True)
class MapPoint:
    """An item on a map: from the left and from the top, in the units of `towers.item_map`."""

    x: int
    y: int
    title: str


@dataclass(frozen=True)
class MapGroup:
    """Items of one colour: those with a value of the column that a map is coloured by; empty: without one."""

    value: str
    points: tuple[MapPoint, ...]


@dataclass(frozen=True)
class ReportMap:
    """A map of the items, with the first of the examples of people on it.

    Attributes:
        column: The column that the items are coloured by; empty: none.
        groups: The items that are shown, by colour.
        num_items: How many items there are in all.
        user_id: Whose items are marked; empty: no user's.
        history: The newest items of the user's history.
        recommended: The first of the recommendations.
        held_out: What the user really chose next.
    """

    column: str
    groups: tuple[MapGroup, ...]
    num_items: int
    user_id: str = ""
    history: tuple[MapPoint, ...] = ()
    recommended: tuple[MapPoint, ...] = ()
    held_out: tuple[MapPoint, ...] = ()

    width = WIDTH
    height = HEIGHT

    @property
    def marks(self) -> tuple[tuple[str, str, tuple[MapPoint, ...]], ...]:
        """What is marked: the shape, what it means, and the items."""
        return (
            ("past", "history", self.history),
            ("found", "recommended", self.recommended),
            ("next", "really chosen next", self.held_out),
        )

    @property
    def num_shown(self) -> int:
        """Number of items that are shown."""
        return sum(len(group.points) for group in self.groups)


@dataclass(frozen=True)
class ColumnProfile:
    """A column of a table.

    Attributes:
        name: Its name.
        role: What the model reads it as; `not read` otherwise.
        filled: Share of the rows that have a value.
        num_distinct: Number of different values, in the rows that were looked at.
    """

    name: str
    role: str
    filled: float
    num_distinct: int


@dataclass(frozen=True)
class TableProfile:
    """A table that was read.

    Attributes:
        name: `interactions`, `items` or `users`.
        num_rows: Rows that are left of it.
        digest: SHA-256 of the file; empty if unknown.
        columns: The first of its columns.
        num_columns: How many columns there are in all.
        num_profiled: Rows that the profile was made from, a sample of a large table.
    """

    name: str
    num_rows: int
    digest: str
    columns: tuple[ColumnProfile, ...]
    num_columns: int
    num_profiled: int


@dataclass(frozen=True)
class ReportDetails:
    """Everything beyond the metrics. What is empty is left out of the page.

    Attributes:
        title: What was evaluated.
        made: When, and by what.
        run: Where it comes from: command, trainings, commit, versions.
        settings: Settings that differ from their defaults.
        other_name: Name of the strongest baseline, for comparison; None without baselines.
        curves: One for each training.
        slices: Metrics of parts of the held-out items.
        popularity: Shares by popularity class.
        most_shown: The items that are recommended most often.
        ranks: Where the held-out items are ranked.
        scores: Recommendations by score, the lowest first.
        num_sampled: Questions that `scores` and the examples were drawn from.
        people: Examples of questions, drawn by chance.
        near_misses: Held-out items shortly behind the recommendations.
        failures: Held-out items far behind them.
        item_map: The items in the plane; None where the recommender has no vectors of items.
        data: Figures of the data.
        tables: The tables.
        warnings: What is remarkable about the data, a sentence each.
    """

    title: str
    made: str = ""
    run: tuple[Fact, ...] = ()
    settings: tuple[ChangedSetting, ...] = ()
    other_name: str | None = None
    curves: tuple[LearningCurve, ...] = ()
    slices: tuple[SliceMetric, ...] = ()
    popularity: tuple[PopularityShare, ...] = ()
    most_shown: tuple[ShownItem, ...] = ()
    ranks: tuple[RankRange, ...] = ()
    scores: tuple[ScoreRange, ...] = ()
    num_sampled: int = 0
    people: tuple[Example, ...] = ()
    near_misses: tuple[Example, ...] = ()
    failures: tuple[Example, ...] = ()
    item_map: ReportMap | None = None
    data: tuple[Fact, ...] = ()
    tables: tuple[TableProfile, ...] = ()
    warnings: tuple[str, ...] = ()
