"""A request ends: at its deadline in whatever stage it is, and alone where there is no memory for it."""

from __future__ import annotations

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from serving import deadline
from serving.config import ServingConfig
from serving.errors import DeadlineExceededError
from serving.http.app import create_app
from serving.live.follower import LiveRecommender
from serving.live.log import Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend.recommender import Recommender
from serving.search.faiss_index import ItemIndex
from serving.search.index_config import IndexConfig
from serving.search.micro_batching import MicroBatcher
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import FakeBundle, country, make_features


@pytest.fixture(autouse=True)
def cleared():
    yield
    deadline.clear()


class Clock:
    """Stands still until it was looked at so often; then all time is over. Remembers which module looked."""

    def __init__(self, looks=float("inf")):
        self.looks = looks
        self.lookers = []

    def __call__(self):
        frame = sys._getframe(1)
        while Path(frame.f_code.co_filename) == Path(deadline.__file__) or SERVING not in frame.f_code.co_filename:
            frame = frame.f_back
        self.lookers.append(Path(frame.f_code.co_filename).stem)
        return 0.0 if len(self.lookers) < self.looks else 1e9


SERVING = str(Path(deadline.__file__).parent)


def where_it_ends(app, request, monkeypatch):
    """The modules whose first and last look at the clock each end the request, with the answer that says so."""
    client, clock = app.test_client(), Clock()
    whole = ask(client, request)  # which remembers what need not be done again
    assert whole.status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(deadline, "perf_counter", clock)
        assert ask(client, request).data == whole.data
        looks = {}
        for look, looker in enumerate(clock.lookers, start=1):
            looks.setdefault(looker, [look, look])[1] = look
        del looks["middleware"]  # where the clock is started
        for look in {look for pair in looks.values() for look in pair}:
            patch.setattr(deadline, "perf_counter", Clock(look))
            answer = ask(client, request)
            assert (answer.status_code, answer.json["code"]) == (503, "deadline_exceeded")
        assert deadline.left() is None
    assert ask(client, request).data == whole.data
    return set(looks)


def ask(client, request):
    path, body = request
    return client.get(path) if body is None else client.post(path, json=body)


MANY = [100, 101, 108, "nobody", {"history": ["item-003", "item-005"]}, {"attributes": {"country": "de"}}]
RULES = {"diversity": 0.5, "distinct": 0.9, "boost": [{"filter": {"item_id": "item-001"}, "by": 1}]}
OTHERS = {"item_id": {"not": ["item-001"]}}
REQUESTS = {
    "plain": (("/recommendations/103", None), {"recommender", "faiss_index"}),
    "many": (
        ("/recommendations", {"users": MANY}),
        {"users", "encoding", "faiss_index", "recommender", "recommend_handler"},
    ),
    "filtered": (("/recommendations", {"users": MANY, "filter": OTHERS}), {"brute_force", "faiss_index"}),
    "arranged": (("/recommendations", {"users": MANY, **RULES}), {"rules", "results", "recommender"}),
    "reasons": (("/recommendations/103?reasons=3", None), {"explanations", "encoding", "recommender"}),
    "similar": (("/items/item-001/similar?distinct=0.9", None), {"rules", "faiss_index"}),
}


@pytest.mark.parametrize(("request_", "expected"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_ends_at_its_deadline_wherever_it_is(recommender, monkeypatch, request_, expected):
    assert expected <= where_it_ends(create_app(recommender), request_, monkeypatch)


@pytest.mark.parametrize(
    "plan", [IndexConfig(kind="ivf", nlist=8, nprobe=2), IndexConfig(kind="hnsw", m=8, ef_search=32)]
)
def test_every_kind_of_index_ends_at_the_deadline_live_writes_on_top_or_not(shop, plan, tmp_path, monkeypatch):
    bundle = FakeBundle("bundle", make_features(user=country()))
    snapshot = Snapshot.build(bundle, shop)
    snapshot = replace(snapshot, index=ItemIndex.build(snapshot.index.vectors, plan))
    base, store = Recommender(bundle, snapshot), SqliteLog(tmp_path / "live.db")
    store.append([Write("item", {"item_id": "new", "cells": {"title": "New"}})])
    store.append([Write("event", {"user_id": 100, "item_id": "item-001", "time": 1})])
    request = ("/recommendations", {"users": MANY, **RULES})
    assert {"faiss_index", "rules", "recommender"} <= where_it_ends(create_app(base), request, monkeypatch)
    live = create_app(LiveRecommender(base, store).current())
    assert {"faiss_index", "rules", "delta", "delta_index"} <= where_it_ends(live, request, monkeypatch)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/events", {"events": [{"user_id": 103, "item_id": f"item-00{number}"} for number in (1, 2, 3)]}),
        ("PUT", "/items/new", {"title": "New"}),
        ("DELETE", "/items/item-001", None),
    ],
)
def test_a_write_whose_deadline_passes_is_refused_and_not_written(
    recommender, tmp_path, monkeypatch, method, path, body
):
    app, clock = create_app(recommender, ServingConfig(live=str(tmp_path / "live.db"))), Clock()
    store = app.extensions["towers"].provider.store
    with monkeypatch.context() as patch:
        patch.setattr(deadline, "perf_counter", clock)
        assert app.test_client().open(path, method=method, json=body).status_code in (200, 201)
        written = store.state().end
        looks = [look for look, looker in enumerate(clock.lookers, start=1) if looker == "live_routes"]
        assert len(looks) == (4 if method == "POST" else 1)
        for look in looks:
            patch.setattr(deadline, "perf_counter", Clock(look))
            answer = app.test_client().open(path.replace("001", "002"), method=method, json=body)
            assert (answer.status_code, answer.json["code"]) == (503, "deadline_exceeded")
    assert store.state().end == written


def test_the_answer_names_the_setting_and_the_log_and_the_metrics_tell(recommender, monkeypatch, caplog):
    app = create_app(recommender, ServingConfig(timeout_seconds=0.05))
    search = recommender.state.search.search

    def slow(*given):
        time.sleep(0.06)
        return search(*given)

    monkeypatch.setattr(recommender.state.search, "search", slow)
    for path in ("/recommendations/103", "/items/item-001/similar"):  # without Flask, and with it
        with caplog.at_level(logging.INFO, logger="serving"):
            caplog.clear()
            answer = app.test_client().get(path, headers={"X-Request-Id": "mine"})
        assert (answer.status_code, answer.json["code"]) == (503, "deadline_exceeded")
        assert "timeout_seconds = 0.05" in answer.json["detail"]
        assert int(answer.headers["Retry-After"]) >= 1
        (line,) = caplog.records
        assert line.fields["ended_by"] == "deadline"
        assert line.fields["path"] == path
    assert 'towers_rejected_total{reason="deadline"} 2.0' in app.test_client().get("/metrics").text
    monkeypatch.setattr(recommender.state.search, "search", search)
    assert app.test_client().get("/recommendations/103").status_code == 200


def test_the_wait_for_a_turn_counts(recommender, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    recommend = recommender.recommend

    def slow(*given):
        entered.set()
        go_on.wait(20)
        return recommend(*given)

    monkeypatch.setattr(recommender, "recommend", slow)
    app = create_app(recommender, ServingConfig(threads=1, queue_size=1, timeout_seconds=0.2))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(app.test_client().get, "/recommendations/103")
        assert entered.wait(20)
        began = time.monotonic()
        second = app.test_client().get("/recommendations/103")
        assert 0.2 <= time.monotonic() - began < 10
        assert (second.status_code, second.json["code"]) == (503, "deadline_exceeded")
        assert app.extensions["towers"].limiter.in_progress == 1
        go_on.set()
        first.result()
    assert app.extensions["towers"].limiter.in_progress == 0


def test_who_waits_for_others_waits_no_longer_than_his_deadline_and_does_not_end_theirs():
    entered, go_on = threading.Event(), threading.Event()

    def answer(asked):
        if 0 in asked:
            entered.set()
            go_on.wait(20)
        deadline.check()
        return asked

    batcher = MicroBatcher(answer, most=4)

    def hurried(one):
        deadline.start(0.05)
        try:
            return batcher(one)
        except DeadlineExceededError:
            return "late"
        finally:
            deadline.clear()

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher, 0)
        assert entered.wait(20)
        assert [one.result(20) for one in [pool.submit(hurried, 1), pool.submit(hurried, 2)]] == ["late", "late"]
        assert batcher._waiting == []
        patient = pool.submit(batcher, 3)
        go_on.set()
        assert (first.result(20), patient.result(20), hurried(4)) == (0, 3, 4)
    assert not batcher._has_leader


def test_without_a_deadline_work_is_done_in_one_piece_and_with_one_in_parts():
    assert list(deadline.parts(100, 10)) == [slice(0, 100)]
    assert list(deadline.parts(100, 10, 60)) == [slice(0, 60), slice(60, 100)]
    assert list(deadline.parts(0, 10)) == []
    deadline.start(60)
    assert list(deadline.parts(25, 10)) == [slice(0, 10), slice(10, 20), slice(20, 25)]
    assert list(deadline.parts(3, 0, 60)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert 59 < deadline.left() <= 60
    with deadline.suspended():
        assert deadline.left() is None
    deadline.start(0)
    with pytest.raises(DeadlineExceededError, match="timeout_seconds = 0 "):
        next(deadline.watched([1]))
    lock = threading.Lock()
    with lock, pytest.raises(DeadlineExceededError), deadline.held(lock):
        pass
    with deadline.held(lock):
        assert lock.locked()


ERRORS = [MemoryError("Unable to allocate 3 TiB"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate")]


@pytest.mark.parametrize("error", ERRORS, ids=["numpy", "torch"])
@pytest.mark.parametrize("path", ["/recommendations/103", "/items/item-001/similar"], ids=["short", "flask"])
def test_out_of_memory_ends_one_request_only(recommender, monkeypatch, caplog, path, error):
    app = create_app(recommender)
    client = app.test_client()

    def broken(*given):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(recommender.state.search, "search", broken)
        answer = client.get(path)
    assert (answer.status_code, answer.json["code"]) == (503, "out_of_memory")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "llocate" in caplog.text
    assert "Traceback" not in caplog.text
    assert client.get(path).status_code == 200
    assert 'towers_rejected_total{reason="memory"} 1.0' in client.get("/metrics").text


def test_out_of_memory_outside_of_the_views_ends_one_request_only(recommender, monkeypatch):
    app = create_app(recommender)
    inner = app.wsgi_app._dispatch

    def broken(environ, start_response):
        raise MemoryError

    monkeypatch.setattr(app.wsgi_app, "_dispatch", broken)
    answer = app.test_client().get("/recommendations/103")
    assert (answer.status_code, answer.json["code"]) == (503, "out_of_memory")
    monkeypatch.setattr(app.wsgi_app, "_dispatch", inner)
    assert app.test_client().get("/recommendations/103").status_code == 200
    assert app.extensions["towers"].limiter.in_progress == 0


def test_nothing_of_a_request_that_ended_is_left_for_the_next(recommender):
    deadline.start(0)
    with suppress(DeadlineExceededError):
        recommender.recommend(103, 5)
    deadline.clear()
    assert len(recommender.recommend(103, 5).items) == 5
