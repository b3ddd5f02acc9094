"""BM25 against its formula, word by word."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.config import FeaturesConfig, FeatureSettings
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import held_out_queries
from features.tables.tables import Catalog, Interactions, Tables, Users
from training.evaluation.baselines.bm25 import fit_query_baselines

DOCUMENTS = ["Red shoes, red laces", "A blue shoe", "the red fox jumps over the lazy dog", "", "blue blue blue sky"]
QUERIES = ["red SHOES red", "blue", "what", "the fox"]
TEXT = {"text": FeatureSettings(kind="text")}


def text(values):
    return pd.Series(values, dtype=pd.ArrowDtype(pa.large_string()))


@pytest.fixture
def tables():
    ids = {"query": list(range(len(QUERIES))), "document": list(range(len(DOCUMENTS)))}
    integers = {name: pd.Series(values, dtype=pd.ArrowDtype(pa.int64())) for name, values in ids.items()}
    pairs = pd.DataFrame({"user_id": integers["query"], "item_id": integers["query"]})
    return Tables(
        Interactions(pairs, is_ordered=False),
        Catalog(pd.DataFrame({"item_id": integers["document"], "text": text(DOCUMENTS)})),
        Users(pd.DataFrame({"user_id": integers["query"], "text": text(QUERIES)})),
        notes=(),
    )


def slowly(query, k1=1.2, b=0.75):
    split = [re.findall(r"\w+", document.lower()) for document in DOCUMENTS]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for word in set(re.findall(r"\w+", query.lower())):
            having = sum(word in other for other in split)
            rarity = math.log(1 + (len(split) - having + 0.5) / (having + 0.5))
            times = words.count(word)
            score += rarity * times * (k1 + 1) / (times + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


def asked(user_ids):
    history = Sequences(np.array(user_ids), np.zeros(len(user_ids) + 1, int), np.zeros(0, int), None, is_ordered=False)
    return Queries(history, np.arange(len(user_ids) + 1), np.zeros(len(user_ids), int), None)


def test_documents_are_scored_as_the_formula_says(tables):
    features = FeaturesConfig(interactions="pairs", item=TEXT, user=TEXT)
    split = held_out_queries(tables.interactions.sequences(tables.catalog), len(DOCUMENTS))
    (_, bm25), notes = fit_query_baselines(split, tables, features)
    assert not notes
    scores = bm25.scores(asked([0, 1, 2, 3]))
    np.testing.assert_allclose(scores, [slowly(query) for query in QUERIES], rtol=1e-6)


def test_without_texts_it_is_left_out_and_that_is_said(tables):
    split = held_out_queries(tables.interactions.sequences(tables.catalog), len(DOCUMENTS))
    recommenders, notes = fit_query_baselines(split, tables, FeaturesConfig(interactions="pairs", item=TEXT))
    assert [one.name for one in recommenders] == ["popularity"]
    assert "BM25 left out" in notes[0]
