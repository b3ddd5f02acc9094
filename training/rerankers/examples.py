"""Training data of re-rankers: for each query the features of the candidates, and which of them are targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from tqdm import tqdm

from features.sequences.sequences import Queries
from features.tables.tables import Tables
from towers.bundle.bundle import ModelBundle
from towers.rerankers.reranker import Shortlist
from training.evaluation.metrics import ndcg_of_lists
from training.rerankers.candidates import shortlists

MOST_EXAMPLES = 100
"""Shortlists that are kept as they are."""


@dataclass(frozen=True)
class RankingDataset:
    """The shortlists of queries, padded at the end to equal length.

    Attributes:
        features: What is read of each candidate, `[questions, candidates, features]`.
        is_there: Where there is a candidate, `[questions, candidates]`.
        is_answer: Which are answers, `[questions, candidates]`.
        num_answers: How many answers each question has, those that retrieval missed included, `[questions]`.
        examples: Some of the shortlists as they are.
    """

    features: Float32[np.ndarray, "questions candidates features"]
    is_there: Bool[np.ndarray, "questions candidates"]
    is_answer: Bool[np.ndarray, "questions candidates"]
    num_answers: Int[np.ndarray, " questions"]
    examples: Sequence[Shortlist] = ()

    @classmethod
    def of(
        cls,
        bundle: ModelBundle,
        tables: Tables,
        questions: Queries,
        num_candidates: int,
        read: Callable[[Shortlist], Float32[np.ndarray, "candidates features"]],
    ) -> RankingDataset:
        """Return the shortlists of queries.

        Args:
            bundle: What retrieves.
            tables: The catalogue and the users.
            questions: Users and target items.
            num_candidates: How long the shortlists are.
            read: Returns what is read of each candidate of a shortlist.
        """
        most = min(num_candidates, len(tables.catalog))
        is_there, is_answer = np.zeros((2, len(questions), most), dtype=bool)
        features = np.zeros((len(questions), most, 0), dtype=np.float32)
        examples: list[Shortlist] = []
        found = shortlists(bundle, tables, questions, num_candidates)
        shown = tqdm(found, total=len(questions), desc="Shortlists", disable=None, leave=False)
        for place, (shortlist, answers) in enumerate(shown):
            mine = read(shortlist)
            if not examples:
                features = np.full((len(questions), most, mine.shape[1]), np.nan, dtype=np.float32)
            features[place, : len(shortlist)] = mine
            is_there[place, : len(shortlist)], is_answer[place, : len(shortlist)] = True, answers
            if len(examples) < MOST_EXAMPLES:
                examples.append(shortlist)
        return cls(features, is_there, is_answer, np.diff(questions.target_offsets), examples)

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.num_answers)

    @property
    def is_answerable(self) -> Bool[np.ndarray, " questions"]:
        """Which queries have a target on their shortlist."""
        return np.asarray(self.is_answer.any(axis=1))

    def ndcg(
        self, questions: Int[np.ndarray, " some"], scores: Float[np.ndarray, "some candidates"]
    ) -> Float[np.ndarray, " some"]:
        """Return N@10 of some queries, with the candidates of each ordered by scores."""
        order = np.argsort(np.where(self.is_there[questions], -scores, np.inf), axis=1, kind="stable")
        found = np.take_along_axis(self.is_answer[questions], order, axis=1)
        return ndcg_of_lists(found, self.num_answers[questions], 10)

    def before(self) -> Float[np.ndarray, " questions"]:
        """Return N@10 of the retriever's order."""
        places = np.arange(self.is_there.shape[1], dtype=np.float32)
        return self.ndcg(np.arange(len(self)), -np.tile(places, (len(self), 1)))
