"""What `model.evaluate(output=...)` and `towers evaluate --output` left: by slice, and next to another evaluation."""

from __future__ import annotations

import os
from pathlib import Path

from towers.api.errors import plain_errors
from training.audit.comparison_report import ComparisonReport
from training.audit.ranks import Ranks
from training.audit.report import AuditReport
from training.tasks.compare import comparison_of


@plain_errors
def audit(evaluation: str | os.PathLike[str], *, recommender: str | None = None, min_support: int = 30) -> AuditReport:
    """Find the slices in which a recommender is worst, as `towers audit` does.

    Args:
        evaluation: The folder of an evaluation; nothing is written there.
        recommender: The recommender to audit, as named in the report. None: the model.
        min_support: Minimum number of queries of a slice, from 1 on; smaller ones are merged.

    Returns:
        The audit, which prints the worst slices and has `whole`, `worst`, `slices` and `write(folder)`.

    Raises:
        DataError: The folder has no ranks, there is no such recommender, or the tables cannot be read any more.
    """
    return AuditReport.of(Ranks.read(Path(evaluation)), recommender, min_support)


@plain_errors
def compare(first: str | os.PathLike[str], *others: str | os.PathLike[str], min_support: int = 30) -> ComparisonReport:
    """Compare evaluations with the first, or bundles, on the same questions, as `towers compare` does.

    Args:
        first: The folder of an evaluation, or of a bundle; nothing is written there.
        *others: Folders of the same kind.
        min_support: Minimum number of queries of a slice.

    Returns:
        The comparison, which prints differences with paired intervals and has `to_frame()` and `write(folder)`.

    Raises:
        DataError: There is no other, or they were not evaluated on the same questions.
        BundleError: A bundle cannot be used.
    """
    return comparison_of([Path(first), *map(Path, others)], min_support)
