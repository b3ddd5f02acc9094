"""Two evaluations on the same questions: paired differences, whole and by slice, what each finds, and their lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from features.errors import DataError
from features.sequences.ragged import offsets_of
from training.audit.facets import Facet
from training.audit.ranks import Ranks
from training.audit.slices import WHOLE
from training.evaluation.evaluate import LISTED, Evaluation, cutoffs_of
from training.evaluation.intervals import Answered, Resampled
from training.evaluation.metrics import metrics_per_question

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A metric of two recommenders on the same questions.

    Attributes:
        facet: What the questions are cut by; `all`: they are not.
        value: The slice.
        metric: Such as `ndcg_at_10`.
        num_questions: Questions with an answer in the slice, of all seeds together.
        first: Mean of the first recommender over the questions and the seeds.
        second: The same of the second.
        low: Lower bound of the interval of `second - first`, paired by question, over users and seeds.
        high: Upper bound.
    """

    facet: str
    value: str
    metric: str
    num_questions: int
    first: float
    second: float
    low: float
    high: float

    @property
    def gain(self) -> float:
        """How far the second is above the first."""
        return self.second - self.first

    @property
    def verdict(self) -> str:
        """Whether the second is `ahead`, `behind`, or `not distinguishable`."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "not distinguishable"

    @property
    def interval(self) -> str:
        """The interval as text."""
        return f"[{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class Found:
    """How many of the held-out answers are among the first ten of one, both or none of the lists."""

    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class Paired:
    """The ranks of two recommenders on the same questions.

    Attributes:
        first: Ranks of the first.
        second: Ranks of the second.
    """

    first: Ranks
    second: Ranks

    @classmethod
    def of(cls, first: Ranks, second: Ranks, names: Sequence[str]) -> Paired:
        """Pair two evaluations.

        Args:
            first: Ranks of one recommender.
            second: Ranks of another one.
            names: What to call the two in an error.

        Raises:
            DataError: They were not evaluated on the same questions.
        """
        pairs = _unlike(first, second)
        unlike = next((f"{what} {one} and {other}" for what, one, other in pairs if one != other), None)
        if unlike is None and not _same_rows(first.answers, second.answers, ["question", "user_id", "item_id"]):
            unlike = "other held-out interactions, so of other tables or of another split"
        if unlike is None and not _same_rows(first.items, second.items, ["item_id"]):
            unlike = "other items were ranked"
        if unlike is not None:
            raise DataError(
                f"{' and '.join(names)}: not evaluated on the same questions ({unlike}); evaluate both with the same "
                "tables, --protocol, --split and --seeds"
            )
        return cls(first, second)

    def difference(self, metric: str, level: float = LEVEL) -> Difference:
        """Return the difference on all questions."""
        return _difference(WHOLE, WHOLE, metric, self._evaluations, level)

    def slices(self, facets: Sequence[Facet], metric: str, min_support: int, level: float = LEVEL) -> list[Difference]:
        """Return the difference in each slice with enough questions.

        Args:
            facets: Facets of the answers, as `slices.answer_facets` gives them.
            metric: Such as `ndcg_at_10`.
            min_support: Least number of questions of a slice.
            level: Of the intervals.
        """
        found = (
            _difference(facet.name, label, metric, self._slice(facet, code), level)
            for facet in facets
            if len(facet.labels) > 1
            for code, label in enumerate(facet.labels)
        )
        return [one for one in found if one.num_questions >= min_support]

    @property
    def metrics(self) -> list[str]:
        """The metrics that there are."""
        return list(self._evaluations[0][0].per_question)

    def found(self, cutoff: int = LISTED) -> Found:
        """Return how many answers are found by both, by one of the two and by neither."""
        one, other = (ranks.answers["rank"].to_numpy() <= cutoff for ranks in (self.first, self.second))
        counts = ((one & other), (one & ~other), (~one & other), (~one & ~other))
        return Found(*(int(np.count_nonzero(count)) for count in counts))

    def overlap(self) -> float:
        """Return the share of the first ten that the two lists of a question have in common, on average."""
        shares = [
            len(set(one) & set(other)) / max(1, min(len(one), len(other)))
            for one, other in zip(self.first.lists["items"], self.second.lists["items"], strict=True)
        ]
        return float(np.mean(shares))

    @cached_property
    def _evaluations(self) -> list[tuple[Evaluation, Evaluation]]:
        return list(zip(_evaluations(self.first), _evaluations(self.second), strict=True))

    def _slice(self, facet: Facet, code: int) -> list[tuple[Evaluation, Evaluation]]:
        """Return the evaluations of each seed that has answers in a slice."""
        is_in = np.zeros(len(facet.offsets) - 1, dtype=bool)
        is_in[facet.entities[facet.codes == code]] = True
        sizes = [len(one.ranks) for one, _ in self._evaluations]
        parts = np.split(is_in, np.cumsum(sizes)[:-1])
        cut = [(one.only(part), other.only(part)) for (one, other), part in zip(self._evaluations, parts, strict=True)]
        return [(one, other) for one, other in cut if one is not None and other is not None]


def _difference(
    facet: str, value: str, metric: str, pairs: Sequence[tuple[Evaluation, Evaluation]], level: float
) -> Difference:
    trainings = [Answered([one.per_question[metric], other.per_question[metric]], one.users) for one, other in pairs]
    resampled = Resampled.of(trainings)
    first, second = (float(mean) for mean in resampled.means.mean(axis=0))
    interval = resampled.interval(1, 0, level=level)
    num_questions = sum(one.num_questions for one, _ in pairs)
    return Difference(facet, value, metric, num_questions, first, second, interval.low, interval.high)


def _evaluations(ranks: Ranks) -> Iterator[Evaluation]:
    """Yield the evaluation of each seed."""
    cutoffs = cutoffs_of(ranks.about.protocol)
    for seed, answers in ranks.answers.groupby("seed", sort=False):
        counts = answers.groupby("question", sort=False).size().to_numpy()
        offsets = offsets_of(counts)
        found = answers["rank"].to_numpy(np.int64)
        users = answers["user_id"].to_numpy(object)[offsets[:-1]]
        num_candidates = int((ranks.items["seed"] == seed).sum())
        values = metrics_per_question(found, offsets, cutoffs)
        yield Evaluation(ranks.recommenders[0], found, offsets, values, {}, num_candidates, users)


def _unlike(first: Ranks, second: Ranks) -> Iterator[tuple[str, str, str]]:
    """Yield what two evaluations must have in common: what it is, and what it is in each."""
    yield "protocol", first.about.protocol, second.about.protocol
    yield "split", first.about.part, second.about.part
    seeds = [", ".join(map(str, ranks.answers["seed"].unique())) for ranks in (first, second)]
    yield "seeds", seeds[0], seeds[1]
    yield "number of answers", f"{len(first.answers):,}", f"{len(second.answers):,}"


def _same_rows(first: pd.DataFrame, second: pd.DataFrame, columns: list[str]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(first[name].to_numpy(object), second[name].to_numpy(object)) for name in columns
    )
