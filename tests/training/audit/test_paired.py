"""Differences of two evaluations, against arithmetic by hand, and the refusal of evaluations that do not match."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from features.config import FeaturesConfig
from features.errors import DataError
from training.audit.facets import Facet
from training.audit.paired import Found, Paired
from training.audit.ranks import FORMAT, About, Ranks
from training.config import RunConfig
from training.evaluation.metrics import NEVER

QUESTIONS = 200


def ranks_of(ranks: np.ndarray, name: str = "a", *, seeds: tuple[int, ...] = (0,), **changes: object) -> Ranks:
    """Ranks of questions with two answers each, asked by users with two questions each, for every seed."""
    config = RunConfig(features=FeaturesConfig(interactions="clicks.csv"))
    given = {"format": FORMAT, "protocol": "leave-one-out", "part": "test", "settings": config} | changes
    about = About(**given, tables_folder=".", digests={})
    question = np.repeat(np.arange(QUESTIONS), 2)
    answers = pd.DataFrame({"question": question, "user_id": question // 2, "item_id": np.arange(2 * QUESTIONS)})
    items = pd.DataFrame({"item_id": np.arange(2 * QUESTIONS), "interactions": 1})
    lists = pd.DataFrame({"question": np.arange(QUESTIONS), "user_id": np.arange(QUESTIONS) // 2})
    lists["items"] = [[name, "same"] for _ in range(QUESTIONS)]
    frames = [
        pd.concat([frame.assign(seed=seed, recommender=name) for seed in seeds], ignore_index=True)
        for frame in (answers, items, lists)
    ]
    frames[0]["rank"] = np.tile(ranks, len(seeds))
    return Ranks(about, *frames)


@pytest.fixture
def paired() -> Paired:
    """The first finds the first answer of every question and the second one of none; the second is the other way."""
    first = np.tile([1, NEVER], QUESTIONS)
    second = np.tile([20, 2], QUESTIONS)
    return Paired.of(ranks_of(first), ranks_of(second, "b"), ["a", "b"])


def test_differences_are_those_of_the_metrics(paired: Paired):
    ideal = 1 + 1 / np.log2(3)
    found = paired.difference("ndcg_at_10")
    assert (found.first, found.second) == pytest.approx((1 / ideal, (1 / np.log2(3)) / ideal))
    assert found.gain == pytest.approx(found.second - found.first)
    assert (found.low, found.high) == pytest.approx((found.gain, found.gain))  # every question differs alike
    assert (found.verdict, found.num_questions) == ("behind", QUESTIONS)
    assert paired.difference("recall_at_10").verdict == "not distinguishable"
    assert paired.difference("recall_at_50").verdict == "ahead"


def test_what_only_one_finds_is_counted_and_lists_overlap(paired: Paired):
    assert paired.found() == Found(both=0, only_first=QUESTIONS, only_second=QUESTIONS, neither=0)
    assert paired.found(50) == Found(both=QUESTIONS, only_first=0, only_second=QUESTIONS, neither=0)
    assert paired.overlap() == 0.5


def test_a_slice_has_the_difference_of_its_own_answers(paired: Paired):
    place = Facet.single("place", ["one", "two"], np.tile([0, 1], QUESTIONS))
    whole = Facet.single("whole", ["all of it"], np.zeros(2 * QUESTIONS, dtype=np.int64))
    one, two = paired.slices([place, whole], "recall_at_10", min_support=30)
    assert (one.value, one.gain, one.verdict) == ("one", -1.0, "behind")
    assert (two.value, two.gain, two.verdict) == ("two", 1.0, "ahead")
    assert paired.slices([place], "recall_at_10", min_support=QUESTIONS + 1) == []


def test_intervals_are_paired_and_grow_with_the_level():
    rng = np.random.default_rng(0)
    first = rng.integers(1, 40, 2 * QUESTIONS)
    same = Paired.of(ranks_of(first, seeds=(0, 1)), ranks_of(first, "b", seeds=(0, 1)), ["a", "b"])
    assert same.difference("ndcg_at_10").verdict == "not distinguishable"
    assert (same.difference("ndcg_at_10").low, same.difference("ndcg_at_10").high) == (0, 0)
    other = Paired.of(ranks_of(first), ranks_of(rng.permutation(first), "b"), ["a", "b"])
    usual, wide = other.difference("ndcg_at_10"), other.difference("ndcg_at_10", level=0.999)
    assert wide.low < usual.low < usual.gain < usual.high < wide.high


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "time"}, r"protocol leave-one-out and time"),
        ({"part": "validation"}, r"split test and validation"),
        ({"seeds": (0, 1)}, r"seeds 0 and 0, 1"),
        ({"answers": {"item_id": 0}}, r"other held-out interactions, so of other tables or of another split"),
        ({"items": {"item_id": 0}}, r"other items were ranked"),
    ],
)
def test_other_questions_are_refused_in_one_line(change: dict[str, object], words: str):
    ranks = np.ones(2 * QUESTIONS, dtype=np.int64)
    frames = {name: change.pop(name) for name in ("answers", "items") if name in change}
    other = ranks_of(ranks, "b", **change)
    for name, values in frames.items():
        other = replace(other, **{name: getattr(other, name).assign(**values)})
    with pytest.raises(DataError, match=rf"^a and b: not evaluated on the same questions \({words}\); evaluate both"):
        Paired.of(ranks_of(ranks), other, ["a", "b"])
