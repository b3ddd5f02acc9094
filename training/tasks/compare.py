"""`towers compare`: the paired differences of evaluations, or of bundles on the same held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from features.errors import DataError
from features.tables.tables import read_tables
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import MANIFEST
from towers.bundle.trust import Trust
from training.audit.comparison_report import PAGE, TABLE, ComparisonReport
from training.audit.paired import Paired
from training.audit.ranks import Ranks
from training.audit.slices import answer_facets
from training.tasks.held_out import HeldOut
from training.tasks.rank_bundles import rank_bundles

SELECTED = (
    "The questions are those that the training of {first} held out: they stopped it early, which favours it a little; "
    "the other bundles may have learned from some of their answers, which favours these."
)


def compare_runs(runs: Sequence[Path], output: Path, min_support: int) -> ComparisonReport:
    """Compare runs with the first, write the comparison and print it; arguments and errors as of `comparison_of`.

    Args:
        runs: The runs.
        output: Folder of the page and the table.
        min_support: Least number of questions of a slice.
    """
    report = comparison_of(runs, min_support)
    report.write(output)
    click.echo(report.to_text())
    click.echo(f"\n{output / PAGE} and {TABLE} written")
    return report


def comparison_of(runs: Sequence[Path], min_support: int) -> ComparisonReport:
    """Return the comparison of runs with the first.

    Args:
        runs: Folders that `towers evaluate --output` wrote, or bundles, which are evaluated on the questions that the
            training of the first held out.
        min_support: Least number of questions of a slice.

    Raises:
        BundleError: A bundle cannot be used.
        DataError: There are fewer than two runs, they are of both kinds, or were not evaluated on the same questions.
    """
    if len(runs) < 2:
        raise DataError(f"{runs[0]}: nothing to compare it with; give two runs or more")
    are_bundles = [(run / MANIFEST).is_file() for run in runs]
    if any(are_bundles) and not all(are_bundles):
        bundle, other = runs[are_bundles.index(True)], runs[are_bundles.index(False)]
        raise DataError(f"{bundle} is a bundle and {other} is not; compare bundles, or evaluations, with each other")
    ranks = _of_bundles(runs) if all(are_bundles) else [_of_evaluation(run) for run in runs]
    names = _names(runs)
    pairs = [Paired.of(ranks[0], other, [names[0], name]) for name, other in zip(names[1:], ranks[1:], strict=True)]
    about = ranks[0].about
    tables = read_tables(about.settings.features, Path(about.tables_folder))
    return ComparisonReport.of(
        names,
        pairs,
        tables,
        answer_facets(ranks[0], tables, about.settings.features, min_support),
        title=about.settings.features.title,
        min_support=min_support,
        notes=[SELECTED.format(first=names[0])] if all(are_bundles) else [],
    )


def _of_evaluation(run: Path) -> Ranks:
    """Return the ranks of the recommender in question."""
    ranks = Ranks.read(run)
    return ranks.of(ranks.recommenders[0])


def _of_bundles(runs: Sequence[Path]) -> list[Ranks]:
    bundles = [ModelBundle.open(run.resolve(), trust=Trust.from_environment()) for run in runs]
    return rank_bundles(HeldOut.of(bundles[0]), bundles)


def _names(runs: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as tell them apart."""
    paths = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise DataError(f"{runs[0]}: given twice; give each run once")
