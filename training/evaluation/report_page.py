"""The page of an evaluation report: one HTML file that loads nothing, with its charts as inline SVG.

The templates are in `training/templates`; here is where the marks of their charts are, and what is written in a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.advice import Advice
from training.evaluation.charts import Line, Scale, line
from training.evaluation.details import LearningCurve, ReportDetails, ReportMap, ScoreRange
from training.evaluation.pages import render
from training.evaluation.report_rows import PRIMARY_METRIC, Estimate, ReportRow, label_of
from training.evaluation.verdict import Verdict

MOST_NOTES = 60
"""Most notes of each kind on a page; the JSON report has all of them."""


@dataclass(frozen=True)
class PageContent:
    """What a page shows.

    Attributes:
        headline: One line on the evaluation.
        verdict: Whether the first recommender is better than the others.
        rows: The recommenders, the evaluated one first.
        metrics: Names of the metrics in the table.
        legend: What the figures and their labels mean.
        slices: A table of N@10 by slice, the head first; empty without slices.
        limits: Lines on the upper bounds.
        notes: Notes on the evaluation.
        notes_on_rows: Notes on how baselines were fitted.
        advice: What to try.
        details: Everything else. None: nothing more is known.
    """

    headline: str
    verdict: Verdict
    rows: Sequence[ReportRow]
    metrics: Sequence[str]
    legend: str
    slices: Sequence[Sequence[str]]
    limits: Sequence[str]
    notes: Sequence[str]
    notes_on_rows: Sequence[str]
    advice: Sequence[Advice]
    details: ReportDetails | None


@dataclass(frozen=True)
class Mark:
    """An estimate on an axis, with what is written next to it.

    Attributes:
        name: Of the row.
        at: Place of the mean, in percent.
        low: Place of the lower bound.
        high: Place of the upper bound.
        text: The estimate in numbers.
        tone: How it is coloured: `ours`, `plain`, `bound`, `ahead`, `level`, `behind` or `other`.
    """

    name: str
    at: float
    low: float
    high: float
    text: str
    tone: str


@dataclass(frozen=True)
class IntervalChart:
    """Estimates one below the other, on one axis.

    Attributes:
        label: What is shown, for those who do not see it.
        scale: The axis.
        marks: The estimates.
        zero: Place of zero; None if it is not marked.
    """

    label: str
    scale: Scale
    marks: tuple[Mark, ...]
    zero: float | None = None


@dataclass(frozen=True)
class CurveChart:
    """Lines over the epochs.

    Attributes:
        name: What is shown, in a word.
        title: What is shown, with its unit.
        across: The axis of the epochs.
        up: The axis of the values.
        lines: One for each training.
        best: Places of the epochs that were kept, from the left and from the top.
        decays: Places of the epochs after which the learning rates were lowered.
    """

    name: str
    title: str
    across: Scale
    up: Scale
    lines: tuple[Line, ...]
    best: tuple[tuple[float, float], ...]
    decays: tuple[float, ...]


def report_page(content: PageContent) -> str:
    """Return the page."""
    details = content.details
    return render(
        "report.html",
        title=content.headline if details is None else details.title,
        **_values(content),
        details=details,
        quality=quality_chart(content.rows),
        leads=lead_chart(content.rows),
        curves=[] if details is None else curve_charts(details.curves),
        scores=None if details is None or not details.scores else score_chart(details.scores),
        tiles=_tiles(content),
    )


def report_plots(content: PageContent) -> dict[str, str]:
    """Return the pictures of the page as SVG files, by name; those that the page does not have are left out."""
    details = content.details
    plots: dict[str, tuple[str, str, Any]] = {}
    for name, chart in (("metrics", quality_chart(content.rows)), ("leads", lead_chart(content.rows))):
        if chart is not None:
            plots[name] = (chart.label, "intervals", chart)
    if details is not None:
        plots |= {
            f"{chart.name}_by_epoch": (f"{chart.title}, by epoch", "curve", chart)
            for chart in curve_charts(details.curves)
        }
        if details.scores:
            scores = score_chart(details.scores)
            plots["scores"] = (scores.label, "intervals", scores)
        if details.item_map is not None:
            plots["item_map"] = (_map_title(details.item_map), "map", details.item_map)
    return {
        f"{name}.svg": render("plot.svg", title=title, kind=kind, chart=chart)
        for name, (title, kind, chart) in plots.items()
    }


def report_tables(content: PageContent) -> str:
    """Return the tables alone, for a notebook."""
    return render("report_tables.html", **_values(content))


def quality_chart(rows: Sequence[ReportRow]) -> IntervalChart:
    """Return N@10 of every recommender, with its interval."""
    named = [(row.name, row.metrics[PRIMARY_METRIC], _tone(row)) for row in rows]
    return _interval_chart(f"{label_of(PRIMARY_METRIC)} with 95 % intervals", named)


def lead_chart(rows: Sequence[ReportRow]) -> IntervalChart | None:
    """Return the leads over every baseline, with their paired intervals; None without baselines."""
    named = [(row.name, row.lead, row.standing or "other") for row in rows if row.lead is not None and not row.is_bound]
    if not named:
        return None
    label = f"Lead in {label_of(PRIMARY_METRIC)} with paired 95 % intervals"
    return _interval_chart(label, named, form="+.4f")


def score_chart(scores: Sequence[ScoreRange]) -> IntervalChart:
    """Return the share of right recommendations by score, with its interval."""
    named = [(f"{one.low:.3f} to {one.high:.3f}", _in_percent(one.right), "plain") for one in scores]
    return _interval_chart("Percent of the recommendations that are right, by score", named, form=".2f")


def curve_charts(curves: Sequence[LearningCurve]) -> list[CurveChart]:
    """Return validation N@10 and training loss over the epochs, as far as there are two points of them."""
    charts = []
    for title, name in ((f"{label_of(PRIMARY_METRIC)} on validation", "quality"), ("Training loss", "loss")):
        of_seeds = [
            (curve, [(point.epoch, getattr(point, name)) for point in curve.points if getattr(point, name) is not None])
            for curve in curves
        ]
        if not any(len(points) > 1 for _, points in of_seeds):
            continue
        across = Scale.over((x for _, points in of_seeds for x, _ in points), ticks=5, whole=True)
        up = Scale.over(y for _, points in of_seeds for _, y in points)
        best = [
            (across.at(x), round(100 - up.at(y), 2))
            for curve, points in of_seeds
            for x, y in points
            if x == curve.best_epoch and name == "quality"
        ]
        charts.append(
            CurveChart(
                name,
                title,
                across,
                up,
                tuple(line(f"seed {curve.seed}", points, across, up) for curve, points in of_seeds),
                tuple(best),
                tuple(across.at(epoch) for curve in curves[:1] for epoch in curve.decay_epochs),
            )
        )
    return charts


def _values(content: PageContent) -> dict[str, Any]:
    """Return what both the page and the tables alone show."""
    return {
        "headline": content.headline,
        "verdict": content.verdict,
        "metrics": content.metrics,
        "labels": {name: label_of(name) for name in content.metrics},
        "rows": content.rows,
        "spread": spread,
        "primary": label_of(PRIMARY_METRIC),
        "legend": content.legend,
        "slices": content.slices,
        "limits": content.limits,
        "notes": _bounded(content.notes),
        "notes_on_rows": _bounded(content.notes_on_rows),
        "advice": content.advice,
    }


def _tiles(content: PageContent) -> list[tuple[str, str, str]]:
    """Return the figures at the top: label, number, and what it means."""
    ours = content.rows[0]
    wanted = [
        name for name in (PRIMARY_METRIC, "recall_at_10", "recall_at_50", "coverage_at_10") if name in ours.metrics
    ]
    meanings = {
        PRIMARY_METRIC: "quality of the first ten places",
        "recall_at_10": "of the held-out items in the first ten",
        "recall_at_50": "in the first fifty",
        "coverage_at_10": "of the items recommended to anybody",
    }
    return [
        (
            label_of(name),
            f"{ours.metrics[name].mean:.4f}" if name == PRIMARY_METRIC else f"{ours.metrics[name].mean:.1%}",
            meanings[name],
        )
        for name in wanted
    ]


def _interval_chart(
    label: str,
    rows: Sequence[tuple[str, Estimate, str]],
    form: str = ".4f",
) -> IntervalChart:
    """Return a chart of estimates with their names and tones, on an axis that has zero.

    Args:
        label: What is shown.
        rows: The estimates.
        form: How a mean is written; with a sign, zero is marked.
    """
    ends = [end for _, one, _ in rows for end in (one.mean, one.low, one.high) if end is not None]
    scale = Scale.over([*ends, 0.0])
    marks = tuple(
        Mark(
            name,
            scale.at(one.mean),
            scale.at(one.mean if one.low is None else one.low),
            scale.at(one.mean if one.high is None else one.high),
            format(one.mean, form),
            tone,
        )
        for name, one, tone in rows
    )
    return IntervalChart(label, scale, marks, scale.at(0.0) if form.startswith("+") else None)


def _map_title(item_map: ReportMap) -> str:
    colours = f", coloured by {item_map.column}" if item_map.column else ""
    marked = f"; marked: user {item_map.user_id}" if item_map.user_id else ""
    return f"Map of {item_map.num_shown:,} of {item_map.num_items:,} items{colours}{marked}"


def _in_percent(estimate: Estimate) -> Estimate:
    low, high = (None if end is None else 100 * end for end in (estimate.low, estimate.high))
    return Estimate(100 * estimate.mean, low, high)


def _tone(row: ReportRow) -> str:
    if row.lead is None:
        return "ours"
    return "bound" if row.is_bound else "other"


def spread(estimate: Estimate) -> str:
    """Return the bounds of an estimate in brackets; nothing where there are none."""
    return "" if estimate.low is None or estimate.high is None else f"[{estimate.low:.4f}, {estimate.high:.4f}]"


def _bounded(notes: Sequence[str]) -> list[str]:
    more = [f"{len(notes) - MOST_NOTES:,} more are in report.json."] if len(notes) > MOST_NOTES else []
    return [*notes[:MOST_NOTES], *more]
