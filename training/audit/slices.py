"""Metrics by slice: recall of each part of the targets, and exposure of each part of the items.

A *facet* is a way to cut (`language`), a *slice* one of its values (`fr`). `slice_metrics` makes one table of them all
from the ranks that an evaluation kept. Of a question with answers in several slices, each slice judges its own answers,
with the rank they have among all candidates; the recall of a slice is the mean over the questions that have any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from features.config import FeaturesConfig
from features.errors import DataError
from features.tables.tables import Catalog, Tables, Users
from training.audit.facets import (
    ACTIVITY,
    EMPTY_CELLS,
    ITEM_AGE,
    MISSING,
    PAUSE,
    POPULARITY,
    Facet,
    activity_facet,
    column_facets,
    emptiness_facet,
    item_age_facet,
    pause_facet,
    popularity_facet,
)
from training.audit.ranks import Ranks
from training.evaluation.metrics import wilson_interval

WHOLE = "all"
"""The facet, and its one value, that everything belongs to."""
CUTOFFS = (10, 50)
"""The k of the recall of slices."""
OWN = (POPULARITY, EMPTY_CELLS, ACTIVITY, PAUSE, ITEM_AGE)
"""Names of derived facets; a column of the same name is listed as `item popularity`."""
FEW_VALUES = 10
"""Up to so many values of a facet, all are listed separately."""
MOST_VALUES = 30
"""Maximum values of a facet that are listed separately; the rarer ones are merged."""


@dataclass(frozen=True)
class _Asked:
    """The evaluated queries, one entry per target.

    Attributes:
        ranks: Of each answer, `[answers]`.
        questions: Which question it belongs to, from 0, `[answers]`.
        users: Who asked, from 0, `[answers]`.
    """

    ranks: Int[np.ndarray, "answers"]
    questions: Int[np.ndarray, "answers"]
    users: Int[np.ndarray, "answers"]

    @classmethod
    def of(cls, ranks: Ranks) -> _Asked:
        """Return the queries of one recommender's ranks."""
        answers = ranks.answers
        return cls(
            answers["rank"].to_numpy(np.int64), _codes(answers, ["seed", "question"]), _codes(answers, ["user_id"])
        )

    def num_questions(self, facet: Facet) -> Int[np.ndarray, "labels"]:
        """Return the number of queries with a target in each slice."""
        return _num_different(self.questions, facet)

    def judged(self, facet: Facet) -> pd.DataFrame:
        """Return size and recall of each slice, a row each; NaN without queries."""
        answers, num_slices = facet.entities, len(facet.labels)
        width = int(self.questions.max()) + 1
        pairs, pair, sizes = np.unique(
            facet.codes * width + self.questions[answers], return_inverse=True, return_counts=True
        )
        of_pair = pairs // width
        questions = np.bincount(of_pair, minlength=num_slices)
        people = _num_different(self.users, facet)  # with several seeds a user has several queries
        columns = {
            "facet": facet.name,
            "value": list(facet.labels),
            "questions": questions,
            "users": people,
            "answers": np.bincount(facet.codes, minlength=num_slices),
        }
        for k in CUTOFFS:
            found = np.bincount(pair, weights=self.ranks[answers] <= k, minlength=len(pairs))
            total = np.bincount(of_pair, weights=found / np.minimum(sizes, k), minlength=num_slices)
            recall = np.divide(total, questions, out=np.full(num_slices, np.nan), where=questions > 0)
            low, high = wilson_interval(recall, np.where(people > 0, people, np.nan))
            columns |= {f"recall_at_{k}": recall, f"recall_at_{k}_low": low, f"recall_at_{k}_high": high}
        return pd.DataFrame(columns)


def slice_metrics(ranks: Ranks, tables: Tables, config: FeaturesConfig, min_support: int) -> pd.DataFrame:
    """Return every slice of a judgement, a row each, the whole first, the others facet by facet.

    - `facet` and `value`; how many `questions` have an answer in the slice, how many `users` asked them, the `answers`;
    - `recall_at_10` and `recall_at_50`, with the bounds `…_low` and `…_high` of their 95 % interval (Wilson's, with as
      many questions as there are users), and `gap_at_…`, how far they are below those of the whole;
    - `stands_apart`: whether the recall@50 of the whole is outside the interval;
    - `answer_share` of all answers; and, where the slice is one of items, `catalogue_share` of the candidates and
      `exposure_at_…`, its share of what was shown.

    Args:
        ranks: Of one recommender.
        tables: Where the columns are.
        config: How the model reads them.
        min_support: Values with fewer questions are put together, where a facet has many.

    Raises:
        DataError: An item or a user of the ranks is not in the tables.
    """
    asked = _Asked.of(ranks)
    whole = Facet.single(WHOLE, [WHOLE], np.zeros(len(ranks.answers), dtype=np.int64))
    parts = [asked.judged(whole)]
    for of_answers, of_items in _cuts(ranks, asked, tables, config, min_support):
        judged = asked.judged(of_answers)
        parts.append(judged if of_items is None else pd.concat([judged, _exposure(of_items, ranks.items)], axis=1))
    return _compared(parts, len(ranks.answers))


def answer_facets(ranks: Ranks, tables: Tables, config: FeaturesConfig, min_support: int) -> list[Facet]:
    """Return every facet by which answers can be cut, in the order of the ranks; arguments as of `slice_metrics`."""
    return [of_answers for of_answers, _ in _cuts(ranks, _Asked.of(ranks), tables, config, min_support)]


def _cuts(
    ranks: Ranks, asked: _Asked, tables: Tables, config: FeaturesConfig, min_support: int
) -> Iterator[tuple[Facet, Facet | None]]:
    """Yield each facet of the answers, rare values merged, with that of the candidates where it is one of items."""
    items, answers = ranks.items, ranks.answers
    answer_items = _positions(items, answers)
    of_items = _item_facets(tables.catalog, config, items, _known_rows(tables.catalog, items["item_id"]))
    for facet in of_items:
        of_answers = facet.take(answer_items)
        kept = _told_apart(facet, asked.num_questions(of_answers), min_support)
        yield of_answers.pooled(kept), facet.pooled(kept)
    names = [facet.name for facet in of_items]
    for facet in _asking_facets(tables.users, config, items, answers, answer_items, names):
        yield facet.pooled(_told_apart(facet, asked.num_questions(facet), min_support)), None


def _item_facets(
    catalog: Catalog, config: FeaturesConfig, items: pd.DataFrame, item_rows: Int[np.ndarray, "items"]
) -> list[Facet]:
    """Return the facets of the candidates, each seed's by itself."""
    popularity = popularity_facet(items["interactions"].to_numpy(np.int64), _codes(items, ["seed"]))
    columns = [_renamed(facet, "item", OWN) for facet in column_facets(catalog.frame, config.item, "item")]
    said = [*columns, emptiness_facet(catalog.frame, "item")]
    return [popularity, *(facet.take(item_rows) for facet in said if len(facet.labels) > 1)]


def _asking_facets(
    users: Users | None,
    config: FeaturesConfig,
    items: pd.DataFrame,
    answers: pd.DataFrame,
    answer_items: Int[np.ndarray, "answers"],
    taken: Sequence[str],
) -> list[Facet]:
    """Return the facets of the users and times of the queries, one value per target; columns get unused names."""
    facets = [activity_facet(answers["history"].to_numpy(np.int64))]
    if answers["time"].notna().any():
        first = items["first_time"].to_numpy(np.float64, na_value=np.nan)[answer_items]
        asked = answers["time"].to_numpy(np.float64, na_value=np.nan)
        facets.append(item_age_facet(asked - first))
        facets.append(pause_facet(asked - answers["last_time"].to_numpy(np.float64, na_value=np.nan)))
    if users is not None:
        rows = users.rows_of(_plain(answers["user_id"]))
        # Who has no row in the table has an empty one here, after the last.
        frame = users.frame.reindex(np.arange(len(users) + int((rows < 0).any())))
        columns = column_facets(frame, config.user, "user")
        facets += [
            _renamed(facet.take(np.where(rows < 0, len(users), rows)), "user", [*OWN, *taken]) for facet in columns
        ]
    return [facet.without_empty() for facet in facets]


def _told_apart(facet: Facet, questions: Int[np.ndarray, "labels"], min_support: int) -> Bool[np.ndarray, "labels"]:
    """Return which values are listed separately: all of a few; of many, the frequent ones and missing values."""
    if len(questions) <= FEW_VALUES:
        return np.ones(len(questions), dtype=bool)
    rank = np.empty(len(questions), dtype=np.int64)
    rank[np.argsort(-questions, kind="stable")] = np.arange(len(questions))
    kept = (questions >= min_support) & (rank < MOST_VALUES)
    kept |= np.array([label == MISSING for label in facet.labels])
    return kept if (~kept).sum() > 1 else np.ones(len(kept), dtype=bool)


def _exposure(facet: Facet, items: pd.DataFrame) -> pd.DataFrame:
    """Return the share of each slice in the candidates and in what was shown."""
    shares = {"catalogue_share": np.bincount(facet.codes, minlength=len(facet.labels)) / len(items)}
    for k in CUTOFFS:
        shown = items[f"shown_at_{k}"].to_numpy(np.float64)
        in_slice = np.bincount(facet.codes, weights=shown[facet.entities], minlength=len(facet.labels))
        shares[f"exposure_at_{k}"] = in_slice / max(1.0, shown.sum())
    return pd.DataFrame(shares)


def _compared(parts: Sequence[pd.DataFrame], num_answers: int) -> pd.DataFrame:
    """Return the parts as one table, and compare each slice with the first row, which is all queries."""
    table = pd.concat(parts, ignore_index=True)
    for k in CUTOFFS:
        recall = table[f"recall_at_{k}"].to_numpy(np.float64)
        table[f"gap_at_{k}"] = recall[0] - recall
    whole = float(table["recall_at_50"].to_numpy(np.float64)[0])
    table["stands_apart"] = (table["recall_at_50_high"] < whole) | (table["recall_at_50_low"] > whole)
    table["answer_share"] = table["answers"] / num_answers
    measures = [f"{name}_at_{k}{end}" for k in CUTOFFS for name, end in _MEASURES]
    shares = ["answer_share", "catalogue_share", *(f"exposure_at_{k}" for k in CUTOFFS)]
    return table.reindex(
        columns=["facet", "value", "questions", "users", "answers", *measures, "stands_apart", *shares]
    )


_MEASURES = (("recall", ""), ("recall", "_low"), ("recall", "_high"), ("gap", ""))


def _renamed(facet: Facet, who: str, taken: Iterable[str]) -> Facet:
    """Return the facet under a name that no other has."""
    if facet.name not in taken:
        return facet
    return Facet(f"{who} {facet.name}", facet.labels, facet.offsets, facet.codes)


def _known_rows(catalog: Catalog, ids: pd.Series) -> Int[np.ndarray, "items"]:
    rows = catalog.rows_of(_plain(ids))
    if (rows < 0).any():
        unknown = ids[rows < 0].iloc[0]
        raise DataError(
            f"item {unknown!r} was evaluated but is not in the catalogue any more ({(rows < 0).sum():,} such items); "
            "put the items back, or evaluate again"
        )
    return rows


def _positions(items: pd.DataFrame, answers: pd.DataFrame) -> Int[np.ndarray, "answers"]:
    """Return the position in `items` of each target."""
    keys = [pd.MultiIndex.from_arrays([frame["seed"], _plain(frame["item_id"])]) for frame in (items, answers)]
    positions = keys[0].get_indexer(keys[1])
    assert (positions >= 0).all(), "every answer is a candidate"
    return np.asarray(positions, dtype=np.int64)


def _num_different(numbers: Int[np.ndarray, "answers"], facet: Facet) -> Int[np.ndarray, "labels"]:
    """Return the number of distinct values among the targets of each slice."""
    width = int(numbers.max()) + 1
    pairs = np.unique(facet.codes * width + numbers[facet.entities])
    return np.bincount(pairs // width, minlength=len(facet.labels))


def _codes(frame: pd.DataFrame, columns: list[str]) -> Int[np.ndarray, "rows"]:
    """Return small integers, the same for rows whose cells are the same."""
    return frame.groupby(columns, sort=False).ngroup().to_numpy(np.int64)


def _plain(ids: pd.Series) -> np.ndarray:
    return ids.to_numpy(np.int64) if pd.api.types.is_integer_dtype(ids) else ids.to_numpy(object)
