"""Intervals hold the truth as often as they say, whatever varies: the questions, the seeds or both."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation import intervals
from training.evaluation.intervals import Answered, Resampled
from training.evaluation.metrics import bootstrap_interval

QUESTIONS = 100


def trainings(
    rng: np.random.Generator, seeds: int, between: float, *, each_their_own: bool = False, visits: int = 1
) -> list[Answered]:
    """Differences whose true mean is 0: of a question, of a seed, and of both together.

    Args:
        rng: Draws them.
        seeds: Number of trainings.
        between: Standard deviation between seeds, in standard errors of the mean over the questions.
        each_their_own: Whether each seed has other questions.
        visits: How many questions, all alike, each user asks.
    """
    of_seed = rng.normal(0, between / np.sqrt(QUESTIONS), seeds)
    of_question = np.repeat(rng.normal(size=(seeds if each_their_own else 1, QUESTIONS)), visits, axis=1)
    values = of_seed[:, None] + of_question + rng.normal(0, 0.5, (seeds, QUESTIONS * visits))
    users = np.repeat(np.arange(QUESTIONS), visits)
    return [Answered([one], users + QUESTIONS * seed * each_their_own) for seed, one in enumerate(values)]


@pytest.mark.parametrize(
    ("seeds", "between", "more", "least"),
    [
        (1, 0.0, {}, 0.92),
        (1, 0.0, {"visits": 5}, 0.92),
        (3, 0.0, {}, 0.92),
        (3, 2.0, {}, 0.92),
        (5, 0.5, {"each_their_own": True}, 0.91),
    ],
)
def test_the_truth_is_inside_95_times_of_100(seeds: int, between: float, more: dict, least: float):
    """Of 300 worlds; the standard deviation of such a share is 1.3 %."""
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(300):
        found = Resampled.of(trainings(rng, seeds, between, **more), resamples=200).interval(0)
        inside.append(found.low <= 0 <= found.high)
    assert least <= np.mean(inside) <= 0.99


def test_questions_alone_would_not_hold_the_truth_where_seeds_differ():
    """What a report over one seed does not know: the reason why it says so."""
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(200):
        found = Resampled.of(trainings(rng, 3, 3.0)[:1], resamples=200).interval(0)
        inside.append(found.low <= 0 <= found.high)
    assert np.mean(inside) < 0.6


def test_with_one_training_it_is_the_bootstrap_over_the_questions():
    values = np.random.default_rng(0).random((300, 2))
    resampled = Resampled.of([Answered([*values.T], np.arange(300))])
    low, high = bootstrap_interval(np.column_stack([values, values[:, 0] - values[:, 1]]))
    for place, found in enumerate([resampled.interval(0), resampled.interval(1), resampled.interval(0, 1)]):
        assert (found.low, found.high) == pytest.approx((low[place], high[place]))


def test_more_users_than_are_resampled_are_put_into_groups_that_vary_as_much(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).random(5_000)
    users = np.arange(5_000).astype(str).astype(object)
    whole = Resampled.of([Answered([values], users)]).interval(0)
    monkeypatch.setattr(intervals, "MOST_CLUSTERS", 500)
    grouped = Resampled.of([Answered([values], users)]).interval(0)
    assert grouped.mean == whole.mean
    assert grouped.high - grouped.low == pytest.approx(whole.high - whole.low, rel=0.1)


def test_a_resample_without_any_user_of_a_seed_keeps_its_mean():
    trainings = [Answered([np.array([1.0])], np.array([0])), Answered([np.array([3.0])], np.array([1]))]
    resampled = Resampled.of(trainings)
    assert np.isfinite(resampled.draws).all()
    assert resampled.interval(0).mean == 2.0
