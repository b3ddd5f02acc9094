"""The verdict on an evaluation in two sentences: is the recommender better than the baselines, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.evaluation.report_rows import PRIMARY_METRIC, SHARE_METRIC, Estimate, ReportRow, Standing, label_of

LABELS: dict[Standing | None, str] = {
    "ahead": "Clear lead",
    "level": "No clear lead",
    "behind": "Behind a baseline",
    None: "No baselines",
}


@dataclass(frozen=True)
class Verdict:
    """What an evaluation found.

    Attributes:
        standing: `behind` if the recommender is behind any baseline, else `level` if it is not distinguishable from
            one, else `ahead`; None without baselines.
        finding: The first sentence: how it stands against the strongest baselines that it does not beat, or against
            the strongest of all.
        consequence: The second: how good that is, or what to do.
    """

    standing: Standing | None
    finding: str
    consequence: str

    @property
    def label(self) -> str:
        """The verdict in two or three words."""
        return LABELS[self.standing]

    @classmethod
    def of(cls, rows: Sequence[ReportRow], part: str) -> Verdict:
        """Return the verdict on the first of the rows.

        Args:
            rows: The evaluated recommender, then the baselines and the upper bounds.
            part: `test`, or `validation`, whose questions also chose the settings.
        """
        baselines = sorted((row for row in rows if row.standing), key=lambda row: -row.metrics[PRIMARY_METRIC].mean)
        behind, level = ([row for row in baselines if row.standing == one] for one in ("behind", "level"))
        too_high = "; these questions also chose the settings, so the figures are somewhat too high"
        caveat = too_high if part == "validation" else ""
        if behind:
            advice = f"As it is, {behind[0].name} is the better recommender: improve the model before serving it"
            return cls("behind", _behind(rows[0], behind), f"{advice}{caveat}.")
        if level:
            advice = "These questions give no reason to prefer it for its quality: improve the model, or measure again"
            return cls("level", _level(rows[0], level), f"{advice} with more questions or seeds{caveat}.")
        if baselines:
            return cls("ahead", _ahead(rows[0], baselines), f"{_quality(rows)}{caveat}.")
        alone = (
            f"{_named(rows[0])} was evaluated without a baseline, so that nothing says whether it is worth its cost."
        )
        return cls(None, alone, f"{_quality(rows)}{caveat}.")


def _ahead(ours: ReportRow, baselines: Sequence[ReportRow]) -> str:
    strongest = baselines[0]
    if not baselines[1:]:
        return f"{_named(ours)} is ahead of {strongest.name} by {_distance(strongest)}."
    return (
        f"{_named(ours)} is ahead of all {len(baselines)} baselines: its lead over the strongest, {strongest.name}, is "
        f"{_distance(strongest)}."
    )


def _behind(ours: ReportRow, others: Sequence[ReportRow]) -> str:
    also = f"; it is also behind {listed([row.name for row in others[1:]])}" if others[1:] else ""
    return f"{_named(ours)} is behind {others[0].name} by {_distance(others[0])}{also}."


def _level(ours: ReportRow, others: Sequence[ReportRow]) -> str:
    also = f", nor from {listed([row.name for row in others[1:]])}" if others[1:] else ""
    lead = _lead_of(others[0])
    found = f"In {label_of(PRIMARY_METRIC)}, {ours.name} is not distinguishable from {others[0].name}"
    return f"{found} ({lead.mean:+.4f}, 95 % interval {span(lead)}){also}."


def _distance(other: ReportRow) -> str:
    """Return how far apart the first row and another are: absolutely, in percent, and between which bounds."""
    lead, theirs = _lead_of(other), other.metrics[PRIMARY_METRIC].mean
    percent = f"{lead.mean / theirs:+.0%}, " if theirs > 0 else ""
    return f"{abs(lead.mean):.4f} in {label_of(PRIMARY_METRIC)} ({percent}95 % interval {span(lead)})"


def _quality(rows: Sequence[ReportRow]) -> str:
    ours = rows[0].metrics[SHARE_METRIC].mean
    bounds = [row for row in rows if row.is_bound and row.metrics[SHARE_METRIC].mean > 0]
    limits = listed([f"{ours / row.metrics[SHARE_METRIC].mean:.0%} of {row.name}" for row in bounds]) if bounds else ""
    among = f"{ours:.1%} of what was held out is among its first ten recommendations ({label_of(SHARE_METRIC)})"
    return f"{among}, which is {limits}" if limits else among


def _lead_of(row: ReportRow) -> Estimate:
    assert row.lead is not None, "every row but the first has one"
    return row.lead


def _named(row: ReportRow) -> str:
    return row.name[:1].upper() + row.name[1:]


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence.

    Example:
        >>> listed(["EASE", "iALS", "popularity"])
        'EASE, iALS and popularity'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def span(estimate: Estimate) -> str:
    """Return the bounds of an estimate, signed; nothing where there are none."""
    return "" if estimate.low is None or estimate.high is None else f"{estimate.low:+.4f} to {estimate.high:+.4f}"
