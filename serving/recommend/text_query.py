"""Encodes a text as a vector in the space of the items, for `Recommender.search`.

A model trained on search queries has a query tower, which encodes the text. With any other model the item tower encodes
it, as the texts of a new item without other features.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float32

from features.config import FeatureSettings
from features.errors import DataError
from features.ids import ITEM_ID
from features.tables.tables import Catalog
from towers.bundle.bundle import ModelBundle


def reads_texts(bundle: ModelBundle) -> bool:
    """Return whether the model has text features, so that texts can be searched for."""
    return bool(bundle.config.asked_by or _texts(bundle.config.features.item))


def query_vector(bundle: ModelBundle, text: str) -> Float32[np.ndarray, "1 width"]:
    """Return the unit vector of a text; zeros if the model knows none of its words.

    Raises:
        DataError: The model has no text features.
    """
    if not reads_texts(bundle):
        raise DataError(
            "q: this model has no text features, so text search is unavailable; train a model with a text column"
        )
    if columns := bundle.config.asked_by:
        nothing, offsets = np.zeros((0, bundle.config.towers.embedding_dim), np.float32), np.zeros(2, np.int64)
        return bundle.encode_users(nothing, offsets, pd.DataFrame({column: [text] for column in columns}))
    written = {column: [text] for column in _texts(bundle.config.features.item)}
    return bundle.encode_items(Catalog(pd.DataFrame({ITEM_ID: [None], **written})))


def _texts(features: dict[str, FeatureSettings]) -> list[str]:
    return [column for column, settings in features.items() if settings.definition.content == "texts"]
