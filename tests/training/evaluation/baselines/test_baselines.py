"""The baselines against their definitions, written out slowly, and against the figures that others report."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import assume, given
from hypothesis import strategies as st

from features.columns import item_texts
from features.config import FeatureSettings
from features.sequences.matrix import interaction_matrix
from features.sequences.ragged import offsets_of
from features.sequences.seen_items import EXCLUDE
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import cold_items, held_out_users, leave_one_out
from features.sequences.timeline import Timeline
from features.tables.table_files import read_frame
from features.tables.tables import Catalog
from training.evaluation.baselines import item_cosine, sequential
from training.evaluation.baselines.baseline import BaselineData
from training.evaluation.baselines.cease import prepare as prepare_cease
from training.evaluation.baselines.ease import Ease, ease_weights
from training.evaluation.baselines.ials import Ials, IalsSettings, implicit_als
from training.evaluation.baselines.item_cosine import ItemCosine, longest_counted
from training.evaluation.baselines.mix import Mix
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.baselines.recency import decayed_history
from training.evaluation.baselines.recent_popularity import RecentPopularity
from training.evaluation.baselines.sequential import WINDOW, SequentialNeighbours, Transitions
from training.evaluation.baselines.session_knn import SessionNeighbours, recent_users
from training.evaluation.baselines.text_neighbours import TextNeighbours, text_vectors
from training.evaluation.evaluate import evaluate


def sequences(*rows: list[int]) -> Sequences:
    return Sequences(
        user_ids=np.arange(len(rows)),
        offsets=offsets_of(np.array([len(row) for row in rows], dtype=np.int64)),
        item_rows=np.array([item for row in rows for item in row], dtype=np.int64),
        times=None,
        is_ordered=True,
    )


def asking(*histories: list[int]) -> Queries:
    targets = np.zeros(len(histories), dtype=np.int64)
    return Queries(sequences(*histories), np.arange(len(histories) + 1), targets, times=None)


def matrix(rows: Sequences, num_items: int) -> np.ndarray:
    had = np.zeros((len(rows), num_items))
    had[rows.event_users, rows.item_rows] = 1
    return had


people = st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=10).map(lambda rows: sequences(*rows))


def test_popularity_counts_people_not_visits():
    # Item 0 was had by one person three times, item 1 by two people, item 2 by nobody.
    popularity = PopularityBaseline.fit(sequences([0, 0, 0, 1], [1]), num_items=3)
    assert popularity.scores(asking([], [1])).tolist() == [[1, 2, 0], [1, 2, 0]]


@given(people, st.sampled_from([0.5, 2.0, math.inf]))
def test_each_item_of_a_history_counts_by_its_newest_event(histories: Sequences, half_life: float):
    expected = np.zeros((len(histories), 7))
    for user in range(len(histories)):
        for age, item in reversed(list(enumerate(histories.items_of(user)[::-1]))):
            expected[user, item] = 2 ** (-age / half_life)
    assert decayed_history(histories, 7, half_life).toarray() == pytest.approx(expected, abs=1e-3)


def test_recent_popularity_by_hand():
    # Item 0 at 10 and 20 days, item 1 at 29 and 30, item 2 at 40; item 2 was most frequent in the training data.
    timeline = Timeline(np.array([10, 20, 29, 30, 40]) * 86_400, np.array([0, 0, 1, 1, 2]))
    queries = replace(asking([], [1]), times=np.array([30, 41]) * 86_400)
    earlier = np.array([2, 0, 3], dtype=np.float32)
    lately = RecentPopularity("lately", timeline, earlier, days=11, at=None).scores(queries)
    assert lately == pytest.approx(np.array([[1 + 0.5, 1, 0.75], [0.5, 1, 1.75]]))
    at_end = RecentPopularity("at the end", timeline, earlier, days=11, at=31 * 86_400).scores(queries)
    assert at_end == pytest.approx(np.array([[1.5, 2, 0.75]] * 2))
    assert lately.dtype == np.float32


@given(people, people, st.sampled_from([0.5, 3.0]), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5]))
def test_sequential_neighbours_agree_with_their_definition(
    train: Sequences, histories: Sequences, half_life: float, row_power: float, column_power: float
):
    counts = np.zeros((7, 7))
    for user in range(len(train)):
        items = train.items_of(user)
        for place, item in enumerate(items):
            for distance, later in enumerate(items[place + 1 : place + 1 + WINDOW], 1):
                counts[item, later] += 1 / distance
    out, into = np.maximum(counts.sum(axis=1), 1e-6), np.maximum(counts.sum(axis=0), 1e-6)
    weights = counts / np.outer(out**row_power, into**column_power)
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    expected = decayed_history(histories, 7, half_life).toarray() @ weights
    neighbours = SequentialNeighbours.fit(train, 7, half_life=half_life, row_power=row_power, column_power=column_power)
    assert neighbours.scores(queries) == pytest.approx(expected, abs=1e-4)


def test_cosine_by_hand():
    # Users of item 0: {0, 1}; of 1: {0, 1, 2}; of 2: {2}. cos(0, 1) = 2/sqrt(6), cos(1, 2) = 1/sqrt(3), cos(0, 2) = 0.
    cosine = ItemCosine.fit(sequences([0, 1], [1, 0, 0], [2, 1]), num_items=4)
    scores = cosine.scores(asking([0], [1, 1], [0, 2], [3], []))
    a, b = 2 / np.sqrt(6), 1 / np.sqrt(3)
    assert scores == pytest.approx(
        np.array([[0, a, 0, 0], [a, 0, b, 0], [0, a + b, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]), abs=1e-6
    )
    assert scores.dtype == np.float32


@given(people, people, st.sampled_from([2.0, math.inf]))
def test_cosine_agrees_with_its_definition(train: Sequences, histories: Sequences, half_life: float):
    had = matrix(train, 7)
    norms = np.maximum(np.linalg.norm(had, axis=0), 1e-9)
    similarity = had.T @ had / np.outer(norms, norms)
    np.fill_diagonal(similarity, 0)
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    expected = decayed_history(histories, 7, half_life).toarray() @ similarity
    assert ItemCosine.fit(train, 7, neighbours=None, half_life=half_life).scores(queries) == pytest.approx(
        expected, abs=1e-5
    )


@given(people, st.integers(1, 20))
def test_cosine_does_not_depend_on_the_size_of_the_blocks(train: Sequences, block_pairs: int):
    whole = item_cosine.similarities(train, 7, neighbours=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_cosine, "BLOCK_PAIRS", block_pairs)
        assert np.array_equal(item_cosine.similarities(train, 7, neighbours=None).toarray(), whole.toarray())


@given(people, st.integers(1, 60))
def test_of_long_histories_so_much_counts_that_the_pairs_are_no_more_than_allowed(train: Sequences, most: int):
    longest = longest_counted(train.lengths, most)
    assert longest == 1 or (np.minimum(train.lengths, longest) ** 2).sum() <= most
    assert longest >= train.lengths.max() or (np.minimum(train.lengths, longest + 1) ** 2).sum() > most


def test_a_very_long_history_has_bounded_pairs_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    train = sequences(*[rng.permutation(40)[:3].tolist() for _ in range(20)], rng.permutation(40).tolist())
    monkeypatch.setattr(item_cosine, "longest_counted", lambda lengths: longest_counted(lengths, 20 * 9 + 100))
    split = leave_one_out(train, 40, test=False)
    data = BaselineData(replace(split, train=train), None, 1e9)
    fitted = item_cosine.prepare(data)(half_life=math.inf)
    assert data.notes == [
        "item-item cosine counts the newest 10 interactions of a user, to save time; 1 of 21 users have more."
    ]
    same = ItemCosine.fit(train.last(10), 40)
    assert np.array_equal(fitted.scores(asking([1, 5])), same.scores(asking([1, 5])))


def test_transitions_beyond_the_memory_are_the_rarest_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    train = sequences(*[rng.integers(0, 40, 30).tolist() for _ in range(20)])
    whole = Transitions.of(train, 40)
    split = replace(leave_one_out(train, 40, test=False), train=train)
    data = BaselineData(split, None, 24 * 40 * 12)
    monkeypatch.setattr(sequential, "LEAST_KEPT", 12)
    fitted = sequential.prepare(data)(half_life=1.0, row_power=0.5, column_power=0.25)
    (note,) = data.notes
    assert note == (
        "sequential neighbours keeps the 12 most frequent transitions from an item, to save memory; 40 items have more."
    )
    cut = Transitions.of(train, 40, 12)
    assert np.array_equal(cut.out, whole.out)
    assert np.array_equal(cut.into, whole.into)
    for row in range(40):
        full, kept = whole.counts[[row]].toarray()[0], cut.counts[[row]].toarray()[0]
        assert np.array_equal(kept[kept > 0], full[kept > 0])
        assert np.sort(kept[kept > 0]).tolist() == np.sort(full)[-12:].tolist()
    # The newest item is the only one with a weight that counts here.
    expected = cut.weighed(0.5, 0.25)[[3]].toarray()
    assert fitted.scores(asking([3])) == pytest.approx(expected)


def test_cosine_keeps_only_the_nearest_neighbours_of_the_recommended_item():
    train = sequences([0, 1, 2], [0, 1], [0, 1, 3], [2, 3])
    everything = ItemCosine.fit(train, 4, neighbours=None)
    nearest = ItemCosine.fit(train, 4, neighbours=1)
    # Columns are recommended items, rows a history of one item each: one non-zero entry is left in each column.
    full, kept = (recommender.scores(asking([0], [1], [2], [3])) for recommender in (everything, nearest))
    assert (kept > 0).sum(axis=0).tolist() == [1, 1, 1, 1]
    assert kept.max(axis=0) == pytest.approx(full.max(axis=0))


@given(people, people, st.sampled_from([1.0, 10.0, 500.0]), st.sampled_from([2.0, math.inf]))
def test_ease_agrees_with_its_definition(
    train: Sequences, histories: Sequences, regularisation: float, half_life: float
):
    had = matrix(train, 7)
    inverse = np.linalg.inv(had.T @ had + regularisation * np.eye(7))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    expected = decayed_history(histories, 7, half_life).toarray() @ weights
    ease = Ease.fit(train, 7, regularisation=regularisation, half_life=half_life)
    assert ease.scores(queries) == pytest.approx(expected, abs=1e-5)


def test_ease_in_single_precision_agrees_with_double_on_a_catalogue_with_a_long_tail():
    rng = np.random.default_rng(0)
    rows = [np.minimum(rng.zipf(1.3, 60) - 1, 1_499).tolist() for _ in range(3_000)]
    train = sequences(*rows)
    had = matrix(train, 1_500)
    gram = had.T @ had
    inverse = np.linalg.inv(gram + 10 * np.eye(1_500))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    ours = ease_weights(gram.astype(np.float32), 10.0)
    assert np.abs(ours - weights).max() < 1e-4
    assert ours.flags.c_contiguous


def test_ease_gives_items_that_nobody_had_nothing():
    scores = Ease.fit(sequences([0, 2], [0, 2], [2]), num_items=5, regularisation=300).scores(asking([0], [1], []))
    assert scores[:, [1, 3, 4]].tolist() == [[0, 0, 0]] * 3
    assert scores[0, 2] > 0
    assert scores[1:].tolist() == [[0] * 5] * 2


def alternating_minima(had: np.ndarray, items: np.ndarray, settings: IalsSettings, mean: float) -> np.ndarray:
    """The users' vectors that are best for the items' vectors, each by its own linear equations."""
    users = np.zeros((len(had), items.shape[1]))
    for user, row in enumerate(had):
        weights = np.where(row > 0, settings.confidence, 1.0)
        penalty = settings.regularisation * (weights.sum() / mean) ** settings.frequency_power
        equations = items.T @ np.diag(weights) @ items + penalty * np.eye(items.shape[1])
        users[user] = np.linalg.solve(equations, items.T @ np.diag(weights) @ row)
    return users


def loss(had: np.ndarray, users: np.ndarray, items: np.ndarray, settings: IalsSettings) -> float:
    """What iALS minimises."""
    weights = np.where(had > 0, settings.confidence, 1.0)
    total = float((weights * (had - users @ items.T) ** 2).sum())
    for rows, vectors in ((weights, users), (weights.T, items)):
        sums = rows.sum(axis=1)
        scale = (sums / sums.mean()) ** settings.frequency_power
        total += float(settings.regularisation * (scale * (vectors**2).sum(axis=1)).sum())
    return total


def mean_weight(had: np.ndarray, settings: IalsSettings) -> float:
    return float(np.where(had > 0, settings.confidence, 1.0).sum(axis=1).mean())


@given(
    people.filter(lambda rows: rows.num_events > 0),
    people,
    st.builds(
        IalsSettings,
        factors=st.integers(1, 5),
        regularisation=st.sampled_from([0.5, 3.0]),
        confidence=st.sampled_from([1.0, 2.0, 30.0]),
        frequency_power=st.sampled_from([0.0, 1.0]),
    ),
)
def test_whoever_asks_ials_gets_the_minimum_for_the_history(
    train: Sequences, histories: Sequences, settings: IalsSettings
):
    ials = Ials.fit(train, 7, settings)
    items = ials._model.item_factors.astype(float)
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    mean = mean_weight(matrix(train, 7), settings)
    expected = alternating_minima(matrix(histories, 7), items, settings, mean) @ items.T
    scores = ials.scores(queries)
    # Penalties that differ by less than five in a hundred are one.
    assert scores == pytest.approx(expected, abs=0.03 * np.abs(expected).max() + 1e-4)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_ials_finds_vectors_that_cannot_be_bettered(power: float):
    rng = np.random.default_rng(4)
    settings = IalsSettings(factors=3, regularisation=1.0, confidence=5.0, frequency_power=power)
    had = (rng.random((30, 12)) < rng.uniform(0.1, 0.6, (30, 1))).astype(float)
    items = Ials.fit(sequences(*[np.flatnonzero(row).tolist() for row in had]), 12, settings)._model.item_factors
    users = alternating_minima(had, items, settings, mean_weight(had, settings))
    better = alternating_minima(had.T, users, settings, mean_weight(had.T, settings))
    found, possible, without = (loss(had, users, other, settings) for other in (items, better, 0 * items))
    assert possible <= found < 1.01 * possible < 0.9 * without


def test_without_scaling_by_frequency_ials_is_that_of_implicit():
    rng = np.random.default_rng(4)
    had = (rng.random((30, 12)) < 0.3).astype(np.float32)
    ours = Ials.fit(
        sequences(*[np.flatnonzero(row).tolist() for row in had]),
        12,
        IalsSettings(factors=3, regularisation=1.0, confidence=5.0, frequency_power=0.0),
    )
    theirs = implicit_als()(factors=3, regularization=1.0, alpha=5.0, iterations=15)
    rng = np.random.default_rng(0)
    theirs.user_factors, theirs.item_factors = (rng.random((size, 3), dtype=np.float32) * 0.01 for size in had.shape)
    theirs.fit(sp.csr_matrix(had), show_progress=False)
    assert ours._model.item_factors == pytest.approx(theirs.item_factors, abs=1e-3)


def test_ials_gives_a_stranger_without_history_and_an_item_that_nobody_had_nothing():
    scores = Ials.fit(sequences([0, 2], [0, 2], [2]), num_items=5).scores(asking([0], [1], []))
    assert scores[:, [1, 3, 4]].tolist() == [[0, 0, 0]] * 3
    assert scores[1:].tolist() == [[0] * 5] * 2


def test_ials_is_the_same_for_the_same_seed():
    train, settings = sequences([0, 1], [0, 1, 3], [2, 3], [2]), IalsSettings(factors=2, regularisation=0.1)
    first, again, other = (Ials.fit(train, 4, settings, seed=seed).scores(asking([0, 3])) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_cease_is_ease_with_a_user_for_each_word():
    # Items 0 to 3 have interactions, 4 only words. A user more for each word and pair of words, who "has" the items
    # by weight * TF-IDF.
    rows = [[0, 1], [0, 1, 2], [2, 3], [3]]
    texts = ["red hat", "red shoe", "sun", "moon", "red moon"]
    split = leave_one_out(sequences(*[[*row, *row] for row in rows]), 5)
    data = BaselineData(replace(split, train=sequences(*rows)), texts, memory_bytes=10**6)
    cease = prepare_cease(data)(attribute_weight=3.0, regularisation=2.0, half_life=math.inf)
    tfidf = text_vectors(texts, np.array([True, True, True, True, False])).toarray().astype(float)
    stacked = np.vstack([matrix(sequences(*rows), 5), 3.0 * tfidf.T])
    inverse = np.linalg.inv(stacked.T @ stacked + 2.0 * np.eye(5))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    assert cease.scores(asking([0], [3, 1])) == pytest.approx(weights[[0, 3]] + [[0] * 5, weights[1]], abs=1e-4)
    assert cease.scores(asking([0]))[0, 4] > 0
    assert cease.name == "CEASE"


@given(people, people, st.sampled_from([1, 3, 100]), st.sampled_from([0.5, 3.0]))
def test_session_neighbours_agree_with_their_definition(
    train: Sequences, histories: Sequences, neighbours: int, half_life: float
):
    had = [set(train.items_of(user).tolist()) for user in range(len(train))]
    expected = np.zeros((len(histories), 7))
    for question, weights in enumerate(decayed_history(histories, 7, half_life).toarray().tolist()):
        similarity = [sum(weights[item] for item in items) for items in had]
        near = sorted(range(len(had)), key=lambda user: -similarity[user])
        # Of equally similar users any may be the last neighbour, which the definition leaves open.
        assume(len(near) <= neighbours or similarity[near[neighbours - 1]] > similarity[near[neighbours]] + 1e-6)
        for user in near[:neighbours]:
            newest = max((weights[item] for item in had[user]), default=0)
            expected[question, list(had[user])] += similarity[user] * newest
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    sessions = SessionNeighbours.fit(train, 7, neighbours=neighbours, half_life=half_life)
    assert sessions.scores(queries) == pytest.approx(expected, abs=1e-4)


def test_only_the_users_who_came_last_may_be_neighbours():
    train = replace(sequences([0, 1], [0, 2], [0, 3]), times=np.array([1, 5, 1, 9, 1, 7]))
    had = interaction_matrix(train, 4)
    users = recent_users(train, had, most=2)
    assert [users.row(item).tolist() for item in range(4)] == [[1, 2], [0], [1], [2]]


def test_a_mix_is_the_sum_of_scores_of_one_scale():
    first, second, level = (
        PopularityBaseline(np.array(counts, dtype=np.float32)) for counts in ([1, 3], [10, 90], [7, 7])
    )
    assert Mix(first, second, 0.5).scores(asking([])).tolist() == [[-1.5, 1.5]]
    assert Mix(first, level, 2.0).scores(asking([], [])).tolist() == [[-1, 1]] * 2
    assert Mix(first, level, 2.0).parts == "popularity + popularity"


def test_neighbours_by_text_by_hand():
    # The words and pairs of the warm items 0 to 2: red, hat, "red hat"; red, shoe, "red shoe"; sun. Item 3 is new.
    texts = ["red hat", "red shoe", "sun", "a red moon"]
    warm = np.array([True, True, True, False])
    neighbours = TextNeighbours.fit(texts, warm, half_life=1.0)
    scores = neighbours.scores(asking([0], [2, 0], [], [3]))
    # ln((1 + 3) / (1 + texts with it)) + 1: red is in two, the others in one.
    red, rare = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    alike = red**2 / (red**2 + 2 * rare**2)  # of items 0 and 1
    to_new = red / math.sqrt(red**2 + 2 * rare**2)  # item 3 has nothing but red that is known
    assert scores[0] == pytest.approx([1, alike, 0, to_new], abs=1e-6)
    # The sun is one event older and counts half: (0.5, 1) is brought to unit length.
    length = math.sqrt(1.25)
    assert scores[1] == pytest.approx([1 / length, alike / length, 0.5 / length, to_new / length], abs=1e-6)
    assert scores[2].tolist() == [0, 0, 0, 0]
    assert scores[3] == pytest.approx([to_new, to_new, 0, 1], abs=1e-6)
    assert scores.dtype == np.float32


words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=4).map(" ".join)


@given(st.lists(words, min_size=7, max_size=7), people, st.sampled_from([0.5, 2.0, math.inf]))
def test_neighbours_by_text_agree_with_their_definition(texts: list[str], histories: Sequences, half_life: float):
    texts[0] += " a"  # something to compare by
    vocabulary = sorted({term for text in texts for term in terms(text)})
    counts = np.array([[terms(text).count(term) for term in vocabulary] for text in texts], dtype=float)
    documents = (counts > 0).sum(axis=0)
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * (np.log(8 / (1 + documents)) + 1)
    vectors = unit(weights)
    users = np.zeros((len(histories), len(vocabulary)))
    for user in range(len(histories)):
        newest_first = [item for item in histories.items_of(user)[::-1] if terms(texts[item])]
        for age, item in enumerate(newest_first):
            users[user] += 0.5 ** (age / half_life) * vectors[item]
    neighbours = TextNeighbours.fit(texts, np.ones(7, dtype=bool), half_life=half_life)
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    # What is older than ten half-lives is left out: a thousandth of all the weight.
    assert neighbours.scores(queries) == pytest.approx(unit(users) @ vectors.T, abs=3e-3)


def terms(text: str) -> list[str]:
    found = text.split()
    return found + [f"{first} {second}" for first, second in pairwise(found)]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@pytest.mark.data
def test_ease_reaches_the_known_figure_on_movielens_1m(public_data: Path):
    frame = pd.read_parquet(public_data / "ml-1m" / "interactions.parquet").dropna(subset="position")
    frame = frame.sort_values(["user_id", "position"], kind="stable")
    users, counts = np.unique(frame["user_id"], return_counts=True)
    item_rows = np.unique(frame["item_id"], return_inverse=True)[1].astype(np.int64)
    split = leave_one_out(Sequences(users, offsets_of(counts), item_rows, times=None, is_ordered=True), num_items=3_416)
    ease = Ease.fit(split.train, 3_416, regularisation=300.0)
    result = evaluate(ease, split.test, split.candidates, seen_items=EXCLUDE)
    assert result.means["ndcg_at_10"] == pytest.approx(0.054, abs=0.001)


@pytest.mark.data
@pytest.mark.slow
def test_neighbours_by_text_are_a_strong_rival_on_cold_beauty(public_data: Path):
    frame = read_frame(public_data / "amazon-beauty" / "items.parquet")
    events = pd.read_parquet(public_data / "amazon-beauty" / "interactions.parquet").sort_values(
        ["user_id", "position"]
    )
    features = {name: FeatureSettings(kind="text") for name in ("title", "brand", "categories")}
    catalog = Catalog(frame)
    users, counts = np.unique(events["user_id"], return_counts=True)
    rows = catalog.rows_of(events["item_id"].to_numpy())
    split = cold_items(Sequences(users, offsets_of(counts), rows, times=None, is_ordered=True), len(catalog))
    neighbours = TextNeighbours.fit(item_texts(catalog, features), split.warm_items, half_life=4)
    means = evaluate(neighbours, split.test, split.candidates, seen_items=EXCLUDE).means
    # With single words instead of pairs as well: 0.076, 0.150 and 0.045.
    assert means["recall_at_10"] > 0.08
    assert means["recall_at_50"] > 0.15
    assert means["ndcg_at_10"] > 0.05


@pytest.mark.data
@pytest.mark.slow
def test_ials_is_a_strong_rival_for_people_never_seen(public_data: Path):
    frame = pd.read_parquet(public_data / "goodbooks" / "interactions.parquet").sort_values(["user_id", "position"])
    users, counts = np.unique(frame["user_id"], return_counts=True)
    num_items = int(frame["item_id"].nunique())
    rows = np.unique(frame["item_id"], return_inverse=True)[1].astype(np.int64)
    split = held_out_users(Sequences(users, offsets_of(counts), rows, times=None, is_ordered=True), num_items)
    ials = Ials.fit(split.train, num_items, IalsSettings(factors=256, regularisation=10.0, confidence=1.0))
    result = evaluate(ials, split.test, split.candidates, seen_items=EXCLUDE, cutoffs=(20, 50, 100))
    # EASE has 0.276, 0.376 and 0.436 on these questions, popularity 0.079, 0.124 and 0.144.
    assert result.means["recall_at_20"] > 0.24
    assert result.means["recall_at_50"] > 0.31
    assert result.means["ndcg_at_100"] > 0.38
