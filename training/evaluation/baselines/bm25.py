"""The baseline of a text search: BM25, the words of a query weighted by their rarity and the document's length.

It learns nothing, so that any pair may be asked, and is hard to beat where queries have the documents' own words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32
from sklearn.feature_extraction.text import CountVectorizer

from features.columns import item_texts, texts_written
from features.config import FeaturesConfig
from features.sequences.sequences import Queries
from features.sequences.split import Split
from features.tables.tables import Tables, Users
from features.values.text import words
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.evaluate import ScoringModel

K1, B = 1.2, 0.75
"""BM25 parameters: saturation of the term frequency, and length normalisation; the defaults of Lucene."""


def fit_query_baselines(split: Split, tables: Tables, features: FeaturesConfig) -> tuple[list[ScoringModel], list[str]]:
    """Return what needs no history: popularity, and BM25 where queries and documents have texts.

    Returns:
        The recommenders, and what a reader of the report should know about them, one line each.
    """
    recommenders: list[ScoringModel] = [PopularityBaseline.fit(split.train, len(split.candidates))]
    texts = item_texts(tables.catalog, features.item)
    if texts is None or tables.users is None or texts_written(tables.users.frame[:1], features.user) is None:
        return recommenders, ["BM25 left out: it compares texts, and [features.user] or [features.item] has none"]
    return [*recommenders, Bm25(texts, tables.users, features)], []


class Bm25:
    """Documents by the words of a query (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework").

    `score(q, d) = sum over the words w of q of idf(w) * f * (K1 + 1) / (f + K1 * (1 - B + B * length(d) / mean))`, with
    `f` how often w stands in d, `mean` the mean length, and `idf(w) = ln(1 + (n - n_w + 0.5) / (n_w + 0.5))` of n
    documents of which n_w have w. A word that comes twice in a query counts once.
    """

    name = "words (BM25)"

    def __init__(self, documents: Sequence[str], users: Users, features: FeaturesConfig) -> None:
        """Read the documents.

        Args:
            documents: What is written in each item, `[items]`.
            users: The queries.
            features: Which of their columns are read.
        """
        self._users, self._features = users, features
        self._words = CountVectorizer(analyzer=words)
        self._weights = _weights(self._words.fit_transform(documents))

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the BM25 score of every document for every query."""
        texts = texts_written(self._users.attributes_of(queries.history.user_ids), self._features.user)
        words = self._words.transform(texts)
        words.data[:] = 1
        scores: np.ndarray = (words @ self._weights.T).toarray().astype(np.float32)
        return scores


def _weights(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Return what each word of each document is worth to a query that has it, `[documents, words]`."""
    num_documents, num_words = counts.shape
    having = np.bincount(counts.indices, minlength=num_words)
    rarity = np.log(1 + (num_documents - having + 0.5) / (having + 0.5))
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    spread = np.repeat(1 - B + B * lengths / max(lengths.mean(), 1), np.diff(counts.indptr))
    weights = counts.astype(np.float64)  # it may sort what is in a row
    weights.data *= (K1 + 1) / (weights.data + K1 * spread) * rarity[weights.indices]
    return weights
