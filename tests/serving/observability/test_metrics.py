"""What many processes count adds up, whatever becomes of them; prometheus-client itself reads the format."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.http.app import create_app
from serving.observability import timings as stages
from serving.observability.metrics import BUCKETS, Metrics

ROUTES = ["/a", "/b"]


def make(folder=None):
    return Metrics(ROUTES, ["popular"], folder)


def read(content):
    """Every sample, by name and labels."""
    samples = {}
    for family in text_string_to_metric_families(content):
        for sample in family.samples:
            samples[sample.name, *sorted(sample.labels.items())] = sample.value
    return samples


def exposed(metrics):
    content, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=")
    return read(content.decode())


def requests(samples, route="/a", status="200"):
    return samples.get(("towers_requests_total", ("route", route), ("status", status)), 0)


def test_requests_are_counted_by_route_and_status_and_their_durations_fall_into_intervals():
    metrics = make()
    seconds = [0.00005, 0.0001, 0.003, 0.003, 20.0]
    for one in seconds:
        metrics.answered("/a", 200, one, {"search": one / 2})
    metrics.answered("/b", 418, 0.1, {})
    found = exposed(metrics)
    assert requests(found) == 5
    assert requests(found, "/b", "other") == 1
    assert requests(found, "/b") == 0
    for end in BUCKETS:
        within = sum(one <= end for one in seconds)
        assert found["towers_request_duration_seconds_bucket", ("le", str(end)), ("route", "/a")] == within
    assert found["towers_request_duration_seconds_bucket", ("le", "+Inf"), ("route", "/a")] == 5
    assert found["towers_request_duration_seconds_sum", ("route", "/a")] == pytest.approx(sum(seconds))
    assert found["towers_stage_duration_seconds_count", ("stage", "search")] == 5
    assert ("towers_stage_duration_seconds_count", ("stage", "encode")) not in found


def test_threads_lose_no_count():
    metrics = make()

    def count():
        for _ in range(5000):
            metrics.answered("/a", 200, 0.001, {})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert requests(exposed(metrics)) == 20_000


def work(folder, done, go_on):
    metrics = make(folder)
    metrics.describe_worker(model=f"model of {os.getpid()}", index="today", created=0.0)
    metrics.gauge("towers_requests_in_progress")(3)
    for _ in range(100):
        metrics.answered("/a", 200, 0.001, {})
    done.set()
    go_on.wait(30)


def test_the_counts_of_the_dead_stay_and_their_gauges_and_files_go(tmp_path):
    context = multiprocessing.get_context("fork")
    own = make(tmp_path)
    own.answered("/a", 200, 0.001, {})
    own.gauge("towers_requests_in_progress")(1)
    workers = []
    for _ in range(3):
        done, go_on = context.Event(), context.Event()
        worker = context.Process(target=work, args=(tmp_path, done, go_on))
        worker.start()
        assert done.wait(30)
        workers.append((worker, go_on))
    found = exposed(own)
    assert requests(found) == 301
    assert found["towers_requests_in_progress",] == 10
    assert len(own.workers()) == 4
    assert len(list(tmp_path.glob("*.worker"))) == 4

    os.kill(workers[0][0].pid, signal.SIGKILL)
    workers[1][1].set()
    for worker, _ in workers[:2]:
        worker.join(30)
    for _ in range(3):  # a scrape moves the dead's counts, and the next must not count them again
        found = exposed(own)
        assert requests(found) == 301
        assert found["towers_requests_in_progress",] == 4
    assert len(own.workers()) == 2
    assert len(list(tmp_path.glob("*.worker"))) == 2
    own.answered("/a", 200, 0.001, {})
    assert requests(exposed(own)) == 302
    workers[2][1].set()
    workers[2][0].join(30)


def test_a_scrape_that_is_cut_short_counts_nothing_twice(tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    done, go_on = context.Event(), context.Event()
    go_on.set()
    worker = context.Process(target=work, args=(tmp_path, done, go_on))
    worker.start()
    worker.join(30)
    own = make(tmp_path)
    with monkeypatch.context() as patch:

        def fail(path, missing_ok=False):
            raise KeyboardInterrupt

        patch.setattr("pathlib.Path.unlink", fail)  # as if killed after writing the past, before removing the file
        with pytest.raises(KeyboardInterrupt):
            own.exposition()
    assert requests(exposed(own)) == 100
    assert requests(exposed(own)) == 100
    assert len(list(tmp_path.glob("*.worker"))) == 1


def test_files_of_another_layout_are_left_alone(tmp_path):
    other = Metrics(["/c"], ["popular"], tmp_path)
    other.answered("/c", 200, 0.001, {})
    assert not [name for name, *labels in exposed(make(tmp_path)) if ("route", "/c") in labels]


def test_workers_are_shown_by_what_they_answer_from():
    metrics = make()
    assert exposed(metrics)["towers_workers", ("index", ""), ("model", "")] == 1
    assert "towers_index_age_seconds" not in {name for name, *_ in exposed(metrics)}
    metrics.describe_worker(model="m", index="i", created=0.0)
    found = exposed(metrics)
    assert found["towers_workers", ("index", "i"), ("model", "m")] == 1
    assert found["towers_index_age_seconds",] > 1e9


def test_the_service_shows_what_was_asked_and_how_long_each_stage_took(recommender):
    client = create_app(recommender).test_client()
    for _ in range(3):
        assert client.get("/recommendations/103").status_code == 200
    client.get("/recommendations/nobody")
    client.get("/recommendations/103?k=0")
    client.get("/nowhere")
    response = client.get("/metrics")
    assert response.status_code == 200
    found = read(response.text)
    route = "/recommendations/{user_id}"
    assert requests(found, route) == 4
    assert requests(found, route, "422") == 1
    assert requests(found, "none", "404") == 1
    assert found["towers_fallbacks_total", ("fallback", "popular")] == 1
    assert found["towers_requests_in_progress",] == 0
    for stage in ("search", "serialise"):
        assert found["towers_stage_duration_seconds_count", ("stage", stage)] >= 3
    assert found["towers_workers", ("index", recommender.snapshot.manifest.created), ("model", recommender.model)] == 1
    assert 0 <= found["towers_index_age_seconds",] < 600


def test_openmetrics_is_spoken_to_those_who_ask_for_it(recommender):
    client = create_app(recommender).test_client()
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.mimetype == "application/openmetrics-text"
    assert response.text.endswith("# EOF\n")


def test_a_stage_within_itself_counts_once(monkeypatch):
    ticks = iter(range(10))
    monkeypatch.setattr(stages, "perf_counter", lambda: float(next(ticks)))
    stages.begin()
    with stages.timed("encode"), stages.timed("search"), stages.timed("encode"):
        pass
    assert stages.spent() == {"search": 2.0, "encode": 4.0}


def test_stages_add_up_within_a_request_and_do_not_leak_into_the_next():
    stages.begin()
    with stages.timed("encode"):
        pass
    first = stages.spent()["encode"]
    with stages.timed("encode"):
        time.sleep(0.02)
        with stages.timed("encode"):
            time.sleep(0.02)
    assert stages.spent()["encode"] >= first + 0.04
    stages.begin()
    assert stages.spent() == {}
