"""The two towers as a scoring model for evaluation."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from features.featurizer.featurizer import Featurizer
from features.sequences.batches import EntityFeatures
from features.sequences.sequences import Queries
from features.sequences.timeline import Timeline
from features.sequences.trend import STEPS, ItemTrend
from features.tables.tables import Users
from towers.model.two_tower import TwoTower
from training.evaluation.evaluate import ScoringModel


class TwoTowerRecommender:
    """Scores every item for every query: user vectors times item vectors.

    Args:
        model: In evaluation mode.
        featurizer: What the model was built on.
        item_features: The catalogue.
        users: The attributes of users, if there are any.
        history: How many events are read.
        timeline: The events that recent popularity is counted from: of a question, those before it. None: the model
            does not read recent popularity.
        end_of_training: Whether recent popularity is as it was after the last of these events, as in an index made
            then, whenever a question is asked.
        item_vectors: Those of the catalogue, where they are known. None: they are made.
        popular: Scores the items for unknown users, as in the service. None: the towers do.
    """

    def __init__(
        self,
        model: TwoTower,
        featurizer: Featurizer,
        item_features: EntityFeatures,
        users: Users | None,
        history: int,
        timeline: Timeline | None = None,
        *,
        end_of_training: bool = False,
        item_vectors: Float[Tensor, "items width"] | None = None,
        popular: ScoringModel | None = None,
    ) -> None:
        self.name = "two towers (end of training)" if end_of_training else "two towers"
        self.model = model
        self.featurizer = featurizer
        self.users = users
        self.history = history
        self.device = model.log_scale.device
        self.popular = popular
        self._is_at_end = end_of_training
        self._trend = None
        if model.trend is not None:
            assert timeline is not None, "checked before"
            levels = model.trend.levels.cpu().numpy()
            self._trend = ItemTrend(timeline, len(item_features), model.trend.half_lives, levels)
        with torch.no_grad():  # not inference_mode: fbgemm's fused kernel on a CPU exists for autograd only
            if item_vectors is None:
                item_vectors = model.item_vectors(item_features.to(self.device))
        self.item_vectors = item_vectors

    def scores(self, queries: Queries) -> Float[np.ndarray, "questions items"]:
        """Return the dot products of each query's user vector with the item vectors; popularity if nothing is known."""
        past = queries.history.last(self.history)
        attributes = None if self.users is None else self.users.attributes_of(past.user_ids)
        users = self.featurizer.user_features(past.user_ids, attributes).to(self.device)
        with torch.no_grad():
            vectors = self.model.user_vectors(
                self.item_vectors[torch.from_numpy(past.item_rows.astype(np.int64)).to(self.device)],
                torch.from_numpy(past.offsets).to(self.device),
                users,
                request_times=None if queries.times is None else torch.from_numpy(queries.times).to(self.device),
                event_times=None if past.times is None else torch.from_numpy(past.times).to(self.device),
            )
            scores: np.ndarray = (vectors @ self.item_vectors.T).float().cpu().numpy()
            if self.model.trend is not None:
                self._add_trend(scores, self.model.trend(vectors).float().cpu().numpy(), queries.times)
        unknown = np.flatnonzero(~self.knows(queries))
        if self.popular is not None and len(unknown):
            scores[unknown] = self.popular.scores(queries.take(unknown))
        return scores

    def knows(self, queries: Queries) -> Bool[np.ndarray, "questions"]:
        """Return for which queries there is anything that the model reads: a history or a known attribute."""
        is_known: np.ndarray = queries.history.lengths > 0
        if self.users is not None:
            is_known = is_known | self.featurizer.users.knows(self.users.attributes_of(queries.history.user_ids))
        return is_known

    def _add_trend(
        self,
        scores: Float[np.ndarray, "questions items"],
        weights: Float[np.ndarray, "questions half_lives"],
        times: Int[np.ndarray, "questions"] | None,
    ) -> None:
        """Add recent popularity to scores, in place."""
        assert self._trend is not None
        assert times is not None, "training checked that there are times"
        asked = np.full(len(scores), self._trend.end) if self._is_at_end else self._trend.moments(times)
        moments, place = np.unique(asked, return_inverse=True)
        numbers = self._trend.numbers(moments)
        for half_life, weight in enumerate(weights.T):
            scores += numbers[half_life][place] * (weight[:, None] / np.float32(STEPS))
