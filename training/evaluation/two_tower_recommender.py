"""The two towers as a scoring model for evaluation."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from features.featurizer.featurizer import Featurizer
from features.sequences.batches import EntityFeatures
from features.sequences.sequences import Queries
from features.tables.tables import Users
from towers.model.two_tower import TwoTower


class TwoTowerRecommender:
    """Scores every item for every query: user vectors times item vectors.

    Args:
        model: In evaluation mode.
        featurizer: What the model was built on.
        item_features: The catalogue.
        users: The attributes of users, if there are any.
        history: How many events are read.
    """

    name = "two towers"

    def __init__(
        self, model: TwoTower, featurizer: Featurizer, item_features: EntityFeatures, users: Users | None, history: int
    ) -> None:
        self.model = model
        self.featurizer = featurizer
        self.users = users
        self.history = history
        self.device = model.log_scale.device
        with torch.no_grad():  # not inference_mode: fbgemm's fused kernel on a CPU exists for autograd only
            self.item_vectors = model.item_vectors(item_features)

    def scores(self, queries: Queries) -> Float[np.ndarray, "questions items"]:
        """Return the dot product of each query's user vector and each item vector."""
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
        return scores
