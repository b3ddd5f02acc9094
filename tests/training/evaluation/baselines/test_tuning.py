"""The baselines against their definitions, written out slowly, and against the figures that others report."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns import item_texts
from features.config import FeatureSettings
from features.sequences.ragged import offsets_of
from features.sequences.seen_items import EXCLUDE, REPEAT
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import cold_items, held_out_users, leave_one_out
from features.tables.table_files import read_frame
from features.tables.tables import Catalog
from training.evaluation.baselines import tuning as baselines
from training.evaluation.baselines.ease import Ease, ease_weights
from training.evaluation.baselines.ials import Ials, IalsSettings
from training.evaluation.baselines.item_cosine import ItemCosine
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.baselines.text_neighbours import TextNeighbours
from training.evaluation.baselines.tuning import choose_ease, choose_ials, choose_text_neighbours, fit_baselines
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
    ours = ease_weights(gram.astype(np.float32), 10.0)
    assert np.abs(ours - weights).max() < 1e-4
    assert ours.flags.c_contiguous


def test_ease_gives_items_that_nobody_had_nothing():
    scores = Ease.fit(sequences([0, 2], [0, 2], [2]), num_items=5).scores(asking([0], [1], []))
    assert scores[:, [1, 3, 4]].tolist() == [[0, 0, 0]] * 3
    assert scores[0, 2] > 0
    assert scores[1:].tolist() == [[0] * 5] * 2


def test_ease_refuses_a_catalogue_that_is_too_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.evaluation.baselines.ease.MAX_EASE_ITEMS", 2)
    with pytest.raises(ValueError, match="EASE takes at most 2 items, found 3; leave it out"):
        Ease.fit(sequences([0, 1, 2]), num_items=3)


def test_a_baseline_does_not_look_at_the_answers():
    rng = np.random.default_rng(1)
    split = leave_one_out(sequences(*rng.integers(0, 30, (80, 12)).tolist()), num_items=30)
    for recommender in fit_baselines(split)[0]:
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
    recommenders, notes = fit_baselines(split)
    recall = {
        recommender.name: evaluate(recommender, split.test, split.candidates, seen_items=EXCLUDE).means["recall_at_10"]
        for recommender in recommenders
    }
    assert list(recall) == ["popularity", "item-item cosine", "EASE", "iALS"]
    # Eleven items of the right taste are left: 10/11 by chance, about a third among all.
    assert recall["popularity"] < 0.5
    assert recall["item-item cosine"] > 0.8
    assert recall["EASE"] > 0.8
    assert recall["iALS"] > 0.8
    assert notes[0].startswith("EASE: regularisation ")
    assert notes[0].endswith(", the best of 10, 100, 300, 1000 on validation data.")


def test_the_regularisation_is_the_one_that_does_best_on_validation(planted: Sequences):
    split = leave_one_out(planted, num_items=45)
    values = (0.001, 50.0, 1e7)
    ndcg = {}
    for value in values:
        ease = Ease.fit(split.train, 45, regularisation=value)
        result = evaluate(ease, split.validation, split.candidates, seen_items=EXCLUDE)
        ndcg[value] = result.means["ndcg_at_10"]
    chosen = choose_ease(split, regularisations=values)
    assert ndcg[chosen.regularisation] == max(ndcg.values())


def test_the_notes_say_what_was_left_out_or_not_tuned(planted: Sequences, monkeypatch: pytest.MonkeyPatch):
    split = leave_one_out(planted, num_items=45)
    monkeypatch.setattr(baselines, "MAX_EASE_TRIALS_ITEMS", 30)
    monkeypatch.setattr(baselines, "MAX_IALS_TRIALS_EVENTS", 1_000)
    recommenders, notes = fit_baselines(split)
    assert [recommender.name for recommender in recommenders][2:] == ["EASE", "iALS"]
    assert notes == [
        "EASE: regularisation 300, not tuned at 40 items.",
        "iALS: 128 factors, regularisation 10, confidence 3, not tuned at 1,600 interactions.",
    ]
    monkeypatch.setattr(baselines, "MAX_EASE_ITEMS", 30)
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)  # as if it were not installed
    recommenders, notes = fit_baselines(split)
    assert [recommender.name for recommender in recommenders] == ["popularity", "item-item cosine"]
    assert notes[0] == "EASE is left out: 40 items are more than the 30 that it can take."
    assert notes[1].startswith("iALS is left out: it needs the library implicit (")
    assert notes[1].endswith("); pip install implicit adds it.")


def test_settings_are_chosen_by_a_sample_where_there_are_many_questions(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(3)
    split = leave_one_out(sequences(*rng.integers(0, 30, (80, 12)).tolist()), num_items=30)
    asked = []
    monkeypatch.setattr(baselines, "MOST_QUESTIONS", 20)
    monkeypatch.setattr(Ease, "scores", lambda own, queries: (asked.append(len(queries)), np.zeros((20, 30)))[1])
    choose_ease(split)
    assert asked == [20] * 4


def alternating_minima(had: np.ndarray, items: np.ndarray, settings: IalsSettings) -> np.ndarray:
    """The users' vectors that are best for the items' vectors, each by its own linear equations."""
    users = np.zeros((len(had), items.shape[1]))
    for user, row in enumerate(had):
        confidence = np.diag(np.where(row > 0, settings.confidence, 1.0))
        equations = items.T @ confidence @ items + settings.regularisation * np.eye(items.shape[1])
        users[user] = np.linalg.solve(equations, items.T @ confidence @ row)
    return users


@given(
    people.filter(lambda rows: rows.num_events > 0),
    people,
    st.builds(
        IalsSettings,
        factors=st.integers(1, 5),
        regularisation=st.sampled_from([0.5, 3.0]),
        confidence=st.sampled_from([1.0, 2.0, 30.0]),
    ),
)
def test_whoever_asks_ials_gets_the_exact_minimum_for_the_history(
    train: Sequences, histories: Sequences, settings: IalsSettings
):
    ials = Ials.fit(train, 7, settings)
    items = ials._model.item_factors.astype(float)
    queries = Queries(histories, np.arange(len(histories) + 1), np.zeros(len(histories), dtype=np.int64), times=None)
    expected = alternating_minima(matrix(histories, 7), items, settings) @ items.T
    scores = ials.scores(queries)
    assert scores == pytest.approx(expected, abs=1e-4)
    assert scores.dtype == np.float32


def test_ials_finds_vectors_that_neither_side_can_better():
    rng = np.random.default_rng(4)
    settings = IalsSettings(factors=3, regularisation=1.0, confidence=5.0)
    had = (rng.random((30, 12)) < 0.3).astype(float)
    train = sequences(*[np.flatnonzero(row).tolist() for row in had])
    model = Ials.fit(train, 12, settings)._model
    users, items = model.user_factors, model.item_factors
    assert users == pytest.approx(alternating_minima(had, items, settings), abs=0.02)
    assert items == pytest.approx(alternating_minima(had.T, users, settings), abs=0.02)


def test_ials_gives_a_stranger_without_history_and_an_item_that_nobody_had_nothing():
    scores = Ials.fit(sequences([0, 2], [0, 2], [2]), num_items=5).scores(asking([0], [1], []))
    assert scores[:, [1, 3, 4]].tolist() == [[0, 0, 0]] * 3
    assert scores[1:].tolist() == [[0] * 5] * 2


def test_ials_is_the_same_for_the_same_seed(planted: Sequences):
    settings = IalsSettings(factors=8, regularisation=1.0)
    first, again, other = (
        Ials.fit(planted, 45, settings, seed=seed).scores(asking([0, 3], [21])) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_settings_of_ials_are_chosen_one_after_the_other(planted: Sequences):
    split = leave_one_out(planted, num_items=45)

    def ndcg(settings: IalsSettings) -> float:
        ials = Ials.fit(split.train, 45, settings)
        return evaluate(ials, split.validation, split.candidates, seen_items=EXCLUDE).means["ndcg_at_10"]

    # Each round begins with what was best before, and `max` takes the first among equals.
    best = IalsSettings()
    best = max([best, *(replace(best, confidence=value) for value in (1.0, 10.0, 40.0))], key=ndcg)
    best = max([best, replace(best, regularisation=1.0)], key=ndcg)
    best = max([best, *(replace(best, factors=value) for value in (64, 256))], key=ndcg)
    assert choose_ials(split).settings == best


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


def test_the_half_life_is_the_one_that_does_best_on_validation_and_needs_an_order():
    # Everybody ends with a run of one taste: the newest events tell most.
    rng = np.random.default_rng(5)
    texts = [f"kind{item % 4} thing{item}" for item in range(40)]
    rows = [
        [*rng.permutation(40)[:12].tolist(), *(4 * rng.permutation(10)[:4] + taste).tolist()]
        for taste in rng.integers(0, 4, 200)
    ]
    split = leave_one_out(sequences(*rows), num_items=40, seen_items=REPEAT)
    chosen = choose_text_neighbours(split, texts)
    assert chosen.half_life < math.inf
    ndcg = {}
    for half_life in baselines.HALF_LIVES:
        trial = TextNeighbours.fit(texts, split.warm_items, half_life=half_life)
        result = evaluate(trial, split.validation, split.candidates, seen_items=REPEAT)
        ndcg[half_life] = result.means["ndcg_at_10"]
    assert ndcg[chosen.half_life] == max(ndcg.values())
    notes = fit_baselines(split, texts=texts)[1]
    assert f"TF-IDF: half-life {chosen.half_life:g} events, the best of 1, 2, 4, 16, inf on validation data." in notes

    unordered = Sequences(split.train.user_ids, split.train.offsets, split.train.item_rows, None, is_ordered=False)
    split = held_out_users(unordered, 40, seen_items=REPEAT)
    recommenders, notes = fit_baselines(split, texts=texts)
    assert recommenders[-1].half_life == math.inf
    assert notes[-1] == "TF-IDF: all events count alike, there being no order."


def test_only_the_neighbours_by_text_find_what_nobody_had(planted: Sequences):
    texts = [f"taste{item // 20}" for item in range(40)] + [""] * 5
    split = cold_items(planted, num_items=45)
    recommenders, notes = fit_baselines(split, texts=texts)
    assert notes[0] == "EASE: regularisation 300, not tuned for answers that training has never seen."
    assert notes[1].endswith("confidence 3, not tuned for answers that training has never seen.")
    found = {
        recommender.name: evaluate(recommender, split.test, split.candidates, seen_items=EXCLUDE)
        for recommender in recommenders
    }
    recall = {name: evaluation.means["recall_at_50"] for name, evaluation in found.items()}
    assert recall["TF-IDF"] == 1
    # The 20 items of the taste, less the history, come before all others.
    ranks = {name: evaluation.ranks.max() for name, evaluation in found.items()}
    assert ranks["TF-IDF"] <= 20 < min(rank for name, rank in ranks.items() if name != "TF-IDF")


@pytest.mark.parametrize("texts", [None, [""] * 45, ["..."] * 45, ["", *["a word"] * 44]])
def test_without_a_word_about_any_known_item_there_are_no_neighbours_by_text(
    planted: Sequences, texts: list[str] | None
):
    if texts and texts[1]:
        texts = [text if row >= 40 else "" for row, text in enumerate(texts)]  # nobody had the items from 40 on
    recommenders, notes = fit_baselines(leave_one_out(planted, num_items=45), texts=texts)
    assert [recommender.name for recommender in recommenders] == ["popularity", "item-item cosine", "EASE", "iALS"]
    assert not [note for note in notes if "TF-IDF" in note]


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
    neighbours = choose_text_neighbours(split, item_texts(catalog, features))
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
