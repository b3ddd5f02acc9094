"""`towers audit`: compute metrics by slice, print and record the worst, and check the conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from training.audit.ranks import Ranks
from training.audit.report import PAGE, TABLE, AuditReport
from training.audit.slices import WHOLE
from training.audit.thresholds import Checked, Threshold
from training.runs.progress import start_tracking


def audit_run(evaluation: Path, gates: Sequence[str], *, recommender: str | None, min_support: int, show: int) -> bool:
    """Audit what an evaluation found, and return whether it passes all gates.

    Args:
        evaluation: The folder that `towers evaluate --output` wrote; the audit is written into it.
        gates: What must not be, a line each.
        recommender: Whose judgement. None: that of the one in question.
        min_support: Questions that a slice needs.
        show: Number of slices to print, the worst first.

    Raises:
        DataError: A gate cannot be read, the folder holds no ranks, or the tables do not go with them.
    """
    parsed = [Threshold.parse(gate) for gate in gates]
    audit = AuditReport.of(Ranks.read(evaluation), recommender, min_support)
    checked = [gate.check(audit.slices, min_support) for gate in parsed]
    audit = replace(audit, gates=tuple(checked))
    audit.write(evaluation)
    click.echo(audit.to_text(show))
    click.echo(f"\n{evaluation / PAGE} and {TABLE} written")
    _record(audit, evaluation)
    for gate in checked:
        _report(gate)
    return all(gate.passes for gate in checked)


def _record(audit: AuditReport, evaluation: Path) -> None:
    """Record the slices in MLflow, as a run of their own."""
    about = audit.about
    tags = {**about.digests, "protocol": about.protocol, "part": about.part, "recommender": audit.recommender}
    name, folder = f"audit {about.protocol}", Path(about.tables_folder)
    with start_tracking(about.settings, name, tags, folder=folder) as tracker:
        tracker.log_metrics({f"slice/{name}": value for name, value in audit.metrics().items()}, step=0)
        for name in (PAGE, TABLE):
            tracker.log_artifact(evaluation / name, "audit")


def _report(gate: Checked) -> None:
    """Print how a gate went."""
    if gate.passes:
        click.echo(f"gate holds: {gate.text}", err=True)
    for row in gate.failures.itertuples(index=False):
        where = "" if row.facet == WHOLE else f" in {row.facet}={row.value}"
        click.echo(f"gate fails: {gate.text}: {row.found:.4f}{where} ({row.questions:,} questions)", err=True)
