"""The baselines against their definitions, written out slowly, and against the figures that others report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.sequences import Queries, Sequences, offsets_of
from features.split import leave_one_out
from training import baselines
from training.baselines import Ease, ItemCosine, Popularity, choose_ease, fit_baselines
from training.evaluation import evaluate


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
    popularity = Popularity.fit(sequences([0, 0, 0, 1], [1]), num_items=3)
    assert popularity.scores(asking([], [1])).tolist() == [[1, 2, 0], [1, 2, 0]]


def test_cosine_by_hand():
    # Users of item 0: {0, 1}; of 1: {0, 1, 2}; of 2: {2}. cos(0, 1) = 2/sqrt(6), cos(1, 2) = 1/sqrt(3), cos(0, 2) = 0.
    cosine = ItemCosine.fit(sequences([0, 1], [1, 0, 0], [2, 1]), num_items=4)
    scores = cosine.scores(asking([0], [1, 1], [0, 2], [3], []))
    a, b = 2 / np.sqrt(6), 1 / np.sqrt(3)
    assert scores == pytest.approx(
        np.array([[0, a, 0, 0], [a, 0, b, 0], [0, a + b, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]), abs=1e-6
    )
    assert scores.dtype == np.float32


@given(people, people)
def test_cosine_agrees_with_its_definition(train: Sequences, histories: Sequences):
    had = matrix(train, 7)
    norms = np.maximum(np.linalg.norm(had, axis=0), 1e-9)
    similarity = had.T @ had / np.outer(norms, norms)
    np.fill_diagonal(similarity, 0)
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    expected = matrix(histories, 7) @ similarity
    assert ItemCosine.fit(train, 7, neighbours=None).scores(queries) == pytest.approx(expected, abs=1e-5)


def test_cosine_keeps_only_the_nearest_neighbours_of_the_recommended_item():
    train = sequences([0, 1, 2], [0, 1], [0, 1, 3], [2, 3])
    everything = ItemCosine.fit(train, 4, neighbours=None)
    nearest = ItemCosine.fit(train, 4, neighbours=1)
    # Columns are recommended items, rows a history of one item each: one non-zero entry is left in each column.
    full, kept = (recommender.scores(asking([0], [1], [2], [3])) for recommender in (everything, nearest))
    assert (kept > 0).sum(axis=0).tolist() == [1, 1, 1, 1]
    assert kept.max(axis=0) == pytest.approx(full.max(axis=0))


@given(people, people, st.sampled_from([1.0, 10.0, 500.0]))
def test_ease_agrees_with_its_definition(train: Sequences, histories: Sequences, regularisation: float):
    had = matrix(train, 7)
    inverse = np.linalg.inv(had.T @ had + regularisation * np.eye(7))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    expected = matrix(histories, 7) @ weights
    assert Ease.fit(train, 7, regularisation=regularisation).scores(queries) == pytest.approx(expected, abs=1e-5)


def test_ease_in_single_precision_agrees_with_double_on_a_catalogue_with_a_long_tail():
    rng = np.random.default_rng(0)
    rows = [np.minimum(rng.zipf(1.3, 60) - 1, 1_499).tolist() for _ in range(3_000)]
    train = sequences(*rows)
    had = matrix(train, 1_500)
    gram = had.T @ had
    inverse = np.linalg.inv(gram + 10 * np.eye(1_500))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    ours = baselines._ease_weights(gram.astype(np.float32), 10.0)
    assert np.abs(ours - weights).max() < 1e-4
    assert ours.flags.c_contiguous


def test_ease_gives_items_that_nobody_had_nothing():
    scores = Ease.fit(sequences([0, 2], [0, 2], [2]), num_items=5).scores(asking([0], [1], []))
    assert scores[:, [1, 3, 4]].tolist() == [[0, 0, 0]] * 3
    assert scores[0, 2] > 0
    assert scores[1:].tolist() == [[0] * 5] * 2


def test_ease_refuses_a_catalogue_that_is_too_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(baselines, "MAX_EASE_ITEMS", 2)
    with pytest.raises(ValueError, match="EASE takes at most 2 items, found 3; leave it out"):
        Ease.fit(sequences([0, 1, 2]), num_items=3)


def test_a_baseline_does_not_look_at_the_answers():
    rng = np.random.default_rng(1)
    split = leave_one_out(sequences(*rng.integers(0, 30, (80, 12)).tolist()), num_items=30)
    for recommender in fit_baselines(split, recommend_seen=False)[0]:
        queries = split.test
        other = Queries(queries.history, queries.target_offsets, (queries.target_rows + 1) % 30, queries.times)
        assert np.array_equal(recommender.scores(queries), recommender.scores(other))


@pytest.fixture
def planted() -> Sequences:
    """Two tastes with 20 items each; everyone has 10 of one of them."""
    rng = np.random.default_rng(2)
    return sequences(*[(20 * (user % 2) + rng.permutation(20)[:10]).tolist() for user in range(200)])


def test_all_baselines_stand_beside_a_result_and_beat_popularity_where_tastes_differ(planted: Sequences):
    split = leave_one_out(planted, num_items=45)
    recommenders, notes = fit_baselines(split, recommend_seen=False)
    recall = {
        recommender.name: evaluate(recommender, split.test, split.candidates, recommend_seen=False).means[
            "recall_at_10"
        ]
        for recommender in recommenders
    }
    assert list(recall) == ["popularity", "item-item cosine", "EASE"]
    # Eleven items of the right taste are left: 10/11 by chance, about a third among all.
    assert recall["popularity"] < 0.5
    assert recall["item-item cosine"] > 0.8
    assert recall["EASE"] > 0.8
    assert notes[0].startswith("EASE: regularisation ")
    assert notes[0].endswith(", the best of 10, 100, 300, 1000 on validation data.")


def test_the_regularisation_is_the_one_that_does_best_on_validation(planted: Sequences):
    split = leave_one_out(planted, num_items=45)
    values = (0.001, 50.0, 1e7)
    ndcg = {}
    for value in values:
        ease = Ease.fit(split.train, 45, regularisation=value)
        result = evaluate(ease, split.validation, split.candidates, recommend_seen=False)
        ndcg[value] = result.means["ndcg_at_10"]
    chosen = choose_ease(split, recommend_seen=False, regularisations=values)
    assert ndcg[chosen.regularisation] == max(ndcg.values())


def test_the_notes_say_what_was_left_out_or_not_tuned(planted: Sequences, monkeypatch: pytest.MonkeyPatch):
    split = leave_one_out(planted, num_items=45)
    monkeypatch.setattr(baselines, "MAX_EASE_TRIALS_ITEMS", 30)
    recommenders, notes = fit_baselines(split, recommend_seen=False)
    assert (len(recommenders), notes) == (3, ["EASE: regularisation 300, not tuned at 40 items."])
    monkeypatch.setattr(baselines, "MAX_EASE_ITEMS", 30)
    recommenders, notes = fit_baselines(split, recommend_seen=False)
    assert len(recommenders) == 2
    assert notes == ["EASE is left out: 40 items are more than the 30 that it can take."]


@pytest.mark.data
def test_ease_reaches_the_known_figure_on_movielens_1m(public_data: Path):
    frame = pd.read_parquet(public_data / "ml-1m" / "interactions.parquet").dropna(subset="position")
    frame = frame.sort_values(["user_id", "position"], kind="stable")
    users, counts = np.unique(frame["user_id"], return_counts=True)
    item_rows = np.unique(frame["item_id"], return_inverse=True)[1].astype(np.int64)
    split = leave_one_out(Sequences(users, offsets_of(counts), item_rows, times=None, is_ordered=True), num_items=3_416)
    ease = Ease.fit(split.train, 3_416, regularisation=300.0)
    result = evaluate(ease, split.test, split.candidates, recommend_seen=False)
    assert result.means["ndcg_at_10"] == pytest.approx(0.054, abs=0.001)
