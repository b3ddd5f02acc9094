"""Work done together: everybody gets his own reply, at once where nobody else is there, together where others are."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.recommend.request import UserProfile
from serving.search.faiss_index import ItemIndex
from serving.search.micro_batching import MicroBatchedSearch, MicroBatcher, is_wanted
from tests.serving.vectors import clustered_vectors, ragged


def wait_until(true):
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert true()


class Slow:
    """Answers x with 2x, and not before it is told to."""

    def __init__(self):
        self.batches = []
        self.go_on = threading.Semaphore(0)

    def __call__(self, asked):
        self.batches.append(sorted(asked))
        assert self.go_on.acquire(timeout=20)
        return [2 * one for one in asked]


def test_one_alone_is_answered_at_once_and_those_who_come_meanwhile_together():
    slow = Slow()
    batcher = MicroBatcher(slow, most=3)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher, 0)
        wait_until(lambda: slow.batches == [[0]])
        others = []
        for one in range(1, 6):
            others.append(pool.submit(batcher, one))
            wait_until(lambda: len(batcher._waiting) == len(others))
        slow.go_on.release()
        assert first.result(20) == 0
        wait_until(lambda: len(slow.batches) == 2)
        slow.go_on.release()
        slow.go_on.release()
        assert [other.result(20) for other in others] == [2, 4, 6, 8, 10]
    assert slow.batches == [[0], [1, 2, 3], [4, 5]]


def test_only_questions_of_a_kind_are_answered_together():
    slow = Slow()
    batcher = MicroBatcher(slow, most=8)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(batcher, 0, "k=10")]
        wait_until(lambda: slow.batches == [[0]])
        for place, (one, kind) in enumerate([(1, "k=10"), (2, "k=5"), (3, "k=10"), (4, "k=5")]):
            calls.append(pool.submit(batcher, one, kind))
            wait_until(lambda: len(batcher._waiting) == place + 1)  # noqa: B023
        for _ in range(3):
            slow.go_on.release()
        assert [call.result(20) for call in calls] == [0, 2, 4, 6, 8]
    assert slow.batches == [[0], [1, 3], [2, 4]]


def test_a_failure_reaches_those_it_concerns_and_the_next_are_answered():
    def answer(asked):
        if 13 in asked:
            raise ValueError("thirteen")
        return asked

    batcher = MicroBatcher(answer, most=4)
    with pytest.raises(ValueError, match="thirteen"):
        batcher(13)
    assert batcher(1) == 1


def test_many_threads_each_get_their_own_reply():
    batcher = MicroBatcher(lambda asked: [one * one for one in asked], most=4)

    def ask(start):
        return all(batcher(number) == number * number for number in range(start, start + 500))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(0, 4000, 500)))
    assert batcher._waiting == []
    assert not batcher._has_leader


def test_people_get_the_same_together_as_alone(recommender):
    users, people = list(range(100, 110)), [UserProfile(history=[f"item-{number:03d}"]) for number in range(10)]
    alone = [recommender.recommend(who, 5) for who in [*users, *people]]
    batches = []
    encode = recommender._encoder.vectors

    def slow(state, histories, attributes):
        batches.append(len(histories))
        time.sleep(0.02)
        return encode(state, histories, attributes)

    recommender._encoder.vectors = slow
    recommender.enable_micro_batching(4, "on")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda who: recommender.recommend(who, 5), [*users, *people]))
    assert together == alone
    assert 1 < max(batches) <= 4
    assert sum(batches) == len(people)


def test_searches_of_several_threads_are_made_together_and_find_the_same():
    vectors = clustered_vectors(3000)
    index = ItemIndex.build(vectors)
    batched = MicroBatchedSearch(index, 4)
    rng = np.random.default_rng(3)
    asked = [(vectors[user : user + 1], k, rng.integers(3000, size=user)) for user in range(40) for k in (3, 7)]

    alone = [index.search(query, k, ragged([excluded])) for query, k, excluded in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: batched.search(one[0], one[1], ragged([one[2]])), asked))
    for one, other in zip(together, alone, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        assert one.scores.tolist() == other.scores.tolist()
        assert one.offsets.tolist() == other.offsets.tolist()


def test_together_is_what_the_operator_says_or_what_pays():
    work = [lambda asked: time.sleep(0.004), lambda asked: time.sleep(0.002 * len(asked))]
    assert [is_wanted("auto", one, range(4)) for one in work] == [True, False]
    assert [is_wanted("on", one, range(4)) for one in work] == [True, True]
    assert [is_wanted("off", one, range(4)) for one in work] == [False, False]
    assert not is_wanted("auto", work[0], range(1))
