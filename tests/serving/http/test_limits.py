"""How much is taken on: turns against a count by hand, rates against a slow reference, and both through HTTP."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import ServingConfig
from serving.http.app import create_app
from serving.http.limits import ConcurrencyLimiter, RateLimiter, retry_after
from serving.http.middleware import client_address


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_one_more_than_may_wait_is_refused_and_everybody_else_gets_a_turn():
    seen = []
    turns = ConcurrencyLimiter(threads=2, queue_size=3, on_change=seen.append)
    go_on = threading.Event()
    running = []

    def ask():
        if not turns.take():
            return False
        running.append(1)
        most.append(len(running))
        go_on.wait(10)
        running.pop()
        turns.give_back()
        return True

    most = []
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask) for _ in range(5)]
        deadline = time.monotonic() + 10
        while turns.in_progress < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not turns.take()
        assert turns.in_progress == 5
        go_on.set()
        assert all(one.result() for one in asked)
    assert max(most) <= 2
    assert (turns.in_progress, max(seen), seen[-1]) == (0, 5, 0)
    assert turns.take()


def test_it_is_stuck_when_nothing_in_hand_ends_for_a_minute():
    clock = Clock()
    turns = ConcurrencyLimiter(2, 0, clock=clock)
    clock.now += 3600
    assert not turns.is_stuck()
    turns.take()
    clock.now += 59
    turns.take()
    assert not turns.is_stuck()
    clock.now += 2
    assert turns.is_stuck()
    turns.give_back()
    assert not turns.is_stuck()


def allowed(times, rate, burst):
    """The bucket in its usual words: `burst` tokens, `rate` more a second, one a request."""
    tokens, last, answers = float(burst), times[0] if times else 0.0, []
    for now in times:
        tokens = min(float(burst), tokens + (now - last) * rate)
        last = now
        answers.append(tokens >= 1 - 1e-6)
        tokens -= answers[-1]
    return answers


@given(
    st.lists(st.integers(0, 40), max_size=60),
    st.sampled_from([0.5, 1.0, 4.0]),
    st.integers(1, 5),
)
def test_a_client_may_ask_as_often_as_a_bucket_of_tokens_allows(pauses, rate, burst):
    clock = Clock()
    rates = RateLimiter(rate, burst, clock=clock)
    times, answers = [], []
    for pause in pauses:
        clock.now += pause / 8  # so that no rounding decides
        times.append(clock.now)
        wait = rates.wait("somebody")
        answers.append(wait == 0)
        if wait:
            assert 0 < wait <= 1 / rate + 1e-9
    assert answers == allowed(times, rate, burst)


def test_after_the_wait_that_was_told_the_next_request_is_allowed():
    clock = Clock()
    rates = RateLimiter(3.0, 2, clock=clock)
    while (wait := rates.wait("somebody")) == 0:
        pass
    clock.now += retry_after(wait)
    assert rates.wait("somebody") == 0
    assert rates.wait("another") == 0


def ask_often(folder, answers):
    rates = RateLimiter(0.001, 50, folder)
    answers.put(sum(rates.wait("somebody") == 0 for _ in range(100)))


def test_workers_count_a_client_together(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=ask_often, args=(tmp_path, answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert sum(answers.get(timeout=30) for _ in workers) == 50
    for worker in workers:
        worker.join(30)


@pytest.mark.parametrize(
    ("forwarded", "proxies", "expected"),
    [
        (None, 0, "10.0.0.1"),
        ("1.1.1.1", 0, "10.0.0.1"),
        ("1.1.1.1", 1, "1.1.1.1"),
        ("6.6.6.6, 1.1.1.1", 1, "1.1.1.1"),
        ("6.6.6.6, 1.1.1.1, 10.0.0.2", 2, "1.1.1.1"),
        ("1.1.1.1", 2, "10.0.0.1"),
        (" , ", 1, "10.0.0.1"),
    ],
)
def test_only_what_trusted_proxies_say_of_an_address_is_believed(forwarded, proxies, expected):
    environ = {"REMOTE_ADDR": "10.0.0.1"} | ({} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded})
    assert client_address(environ, proxies) == expected


def test_a_request_too_many_is_told_when_to_come_back_and_probes_are_not_counted(recommender):
    client = create_app(recommender, ServingConfig(rate=0.01, burst=3)).test_client()
    assert [client.get("/recommendations/103").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = client.get("/recommendations/103")
    assert refused.json["code"] == "too_many_requests"
    assert 1 <= int(refused.headers["Retry-After"]) <= 100
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200
    elsewhere = client.get("/recommendations/103", environ_base={"REMOTE_ADDR": "10.0.0.9"})
    assert elsewhere.status_code == 200


def test_a_worker_with_its_hands_full_refuses_at_once_and_still_answers_those_who_run_it(recommender, monkeypatch):
    entered, go_on = threading.Semaphore(0), threading.Event()
    recommend = recommender.recommend

    def slow(*given):
        entered.release()
        go_on.wait(20)
        return recommend(*given)

    monkeypatch.setattr(recommender, "recommend", slow)
    app = create_app(recommender, ServingConfig(threads=1, queue_size=1))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(app.test_client().get, "/recommendations/103")
        assert entered.acquire(timeout=20)
        second = pool.submit(app.test_client().get, "/recommendations/103")
        deadline = time.monotonic() + 20
        while app.extensions["towers"].limiter.in_progress < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        began = time.monotonic()
        refused = app.test_client().get("/recommendations/103", headers={"X-Request-Id": "mine"})
        assert time.monotonic() - began < 5
        assert refused.status_code == 503
        assert refused.json["code"] == "busy"
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["X-Request-Id"] == "mine"
        for probe in ("/healthz", "/readyz", "/metrics"):
            assert app.test_client().get(probe).status_code == 200
        shown = app.test_client().get("/metrics").text
        assert "towers_requests_in_progress 2.0" in shown
        assert 'towers_rejected_total{reason="busy"} 1.0' in shown
        go_on.set()
        assert first.result().status_code == second.result().status_code == 200


def test_health_says_when_nothing_moves_any_more(recommender):
    app = create_app(recommender)
    turns = app.extensions["towers"].limiter
    clock = Clock()
    turns._clock = clock
    turns.take()
    assert app.test_client().get("/healthz").status_code == 200
    clock.now += 61
    assert app.test_client().get("/healthz").status_code == 503
    turns.give_back()
    assert app.test_client().get("/healthz").status_code == 200
