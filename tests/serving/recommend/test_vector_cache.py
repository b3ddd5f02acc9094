"""Remembered vectors: a hit makes nothing, nobody gets another's, and who did something is made anew."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.config import FeatureSettings
from serving.recommend.vector_cache import UserVectorCache
from tests.serving.doubles import FakeBundle, make_recommender


class Maker:
    """Makes vectors that say of whom and at which call they are."""

    def __init__(self):
        self.now = 0.0
        self.made = []

    def ask(self, remembered, *rows, past="the same"):
        rows = np.array(rows, dtype=np.int64)

        def make(places):
            self.made.append(rows[places].tolist())
            return np.array([[rows[place], len(self.made)] for place in places], dtype=np.float32)

        vectors = remembered.of(rows, [past] * len(rows), make)
        assert vectors[:, 0].tolist() == rows.tolist()
        return vectors[:, 1].tolist()


@pytest.fixture
def maker():
    return Maker()


def test_who_asks_again_soon_is_remembered_and_only_who_is_not_is_made(maker):
    remembered = UserVectorCache(10, 60, lambda: maker.now)
    assert maker.ask(remembered, 1, 2) == [1, 1]
    assert maker.ask(remembered, 2) == [1]
    assert maker.ask(remembered, 1, 3, 2) == [1, 2, 1]
    assert maker.made == [[1, 2], [3]]


def test_after_a_while_a_vector_is_made_anew(maker):
    remembered = UserVectorCache(10, 60, lambda: maker.now)
    maker.ask(remembered, 1)
    maker.now = 59.9
    assert maker.ask(remembered, 1) == [1]
    maker.now = 60.0
    assert maker.ask(remembered, 1) == [2]


def test_who_did_something_meanwhile_is_made_anew(maker):
    remembered = UserVectorCache(10, 60, lambda: maker.now)
    maker.ask(remembered, 1)
    assert maker.ask(remembered, 1, past="one more") == [2]
    assert maker.ask(remembered, 1, past="one more") == [2]


def test_a_timed_model_makes_a_users_vector_once_a_minute_and_whenever_it_is_forgotten(shop, monkeypatch):
    now = 1_700_000_000.0
    timed = partial(UserVectorCache, clock=lambda: now)
    monkeypatch.setattr("serving.recommend.query_encoder.UserVectorCache", timed)
    recommender = make_recommender(shop, clock=lambda: now, context={"time": FeatureSettings(kind="time")})
    made = []
    encode = FakeBundle.encode_users
    monkeypatch.setattr(FakeBundle, "encode_users", lambda *given, **more: made.append(1) or encode(*given, **more))
    first = recommender.recommend(103, 5)
    assert recommender.recommend(103, 5) == first
    assert len(made) == 1
    now += 61
    recommender.recommend(103, 5)
    assert len(made) == 2
    recommender.forget(103)
    recommender.forget("nobody")
    recommender.recommend(103, 5)
    assert len(made) == 3


def test_those_who_asked_least_lately_are_given_up(maker):
    remembered = UserVectorCache(2, 60, lambda: maker.now)
    maker.ask(remembered, 1)
    maker.ask(remembered, 2)
    maker.ask(remembered, 1)
    maker.ask(remembered, 3)
    assert len(remembered) == 2
    assert maker.ask(remembered, 1) == [1]
    assert maker.ask(remembered, 2) == [4]


def test_an_event_while_the_vector_is_being_made_is_not_lost(maker):
    remembered = UserVectorCache(10, 60, lambda: maker.now)

    def make(places):
        remembered.forget(5)  # the event comes after the history was read
        return np.zeros((1, 2), dtype=np.float32)

    remembered.of(np.array([5]), ["the same"], make)
    assert len(remembered) == 0
    assert maker.ask(remembered, 5) == [1]
    assert maker.ask(remembered, 5) == [1]


@given(st.lists(st.tuples(st.sampled_from(["ask", "forget", "wait"]), st.integers(0, 4)), max_size=60))
def test_nobody_ever_gets_a_vector_from_before_he_was_forgotten_or_too_old(steps):
    maker = Maker()
    remembered = UserVectorCache(3, 10, lambda: maker.now)
    oldest, when = dict.fromkeys(range(5), 0), {}
    for what, number in steps:
        if what == "wait":
            maker.now += number
        elif what == "forget":
            remembered.forget(number)
            oldest[number] = len(maker.made) + 1
        else:
            [call] = maker.ask(remembered, number)
            assert call >= oldest[number]
            assert maker.now - when.setdefault(call, maker.now) < 10
        assert len(remembered) <= 3
