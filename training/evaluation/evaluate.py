"""Evaluation: rank the whole catalogue for every query, exactly, and compute metrics from the ranks of the targets.

A `ScoringModel` only returns scores. What may not be recommended (the history, and what is no candidate) is taken out
here, in one place and in the same way for all of them, and ties are broken by lot, so that a recommender that knows
nothing does as well as chance and no better. No sampled negatives, no index in between: what is measured is the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int, Shaped
from tqdm import tqdm

from features.errors import CellError, DataError
from features.sequences.ragged import Ragged, offsets_of, ragged_arange
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Queries
from features.values.distinct import column_cells
from features.values.readings import numbers_in
from training.evaluation.metrics import NEVER, coverage, metrics_per_question

CUTOFFS = (10, 50, 100)
"""The k of the metrics."""
CUTOFFS_FOR_USERS = (10, 20, 50, 100)
"""For protocol `users`, as usual in the literature: Recall@20, Recall@50 and NDCG@100."""
LISTED = 10
"""How many items of each question's list are kept."""
COST_OF_A_JUMP = 400
"""How many random numbers are drawn in the time of a jump to a later one, about."""
MAX_CELLS = 2**24
"""Most scores in memory at a time, whatever the block (16 million: some 250 MB with the comparisons and the order)."""


def cutoffs_of(protocol: str) -> tuple[int, ...]:
    """Return the k of the metrics of a protocol, as `Split.name` calls it."""
    return CUTOFFS_FOR_USERS if protocol == "users" else CUTOFFS


class ScoringModel(Protocol):
    """A model that scores every item for every query."""

    @property
    def name(self) -> str:
        """Display name in the report."""

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return a score for every item of the catalogue, higher is better; -inf: never recommend it.

        It is called with a block of the questions. It need not leave out histories and non-candidates, and must not
        look at the answers.
        """


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one recommender on one set of queries.

    Attributes:
        name: The recommender's.
        ranks: Rank of each answer among all candidates, from 1, `[targets]`; `NEVER` where it is not recommended.
        target_offsets: Where each question's answers begin, `[questions + 1]`.
        per_question: One number per question, by metric: `recall_at_10`, `ndcg_at_10`, `mrr_at_10`, ….
        coverage: Share of the candidates recommended to anybody, by metric: `coverage_at_10`, …; empty for a slice.
        num_candidates: How many items were ranked.
        users: The user of each question, `[questions]`.
        exposure: How many questions were shown each item among the first k, `[items]`, by k; empty where the coverage
            is.
    """

    name: str
    ranks: Int[np.ndarray, "targets"]
    target_offsets: Int[np.ndarray, "questions_plus_1"]
    per_question: dict[str, np.ndarray]
    coverage: dict[str, float]
    num_candidates: int
    users: Shaped[np.ndarray, "questions"]
    exposure: dict[int, Int[np.ndarray, "items"]] = field(default_factory=dict)
    top: Int[np.ndarray, "lists listed"] = field(default_factory=lambda: np.zeros((0, LISTED), dtype=np.int32))

    @property
    def num_questions(self) -> int:
        """Number of queries."""
        return len(self.target_offsets) - 1

    @property
    def means(self) -> dict[str, float]:
        """Mean over the queries, by metric, and the coverage."""
        return {name: float(values.mean()) for name, values in self.per_question.items()} | self.coverage

    def only(self, targets: Bool[np.ndarray, "targets"]) -> Evaluation | None:
        """Return the evaluation of some of the targets; None if there are none of them.

        The ranks stay those among all candidates. Questions without any such answer are left out.
        """
        lengths = np.add.reduceat(targets.astype(np.int64), self.target_offsets[:-1])
        if not targets.any():
            return None
        offsets = offsets_of(lengths[lengths > 0])
        cutoffs = tuple(dict.fromkeys(int(name.rpartition("_at_")[2]) for name in self.per_question))
        values = metrics_per_question(self.ranks[targets], offsets, cutoffs)
        users = self.users[lengths > 0]
        return Evaluation(self.name, self.ranks[targets], offsets, values, {}, self.num_candidates, users)


def evaluate(
    recommender: ScoringModel,
    queries: Queries,
    candidates: Bool[np.ndarray, "items"],
    *,
    seen_items: SeenItems,
    cutoffs: tuple[int, ...] = CUTOFFS,
    block: int = 512,
    seed: int = 0,
    with_coverage: bool = True,
    progress: bool = False,
    first_question: int = 0,
) -> Evaluation:
    """Rank all candidates for every query, and compute the metrics.

    Args:
        recommender: Gives the scores.
        queries: The questions and their answers.
        candidates: Which items are ranked.
        seen_items: Which items of a question's history are excluded from its ranking.
        cutoffs: The k of the metrics.
        block: Most questions at a time; fewer where the catalogue is large. The result does not depend on it.
        seed: For breaking ties: every item has the same chance to come first among its equals.
        with_coverage: Whether to find out what is recommended, for the coverage and the exposure; it takes most of the
            time.
        progress: Whether to show a bar.
        first_question: Place of the first of these questions among all, where others are answered elsewhere; ties are
            then broken as if all were answered here.

    Raises:
        ValueError: A score is NaN or +inf.
    """
    assert len(queries) > 0, "no questions"
    assert candidates[queries.target_rows].all(), "an answer is no candidate"
    size = max(1, min(block, MAX_CELLS // len(candidates)))
    longest = min(max(cutoffs), int(candidates.sum()))
    ranks = np.empty(len(queries.target_rows), dtype=np.int64)
    exposure = {k: np.zeros(len(candidates), dtype=np.int64) for k in cutoffs if with_coverage}
    lists = np.full((len(queries) if with_coverage else 0, LISTED), -1, dtype=np.int32)
    with tqdm(
        total=len(queries), desc=recommender.name, unit=" questions", leave=False, disable=None if progress else True
    ) as bar:
        for start in range(0, len(queries), size):
            part = queries.take(np.arange(start, min(start + size, len(queries))))
            scores = _masked_scores(recommender, part, candidates, seen_items)
            places = first_question + np.arange(start, start + len(part))
            lots = _Lots(seed, places, len(candidates))
            first, end = queries.target_offsets[[start, start + len(part)]]
            ranks[first:end] = _ranks(scores, part, lots)
            if with_coverage:
                top = _top(scores, longest, lots)
                lists[start : start + len(part), : top.shape[1]] = top[:, :LISTED]
                for k, shown in exposure.items():
                    np.add.at(shown, top[:, :k][top[:, :k] >= 0], 1)
            bar.update(len(part))
    shares = {f"coverage_at_{k}": coverage(shown > 0, candidates) for k, shown in exposure.items()}
    values = metrics_per_question(ranks, queries.target_offsets, cutoffs)
    num_candidates = int(candidates.sum())
    users = queries.history.user_ids
    offsets = queries.target_offsets
    return Evaluation(recommender.name, ranks, offsets, values, shares, num_candidates, users, exposure, lists)


def top_items(
    recommender: ScoringModel,
    queries: Queries,
    candidates: Bool[np.ndarray, "items"],
    *,
    seen_items: SeenItems,
    k: int,
    seed: int = 0,
    places: Int[np.ndarray, "questions"] | None = None,
) -> tuple[Int[np.ndarray, "questions k"], Float32[np.ndarray, "questions k"]]:
    """Return the first k items for each query, as they are ranked by `evaluate`, and their scores.

    Args:
        recommender: Gives the scores.
        queries: The questions.
        candidates: Which items are ranked.
        seen_items: Which items of a question's history are excluded from its ranking.
        k: Most items.
        seed: For breaking ties, as of `evaluate`.
        places: Where the queries are among those that were evaluated, so that ties are broken alike. None: they are
            all of them.

    Returns:
        Catalogue rows, best first, -1 where nothing is left to recommend; and scores, -inf there.

    Raises:
        ValueError: A score is NaN or +inf.
    """
    length = min(k, int(candidates.sum()))
    places = np.arange(len(queries)) if places is None else places
    size = max(1, min(512, MAX_CELLS // len(candidates)))
    rows = np.full((len(queries), length), -1, dtype=np.int64)
    found = np.full((len(queries), length), -np.inf, dtype=np.float32)
    for start in range(0, len(queries), size):
        part = queries.take(np.arange(start, min(start + size, len(queries))))
        scores = _masked_scores(recommender, part, candidates, seen_items)
        block = slice(start, start + len(part))
        rows[block] = _top(scores, length, _Lots(seed, places[block], len(candidates)))
        found[block] = np.where(rows[block] >= 0, np.take_along_axis(scores, rows[block], axis=1), -np.inf)
    return rows, found


def slices(evaluation: Evaluation, queries: Queries, warm_items: Bool[np.ndarray, "items"]) -> dict[str, Evaluation]:
    """Return the judgement on warm and cold users and on warm and cold items apart; those that are empty are left out.

    A user is cold without any history. An item is cold if training has not seen it.

    Args:
        evaluation: Of these very questions.
        queries: The questions.
        warm_items: Which items training has seen (`Split.warm_items`).
    """
    assert np.array_equal(evaluation.target_offsets, queries.target_offsets), "not the same questions"
    has_history = np.repeat(queries.history.lengths > 0, np.diff(queries.target_offsets))
    is_warm = warm_items[queries.target_rows]
    chosen = {"warm users": has_history, "cold users": ~has_history, "warm items": is_warm, "cold items": ~is_warm}
    parts = {name: evaluation.only(targets) for name, targets in chosen.items()}
    return {name: part for name, part in parts.items() if part is not None}


class TableRecommender:
    """Recommendations from a table, such as those of another system or of an oracle.

    Items that the table does not give to a user are never found. Users who are not in it get nothing.
    """

    def __init__(self, name: str, table: pd.DataFrame, item_ids: np.ndarray) -> None:
        """Read the table.

        Args:
            name: What the row in the report is called.
            table: `user_id`, `item_id` and `rank` (from 1), or `score` where there is no rank. Any order of rows.
            item_ids: The catalogue's ids, in its order.

        Raises:
            DataError: A column is missing, a rank or score is no number, an item is not in the catalogue, or a user
                has an item twice.
        """
        missing = {"user_id", "item_id"} - set(table.columns)
        if missing or not {"rank", "score"} & set(table.columns):
            found = ", ".join(map(str, table.columns))
            raise DataError(
                f"{name}: expected the columns user_id, item_id and rank or score, found {found}; rename them"
            )
        self.name = name
        self._num_items = len(item_ids)
        rows = pd.Index(item_ids).get_indexer(pd.Index(table["item_id"].to_numpy()))
        if (rows < 0).any():
            unknown = table["item_id"].to_numpy()[rows < 0][0]
            raise DataError(f"{name}: item {unknown!r} is not in the catalogue; use the catalogue it was made from")
        self._users = pd.Index(pd.unique(table["user_id"].to_numpy()))
        users = self._users.get_indexer(pd.Index(table["user_id"].to_numpy()))
        order = np.argsort(users, kind="stable")
        pairs = users.astype(np.int64) * self._num_items + rows
        if len(np.unique(pairs)) < len(pairs):
            raise DataError(f"{name}: a user has the same item twice; keep one row for each")
        scores = -_numbers(name, table, "rank") if "rank" in table else _numbers(name, table, "score")
        self._item_rows = rows[order]
        self._scores = scores[order].astype(np.float32)
        self._offsets = offsets_of(np.bincount(users, minlength=len(self._users)))

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the table's scores, -inf for other items."""
        users = self._users.get_indexer(pd.Index(queries.history.user_ids))
        known = np.flatnonzero(users >= 0)
        lengths = np.diff(self._offsets)[users[known]]
        events = ragged_arange(self._offsets[:-1][users[known]], lengths)
        scores = np.full((len(queries), self._num_items), -np.inf, dtype=np.float32)
        scores[np.repeat(known, lengths), self._item_rows[events]] = self._scores[events]
        return scores


def _numbers(name: str, table: pd.DataFrame, column: str) -> Float[np.ndarray, " rows"]:
    try:
        numbers, _, _ = numbers_in(column_cells(table[column]))
    except CellError as error:
        raise DataError(f"{name}: column {column!r}, {error}") from None
    if np.isnan(numbers).any():
        row = int(np.flatnonzero(np.isnan(numbers))[0])
        raise DataError(f"{name}: column {column!r}, row {row + 1:,}: expected a number, found none; remove the row")
    return numbers


class _Lots:
    """One random number per item for each question, for breaking ties; the same however the questions are divided."""

    def __init__(self, seed: int, questions: Int[np.ndarray, "block"], num_items: int) -> None:
        self._seed = seed
        self._questions = questions
        self._num_items = num_items

    def of(self, question: int, items: Int[np.ndarray, "some"]) -> Float[np.ndarray, "some"]:
        """Return the numbers of some items, ascending, for the question at a place of the block."""
        bits = np.random.PCG64([self._seed, int(self._questions[question])])
        rng = np.random.Generator(bits)
        if len(items) * COST_OF_A_JUMP > self._num_items:
            return np.asarray(rng.random(self._num_items)[items])
        drawn = np.empty(len(items))
        for place, jump in enumerate(np.diff(items, prepend=-1) - 1):
            bits.advance(int(jump))
            drawn[place] = rng.random()
        return drawn


def _masked_scores(
    recommender: ScoringModel, queries: Queries, candidates: Bool[np.ndarray, "items"], seen_items: SeenItems
) -> Float32[np.ndarray, "questions items"]:
    """Return the scores with -inf for what is out of question."""
    scores = np.array(recommender.scores(queries), dtype=np.float32)
    assert scores.shape == (len(queries), len(candidates)), f"{recommender.name}: wrong shape {scores.shape}"
    if not (scores < np.inf).all():
        raise ValueError(f"{recommender.name}: expected finite scores, found NaN or +inf; the model has diverged")
    if not candidates.all():
        scores[:, ~candidates] = -np.inf
    excluded = seen_items.excluded(queries.history, queries.times)
    assert not _has_answers(excluded, queries), "an answer is excluded from its question's ranking"
    scores[excluded.row_of_value, excluded.values] = -np.inf
    return scores


def _has_answers(excluded: Ragged, queries: Queries) -> bool:
    """Return whether an answer is among the items that its question excludes."""
    width = 1 + max(int(excluded.values.max(initial=0)), int(queries.target_rows.max(initial=0)))
    answers = np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets)) * width + queries.target_rows
    return bool(np.isin(answers, excluded.row_of_value * width + excluded.values).any())


def _ranks(scores: Float32[np.ndarray, "questions items"], queries: Queries, lots: _Lots) -> Int[np.ndarray, "targets"]:
    """Return the rank of every answer."""
    lengths = np.diff(queries.target_offsets)
    ranks = np.empty(len(queries.target_rows), dtype=np.int64)
    # One answer of each question at a time, so that memory does not grow with their number.
    for place in range(int(lengths.max())):
        asked = np.flatnonzero(lengths > place)
        targets = queries.target_offsets[asked] + place
        item_rows = queries.target_rows[targets]
        own = scores[asked, item_rows]
        others = scores if len(asked) == len(scores) else scores[asked]
        ranks[targets] = 1 + np.count_nonzero(others > own[:, None], axis=1)
        equal = others == own[:, None]
        for row in np.flatnonzero((np.count_nonzero(equal, axis=1) > 1) & (own > -np.inf)):
            level = np.flatnonzero(equal[row])
            drawn = lots.of(int(asked[row]), level)
            ranks[targets[row]] += np.count_nonzero(drawn > drawn[np.searchsorted(level, item_rows[row])])
        ranks[targets[own == -np.inf]] = NEVER
    return ranks


def _top(
    scores: Float32[np.ndarray, "questions items"], length: int, lots: _Lots
) -> Int[np.ndarray, "questions length"]:
    """Return the rows of the first items, best first, -1 where nothing is left to recommend."""
    top = np.full((len(scores), length), -1, dtype=np.int64)
    for row, least in enumerate(_lower_bounds(scores, length)):
        items = np.flatnonzero(scores[row] > least)
        if len(items) < length and least > -np.inf:
            level = _drawn(np.flatnonzero(scores[row] == least), length - len(items), lots, row)
            items = np.concatenate([items, level])
        best = _best(items, scores[row, items], length, lots, row)
        top[row, : len(best)] = best
    return top


def _best(
    items: Int[np.ndarray, "items"], values: Float32[np.ndarray, "items"], length: int, lots: _Lots, question: int
) -> Int[np.ndarray, "best"]:
    """Return the items with the highest values, best first, where equal ones are ordered by lot."""
    order = np.argsort(-values)
    if (np.diff(values[order[: length + 1]]) == 0).any():
        kept = np.flatnonzero(values >= values[order[:length][-1]])
        kept = kept[np.argsort(items[kept])]
        items, values = items[kept], values[kept]
        order = np.lexsort((lots.of(question, items), values))[::-1]
    return items[order[:length]]


def _drawn(level: Int[np.ndarray, "level"], count: int, lots: _Lots, question: int) -> Int[np.ndarray, "drawn"]:
    """Return the items with the highest lots, in any order."""
    drawn = lots.of(question, level)
    likely = np.flatnonzero(drawn > 1 - 4 * count / len(level))
    if len(likely) >= count:
        level, drawn = level[likely], drawn[likely]
    return level[np.argsort(-drawn)[:count]]


def _lower_bounds(scores: Float32[np.ndarray, "questions items"], length: int) -> Float32[np.ndarray, "questions"]:
    """Return scores that the first items of each question are not below, found without a partition of all items.

    At least so many items are not below the item of that rank among the best ones of groups of items.
    """
    width = max(1, scores.shape[1] // (4 * length))
    best_of_groups = np.maximum.reduceat(scores, np.arange(0, scores.shape[1], width), axis=1)
    bounds: np.ndarray = np.partition(best_of_groups, -length, axis=1)[:, -length]
    return bounds
