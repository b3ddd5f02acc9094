"""The audit report: metrics by slice, the worst first, for the terminal, as a page and as a table.

Recall@50 decides, as the retriever's work is to have the answer among the candidates; what a re-ranker makes of their
order is another question. The rule of thumb that every report repeats is that of `advice`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.files import atomic_file
from features.tables.tables import data_digests, read_tables
from training.audit.ranks import About, Ranks
from training.audit.slices import CUTOFFS, WHOLE, slice_metrics
from training.audit.thresholds import Checked
from training.evaluation.pages import render
from training.evaluation.text_table import aligned

TABLE = "slices.parquet"
PAGE = "audit.html"
LEAST = 30
"""Minimum queries of a slice that is listed by itself and can fail a condition."""
POOR, GOOD = 0.85, 0.95
"""Recall@50 of the rule of thumb: below the first, improve the encoder or data; above the second, re-rank."""

MOST_WORST, MOST_SLICES = 25, 5_000
"""Slices on the page: among the worst, and in all; the table has every one."""

_WIDEST_NAME = 40


@dataclass(frozen=True, repr=False)
class AuditReport:
    """The slices of one recommender's judgement; it prints as a table of the worst.

    Attributes:
        about: What was judged.
        recommender: Whose it is.
        num_seeds: Trainings; the questions of all of them are together.
        min_support: Minimum queries of a slice that is listed by itself.
        slices: One row each, the whole first; see `slicing.slice_metrics` for the columns.
        notes: What a reader should know, a sentence each.
        gates: The conditions of `--fail-if`, as they were checked.
    """

    about: About
    recommender: str
    num_seeds: int
    min_support: int
    slices: pd.DataFrame
    notes: tuple[str, ...] = ()
    gates: tuple[Checked, ...] = ()

    @classmethod
    def of(cls, ranks: Ranks, recommender: str | None = None, min_support: int = LEAST) -> AuditReport:
        """Cut a judgement by the tables that it was made from, as they are today.

        Args:
            ranks: What the evaluation kept.
            recommender: Whose judgement. None: that of the recommender in question, the first.
            min_support: Values with fewer questions are put together.

        Raises:
            DataError: There is no such recommender, or the tables cannot be read or lack what was judged.
        """
        chosen = ranks.of(recommender or ranks.recommenders[0])
        config, folder = ranks.about.settings.features, Path(ranks.about.tables_folder)
        tables = read_tables(config, folder)
        changed = [name for name, digest in data_digests(config, folder).items() if digest != ranks.about.digests[name]]
        notes = [f"The {name} changed since the evaluation; slices are by what they are now." for name in changed]
        return cls(
            about=ranks.about,
            recommender=chosen.recommenders[0],
            num_seeds=chosen.answers["seed"].nunique(),
            min_support=min_support,
            slices=slice_metrics(chosen, tables, config, min_support),
            notes=tuple(notes),
        )

    def __repr__(self) -> str:
        """Return the worst slices for a terminal."""
        return self.to_text()

    @property
    def whole(self) -> pd.Series:
        """The row of the whole."""
        return self.slices.iloc[0]

    @property
    def worst(self) -> pd.DataFrame:
        """The slices with enough queries, the largest gap first."""
        apart = self.slices[(self.slices["facet"] != WHOLE) & (self.slices["questions"] >= self.min_support)]
        return apart.sort_values("gap_at_50", ascending=False, kind="stable")

    @property
    def headline(self) -> str:
        """One line on the evaluation and its slices."""
        facets = self.slices["facet"].nunique() - 1
        seeds = "" if self.num_seeds == 1 else f" · {self.num_seeds} seeds"
        return (
            f"{self.recommender} · {self.about.protocol} · {self.about.part} · {self.whole['questions']:,} questions"
            f"{seeds} · {len(self.slices) - 1:,} slices by {facets} facets"
        )

    def metrics(self) -> dict[str, float]:
        """Return everything as flat names, for a tracking server: `all/recall_at_50`, `language/fr/gap_at_50`, …."""
        flat: dict[str, float] = {}
        names = [f"{name}_at_{k}" for k in CUTOFFS for name in ("recall", "gap", "exposure")]
        for row in self.slices.to_dict("records"):
            prefix = WHOLE if row["facet"] == WHOLE else f"{_word(row['facet'])}/{_word(row['value'])}"
            flat |= {f"{prefix}/{name}": float(row[name]) for name in names if pd.notna(row[name])}
        return flat

    def write(self, folder: Path) -> None:
        """Write `slices.parquet` and `audit.html` into a folder, each complete or not at all."""
        with atomic_file(folder / TABLE) as temporary:
            pq.write_table(pa.Table.from_pandas(self.slices, preserve_index=False), temporary, compression="zstd")
        with atomic_file(folder / PAGE) as temporary:
            temporary.write_text(self.to_html(), encoding="utf-8")

    def to_text(self, most: int = 15) -> str:
        """Return the worst slices for a terminal, at most 120 columns wide.

        Args:
            most: How many slices.
        """
        lines = [self.headline, self._whole_line(), "", self.advice()]
        worst = list(self.worst.head(most).itertuples(index=False))
        if worst:
            head = ["the worst", "questions", "R@50", "95 %", "gap ", "R@10", "shown / there"]
            rows = [[f"{row.facet}={row.value}", *_numbers(row), _lift(row)] for row in worst]
            lines += ["", *aligned([head, *rows], _WIDEST_NAME)]
        return "\n".join([*lines, "", *self._meanings("*"), *self.notes])

    def to_html(self) -> str:
        """Return a self-contained HTML page with every slice, of more than `MOST_SLICES` the first of them."""
        cells = [self._cells(place, row) for place, row in enumerate(self.slices.itertuples(index=False))]
        worst = [cells[place] for place in self.worst.index[:MOST_WORST]]
        shown = cells[1 : MOST_SLICES + 1]
        return render(
            "audit.html",
            title=f"Audit of {self.recommender}",
            headline=self.headline,
            standing=_standing(float(self.whole["recall_at_50"])),
            whole=self._whole_line(),
            advice=self.advice().splitlines(),
            worst=worst,
            facets=[(facet, list(slices)) for facet, slices in groupby(shown, key=lambda one: one["facet"])],
            most_slices=MOST_SLICES,
            num_left_out=len(cells) - 1 - len(shown),
            gates=self.gates,
            min_support=self.min_support,
            meanings=self._meanings("bold"),
            notes=self.notes,
        )

    def advice(self) -> str:
        """Return the rule of thumb, and on which side of it the whole is."""
        recall = float(self.whole["recall_at_50"])
        if recall < POOR:
            verdict = "so look at the encoder and the data first"
        elif recall > GOOD:
            verdict = "so if the lists are still poor, add a re-ranker"
        else:
            verdict = "so either may pay; begin with the worst slices"
        return (
            f"R@50 is {recall:.1%}, {verdict}.\nThe rule of thumb: below {POOR:.0%} the encoder or the data is the "
            f"problem; above {GOOD:.0%} and still poor, add a re-ranker.\nIt comes from search, where the question "
            "says what is wanted; a next interaction is much harder to predict."
        )

    def _whole_line(self) -> str:
        whole = self.whole
        bounds = {k: _interval(whole[f"recall_at_{k}_low"], whole[f"recall_at_{k}_high"]) for k in CUTOFFS}
        return " · ".join(f"R@{k} {whole[f'recall_at_{k}']:.4f} {bounds[k]}" for k in reversed(CUTOFFS))

    def _meanings(self, mark: str) -> list[str]:
        chance = f"{len(self.worst) / 20:.0f} of {len(self.worst)}"
        return [
            f"gap: R@50 of all queries minus that of the slice; {mark}: outside its 95 % interval; {chance} by chance.",
            "shown / there: share of the lists of 50 over share of the catalogue; 1 is even.",
            f"Rare values, with fewer than {self.min_support} queries, are merged as (other).",
        ]

    def _cells(self, place: int, row: Any) -> dict[str, Any]:
        """Return what the page shows of a slice, by name: texts, and the numbers to sort by."""
        questions, recall, interval, gap, recall_at_10 = _numbers(row)
        shares = (row.answer_share, row.catalogue_share, row.exposure_at_50)
        return {
            "place": place,
            "facet": row.facet,
            "value": str(row.value),
            "has_few": row.questions < self.min_support,
            "tone": "" if not row.stands_apart else "behind" if row.gap_at_50 > 0 else "ahead",
            "share": f"{0.0 if pd.isna(row.recall_at_50) else row.recall_at_50:.0%}",
            "cells": [
                (questions, row.questions),
                (recall, row.recall_at_50),
                (interval, row.recall_at_50_low),
                (gap.rstrip("* "), row.gap_at_50),
                (recall_at_10, row.recall_at_10),
                *(("–" if pd.isna(share) else f"{share:.1%}", share) for share in shares),
                (
                    _lift(row) or "–",
                    row.exposure_at_50 / row.catalogue_share if row.catalogue_share > 0 else float("nan"),
                ),
            ],
        }


def _standing(recall: float) -> str:
    """Return on which side of the rule of thumb a recall is, in the words of a verdict."""
    return "behind" if recall < POOR else "ahead" if recall > GOOD else "level"


def _numbers(row: Any) -> list[str]:
    """Return the cells of a slice: queries, recall@50 with its interval and gap, recall@10."""
    if row.questions == 0:
        return ["0", "–", "–", "– ", "–"]
    return [
        f"{row.questions:,}",
        f"{row.recall_at_50:.4f}",
        _interval(row.recall_at_50_low, row.recall_at_50_high),
        f"{row.gap_at_50:+.4f}{'*' if row.stands_apart else ' '}",
        f"{row.recall_at_10:.4f}",
    ]


def _lift(row: Any) -> str:
    return "" if not row.catalogue_share > 0 else f"{row.exposure_at_50 / row.catalogue_share:.2f}"


def _interval(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]"


def _word(text: str) -> str:
    """Return text as a part of a metric's name: MLflow takes neither every letter nor every path."""
    return re.sub(r"[^\w \-]+", "_", text).strip() or "_"
