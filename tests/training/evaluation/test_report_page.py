"""The page of a report: every part of it, escaped, from one file that loads nothing and is never large."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from html import unescape
from html.parser import HTMLParser
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints
from xml.etree import ElementTree

import pytest

from training.evaluation.advice import Advice
from training.evaluation.details import CurvePoint, LearningCurve, ReportDetails
from training.evaluation.report import EvaluationReport
from training.evaluation.report_page import MOST_NOTES, curve_charts, lead_chart
from training.evaluation.report_rows import Estimate, ReportRow

EVIL = '<script>alert("&")</script>'
VOID = ("meta", "br", "wbr")
SHAPE = re.compile(r'<line class="(?:whisker|path)[^>]*>|<circle cx="[^>]*>')


def filled(kind: Any, name: str, count: int = 2) -> Any:
    """A value of a type, each text of it with the name of its field and what a page must escape."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{field.name: filled(hints[field.name], f"{name}.{field.name}") for field in fields(kind)})
    if get_origin(kind) is tuple:
        return tuple(filled(get_args(kind)[0], name) for _ in range(count))
    if get_origin(kind) is UnionType:
        return filled(get_args(kind)[0], name)
    return {str: f"{name} {EVIL}", int: 3, float: 0.25, bool: True}[kind]


def row(name: str, ndcg: float, lead: Estimate | None = None) -> ReportRow:
    metrics = {f"{one}_at_10": Estimate(ndcg, ndcg - 0.01, ndcg + 0.01) for one in ("ndcg", "recall", "mrr")}
    return ReportRow(name, metrics | {"coverage_at_10": Estimate(0.5)}, {}, lead)


def report(details: ReportDetails | None, notes: tuple[str, ...] = ()) -> EvaluationReport:
    rows = (row(f"ours {EVIL}", 0.2), row(f"other {EVIL}", 0.25, Estimate(-0.05, -0.07, -0.03)))
    advice = (Advice(f"reason {EVIL}", f"command {EVIL}"),)
    return EvaluationReport("time", "test", (500,), 1_000, (0,), rows, notes, advice, details)


@pytest.fixture(scope="module")
def page() -> str:
    return report(filled(ReportDetails, "details"), (f"note {EVIL}", f"other {EVIL}: 300")).to_html()


class Reader(HTMLParser):
    """The tags that are open, and the places that the page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names.add(given.get("id") or "")
        self.links.add((given.get("href") or "#")[1:])
        self.loaded += [tag] if "src" in given or tag in ("link", "script", "img", "iframe", "image", "use") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(page: str):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.loaded == []
    assert reader.links <= reader.names
    assert not re.search(r"https?:|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_every_text_is_shown_and_escaped(page: str):
    assert "<script" not in page
    shown = unescape(page)
    texts = [f"{where} {EVIL}" for where in ("ours", "other", "note", "reason", "command")]
    found = set(re.findall(r"details[\w.]*(?= <script>)", shown))
    assert all(text in shown for text in texts)
    assert found == {
        "details.title", "details.made", "details.run.label", "details.run.text", "details.settings.name",
        "details.settings.value", "details.settings.default", "details.other_name", "details.slices.facet",
        "details.slices.value", "details.popularity.label", "details.most_shown.title", "details.ranks.label",
        "details.people.user_id", "details.people.attributes.label", "details.people.attributes.text",
        "details.people.history", "details.people.recommended.title", "details.people.held_out.title",
        "details.near_misses.user_id", "details.near_misses.attributes.label", "details.near_misses.attributes.text",
        "details.near_misses.history", "details.near_misses.recommended.title", "details.near_misses.held_out.title",
        "details.failures.user_id", "details.failures.attributes.label", "details.failures.attributes.text",
        "details.failures.history", "details.failures.recommended.title", "details.failures.held_out.title",
        "details.item_map.column", "details.item_map.user_id", "details.item_map.groups.value",
        "details.item_map.groups.points.title", "details.item_map.history.title", "details.item_map.recommended.title",
        "details.item_map.held_out.title", "details.data.label", "details.data.text",
        "details.tables.name", "details.tables.digest",
        "details.tables.columns.name", "details.tables.columns.role", "details.warnings",
    }  # fmt: skip


def test_the_verdict_comes_before_everything_else(page: str):
    verdict = page.index('<div class="verdict behind">')
    assert all(verdict < page.index(other) for other in ("<table", "<svg", "<nav", "To try next"))


def test_every_picture_is_a_file_of_its_own_that_loads_nothing_and_shows_the_same():
    points = (CurvePoint(0, None, 0.1), CurvePoint(1, 2.0, 0.3), CurvePoint(2, 1.0, 0.2))
    details = replace(filled(ReportDetails, "details"), curves=(LearningCurve(0, points, 1),))
    made = report(details)
    plots, page = made.plots(), made.to_html()
    names = ("metrics", "leads", "quality_by_epoch", "loss_by_epoch", "scores", "item_map")
    assert set(plots) == {f"{name}.svg" for name in names}
    for picture in plots.values():
        root = ElementTree.fromstring(picture)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(r"<script|url\(|@import|href", picture)
        shapes = SHAPE.findall(picture)
        assert shapes
        assert set(shapes) <= {*SHAPE.findall(page)}
    assert plots["item_map.svg"].count('class="ground') == len(details.item_map.groups)
    assert set(report(None).plots()) == {"metrics.svg", "leads.svg"}


def test_as_markdown_it_is_a_narrow_table_whose_cells_are_escaped():
    rows = (row("ours", 0.2), row("a|b", 0.25, Estimate(-0.05, -0.07, -0.03)))
    text = EvaluationReport("time", "test", (500,), 1_000, (0,), rows, ("a note",)).to_markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == [
        "|  | N@10 | R@10 | lead in N@10 |",
        "| --- | ---: | ---: | ---: |",
        "| ours | 0.2000 ±0.0100 | 0.2000 ±0.0100 | – |",
        "| a\\|b | 0.2500 ±0.0100 | 0.2500 ±0.0100 | -0.0500 ±0.0200 |",
    ]
    assert text.startswith("Not ahead of every baseline")
    assert "\n\na note\n\n" in text


def test_many_notes_are_cut_and_counted():
    page = report(None, tuple(f"note {number}" for number in range(1_000))).to_html()
    assert page.count("<p>note ") == MOST_NOTES
    assert f"{1_000 - MOST_NOTES} more are in report.json." in page


def test_without_details_there_is_what_the_json_has():
    page = report(None).to_html()
    assert 'id="baselines"' in page
    assert "<nav" not in page
    assert 'id="people"' not in page


def test_the_leads_are_coloured_by_what_is_certain():
    rows = [row("ours", 0.2)] + [row(name, 0.1, Estimate((low + high) / 2, low, high)) for name, low, high in LEADS]
    chart = lead_chart(rows)
    assert chart is not None
    assert [(mark.name, mark.tone) for mark in chart.marks] == [("a", "ahead"), ("b", "level"), ("c", "behind")]
    assert all(mark.low < mark.at < mark.high for mark in chart.marks)
    assert chart.zero is not None
    assert chart.marks[1].low < chart.zero < chart.marks[1].high
    assert lead_chart(rows[:1]) is None


LEADS = (("a", 0.01, 0.03), ("b", -0.01, 0.02), ("c", -0.03, -0.01))


def test_a_curve_of_one_point_is_no_chart_and_the_best_epoch_is_marked():
    assert curve_charts([LearningCurve(0, (CurvePoint(1, 2.0, 0.1),), 1)]) == []
    points = (CurvePoint(0, None, 0.1), CurvePoint(1, 2.0, 0.3), CurvePoint(2, 1.0, 0.2))
    quality, loss = curve_charts([LearningCurve(0, points, 1, (2,))])
    assert len(quality.lines[0].points) == 3
    assert len(loss.lines[0].points) == 2
    assert quality.best == (quality.lines[0].points[1],)
    assert loss.best == ()
    assert quality.decays == (100.0,)
