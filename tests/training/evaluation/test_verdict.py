"""The verdict in two sentences: right for a clear lead, for none, and for a model that is behind."""

from __future__ import annotations

from training.evaluation.report_rows import Estimate, ReportRow
from training.evaluation.verdict import Verdict


def row(name: str, ndcg: float, lead: tuple[float, float] | None = None, *, is_bound: bool = False) -> ReportRow:
    metrics = {"ndcg_at_10": Estimate(ndcg), "recall_at_10": Estimate(2 * ndcg)}
    return ReportRow(name, metrics, {}, None if lead is None else Estimate(sum(lead) / 2, *lead), is_bound)


OURS = row("two towers", 0.1)


def said(*rows: ReportRow, part: str = "test") -> str:
    verdict = Verdict.of(rows, part)
    return f"{verdict.label}. {verdict.finding} {verdict.consequence}"


def test_a_clear_lead_is_called_so():
    rows = (OURS, row("popularity", 0.02, (0.07, 0.09)), row("EASE", 0.08, (0.01, 0.03)))
    assert said(*rows) == (
        "Clear lead. Two towers is ahead of all 2 baselines: its lead over the strongest, EASE, is 0.0200 in N@10 "
        "(+25%, 95 % interval +0.0100 to +0.0300). 20.0% of what was held out is among its first ten recommendations "
        "(R@10)."
    )
    assert said(OURS, rows[2], row("best possible", 0.2, (-0.1, -0.1), is_bound=True), part="validation") == (
        "Clear lead. Two towers is ahead of EASE by 0.0200 in N@10 (+25%, 95 % interval +0.0100 to +0.0300). 20.0% of "
        "what was held out is among its first ten recommendations (R@10), which is 50% of best possible; these "
        "questions also chose the settings, so the figures are somewhat too high."
    )


def test_a_lead_whose_interval_holds_zero_is_none():
    rows = (
        OURS,
        row("popularity", 0.02, (0.07, 0.09)),
        row("EASE", 0.08, (-0.01, 0.05)),
        row("iALS", 0.09, (-0.01, 0.03)),
    )
    assert said(*rows) == (
        "No clear lead. In N@10, two towers is not distinguishable from iALS (+0.0100, 95 % interval "
        "-0.0100 to +0.0300), nor from EASE. These questions give no reason to prefer it for its quality: improve the "
        "model, or measure again with more questions or seeds."
    )


def test_a_model_that_is_behind_is_not_to_be_served():
    rows = (OURS, row("EASE", 0.125, (-0.04, -0.01)), row("iALS", 0.2, (-0.12, -0.08)), row("mix", 0.1, (-0.01, 0.01)))
    assert said(*rows) == (
        "Behind a baseline. Two towers is behind iALS by 0.1000 in N@10 (-50%, 95 % interval -0.1200 to -0.0800); it "
        "is also behind EASE. As it is, iALS is the better recommender: improve the model before serving it."
    )


def test_without_baselines_nothing_is_claimed():
    assert said(OURS) == (
        "No baselines. Two towers was evaluated without a baseline, so that nothing says whether it is worth its cost. "
        "20.0% of what was held out is among its first ten recommendations (R@10)."
    )
