"""Examples of a report: people with their recommendations and what they chose next, near misses and failures.

They are drawn with a seed, from a sample of the questions. All texts are cut, so that a page stays small; to show none
is a setting, as they are about people.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int

from features.config import FeaturesConfig
from features.sequences.sequences import Queries
from features.sequences.split import Split
from features.tables.tables import Tables
from features.values.cells import is_missing
from training.details.figures import titles_of
from training.evaluation.details import Example, Fact, HeldOut, Recommended
from training.evaluation.evaluate import Evaluation, ScoringModel, top_items
from training.evaluation.metrics import NEVER

MOST_QUESTIONS = 1_000
"""Questions that are answered again for the examples and the scores, a sample."""
LISTED = 50
"""Recommendations of each that are looked at."""
SHOWN, SHOWN_HISTORY, SHOWN_HELD_OUT, SHOWN_ATTRIBUTES = 10, 8, 5, 6
"""Recommendations, interactions, held-out items and attributes that are shown of an example."""
MOST_MISSES = 10
MOST_CHARACTERS = 120
NEAR = (11, 20)
"""Ranks of a near miss."""
FAR = 100
"""A failure has a rank beyond this, or is never recommended."""


@dataclass(frozen=True)
class Sample:
    """Some of the questions of an evaluation, with their answers.

    Attributes:
        questions: The questions.
        ranks: Of each held-out item.
        item_rows: What is recommended for each question, the best first; -1 where there is nothing left.
        scores: Their scores.
        is_right: Whether they were held out.
    """

    questions: Queries
    ranks: Int[np.ndarray, "targets"]
    item_rows: Int[np.ndarray, "questions places"]
    scores: Float32[np.ndarray, "questions places"]
    is_right: Bool[np.ndarray, "questions places"]

    @classmethod
    def draw(
        cls, recommender: ScoringModel, evaluation: Evaluation, questions: Queries, split: Split, seed: int
    ) -> Sample:
        """Draw questions and answer them again.

        Args:
            recommender: Gives the scores.
            evaluation: Of the recommender, on all questions.
            questions: All questions.
            split: Which items may be recommended.
            seed: For the draw.
        """
        rng = np.random.default_rng(seed)
        drawn = rng.permutation(len(questions))[:MOST_QUESTIONS]
        asked = questions.take(drawn)
        item_rows, scores = top_items(
            recommender, asked, split.candidates, seen_items=split.seen_items, k=LISTED, places=drawn
        )
        begins, ends = questions.target_offsets[drawn], questions.target_offsets[drawn + 1]
        ranks = [evaluation.ranks[begin:end] for begin, end in zip(begins, ends, strict=True)]
        targets = pd.Series(asked.target_rows).groupby(np.repeat(np.arange(len(asked)), ends - begins)).agg(set)
        is_right = np.array(
            [[row in own for row in rows] for rows, own in zip(item_rows.tolist(), targets, strict=True)]
        )
        return cls(asked, np.concatenate(ranks), item_rows, scores, is_right)


@dataclass(frozen=True)
class MarkedItems:
    """The rows of the items of an example.

    Attributes:
        user_id: Whose.
        history: The newest interactions.
        recommended: The first of the recommendations.
        held_out: What the user really chose next.
    """

    user_id: str
    history: Int[np.ndarray, "past"]
    recommended: Int[np.ndarray, "places"]
    held_out: Int[np.ndarray, "targets"]


@dataclass(frozen=True)
class Examples:
    """Makes examples of the questions of a sample.

    Attributes:
        sample: The questions.
        tables: Titles of items and attributes of users.
        config: Which columns they are in.
        interactions: How many each item has in the training data.
        most: Most examples of people.
    """

    sample: Sample
    tables: Tables
    config: FeaturesConfig
    interactions: Int[np.ndarray, "items"]
    most: int

    def people(self) -> tuple[Example, ...]:
        """Return the first of the questions, whose order is one of chance."""
        return self._examples(np.arange(min(self.most, len(self.sample.questions))))

    def marked(self) -> MarkedItems | None:
        """Return the items of the first of these people; None if none are shown."""
        if not self.people():
            return None
        asked, shown = self.sample.questions, self.sample.item_rows[0, :SHOWN]
        return MarkedItems(
            cut(str(asked.history.user_ids[0])),
            asked.history.items_of(0)[::-1][:SHOWN_HISTORY],
            shown[shown >= 0],
            asked.target_rows[: asked.target_offsets[1]][:SHOWN_HELD_OUT],
        )

    def near_misses(self) -> tuple[Example, ...]:
        """Return questions whose best held-out item is shortly behind the first ten, the nearest first."""
        best = self._best_ranks()
        return self._examples(self._ordered((best >= NEAR[0]) & (best <= NEAR[1]), best))

    def failures(self) -> tuple[Example, ...]:
        """Return questions whose best held-out item is far behind, the farthest first."""
        best = self._best_ranks()
        return self._examples(self._ordered(best > FAR, -best))

    def _best_ranks(self) -> Int[np.ndarray, "questions"]:
        return np.minimum.reduceat(self.sample.ranks, self.sample.questions.target_offsets[:-1])

    def _ordered(self, chosen: np.ndarray, by: np.ndarray) -> np.ndarray:
        questions = np.flatnonzero(chosen)
        return questions[np.argsort(by[questions], kind="stable")][: min(self.most, MOST_MISSES)]

    def _examples(self, questions: Int[np.ndarray, "chosen"]) -> tuple[Example, ...]:
        asked, shown = self.sample.questions.take(questions), self.sample.item_rows[questions, :SHOWN]
        rows = np.concatenate([asked.history.last(SHOWN_HISTORY).item_rows, shown[shown >= 0], asked.target_rows])
        titles = {row: cut(title) for row, title in titles_of(self.tables.catalog, self.config.title, rows).items()}
        return tuple(self._example(int(question), titles) for question in questions)

    def _example(self, question: int, titles: dict[int, str]) -> Example:
        asked, sample = self.sample.questions, self.sample
        begin, end = asked.target_offsets[question : question + 2].tolist()
        targets = slice(begin, end)
        history = asked.history.items_of(question)
        placed = sorted(zip(sample.ranks[targets].tolist(), asked.target_rows[targets].tolist(), strict=True))
        recommended = zip(sample.item_rows[question, :SHOWN].tolist(), sample.is_right[question].tolist(), strict=False)
        user_id = asked.history.user_ids[question]
        return Example(
            user_id=cut(str(user_id)),
            attributes=self._attributes(user_id),
            history=tuple(titles[row] for row in history[::-1][:SHOWN_HISTORY].tolist()),
            num_history=len(history),
            recommended=tuple(Recommended(titles[row], is_right) for row, is_right in recommended if row >= 0),
            held_out=tuple(
                HeldOut(titles[row], None if rank == NEVER else rank, int(self.interactions[row]))
                for rank, row in placed[:SHOWN_HELD_OUT]
            ),
            num_held_out=len(placed),
        )

    def _attributes(self, user_id: object) -> tuple[Fact, ...]:
        """Return the attributes of a user, those first that the model reads."""
        users = self.tables.users
        if users is None:
            return ()
        cells = users.attributes_of(np.array([user_id], dtype=users.user_ids.dtype)).iloc[0]
        names = sorted(
            (name for name in cells.index if name != "user_id"), key=lambda name: name not in self.config.user
        )
        facts = [
            Fact(cut(str(name)), cut(str(cells[name]).removesuffix(" 00:00:00")))
            for name in names
            if not is_missing(cells[name])
        ]
        return tuple(facts[:SHOWN_ATTRIBUTES])


def cut(text: str) -> str:
    """Return a text of at most `MOST_CHARACTERS`, with a mark where something is left out."""
    text = " ".join(text.split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
