"""Clusters of similar items, each named by its typical words.

Clusters come from spherical k-means (FAISS), whose cost is linear in the number of items, unlike that of density-based
methods, which compare items with each other. Names come from class-based TF-IDF: a word is typical of a cluster if many
of its items have it and few of all items do. Every item counts once per word, however often it has the word, so long
descriptions do not dominate.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int64
from sklearn.feature_extraction.text import CountVectorizer

from features.values.text import words
from serving.search.faiss_index import kmeans

MOST_CLUSTERS = 500
"""Maximum number of clusters by default; more would be no overview."""

_ROUNDS = 25
_ITEMS_PER_CENTRE = 256
# Number of items of each cluster whose words are read: those nearest to its centre.
_READ_ITEMS = 300
_READ_LETTERS = 2_000
_MOST_WORDS = 50_000
_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff]+")


@dataclass(frozen=True)
class Clusters:
    """A division of the catalogue.

    Attributes:
        of_item: The cluster of each item, from 0, the largest first, `[items]`.
        scores: The cosine of each item and the centre of its cluster, `[items]`.
        num_clusters: Number of clusters.
    """

    of_item: Int64[np.ndarray, " items"]
    scores: Float32[np.ndarray, " items"]
    num_clusters: int

    def nearest(self, cluster: int, most: int) -> Int64[np.ndarray, " nearest"]:
        """Return the catalogue rows of the items nearest to the centre of a cluster, the nearest first."""
        rows = np.flatnonzero(self.of_item == cluster)
        return rows[np.argsort(-self.scores[rows], kind="stable")[:most]]


def make_clusters(vectors: Float32[np.ndarray, "items width"], num_clusters: int | None = None) -> Clusters:
    """Divide the items into clusters.

    Args:
        vectors: Unit vectors by catalogue row.
        num_clusters: Number of clusters, at most that of items. None: half the square root of the items, at most 500.
    """
    if num_clusters is None:
        num_clusters = max(1, min(MOST_CLUSTERS, round(len(vectors) ** 0.5 / 2)))
    found = kmeans(vectors, num_clusters, rounds=_ROUNDS, items_per_centre=_ITEMS_PER_CENTRE)
    sizes = np.bincount(found.of_item, minlength=num_clusters)
    order = np.argsort(-sizes, kind="stable")
    place = np.empty(num_clusters, dtype=np.int64)
    place[order] = np.arange(num_clusters)
    scores = np.vecdot(vectors, found.centres[found.of_item])
    return Clusters(place[found.of_item], scores.astype(np.float32), int((sizes > 0).sum()))


def typical_words(clusters: Clusters, texts: Sequence[str], most: int = 4) -> list[list[str]]:
    """Return the words that are typical of each cluster, the most typical first.

    Class-based TF-IDF (Grootendorst, "BERTopic", 2022), with items in the place of words: the share of the cluster's
    items that have the word, times `ln(1 + mean size of a cluster / items with the word)`.

    Args:
        clusters: The clusters.
        texts: The text of each item, `[items]`.
        most: Maximum number of words per cluster.
    """
    chosen = [clusters.nearest(cluster, _READ_ITEMS) for cluster in range(clusters.num_clusters)]
    rows = np.concatenate(chosen)
    sizes = np.array([len(some) for some in chosen])
    vectorizer = CountVectorizer(binary=True, analyzer=_names, max_features=_MOST_WORDS, dtype=np.float32)
    try:
        has_word = vectorizer.fit_transform(texts[row][:_READ_LETTERS] for row in rows)
    except ValueError:  # no text has any word
        return [[] for _ in chosen]
    of_row = np.repeat(np.arange(len(chosen)), sizes)
    belongs = sp.csr_array((np.ones(len(rows), np.float32), (of_row, np.arange(len(rows)))))
    names = vectorizer.get_feature_names_out()
    return [[str(names[at]) for at in best] for best in _best(sp.csr_array(belongs @ has_word), sizes, most)]


def _names(text: str) -> list[str]:
    """Return the words of a text that are useful in names: of two letters or more, not beginning with a digit.

    A sequence of katakana counts as one word, usually a loanword.
    """
    text = unicodedata.normalize("NFKC", text)
    found = _KATAKANA.findall(text) + words(_KATAKANA.sub(" ", text))
    return [word for word in found if len(word) > 1 and word[0].isalpha()]


def _best(counts: sp.csr_array[np.float32], sizes: np.ndarray, most: int) -> list[np.ndarray]:
    """Return the columns of the highest class-based TF-IDF of each row."""
    rarity = np.log1p(sizes.mean() / np.asarray(counts.sum(axis=0)).ravel())
    best = []
    for cluster, size in enumerate(sizes):
        part = slice(counts.indptr[cluster], counts.indptr[cluster + 1])
        columns, share = counts.indices[part], counts.data[part] / size
        best.append(columns[np.lexsort((columns, -share * rarity[columns]))[:most]])
    return best
