"""The evaluation report: one table of the model and the baselines, for the terminal, as JSON and as HTML.

The first row is the recommender in question. Each estimate has the interval over questions and, if there are several,
over seeds; with one seed the spread between trainings is not in it, and the report says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from features.errors import DataError
from features.files import atomic_file
from training.evaluation.advice import Advice
from training.evaluation.comparison import Comparison
from training.evaluation.details import ReportDetails
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import METRICS
from training.evaluation.report_page import PageContent, report_page, report_plots, report_tables
from training.evaluation.report_rows import (
    COVERAGE_LABEL,
    COVERAGE_MEANING,
    SHARE_METRIC,
    Estimate,
    ReportRow,
    SliceRow,
    read_row,
)
from training.evaluation.report_rows import PRIMARY_METRIC as PRIMARY_METRIC
from training.evaluation.report_rows import label_of as label_of
from training.evaluation.text_table import aligned
from training.evaluation.verdict import Verdict, listed

COLUMNS = ("recall_at_10", "ndcg_at_10", "mrr_at_10", "recall_at_50", "recall_at_100", "coverage_at_10")
"""Columns of the tables; the JSON report has all metrics."""
COLUMNS_FOR_USERS = ("recall_at_10", "ndcg_at_10", "recall_at_20", "recall_at_50", "ndcg_at_100", "coverage_at_10")
"""Columns for protocol `users`, with the metrics usual in the literature."""
ONLY_ON_PAGES = ("recall_at_100", "recall_at_20")
"""Columns that a terminal has no room for next to the leads."""
FORMAT = 2
WIDTH = 120
"""Columns of a terminal."""
_ESCAPED = r"\\\1"
_SEEDS = re.compile(r"^seed [\d, ]+: ")


@dataclass(frozen=True, repr=False)
class EvaluationReport:
    """An evaluation of several recommenders on the same queries; it prints as a table, in a notebook as well.

    Attributes:
        protocol: `leave-one-out`, `leave-one-basket-out`, `time`, `users`, `queries` or `cold-items`.
        part: `test` or `validation`.
        num_questions: Number of queries, for each seed.
        num_candidates: Number of items that were ranked for each query.
        seeds: The seeds of the trainings.
        rows: A row for each recommender, the evaluated one first; a row has `name`, by metric `metrics`, and `lead`,
            how far the model's N@10 is above this one's; each has `mean`, and `low` and `high`, its 95 % interval.
        notes: What a reader should know, a sentence each.
        advice: What to try where the first recommender is not ahead, the likeliest first.
        details: What the page shows beyond the metrics; not in the JSON. None: the page has the metrics only.
    """

    protocol: str
    part: str
    num_questions: tuple[int, ...]
    num_candidates: int
    seeds: tuple[int, ...]
    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()
    details: ReportDetails | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        protocol: str,
        part: str,
        runs: Mapping[int, Sequence[Evaluation]],
        *,
        slices: Mapping[int, Mapping[str, Mapping[str, Evaluation]]] | None = None,
        bounds: Sequence[str] = (),
        notes: Sequence[str] = (),
        advise: Callable[[Sequence[str]], tuple[Advice, ...]] | None = None,
    ) -> EvaluationReport:
        """Put the judgements of one or several runs together.

        Args:
            protocol: Name of the split.
            part: `test` or `validation`.
            runs: The evaluations by seed; the same recommenders in the same order, the one in question first.
            slices: By seed, recommender and slice, as `evaluation.slices` gives them.
            bounds: Names of the recommenders that are limits, such as an oracle.
            notes: Sentences for the reader.
            advise: Returns what to try where the recommenders that it is given the names of are not beaten.
        """
        first = next(iter(runs.values()))
        names = [evaluation.name for evaluation in first]
        assert all([evaluation.name for evaluation in run] == names for run in runs.values()), "not the same rows"
        comparison = Comparison.of(list(runs.values()))
        ahead = comparison.are_ahead(place for place, name in enumerate(names) if name not in bounds)
        sliced = _slice_rows(slices or {}, names)
        rows = [
            ReportRow(
                name=name,
                metrics=_estimates(comparison, place) | _coverage([run[place] for run in runs.values()]),
                slices=sliced[name],
                lead=Estimate.of(comparison.lead(0, place, PRIMARY_METRIC)) if place else None,
                is_bound=name in bounds,
                ahead_in=ahead.get(place, ()),
            )
            for place, name in enumerate(names)
        ]
        report = cls(
            protocol=protocol,
            part=part,
            num_questions=tuple(run[0].num_questions for run in runs.values()),
            num_candidates=first[0].num_candidates,
            seeds=tuple(runs),
            rows=tuple(rows),
            notes=tuple(notes),
        )
        names = [row.name for row in report.unbeaten]
        return report if advise is None or not names else replace(report, advice=advise(names))

    def __repr__(self) -> str:
        """Return the table for a terminal."""
        return self.to_text()

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return f"<p><b>{escape(self.headline)}</b></p>\n{report_tables(self._content())}"

    @property
    def unbeaten(self) -> tuple[ReportRow, ...]:
        """The rows that the first one is not ahead of, clear of zero, in N@10; the strongest first."""
        level = [row for row in self.rows if not (row.is_bound or row.lead is None or row.lead.is_above_zero)]
        return tuple(sorted(level, key=lambda row: -row.metrics[PRIMARY_METRIC].mean))

    @property
    def warning(self) -> str:
        """One line on the recommenders that the first one is not ahead of; empty if there are none."""
        ahead = [row.name for row in self.unbeaten if row.lead is not None and row.lead.is_below_zero]
        level = [row.name for row in self.unbeaten if row.name not in ahead]
        ours = self.rows[0].name
        parts = [f"{listed(ahead)} {_are(ahead)} ahead of {ours}"] if ahead else []
        parts += [f"{listed(level)} {_are(level)} not distinguishable from {'it' if ahead else ours}"] if level else []
        return f"Not ahead of every baseline: in {label_of(PRIMARY_METRIC)} {', and '.join(parts)}." if parts else ""

    @property
    def verdict(self) -> Verdict:
        """Whether the first recommender is better than the baselines, and what follows, in two sentences."""
        return Verdict.of(self.rows, self.part)

    @property
    def notes_by_kind(self) -> tuple[list[str], list[str]]:
        """The notes on the evaluation, and those on a row, which begin with its name: how a baseline was fitted."""
        names = {row.name for row in self.rows}
        of_rows = [note for note in self.notes if _SEEDS.sub("", note).partition(": ")[0] in names]
        return [note for note in self.notes if note not in of_rows], of_rows

    @property
    def headline(self) -> str:
        """One line on the evaluation: protocol, queries, candidates, seeds."""
        least, most = min(self.num_questions), max(self.num_questions)
        questions = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        ranked = f"all {self.num_candidates:,} items ranked"
        chosen = " · chosen on these questions" if self.part == "validation" else ""
        return f"{self.protocol} · {self.part} · {questions} questions · {ranked} · {seeds}{chosen}"

    def metrics(self) -> dict[str, float]:
        """Return everything as flat names, for a tracking server: `ndcg_at_10`, `baseline/EASE/ndcg_at_10`, …."""
        flat: dict[str, float] = {}
        for place, row in enumerate(self.rows):
            prefix = f"baseline/{row.name}/" if place else ""
            flat |= {f"{prefix}{name}": estimate.mean for name, estimate in row.metrics.items()}
            for part, sliced in row.slices.items():
                flat |= {f"{prefix}{part}/{name}": estimate.mean for name, estimate in sliced.metrics.items()}
        return flat

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain lists and dictionaries; `from_dict` is the inverse."""
        values = asdict(replace(self, details=None))
        del values["details"]
        return {"format": FORMAT, "primary_metric": PRIMARY_METRIC, **values}

    @classmethod
    def from_dict(cls, values: Any) -> EvaluationReport:
        """Return the report that `to_dict` gave.

        Raises:
            DataError: The dictionary is not one of those.
        """
        try:
            if values["format"] != FORMAT:
                raise DataError(f"report: expected format {FORMAT}, found {values['format']!r}; make the report again")
            return cls(
                protocol=str(values["protocol"]),
                part=str(values["part"]),
                num_questions=tuple(values["num_questions"]),
                num_candidates=int(values["num_candidates"]),
                seeds=tuple(values["seeds"]),
                rows=tuple(read_row(row) for row in values["rows"]),
                notes=tuple(values["notes"]),
                advice=tuple(Advice(**one) for one in values["advice"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"report: not a report of an evaluation ({error!r}); make the report again") from None

    @classmethod
    def read(cls, path: Path) -> EvaluationReport:
        """Return the report in a JSON file.

        Raises:
            DataError: There is no such file, or it is not a report.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; `towers evaluate` writes one") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not valid JSON ({error}); make the report again") from None

    def texts(self) -> dict[str, str]:
        """Return the files of the report, by name: `report.json` and `report.html`."""
        return {
            "report.json": json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "report.html": self.to_html(),
        }

    def plots(self) -> dict[str, str]:
        """Return the pictures of the page as SVG files, by name."""
        return report_plots(self._content())

    def write(self, folder: Path) -> None:
        """Write `report.json` and `report.html` into a folder, each complete or not at all."""
        for name, text in self.texts().items():
            with atomic_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def to_text(self) -> str:
        """Return the table for a terminal, at most 120 columns wide."""
        shown = [name for name in self._shown() if name not in ONLY_ON_PAGES]
        has_leads = any(row.standing for row in self.rows)
        head = ["", *(f"{label_of(name)} " for name in shown), *(["lead in N@10 "] if has_leads else [])]
        body = [
            [row.name, *(_cell(row, name) for name in shown), *([_lead_cell(row)] if has_leads else [])]
            for row in self.rows
        ]
        lines = [*wrap(self.warning, WIDTH), self.headline, "", *aligned([head, *body])]
        legend = ["* ahead of all others, clear of zero"] if any(row.ahead_in for row in self.rows) else []
        legend += ["lead: of the first row over this one, on the same questions; ≈ not distinguishable"] * has_leads
        lines += ["", f"± {self._margin_meaning()}", *legend, *self._limit_lines()]
        if any(row.slices for row in self.rows):
            lines += ["", "N@10 apart, with the number of questions", "", *aligned(self._slice_table())]
        notes, of_rows = self.notes_by_kind
        notes += ["The hyperparameters of the baselines are in report.html and report.json."] * bool(of_rows)
        lines += ["", *(line for note in notes for line in wrap(note, WIDTH))] if notes else []
        lines += ["", "To try next, the likeliest to help first:"] if self.advice else []
        for one in self.advice:
            lines += [*wrap(f"- {one.reason}", WIDTH, subsequent_indent="  "), f"    {one.command}"]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Return the most important columns as a Markdown table, with what they mean, for pages that are not wide."""
        shown = (PRIMARY_METRIC, SHARE_METRIC)
        has_leads = any(row.standing for row in self.rows)
        head = ["", *map(label_of, shown), *(["lead in N@10"] if has_leads else [])]
        body = [
            [row.name, *(_cell(row, name) for name in shown), *([_lead_cell(row)] if has_leads else [])]
            for row in self.rows
        ]
        ruler = f"|{' --- |' + ' ---: |' * (len(head) - 1)}"
        table = [_markdown_row(head), ruler, *map(_markdown_row, body)]
        legend = ["\\*: ahead of all others, clear of zero"] if any(row.ahead_in for row in self.rows) else []
        legend += ["lead: of the first row over this one, on the same questions; ≈: not distinguishable"] * has_leads
        notes, _ = self.notes_by_kind
        return "\n\n".join(
            [
                *([self.warning] if self.warning else []),
                self.headline,
                "\n".join(table),
                f"±: {self._margin_meaning()}. " + " ".join(f"{line}." for line in legend),
                *self._limit_lines(),
                *notes,
                "All metrics are in report.html and report.json.",
            ]
        )

    def to_frame(self) -> pd.DataFrame:
        """Return the means as a table: a row for each recommender, a column for each metric."""
        return pd.DataFrame(
            {row.name: {name: estimate.mean for name, estimate in row.metrics.items()} for row in self.rows}
        ).T

    def to_html(self) -> str:
        """Return a self-contained HTML page: verdict, metrics as a picture and a table, and `details`."""
        return report_page(self._content())

    def _content(self) -> PageContent:
        notes, of_rows = self.notes_by_kind
        slice_head, *slice_rows = self._slice_table()
        return PageContent(
            headline=self.headline,
            verdict=self.verdict,
            rows=self.rows,
            metrics=self._shown(),
            legend=f"± {self._margin_meaning()}. {_legend()}.",
            slices=[slice_head, *slice_rows] if slice_rows else [],
            limits=self._limit_lines(),
            notes=notes,
            notes_on_rows=of_rows,
            advice=self.advice,
            details=self.details,
        )

    def _shown(self) -> list[str]:
        columns = COLUMNS_FOR_USERS if self.protocol == "users" else COLUMNS
        return [name for name in columns if any(name in row.metrics for row in self.rows)]

    def _margin_meaning(self) -> str:
        if len(self.seeds) > 1:
            return f"half the 95 % interval over the questions and {len(self.seeds)} seeds"
        return "half the 95 % interval over the questions; what another seed changes is not in it"

    def _limit_lines(self) -> list[str]:
        ours = self.rows[0]
        shares = [
            (row.name, ours.metrics[SHARE_METRIC].mean / max(row.metrics[SHARE_METRIC].mean, 1e-12))
            for row in self.rows
            if row.is_bound
        ]
        return [f"{ours.name} reaches {share:.0%} of the {label_of(SHARE_METRIC)} of {name}" for name, share in shares]

    def _slice_table(self) -> list[list[str]]:
        names = list(dict.fromkeys(name for row in self.rows for name in row.slices))
        counts = {
            name: next(row.slices[name].num_questions for row in self.rows if name in row.slices) for name in names
        }
        head = ["", *(f"{name} ({counts[name]:,})" for name in names)]
        return [head, *([row.name, *(_slice_cell(row, name) for name in names)] for row in self.rows if row.slices)]


def _legend() -> str:
    meanings = [(metric.label, metric.meaning) for metric in METRICS.values()]
    return ", ".join(f"{label} {meaning}" for label, meaning in (*meanings, (COVERAGE_LABEL, COVERAGE_MEANING)))


def _estimates(comparison: Comparison, place: int) -> dict[str, Estimate]:
    return {name: Estimate.of(comparison.metric(place, name)) for name in comparison.metrics}


def _coverage(evaluations: Sequence[Evaluation]) -> dict[str, Estimate]:
    """Return the coverage, the mean over the seeds; it is no mean over questions, so it has no interval."""
    names = evaluations[0].coverage
    return {name: Estimate(float(np.mean([one.coverage[name] for one in evaluations]))) for name in names}


def _slice_rows(
    runs: Mapping[int, Mapping[str, Mapping[str, Evaluation]]], names: Sequence[str]
) -> dict[str, dict[str, SliceRow]]:
    """Return the slices by recommender; one that some seed does not have is left to the seeds that do."""
    found: dict[str, dict[str, SliceRow]] = {name: {} for name in names}
    for part in dict.fromkeys(part for run in runs.values() for parts in run.values() for part in parts):
        having = [run for run in runs.values() if any(part in parts for parts in run.values())]
        sliced = [name for name in names if part in having[0].get(name, {})]
        evaluations = [[run[name][part] for name in sliced] for run in having]
        num_questions = round(float(np.mean([run[0].num_questions for run in evaluations])))
        comparison = Comparison.of(evaluations)
        for place, name in enumerate(sliced):
            found[name][part] = SliceRow(num_questions, _estimates(comparison, place))
    return found


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _plain(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f}" + ("" if estimate.margin is None else f" ±{estimate.margin:.4f}")


def _cell(row: ReportRow, name: str) -> str:
    if name not in row.metrics:
        return "– "
    return _plain(row.metrics[name]) + ("*" if name in row.ahead_in else " ")


def _lead_cell(row: ReportRow) -> str:
    if row.standing is None or row.lead is None:
        return "–  "
    return f"{row.lead.mean:+.4f} ±{row.lead.margin or 0:.4f} {'≈' if row.standing == 'level' else ' '}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(re.sub(r'([|*])', _ESCAPED, cell.strip()) for cell in cells)} |"


def _slice_cell(row: ReportRow, name: str) -> str:
    return _plain(row.slices[name].metrics[PRIMARY_METRIC]) if name in row.slices else "–"
