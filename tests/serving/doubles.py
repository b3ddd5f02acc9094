"""A model that needs no training: items have random vectors by id, a user is the mean of his items.

It has the interface of `ModelBundle`, and arithmetic that a test can do by hand.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa

from features.config import FeaturesConfig, FeatureSettings
from features.tables.tables import Catalog, Interactions, Tables, Users
from serving.recommend.recommender import Recommender
from serving.snapshot.snapshot import Snapshot
from towers.bundle.bundle import ModelBundle
from towers.config import TowersConfig

WIDTH = 16


def vector_of(name):
    seed = int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:4], "big")
    vector = np.random.default_rng(seed).normal(size=WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def unit(vectors):
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


class FakeBundle(ModelBundle):
    """Users are the mean of what they had, plus a vector for each attribute, and one for the hour if asked for."""

    spellings = path = version = weights_digest = config = featurizer = model = report = tables_folder = None

    def __init__(self, path, features, weights="weights"):
        digest = hashlib.sha256(weights.encode()).hexdigest()
        content = {
            "path": Path(path),
            "version": digest[:12],
            "weights_digest": digest,
            "config": SimpleNamespace(
                features=features,
                reads_time=bool(features.context),
                towers=TowersConfig(embedding_dim=WIDTH),
                asked_by=[],
            ),
            "tables_folder": Path(path),
            "spellings": {},
            "manifest": SimpleNamespace(created="2026-01-02T03:04:05+00:00"),
            "folder": {},
            "report": {},
        }
        for name, value in content.items():
            object.__setattr__(self, name, value)

    def knows(self, attributes):
        return attributes.notna().to_numpy(dtype=bool).any(axis=1)

    def unknown_values(self, attributes):
        return [{} for _ in range(len(attributes))]

    unknown_values_of_items = unknown_values

    def encode_items(self, catalog):
        return np.stack([vector_of(item_id) for item_id in catalog.item_ids])

    def encode_users(
        self,
        history_vectors,
        history_offsets,
        attributes=None,
        user_ids=None,
        request_times=None,
        event_times=None,
    ):
        num_users = len(history_offsets) - 1
        assert (np.diff(history_offsets) <= self.config.features.max_history).all()
        vectors = np.zeros((num_users, WIDTH), dtype=np.float32)
        for user in range(num_users):
            mine = history_vectors[history_offsets[user] : history_offsets[user + 1]]
            vectors[user] = mine.sum(axis=0)
            for column in () if attributes is None else attributes:
                value = attributes[column].iloc[user]
                if isinstance(value, list) or not pd.isna(value):
                    vectors[user] += vector_of(f"{column}={value}")
            if request_times is not None:
                vectors[user] += vector_of(f"hour={request_times[user] // 3600 % 24}")
        return unit(vectors)


def id_series(ids):
    is_text = isinstance(ids[0], str)
    return pd.Series(ids, dtype=pd.ArrowDtype(pa.string() if is_text else pa.int64()))


def make_tables(histories, item_ids, titles=None, users=None):
    """Tables from `{user_id: [item_id, ...]}`, oldest first."""
    events = [(user_id, item_id) for user_id in sorted(histories) for item_id in histories[user_id]]
    frame = pd.DataFrame(
        {"user_id": id_series([user for user, _ in events]), "item_id": id_series([item for _, item in events])}
    )
    catalog = pd.DataFrame({"item_id": id_series(item_ids)})
    if titles is not None:
        catalog["title"] = pd.Series(titles, dtype=pd.ArrowDtype(pa.large_string()))
    people = None if users is None else Users(users.assign(user_id=id_series(users["user_id"].tolist())))
    return Tables(Interactions(frame, is_ordered=True), Catalog(catalog), people, notes=())


def make_features(**changes):
    return FeaturesConfig(interactions="interactions.parquet", title="title", **changes)


def make_recommender(tables, path="bundle", clock=None, recommend_seen=None, **features):
    bundle = FakeBundle(path, make_features(**features))
    more = {} if clock is None else {"clock": clock}
    return Recommender(bundle, Snapshot.build(bundle, tables), recommend_seen=recommend_seen, **more)


def country():
    return {"country": FeatureSettings(kind="category")}


def best(tables, vector, k, excluded=()):
    """Brute force in plain Python: the ids with the highest inner product, ties by row."""
    ids = tables.catalog.item_ids.tolist()
    scores = [np.float32(np.dot(vector_of(item_id).astype(float), vector.astype(float))) for item_id in ids]
    rows = [row for row in range(len(ids)) if ids[row] not in set(excluded)]
    return [ids[row] for row in sorted(rows, key=lambda row: (-scores[row], row))[:k]]
