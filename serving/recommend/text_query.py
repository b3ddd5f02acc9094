"""Words to a vector in the space of the items: what `Recommender.search` looks near.

A model of a search has a tower for queries: users who are nothing but what is written. For any other the words are
those of an item that is not there: the item tower reads them as it reads a new item of which nothing else is known.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float32

from features.config import FeatureSettings
from features.errors import DataError
from features.schema import ITEM_ID
from features.tables.tables import Catalog
from towers.bundle.bundle import ModelBundle


def reads_texts(bundle: ModelBundle) -> bool:
    """Return whether words lead anywhere."""
    return bool(bundle.config.asked_by or _texts(bundle.config.features.item))


def query_vector(bundle: ModelBundle, text: str) -> Float32[np.ndarray, "1 width"]:
    """Return the unit vector of what is written; zeros where the model knows none of its words.

    Raises:
        DataError: The model reads no texts.
    """
    if not reads_texts(bundle):
        raise DataError("q: the model reads no texts, so that words lead nowhere; train one that does")
    if columns := bundle.config.asked_by:
        nothing, offsets = np.zeros((0, bundle.config.towers.embedding_dim), np.float32), np.zeros(2, np.int64)
        return bundle.encode_users(nothing, offsets, pd.DataFrame({column: [text] for column in columns}))
    written = {column: [text] for column in _texts(bundle.config.features.item)}
    return bundle.encode_items(Catalog(pd.DataFrame({ITEM_ID: [None], **written})))


def _texts(features: dict[str, FeatureSettings]) -> list[str]:
    return [column for column, settings in features.items() if settings.definition.content == "texts"]
