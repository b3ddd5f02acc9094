"""Unit vectors to search among, and what a search of them must find."""

from __future__ import annotations

import numpy as np

from features.sequences.ragged import Ragged
from serving.search.results import AllowedItems


def unit_vectors(count, width=16, seed=0):
    """Directions without any structure: the hardest to index."""
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered_vectors(count, width=16, seed=0, num_clusters=40):
    """Directions in groups of uneven size around 40 centres, as those of a catalogue; the same centres for any seed."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(40).normal(size=(num_clusters, width))
    weights = 1 / (1 + np.arange(num_clusters))
    chosen = rng.choice(num_clusters, size=count, p=weights / weights.sum())
    vectors = centres[chosen] + 0.6 * rng.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def ragged(lists):
    return Ragged.of([np.array(one, dtype=np.int64) for one in lists])


def by_hand(vectors, query, k, excluded=(), allowed=None):
    """The reference: plain Python over double-precision scores, ties by row."""
    scores = {row: np.float32(np.dot(vectors[row].astype(float), query.astype(float))) for row in range(len(vectors))}
    barred = set(np.asarray(excluded).tolist())
    left = [row for row in scores if row not in barred and (allowed is None or allowed.mask[row])]
    return sorted(left, key=lambda row: (-scores[row], row))[:k]


def some_allowed(num_items, share, seed=77):
    return AllowedItems(np.random.default_rng(seed).random(num_items) < share)
