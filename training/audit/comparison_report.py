"""The report of `towers compare`: for the terminal, as a page and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.files import atomic_file
from features.tables.tables import Tables
from training.audit.facets import Facet
from training.audit.paired import Difference, Found, Paired
from training.evaluation.pages import render
from training.evaluation.report import PRIMARY_METRIC, label_of
from training.evaluation.text_table import aligned

PAGE = "compare.html"
TABLE = "differences.parquet"
PEOPLE = 20
"""How many users are shown with the lists of all runs."""
SHOWN_SLICES = 15

_SEED = 0
_WIDEST_NAME = 40


@dataclass(frozen=True)
class Pair:
    """One run against the first.

    Attributes:
        name: Of the run.
        metrics: The difference in each metric.
        slices: The difference in the primary metric in each slice, the largest loss first.
        found: How many answers both, one and none found among the first ten.
        overlap: Share of the first ten that the lists have in common.
    """

    name: str
    metrics: tuple[Difference, ...]
    slices: tuple[Difference, ...]
    found: Found
    overlap: float

    @classmethod
    def of(cls, name: str, paired: Paired, facets: Sequence[Facet], min_support: int) -> Pair:
        """Compare a run with the first."""
        slices = paired.slices(facets, PRIMARY_METRIC, min_support)
        return cls(
            name,
            tuple(paired.difference(metric) for metric in paired.metrics),
            tuple(sorted(slices, key=lambda one: one.gain)),
            paired.found(),
            paired.overlap(),
        )

    @property
    def primary(self) -> Difference:
        """The difference in the primary metric on all questions."""
        return next(one for one in self.metrics if one.metric == PRIMARY_METRIC)


@dataclass(frozen=True, repr=False)
class ComparisonReport:
    """Several runs on the same questions, each against the first; it prints as a table.

    Attributes:
        names: The runs, the first one first.
        headline: What was evaluated.
        pairs: One for each further run.
        people: What the page shows of users side by side.
        notes: What a reader should know, a sentence each.
    """

    names: tuple[str, ...]
    headline: str
    pairs: tuple[Pair, ...]
    people: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        pairs: Sequence[Paired],
        tables: Tables,
        facets: Sequence[Facet],
        *,
        title: str | None,
        min_support: int,
        notes: Sequence[str] = (),
    ) -> ComparisonReport:
        """Compare runs.

        Args:
            names: What to call each.
            pairs: Each further run with the first.
            tables: Where the titles of the items are.
            facets: Facets of the answers.
            title: The column of titles.
            min_support: Least number of questions of a slice.
            notes: What a reader should know.
        """
        first = pairs[0].first
        about, seeds = first.about, first.answers["seed"].nunique()
        num_questions = len(first.lists)
        headline = f"{about.protocol} · {about.part} · {num_questions:,} questions · {seeds} seed{'s' * (seeds > 1)}"
        compared = tuple(
            Pair.of(name, paired, facets, min_support) for name, paired in zip(names[1:], pairs, strict=True)
        )
        num_slices = len(compared[0].slices)
        means = (
            "Intervals are of the paired difference, 95 %, over users"
            + (" and seeds" if seeds > 1 else "; what another seed changes is not in them")
            + f". Of {num_slices} slices about {num_slices / 20:.0f} are ahead or behind by chance."
        )
        people = tuple(_people(pairs, tables, title))
        return cls(tuple(names), headline, compared, people, (means, *notes))

    def __repr__(self) -> str:
        """Return the comparison for a terminal."""
        return self.to_text()

    def to_text(self) -> str:
        """Return the comparison for a terminal."""
        lines = [self.headline]
        for pair in self.pairs:
            lines += ["", _verdict(pair, self.names[0]), "", *aligned(_metric_rows(pair, self.names[0])), ""]
            lines += [_found_line(pair, self.names[0])]
            apart = [one for one in pair.slices if one.verdict != "not distinguishable"]
            if apart:
                head = ["slices apart", "questions", self.names[0], pair.name, "difference", "95 %", ""]
                shown = [_slice_cells(one) for one in apart[:SHOWN_SLICES]]
                lines += ["", *aligned([head, *shown], _WIDEST_NAME)]
        return "\n".join([*lines, "", *self.notes])

    def to_frame(self) -> pd.DataFrame:
        """Return every difference, a row each: run, facet, value, metric, questions, both means, interval, verdict."""
        rows = [
            {"run": pair.name, "against": self.names[0], **asdict(one), "gain": one.gain, "verdict": one.verdict}
            for pair in self.pairs
            for one in (*pair.metrics, *pair.slices)
        ]
        return pd.DataFrame(rows)

    def to_html(self) -> str:
        """Return a self-contained page."""
        return render(
            "compare.html",
            title=self.headline,
            first=self.names[0],
            names=self.names,
            pairs=[
                {
                    "name": pair.name,
                    "verdict": _verdict(pair, self.names[0]),
                    "metrics": _metric_rows(pair, self.names[0])[1:],
                    "found": _found_line(pair, self.names[0]),
                    "slices": [(one.verdict, _slice_cells(one)) for one in pair.slices],
                }
                for pair in self.pairs
            ],
            people=self.people,
            notes=self.notes,
        )

    def write(self, folder: Path) -> None:
        """Write `compare.html` and `differences.parquet` into a folder, each complete or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / TABLE) as temporary:
            pq.write_table(pa.Table.from_pandas(self.to_frame(), preserve_index=False), temporary, compression="zstd")
        with atomic_file(folder / PAGE) as temporary:
            temporary.write_text(self.to_html(), encoding="utf-8")


def _verdict(pair: Pair, first: str) -> str:
    one = pair.primary
    where = f"in {label_of(PRIMARY_METRIC)}"
    if one.verdict == "not distinguishable":
        return f"{pair.name} and {first} are not distinguishable: {one.gain:+.4f} {where}, {one.interval}"
    return (
        f"{pair.name} is {one.verdict}{' of' if one.gain > 0 else ''} {first} by {abs(one.gain):.4f} {where}, "
        f"{one.interval}"
    )


def _metric_rows(pair: Pair, first: str) -> list[list[str]]:
    """Return the head and a row for each metric."""
    head = ["", first, pair.name, "difference", "95 %", ""]
    return [head, *([label_of(one.metric), *_numbers(one)] for one in pair.metrics)]


def _slice_cells(one: Difference) -> list[str]:
    return [f"{one.facet}={one.value}", f"{one.num_questions:,}", *_numbers(one)]


def _numbers(one: Difference) -> list[str]:
    return [f"{one.first:.4f}", f"{one.second:.4f}", f"{one.gain:+.4f}", one.interval, one.verdict]


def _found_line(pair: Pair, first: str) -> str:
    found = pair.found
    return (
        f"Among the first ten: found by both {found.both:,}, only by {first} {found.only_first:,}, only by {pair.name} "
        f"{found.only_second:,}, by neither {found.neither:,}; the lists have {pair.overlap:.0%} in common"
    )


def _people(pairs: Sequence[Paired], tables: Tables, title: str | None) -> Iterator[dict[str, Any]]:
    """Yield users, drawn at random, with the newest items of their history, what they did next, and all lists."""
    first = pairs[0].first
    names = dict(zip(tables.catalog.item_ids.tolist(), tables.catalog.titles(title), strict=True))
    chosen = np.random.default_rng(_SEED).permutation(len(first.lists))[:PEOPLE]
    answers = first.answers.groupby(["seed", "question"], sort=False)["item_id"].agg(list)
    for row in np.sort(chosen).tolist():
        asked = first.lists.iloc[row]
        wanted = set(answers[(asked["seed"], asked["question"])])
        lists = [ranks.lists.iloc[row]["items"] for ranks in (first, *(pair.second for pair in pairs))]
        yield {
            "user": asked["user_id"],
            "history": [names.get(item, item) for item in reversed([*asked["recent"]])],
            "next": [names.get(item, item) for item in sorted(wanted, key=str)],
            "lists": [[(names.get(item, item), item in wanted) for item in items] for items in lists],
        }
