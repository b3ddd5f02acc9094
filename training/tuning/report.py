"""What a tuning found: its trials, the best settings, and their gain; as JSON, text and HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from features.errors import DataError
from features.files import atomic_file
from training.evaluation.pages import render
from training.evaluation.report import PRIMARY_METRIC, EvaluationReport
from training.evaluation.text_table import aligned
from training.tuning.charts import history, parallel_coordinates, said_value
from training.tuning.space import Space, space_in_words
from training.tuning.study import TrialRecord

REPORT, PAGE = "report.json", "report.html"
TUNED, DEFAULT = "tuned", "run.toml"
"""Names of the two models in the comparison."""
CHOSEN = (
    "The settings were chosen on these questions, as the best of several trials, so that the lead is somewhat too "
    "high; the test questions chose nothing."
)
_FORMAT = 1


@dataclass(frozen=True)
class TuningReport:
    """What a tuning found.

    Attributes:
        settings: Name of the file that was tuned.
        records: The trials.
        best: The best of them.
        default: The trial of the settings as they are.
        space: What was searched, by `table.key`.
        importances: How much each setting decides the result, 0 to 1; empty for too few trials.
        validation: The tuned and the original settings on the validation questions; None: the original ones are best.
        test: The same on the test questions, which chose nothing.
        notes: What a reader should know, a sentence each.
    """

    settings: str
    records: tuple[TrialRecord, ...]
    best: TrialRecord
    default: TrialRecord
    space: Space
    importances: dict[str, float]
    validation: EvaluationReport | None
    test: EvaluationReport | None
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> dict[str, tuple[str, str]]:
        """The settings that the best trial changes: what they were and what they are, by `table.key`."""
        before, after = self.default.params, self.best.params
        return {key: (said_value(before[key]), said_value(after[key])) for key in after if before[key] != after[key]}

    @property
    def verdict(self) -> str:
        """What was found, in two sentences."""
        pruned = sum(one.state == "pruned" for one in self.records)
        tried = f"{len(self.records)} trials ({pruned} ended early)"
        if self.best.is_default or self.validation is None or self.test is None:
            return f"Nothing better than {self.settings} as it is was found in {tried}; the test data were not used."
        return (
            f"Trial {self.best.number} is the best of {tried}: {_lead(self.validation)} on validation, whose questions "
            f"chose it. On test, which chose nothing: {_lead(self.test)}."
        )

    @property
    def is_better(self) -> bool:
        """Whether the tuned settings are ahead on the test questions, the whole interval above zero."""
        lead = None if self.test is None else self.test.rows[1].lead
        return lead is not None and lead.is_above_zero

    def metrics(self) -> dict[str, float]:
        """Return the results as flat names, for a tracking server."""
        found = {"best/validation_ndcg_at_10": self.best.value or 0.0}
        for part, report in (("validation", self.validation), ("test", self.test)):
            if report is not None:
                found |= {f"{part}/{name}": value for name, value in report.metrics().items()}
        return found

    def to_text(self) -> str:
        """Return the verdict, what is changed, and the comparisons, for a terminal."""
        parts = [self.verdict]
        if self.changes:
            rows = [["setting", self.settings, TUNED], *([key, *values] for key, values in self.changes.items())]
            parts.append("\n".join(aligned(rows, widest=40)))
        parts += [report.to_text() for report in (self.validation, self.test) if report is not None]
        return "\n\n".join([*parts, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain lists and dictionaries."""
        return {
            "format": _FORMAT,
            "verdict": self.verdict,
            **{name: asdict(one) for name, one in (("best", self.best), ("default", self.default))},
            "changes": self.changes,
            "space": space_in_words(self.space),
            "importances": self.importances,
            "trials": [asdict(one) for one in self.records],
            "validation": self.validation and self.validation.to_dict(),
            "test": self.test and self.test.to_dict(),
            "notes": self.notes,
        }

    def write(self, folder: Path) -> None:
        """Write `report.json` and `report.html` into a folder, each complete or not at all."""
        texts = {
            REPORT: json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            PAGE: self.to_html(),
        }
        for name, text in texts.items():
            with atomic_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def to_html(self) -> str:
        """Return a self-contained HTML page."""
        comparisons = {"Validation": self.validation, "Test": self.test}
        return render(
            "tuning.html",
            title=f"Tuning of {self.settings}",
            report=self,
            said_value=said_value,
            space=space_in_words(self.space),
            history=history(self.records),
            parallel=parallel_coordinates(self.records, self.space),
            comparisons={name: report._repr_html_() for name, report in comparisons.items() if report is not None},
        )


def earlier_comparisons(
    folder: Path, best: TrialRecord, seeds: tuple[int, ...]
) -> tuple[EvaluationReport, EvaluationReport] | None:
    """Return validation and test of an earlier report if they are about the same trial and the same seeds.

    So the test questions are not asked again where nothing new was found.
    """
    said = _earlier(folder)
    if said is None or said["best"]["number"] != best.number or said["validation"] is None:
        return None
    try:
        validation, test = (EvaluationReport.from_dict(said[part]) for part in ("validation", "test"))
    except DataError:
        return None
    return (validation, test) if validation.seeds == seeds else None


def earlier_tests(folder: Path, best: TrialRecord) -> tuple[str, ...]:
    """Return a note if the test questions were already asked, by an earlier report on another trial."""
    said = _earlier(folder)
    if said is None or said["test"] is None or said["best"]["number"] == best.number:
        return ()
    note = (
        f"The test data were asked before, about trial {said['best']['number']}, which was the best then; each further "
        "time makes their figures a little less independent."
    )
    return (note,)


def _earlier(folder: Path) -> Mapping[str, Any] | None:
    try:
        said = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        return said if said["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lead(report: EvaluationReport) -> str:
    lead = report.rows[1].lead
    assert lead is not None, "only the first row has none"
    found = "ahead" if lead.is_above_zero else "behind" if lead.is_below_zero else "not distinguishable"
    means = [row.metrics[PRIMARY_METRIC].mean for row in report.rows[:2]]
    spread = f"[{lead.low:+.4f}, {lead.high:+.4f}]"
    return f"N@10 {means[0]:.4f} against {means[1]:.4f} of {DEFAULT}, {lead.mean:+.4f} {spread}, {found}"
