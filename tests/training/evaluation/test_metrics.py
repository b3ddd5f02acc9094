"""Metrics against arithmetic by hand, against scikit-learn and against a slow reading of the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from features.sequences.ragged import offsets_of
from training.evaluation.metrics import (
    NEVER,
    bootstrap_interval,
    coverage,
    metrics_per_question,
    mrr_at,
    ndcg_at,
    recall_at,
)

questions = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=10, unique=True), min_size=1, max_size=5)


def jagged(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([rank for row in rows for rank in row]), offsets_of(np.array([len(row) for row in rows]))


def test_one_answer_gives_hit_rate_and_one_over_the_logarithm():
    ranks, offsets = jagged([[1], [2], [10], [11], [NEVER]])
    assert recall_at(ranks, offsets, 10).tolist() == [1, 1, 1, 0, 0]
    # 1/log2(2), 1/log2(3), 1/log2(11)
    assert ndcg_at(ranks, offsets, 10) == pytest.approx([1, 0.63093, 0.28906, 0, 0], abs=1e-5)
    assert mrr_at(ranks, offsets, 10) == pytest.approx([1, 0.5, 0.1, 0, 0])


def test_recall_divides_by_what_could_have_been_found():
    # Five answers, k = 2: both places are hits, so nothing better is possible.
    ranks, offsets = jagged([[1, 2, 3, 4, 5]])
    assert recall_at(ranks, offsets, 2).tolist() == [1]
    assert recall_at(ranks, offsets, 100).tolist() == [1]


def test_the_case_that_another_library_gets_wrong():
    # Gains 1 and 0 at the ranks 2 and 1 of the ideal 1: (1/log2(3)) / 1 = 0.63093; with a third: 0.91972.
    ranks, offsets = jagged([[2], [1, 3]])
    assert ndcg_at(ranks, offsets, 3) == pytest.approx([0.63093, 0.91972], abs=1e-5)


@given(questions, st.integers(1, 30))
def test_ndcg_agrees_with_scikit_learn(rows: list[list[int]], k: int):
    ours = ndcg_at(*jagged(rows), k)
    for row, value in zip(rows, ours, strict=True):
        relevance = np.zeros(30)
        relevance[np.array(row) - 1] = 1
        assert value == pytest.approx(ndcg_score([relevance], [-np.arange(30)], k=k))


@given(questions, st.integers(1, 30))
def test_recall_and_mrr_agree_with_their_definitions(rows: list[list[int]], k: int):
    recall, mrr = recall_at(*jagged(rows), k), mrr_at(*jagged(rows), k)
    for place, row in enumerate(rows):
        top = set(range(1, k + 1))
        assert recall[place] == pytest.approx(len(top & set(row)) / min(k, len(row)))
        assert mrr[place] == pytest.approx(max((1 / rank for rank in row if rank in top), default=0))


@given(questions)
def test_all_metrics_lie_between_0_and_1_and_recall_of_one_answer_never_falls_with_k(rows: list[list[int]]):
    values = metrics_per_question(*jagged([row[:1] for row in rows]), (1, 10, 30))
    assert all(((value >= 0) & (value <= 1)).all() for value in values.values())
    assert (values["recall_at_1"] <= values["recall_at_10"]).all()
    assert (values["recall_at_30"] == 1).all()


def test_metric_names_carry_their_cutoff_and_no_at_sign():
    names = list(metrics_per_question(*jagged([[1]]), (10, 50)))
    assert names == ["recall_at_10", "ndcg_at_10", "mrr_at_10", "recall_at_50", "ndcg_at_50", "mrr_at_50"]


def test_coverage_counts_candidates_only():
    assert coverage(np.array([True, True, False, True]), np.array([True, True, True, False])) == pytest.approx(2 / 3)


def test_the_interval_is_that_of_the_normal_approximation_where_it_holds():
    values = np.random.default_rng(1).random((5_000, 2))
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(axis=0) / math.sqrt(5_000)
    assert low == pytest.approx(values.mean(axis=0) - half, abs=half[0] * 0.15)
    assert high == pytest.approx(values.mean(axis=0) + half, abs=half[0] * 0.15)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval((rng.random((200, 1)) < 0.3).astype(float), resamples=300)
        inside += int(low[0] <= 0.3 <= high[0])
    # 190 expected; binomial standard deviation 3.1.
    assert 178 <= inside <= 199


def test_the_interval_is_the_same_each_time_and_narrower_for_lower_levels():
    values = np.random.default_rng(3).random((300, 1))
    assert np.array_equal(bootstrap_interval(values), bootstrap_interval(values))
    wide, narrow = bootstrap_interval(values, level=0.95), bootstrap_interval(values, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_resampling_in_blocks_is_still_resampling_with_replacement():
    # 2 million per block of draws: three blocks of two resamples and one of one, over a large set of questions.
    values = np.arange(2_000_000, dtype=float)[:, None] / 2_000_000
    low, high = bootstrap_interval(values, resamples=5)
    assert low == pytest.approx(0.5, abs=0.001)
    assert high == pytest.approx(0.5, abs=0.001)
    assert low < high


def test_the_interval_of_one_question_is_that_question():
    low, high = bootstrap_interval(np.array([[0.25, 1.0]]))
    assert (low.tolist(), high.tolist()) == ([0.25, 1.0], [0.25, 1.0])
