"""The report says what was measured: the best marked, the doubt beside the number, nothing lost on the way to disk."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from features.errors import DataError
from training.evaluation import report as report_module
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import METRICS, Metric, metrics_per_question
from training.evaluation.report import Estimate, EvaluationReport


def evaluation(
    name: str, ranks: list[int], coverage: float = 0.5, cutoffs: tuple[int, ...] = (10, 50, 100)
) -> Evaluation:
    offsets = np.arange(len(ranks) + 1)
    values = metrics_per_question(np.array(ranks), offsets, cutoffs)
    return Evaluation(name, np.array(ranks), offsets, values, {"coverage_at_10": coverage}, num_candidates=1_234)


OURS = evaluation("two towers", [1, 1, 2, 20], coverage=0.4)
POPULAR = evaluation("popularity", [3, 50, 2, 20], coverage=0.6)
ORACLE = evaluation("best possible", [1, 1, 1, 1])


@pytest.fixture
def report() -> EvaluationReport:
    slices = {0: {"two towers": {"cold users": OURS.only(np.array([False, False, True, True]))}}}
    return EvaluationReport.of(
        "time", "test", {0: [OURS, POPULAR, ORACLE]}, slices=slices, bounds=["best possible"], notes=["A sentence."]
    )


def test_the_numbers_are_those_of_the_evaluations(report: EvaluationReport):
    ours, popular, oracle = report.rows
    # 3 of 4 in the first ten; (1 + 1 + 1/log2(3)) / 4 = 0.65773
    assert ours.metrics["recall_at_10"].mean == 0.75
    assert ours.metrics["ndcg_at_10"].mean == pytest.approx(0.65773, abs=1e-5)
    assert ours.metrics["ndcg_at_10"].low == OURS.intervals["ndcg_at_10"][0]
    assert (ours.lead, ours.is_bound, oracle.is_bound) == (None, False, True)
    assert popular.lead.mean == pytest.approx(0.65773 - (0.5 + 0.63093) / 4, abs=1e-5)
    assert (report.num_questions, report.num_candidates, report.seeds) == ((4,), 1_234, (0,))
    assert ours.slices["cold users"].num_questions == 2
    assert ours.slices["cold users"].metrics["recall_at_10"].mean == 0.5


def test_json_gives_the_same_report_back(report: EvaluationReport, tmp_path: Path):
    report.write(tmp_path)
    assert EvaluationReport.read(tmp_path / "report.json") == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    values = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert values["rows"][0]["metrics"]["recall_at_10"]["mean"] == 0.75


def test_the_table_marks_the_best_of_each_column_and_leaves_limits_out(report: EvaluationReport):
    lines = report.to_text().splitlines()
    assert lines[0] == "time · test · 4 questions · all 1,234 items ranked · seed 0"
    assert lines[2].split() == ["R@10", "N@10", "MRR@10", "R@50", "R@100", "cov@10"]
    rows = {line[:13].strip(): line for line in lines[4:7]}
    assert re.findall(r"[\d.]+\*", rows["two towers"]) == [
        f"{report.rows[0].metrics[name].margin:.4f}*"
        for name in ("recall_at_10", "ndcg_at_10", "mrr_at_10", "recall_at_50", "recall_at_100")
    ]
    # Both find everything in 50: a draw is marked twice; popularity has the better coverage.
    assert re.findall(r"[\d.]+\*", rows["popularity"]) == ["0.0000*", "0.0000*", "0.6000*"]
    assert "*" not in rows["best possible"]


def test_the_text_says_how_far_ahead_and_how_near_the_limit(report: EvaluationReport):
    text = report.to_text()
    assert re.search(
        r"^two towers is ahead of popularity by 0\.3750 in N@10, \[0\.\d{4}, 0\.\d{4}\]$", text, re.MULTILINE
    )
    assert "two towers reaches 75% of the R@10 of best possible" in text
    assert "± half the 95 % bootstrap interval over the questions" in text
    assert text.endswith("\nA sentence.")


def test_a_model_that_loses_is_told_so():
    text = EvaluationReport.of("users", "test", {0: [POPULAR, OURS]}).to_text()
    assert "popularity is behind two towers by 0.3750 in N@10" in text


def test_slices_are_a_table_of_their_own(report: EvaluationReport):
    lines = report.to_text().splitlines()
    start = lines.index("N@10 apart, with the number of questions")
    assert lines[start + 2].split("  ")[-1] == "cold users (2)"
    # The ranks 2 and 20: 0.63093 / 2
    assert lines[start + 4].startswith("two towers")
    assert "0.3155 ±" in lines[start + 4]


def test_seeds_are_averaged_with_their_standard_deviation():
    runs = {0: [OURS, POPULAR], 7: [POPULAR, OURS]}
    renamed = {7: [evaluation("two towers", [3, 50, 2, 20]), evaluation("popularity", [1, 1, 2, 20])]}
    report = EvaluationReport.of("users", "test", {**runs, **renamed})
    # 0.75 and 0.5: mean 0.625, deviations 0.125, so sqrt(2 * 0.125²) = 0.17678
    estimate = report.rows[0].metrics["recall_at_10"]
    assert (estimate.mean, estimate.low) == (0.625, None)
    assert estimate.sd == pytest.approx(0.17678, abs=1e-5)
    assert report.rows[1].lead.mean == pytest.approx(0)
    assert report.seeds == (0, 7)
    assert "± standard deviation between 2 seeds" in report.to_text()
    assert "0.6250 ±0.1768" in report.to_text()


def test_seeds_may_ask_different_numbers_of_questions():
    runs = {0: [evaluation("two towers", [1, 2, 3])], 1: [evaluation("two towers", [1, 2])]}
    report = EvaluationReport.of("cold-items", "test", runs)
    assert report.headline == "cold-items · test · 2 to 3 questions · all 1,234 items ranked · 2 seeds"


@pytest.mark.parametrize("protocol", ["time", "users"])
def test_the_table_fits_a_terminal_whatever_the_names(protocol: str):
    cutoffs = (10, 20, 50, 100)
    rows = [evaluation(name, [1, 2, 3], cutoffs=cutoffs) for name in ("a recommender with a very long name " * 2, "b")]
    for runs in ({0: rows}, {0: rows, 1: rows}):
        assert max(map(len, EvaluationReport.of(protocol, "test", runs).to_text().splitlines()[:6])) <= 120


def test_people_who_were_held_out_are_judged_as_in_the_literature():
    ours = evaluation("two towers", [1, 15, 60], cutoffs=(10, 20, 50, 100))
    report = EvaluationReport.of("users", "test", {0: [ours]})
    lines = report.to_text().splitlines()
    assert lines[2].split() == ["R@10", "N@10", "R@20", "R@50", "N@100", "cov@10"]
    # One of three in the first ten, two in the first twenty and fifty. N@10 is 1/3 for the first alone, and N@100
    # (1 + 1/log2(16) + 1/log2(61)) / 3 = (1 + 0.25 + 0.16862) / 3 = 0.47287.
    found = re.findall(r"(?<!±)0\.\d{4}", lines[4])
    assert found == ["0.3333", "0.3333", "0.6667", "0.6667", "0.4729", "0.5000"]
    assert all(f"<th>{name}</th>" in report.to_html() for name in ("R@20", "R@50", "N@100"))


def test_the_page_is_well_formed_stands_alone_and_escapes_names(tmp_path: Path):
    class Reader(HTMLParser):
        open: list[str] = []  # noqa: RUF012
        cells: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            assert not {"src", "href"} & {name for name, _ in attrs}
            if tag != "meta":
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            if self.open and self.open[-1] in ("td", "th"):
                self.cells.append(data)

    EvaluationReport.of("time", "test", {0: [evaluation("<b>ours & theirs", [1, 2])]}).write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert "<b>ours & theirs" in reader.cells
    assert "http" not in page


def test_flat_metrics_have_names_that_a_tracking_server_takes(report: EvaluationReport):
    metrics = report.metrics()
    assert metrics["recall_at_10"] == 0.75
    assert metrics["baseline/popularity/recall_at_10"] == 0.5
    assert metrics["cold users/recall_at_10"] == 0.5
    assert all(re.fullmatch(r"[\w\-. /]+", name) for name in metrics)


def test_an_estimate_prefers_the_deviation_between_seeds():
    assert Estimate(0.5).margin is None
    assert Estimate(0.5, 0.4, 0.7).margin == pytest.approx(0.15)
    assert Estimate(0.5, sd=0.01).margin == 0.01


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"report\.json: not valid JSON .*; make the report again"),
        ("[]", r"report: not a report of an evaluation .*; make the report again"),
        ('{"format": 1}', r"report: not a report of an evaluation \(KeyError\('protocol'\)\)"),
        ('{"format": 2}', r"report: expected format 1, found 2; make the report again"),
    ],
)
def test_what_is_no_report_is_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        EvaluationReport.read(tmp_path / "report.json")


def test_a_report_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"report\.json: no such file; `towers evaluate` writes one"):
        EvaluationReport.read(tmp_path / "report.json")


def test_runs_with_different_rows_are_our_own_mistake():
    with pytest.raises(AssertionError, match="not the same rows"):
        EvaluationReport.of("time", "test", {0: [OURS], 1: [POPULAR]})


def precision_at(ranks: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """Targets among the first k, divided by k."""
    return np.add.reduceat((ranks <= k) / k, offsets[:-1])


def test_a_metric_is_added_by_a_function_and_an_entry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METRICS, "precision", Metric("precision", precision_at, "P", "precision"))
    monkeypatch.setattr(report_module, "COLUMNS", (*report_module.COLUMNS, "precision_at_50"))
    ours = evaluation("two towers", [1, 1, 2, 20])
    part = ours.only(np.array([False, False, True, True]))
    report = EvaluationReport.of("time", "test", {0: [ours]}, slices={0: {"two towers": {"cold users": part}}})
    assert report.rows[0].metrics["precision_at_10"].mean == pytest.approx(0.075)
    assert report.metrics()["cold users/precision_at_10"] == pytest.approx(0.05)
    head, _, row = report.to_text().splitlines()[2:5]
    assert head.split()[-1] == "P@50"
    assert row.split()[-2:] == ["0.0200", "±0.0000*"]
    assert "<th>P@50</th>" in report.to_html()
    assert "reciprocal rank of the first target, P precision, cov share" in report.to_html()
