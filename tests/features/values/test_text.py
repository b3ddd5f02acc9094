"""Words of every script: found however Unicode spells them, with and without blanks between them."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from sklearn.utils import murmurhash3_32

from features.config import FeaturesConfig, FeatureSettings
from features.inference.inference import as_feature
from features.sequences.sequences import Queries, Sequences
from features.tables.tables import Users
from features.values.text import HashedText, ProjectedText, ngrams, word_starts, words, words_and_pairs
from serving.jobs.clusters import Clusters, typical_words
from training.evaluation.baselines.bm25 import Bm25

FOUND = [
    ("手机壳", "苹果手机壳透明防摔", "不锈钢保温杯大容量"),
    ("茶", "有机绿茶散装", "咖啡豆深度烘焙"),
    ("コーヒー", "深煎りコーヒー豆200g", "抹茶のお菓子詰め合わせ"),
    ("ｺｰﾋｰ", "深煎りコーヒー豆200g", "抹茶のお菓子詰め合わせ"),
    ("弁当箱", "ステンレス製の弁当箱2段", "革の長財布メンズ"),
    ("กาแฟ", "เมล็ดกาแฟคั่วเข้ม", "ชาเขียวมัทฉะแท้"),
    ("น้ำ", "ขวดน้ำสแตนเลส", "กระเป๋าหนังแท้"),
    ("चाय", "मसाला चाय पत्ती", "काली टोपी"),
    ("cafe\u0301", "Café crème", "Thé vert"),
    ("ＴＥＡ", "green tea", "ground coffee"),
    ("strasse", "Lampe für die Straße", "Tisch aus Holz"),
]


@pytest.mark.parametrize(("query", "meant", "other"), FOUND)
def test_every_reader_of_texts_finds_the_words_of_a_query(query, meant, other):
    for tokens in (words, words_and_pairs, ngrams):
        assert set(tokens(query)) & set(tokens(meant))
        assert not set(tokens(query)) & set(tokens(other))
    asked, near, far = ProjectedText.fit([meant, other], 4096).numbers([query, meant, other])
    assert asked @ near > 0.15 + asked @ far
    bags = [set(HashedText.fit([meant, other]).bags([text])[1]) for text in (query, meant, other)]
    assert bags[0] & bags[1]


TEXT = st.text(st.sampled_from("aéßſI\u0130ςΣ 茶绿กาแฟ้ำコーヒーガｶﾞ가각e\u0301चाय_-3Ａ①\u200d"), max_size=12)


@given(TEXT)
def test_words_do_not_depend_on_how_unicode_spells_them(text):
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words(unicodedata.normalize(form, text)) == words(text)
    assert words(text.casefold()) == words(text)


@given(TEXT)
def test_no_letter_is_left_out(text):
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    letters = {letter for letter in folded if letter.isalnum()}
    assert letters <= set("".join(words(text)))
    assert bool(word_starts(text)) == bool(text.split())


@given(st.text(st.sampled_from("ab Z_9-,.éÜ"), max_size=20))
def test_words_between_blanks_are_runs_of_letters_and_digits(text):
    assert words(text) == re.findall(r"\w+", text.lower())
    assert words_and_pairs(text) == words(text) + [" ".join(pair) for pair in pairwise(words(text))]


@given(st.lists(TEXT, min_size=1, max_size=5), st.lists(TEXT, min_size=1, max_size=5))
def test_buckets_weights_and_directions_are_those_of_scikit_learn(known, asked):
    vectorizer = HashingVectorizer(n_features=999, analyzer=words_and_pairs, alternate_sign=False, norm=None)
    documents = np.bincount(vectorizer.transform(known).indices, minlength=999)
    rarity = (np.log((1 + len(known)) / (1 + documents)) + 1) * (documents > 0)
    counts = vectorizer.transform(asked)
    counts.data = (1 + np.log(counts.data)) * rarity.astype(np.float32)[counts.indices]
    hashes = np.stack([murmurhash3_32(np.arange(999, dtype=np.int32), seed, positive=True) for seed in range(16)], 1)
    directions = np.zeros((999, 8))
    np.add.at(directions, (np.arange(999)[:, None], hashes % 8), np.where(hashes >> 31, 0.25, -0.25))
    found = ProjectedText.fit(known, 8, 999).numbers(asked)
    np.testing.assert_allclose(found, normalize(counts) @ directions, atol=1e-6)


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_bags_are_those_of_scikit_learn(texts):
    counts = HashingVectorizer(n_features=999, analyzer=ngrams, alternate_sign=False, norm=None).transform(texts)
    sizes, buckets = HashedText.fit(texts, 999, max_ngrams=10_000).bags(texts)
    assert sizes.tolist() == np.diff(counts.indptr).tolist()
    for row, bag in enumerate(np.split(buckets, np.cumsum(sizes)[:-1])):
        assert set(bag) == set(counts[row].indices)


def test_bm25_reads_words_in_the_same_way():
    queries, meant, others = zip(*FOUND, strict=True)
    ids = pd.Series(range(len(queries)), dtype="int64[pyarrow]")
    users = Users(pd.DataFrame({"user_id": ids, "text": pd.Series(queries, dtype=pd.ArrowDtype(pa.large_string()))}))
    config = FeaturesConfig(items="items.csv", user={"text": FeatureSettings(kind="text")})
    history = Sequences(np.arange(len(ids)), np.zeros(len(ids) + 1, int), np.zeros(0, int), None, is_ordered=False)
    asked = Queries(history, np.arange(len(ids) + 1), np.zeros(len(ids), int), None)
    scores = Bm25([*meant, *others], users, config).scores(asked)
    assert (scores[ids, ids] > 0).all()
    assert not scores[ids, len(ids) + ids].any()


def test_clusters_are_named_in_the_same_way():
    clusters = Clusters(np.array([0, 0, 1, 1]), np.ones(4, np.float32), 2)
    named = typical_words(clusters, ["有机绿茶", "绿茶散装", "手机壳透明", "手机壳防摔"])
    assert "绿茶" in named[0]
    assert {"手机", "机壳"} <= set(named[1])


def test_a_column_without_blanks_is_text_and_no_code():
    titles = [f"有机绿茶散装第{number}号礼盒装{'茶杯' * (number % 5)}" for number in range(60)]
    column = pd.Series(titles, dtype=pd.ArrowDtype(pa.large_string()))
    choice = as_feature("描述", column, "item")
    assert choice.settings is not None, choice.reason
    assert choice.settings.kind == "text"
