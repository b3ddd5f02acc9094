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
from training.evaluation.advice import Advice
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import METRICS, Metric, bootstrap_interval, metrics_per_question
from training.evaluation.report import Estimate, EvaluationReport


def evaluation(
    name: str, ranks: list[int], coverage: float = 0.5, cutoffs: tuple[int, ...] = (10, 50, 100)
) -> Evaluation:
    offsets = np.arange(len(ranks) + 1)
    values = metrics_per_question(np.array(ranks), offsets, cutoffs)
    users = np.arange(len(ranks))
    return Evaluation(name, np.array(ranks), offsets, values, {"coverage_at_10": coverage}, 1_234, users)


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
    assert ours.metrics["ndcg_at_10"].low == bootstrap_interval(OURS.per_question["ndcg_at_10"][:, None])[0][0]
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


def test_the_table_marks_what_is_ahead_of_all_others_and_leaves_limits_out():
    # Ten times the same four questions, of which two are equally hard for both: the lead is sure in some metrics.
    ours, popular, oracle = (
        evaluation(name, [*ranks] * 10, coverage)
        for name, ranks, coverage in (
            ("two towers", [1, 1, 2, 20], 0.4),
            ("popularity", [3, 50, 2, 20], 0.6),
            ("best possible", [1, 1, 1, 1], 0.5),
        )
    )
    report = EvaluationReport.of("time", "test", {0: [ours, popular, oracle]}, bounds=["best possible"])
    lines = report.to_text().splitlines()
    assert lines[0] == "time · test · 40 questions · all 1,234 items ranked · seed 0"
    assert lines[2].split() == ["R@10", "N@10", "MRR@10", "R@50", "cov@10", "lead", "in", "N@10"]
    rows = {line[:13].strip(): line for line in lines[4:7]}
    assert re.findall(r"[\d.]+\*", rows["two towers"]) == [
        f"{report.rows[0].metrics[name].margin:.4f}*" for name in ("recall_at_10", "ndcg_at_10", "mrr_at_10")
    ]
    # Both find everything in 50: a draw is no lead; coverage has no interval, so no lead in it is known.
    assert "*" not in rows["popularity"]
    assert "*" not in rows["best possible"]
    assert report.rows[0].ahead_in == ("recall_at_10", "ndcg_at_10", "mrr_at_10", "ndcg_at_50", "mrr_at_50", *MORE)
    page = re.findall(r'class="best"[^>]*>\s*([\d.]+)', report.to_html())
    assert page == [f"{report.rows[0].metrics[name].mean:.4f}" for name in ("recall_at_10", "ndcg_at_10", "mrr_at_10")]


MORE = ("ndcg_at_100", "mrr_at_100")


def test_the_best_mean_is_not_marked_where_the_lead_is_not_clear_of_zero():
    ours, other = evaluation("two towers", [1, 2, 2, 9]), evaluation("EASE", [2, 1, 3, 9])
    report = EvaluationReport.of("time", "test", {0: [ours, other]})
    assert report.rows[0].metrics["mrr_at_10"].mean > report.rows[1].metrics["mrr_at_10"].mean
    assert [row.ahead_in for row in report.rows] == [(), ()]
    text = report.to_text()
    assert "*" not in text
    assert re.search(r"EASE .* \+0\.0327 ±0\.\d{4} ≈$", text, re.MULTILINE)
    assert "≈ not distinguishable" in text
    assert text.splitlines()[0] == "Not ahead of every baseline: in N@10 EASE is not distinguishable from two towers."


def test_the_text_says_how_far_ahead_and_how_near_the_limit(report: EvaluationReport):
    text = report.to_text()
    assert re.search(r"^popularity .* \+0\.3750 ±0\.\d{4} ≈$", text, re.MULTILINE)
    many = [evaluation(one.name, one.ranks.tolist() * 10) for one in (OURS, POPULAR)]
    sure = EvaluationReport.of("users", "test", {0: many}).to_text()
    assert re.search(r"^popularity .* \+0\.3750 ±0\.\d{4}$", sure, re.MULTILINE)
    assert "two towers reaches 75% of the R@10 of best possible" in text
    assert "± half the 95 % interval over the questions; what another seed changes is not in it" in text
    assert text.endswith("\nA sentence.")


def test_a_model_that_loses_is_told_so():
    ours, popular, cosine = (
        evaluation(name, ranks * 10)
        for name, ranks in (("two towers", [1, 1, 2, 20]), ("popularity", [3, 50, 2, 20]), ("cosine", [50, 3, 2, 20]))
    )
    advice = Advice("popularity is popular:", "towers train run.toml --set training.patience=4")
    asked: list[list[str]] = []
    report = EvaluationReport.of(
        "users", "validation", {0: [popular, ours, cosine]}, advise=lambda names: asked.append(names) or (advice,)
    )
    text = report.to_text()
    assert re.search(r"^two towers .* -0\.3750 ±0\.\d{4}$", text, re.MULTILINE)
    first, headline, *_ = text.splitlines()
    level = "cosine is not distinguishable from it"
    assert first == f"Not ahead of every baseline: in N@10 two towers is ahead of popularity, and {level}."
    assert headline.endswith("seed 0 · chosen on these questions")
    assert asked == [["two towers", "cosine"]]
    assert text.endswith(f"To try next, the likeliest to help first:\n- {advice.reason}\n    {advice.command}")
    assert "<b>Behind a baseline.</b> Popularity is behind two towers by 0.3750 in N@10" in report.to_html()
    assert f"<code>{advice.command}</code>" in report.to_html()
    assert EvaluationReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    # A model that is ahead of everything needs no advice.
    assert EvaluationReport.of("users", "test", {0: [ours, popular]}, advise=lambda names: (advice,)).advice == ()


def test_notes_on_how_a_baseline_was_fitted_are_on_the_page_and_not_in_the_terminal():
    ours, other = evaluation("two towers", [1, 2, 2, 9]), evaluation("EASE", [2, 1, 3, 9])
    notes = ["EASE: regularisation 100.", "seed 0, 1: EASE: regularisation 300.", "iALS is left out: too slow."]
    report = EvaluationReport.of("time", "test", {0: [ours, other]}, notes=notes)
    text, page = report.to_text(), report.to_html()
    assert "iALS is left out: too slow." in text
    assert "regularisation" not in text
    assert "The hyperparameters of the baselines are in report.html and report.json." in text
    assert all(note in page for note in notes)
    assert EvaluationReport.from_dict(report.to_dict()).notes == tuple(notes)


def test_no_name_is_cut_in_the_terminal():
    rows = [evaluation(name, [1, 2, 3]) for name in ("two towers", "popularity (end of training)")]
    lines = EvaluationReport.of("time", "test", {0: rows}).to_text().splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("popularity (end of"))
    assert lines[at + 1] == "  training)"


def test_slices_are_a_table_of_their_own(report: EvaluationReport):
    lines = report.to_text().splitlines()
    start = lines.index("N@10 apart, with the number of questions")
    assert lines[start + 2].split("  ")[-1] == "cold users (2)"
    # The ranks 2 and 20: 0.63093 / 2
    assert lines[start + 4].startswith("two towers")
    assert "0.3155 ±" in lines[start + 4]


def test_the_interval_over_seeds_holds_the_questions_as_well():
    ranks = np.random.default_rng(0).integers(1, 40, 200)
    runs = {
        seed: [evaluation("two towers", (ranks + seed).tolist()), evaluation("popularity", (ranks + 4).tolist())]
        for seed in (0, 1, 2)
    }
    report = EvaluationReport.of("users", "test", runs)
    estimate, lead = report.rows[0].metrics["recall_at_10"], report.rows[1].lead
    assert estimate.mean == pytest.approx(np.mean([(ranks + seed <= 10).mean() for seed in runs]))
    over_questions = EvaluationReport.of("users", "test", {0: runs[0]}).rows[0].metrics["recall_at_10"]
    means = [run[0].means["recall_at_10"] for run in runs.values()]
    # Student's t of two degrees of freedom, 4.30, times the standard error of three seeds
    over_seeds = 4.30 * np.std(means, ddof=1) / np.sqrt(3)
    assert max(over_questions.margin, over_seeds) < estimate.margin < 1.1 * np.hypot(over_questions.margin, over_seeds)
    assert lead.mean == pytest.approx(estimate_of(runs))
    assert lead.low < lead.mean < lead.high
    assert report.seeds == (0, 1, 2)
    assert "± half the 95 % interval over the questions and 3 seeds" in report.to_text()


def estimate_of(runs: dict[int, list[Evaluation]]) -> float:
    return float(np.mean([ours.means["ndcg_at_10"] - other.means["ndcg_at_10"] for ours, other in runs.values()]))


def test_seeds_may_ask_different_numbers_of_questions():
    runs = {0: [evaluation("two towers", [1, 2, 3])], 1: [evaluation("two towers", [1, 2])]}
    report = EvaluationReport.of("cold-items", "test", runs)
    assert report.headline == "cold-items · test · 2 to 3 questions · all 1,234 items ranked · 2 seeds"


@pytest.mark.parametrize("protocol", ["time", "users"])
def test_the_table_fits_a_terminal_whatever_the_names(protocol: str):
    cutoffs = (10, 20, 50, 100)
    rows = [evaluation(name, [1, 2, 3], cutoffs=cutoffs) for name in ("a recommender with a very long name " * 2, "b")]
    for runs in ({0: rows}, {0: rows, 1: rows}):
        assert max(map(len, EvaluationReport.of(protocol, "test", runs).to_text().splitlines()[:8])) <= 120


def test_people_who_were_held_out_are_judged_as_in_the_literature():
    ours = evaluation("two towers", [1, 15, 60], cutoffs=(10, 20, 50, 100))
    report = EvaluationReport.of("users", "test", {0: [ours]})
    lines = report.to_text().splitlines()
    assert lines[2].split() == ["R@10", "N@10", "R@50", "N@100", "cov@10"]
    # One of three in the first ten, two in the first twenty and fifty. N@10 is 1/3 for the first alone, and N@100
    # (1 + 1/log2(16) + 1/log2(61)) / 3 = (1 + 0.25 + 0.16862) / 3 = 0.47287.
    found = re.findall(r"(?<!±)0\.\d{4}", lines[4])
    assert found == ["0.3333", "0.3333", "0.6667", "0.4729", "0.5000"]
    assert "0.6667" in report.to_html()
    assert all(f"<th>{name}</th>" in report.to_html() for name in ("R@20", "R@50", "N@100"))


def test_the_page_is_well_formed_stands_alone_and_escapes_names(tmp_path: Path):
    class Reader(HTMLParser):
        open: list[str] = []  # noqa: RUF012
        cells: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            assert "src" not in dict(attrs)
            if tag != "meta":
                self.open.append(tag)

        def handle_startendtag(self, tag, attrs):
            assert tag in ("line", "circle", "rect")

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


def test_the_margin_is_half_the_interval():
    assert Estimate(0.5).margin is None
    assert Estimate(0.5, 0.4, 0.7).margin == pytest.approx(0.15)
    assert not Estimate(0.5).is_above_zero
    assert [Estimate(0.1, *ends).is_above_zero for ends in ((0.05, 0.2), (0.0, 0.2), (-0.1, 0.2))] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"report\.json: not valid JSON .*; make the report again"),
        ("[]", r"report: not a report of an evaluation .*; make the report again"),
        ('{"format": 2}', r"report: not a report of an evaluation \(KeyError\('protocol'\)\)"),
        ('{"format": 1}', r"report: expected format 2, found 1; make the report again"),
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
    assert row.split()[-2:] == ["0.0200", "±0.0000"]
    assert "<th>P@50</th>" in report.to_html()
    assert "reciprocal rank of the first target, P precision, cov share" in report.to_html()
