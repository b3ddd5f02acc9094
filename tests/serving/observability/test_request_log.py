"""The request log: what a line says, concurrent writers, rotation, and a disk that takes nothing."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import threading
from pathlib import Path

import pytest

from features.errors import DataError
from serving.config import ServingConfig
from serving.http.app import create_app
from serving.observability.logged_requests import read_requests
from serving.observability.request_log import MOST_ITEMS, RotatedFile, user_hash

KEY = "a key of sixteen characters"
PROCESSES = multiprocessing.get_context("fork")


def app_of(recommender, path: Path, **settings):
    return create_app(
        recommender,
        ServingConfig(request_log=str(path), **{"request_log_share": 1.0, "request_log_key": KEY, **settings}),
    )


def lines_after(app, path: Path, *requests) -> list[dict]:
    """The lines of the log after these requests, each a path or the body of a POST."""
    client = app.test_client()
    for one in requests:
        client.get(one) if isinstance(one, str) else client.post("/recommendations", json=one)
    app.extensions["towers"].request_log.close()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_a_line_has_the_request_the_user_and_the_answer(recommender, tmp_path):
    path = tmp_path / "requests.jsonl"
    app = app_of(recommender, path)
    body = {
        "users": [
            103,
            "nobody",
            {"history": ["item-001", "gone", "gone"]},
            {"history": ["item-001"], "attributes": {"country": "de"}},
        ],
        "k": 3,
        "offset": 2,
    }
    known, batch, similar = lines_after(app, path, "/recommendations/103?k=4", body, "/items/item-001/similar?k=2")
    answer = app.test_client().get("/recommendations/103?k=4").json
    app.extensions["towers"].request_log.close()

    assert (known["route"], known["k"], known["offset"], known["filters"]) == ("/recommendations/{user_id}", 4, 0, [])
    assert (known["model"], known["index"]) == (recommender.model, recommender.index_version)
    assert known["milliseconds"] > 0
    [of_103] = known["answers"]
    assert of_103["items"] == [item["item_id"] for item in answer["items"]]
    scores = [item["score"] for item in answer["items"]]
    assert of_103["scores"] == pytest.approx([scores[0], scores[2], scores[3]])
    assert (of_103["user"], of_103["user_hash"], of_103["returned"]) == ("known", user_hash(KEY, 103), 4)
    assert of_103["history"] == len(recommender.history("103", 1000))

    first, nobody, described, plain = batch["answers"]
    assert (batch["offset"], first["user_hash"]) == (2, of_103["user_hash"])
    assert (nobody["user"], nobody["user_hash"]) == ("unknown", user_hash(KEY, "nobody"))
    assert (nobody["history"], nobody["fallback"]) == (None, "popular")
    assert (described["user"], described["user_hash"], described["history"]) == ("described", None, 3)
    assert (described["unknown_items"], described["attributes"]) == (2, {})
    assert (plain["unknown_items"], plain["attributes"]) == (0, {"country": 0})
    assert (similar["route"], similar["answers"][0]["user"]) == ("/items/{item_id}/similar", None)


def test_only_columns_of_filters_are_logged_and_of_long_answers_the_first_items(tmp_path):
    from tests.serving.doubles import make_recommender, make_tables

    items = [f"item-{number}" for number in range(150)]
    recommender = make_recommender(make_tables({1: items[:5], 2: items[3:9]}, items, titles=["secret"] * 150))
    path = tmp_path / "requests.jsonl"
    [line, long] = lines_after(
        app_of(recommender, path), path, "/recommendations/1?title=secret", "/items/item-1/similar?k=140"
    )
    assert line["filters"] == ["title"]
    assert "secret" not in json.dumps(line)
    assert (long["answers"][0]["returned"], len(long["answers"][0]["items"])) == (140, MOST_ITEMS)


def test_errors_probes_the_page_and_writes_are_not_logged(recommender, tmp_path):
    path = tmp_path / "requests.jsonl"
    app = app_of(recommender, path)
    paths = (
        "/recommendations/103?k=x",
        "/items/none/similar",
        "/healthz",
        "/readyz",
        "/metrics",
        "/?user_id=103",
        "/x",
    )
    assert lines_after(app, path, *paths, {"history": ["item-001"], "k": -1}) == []


def test_it_is_off_by_default_and_takes_a_share_otherwise(recommender, tmp_path):
    assert create_app(recommender, ServingConfig()).extensions["towers"].request_log is None
    path = tmp_path / "requests.jsonl"
    app = app_of(recommender, path, request_log_share=0.25)
    lines = lines_after(app, path, *["/recommendations/103"] * 400)
    assert 55 < len(lines) < 150, "chance leaves this range less than once in 100,000 runs"


def test_without_a_key_no_id_is_in_the_log(recommender, tmp_path):
    path = tmp_path / "requests.jsonl"
    app = app_of(recommender, path, request_log_key=None)
    [line] = lines_after(app, path, "/recommendations/103")
    assert line["answers"][0]["user_hash"] is None
    assert user_hash(KEY, 103) != user_hash(KEY + "!", 103)
    assert user_hash(KEY, 103) == user_hash(KEY, "103")


def outcome(app, name: str) -> float:
    text = app.test_client().get("/metrics").text
    label = f'towers_request_log_lines_total{{outcome="{name}"}}'
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(label))


def test_a_removed_folder_is_one_line_and_a_metric_and_the_log_goes_on_when_it_is_back(recommender, tmp_path, caplog):
    folder = tmp_path / "logs"
    app = app_of(recommender, folder / "requests.jsonl")
    client = app.test_client()
    with caplog.at_level(logging.WARNING):
        assert [client.get("/recommendations/103").status_code for _ in range(5)] == [200] * 5
        app.extensions["towers"].request_log.close()
        assert [record.getMessage() for record in caplog.records if "not written" in record.getMessage()] != []
        assert len(caplog.records) == 1
        folder.mkdir()
        client.get("/recommendations/103")
        app.extensions["towers"].request_log.close()
    assert "written again; 5 lines were lost" in caplog.text
    assert (outcome(app, "failed"), outcome(app, "written")) == (5, 1)
    assert len(read_requests(folder / "requests.jsonl").answers) == 1


def fill(path: Path, most_bytes: int) -> None:
    """Append until the file may not grow any more, as on a full disk, then when it may again."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = RotatedFile(path, 1 << 30, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    lost = 0
    for number in range(40):
        if number == 30:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        try:
            file.append(json.dumps({"number": number}).encode() + b"\n")
        except OSError:
            lost += 1
    os._exit(lost)


def test_a_full_disk_costs_the_lines_that_do_not_fit_and_no_other(tmp_path):
    path = tmp_path / "requests.jsonl"
    writer = PROCESSES.Process(target=fill, args=(path, 205))
    writer.start()
    writer.join(30)
    whole, torn = [], 0
    for line in path.read_text().splitlines():
        try:
            whole.append(json.loads(line)["number"])
        except ValueError:
            torn += 1
    assert torn == 1, "the limit is within a line"
    assert whole[-10:] == list(range(30, 40))
    assert len(whole) + writer.exitcode == 40
    assert writer.exitcode > 0


def append(path: Path, name: str, num_lines: int, max_bytes: int) -> None:
    file = RotatedFile(path, max_bytes, 1000)
    for number in range(num_lines):
        file.append(json.dumps({"writer": name, "number": number, "filling": "x" * (number % 500)}).encode() + b"\n")


def test_two_processes_lose_and_mix_no_line_while_files_are_renamed(tmp_path):
    path = tmp_path / "requests.jsonl"
    writers = [PROCESSES.Process(target=append, args=(path, name, 3000, 20_000)) for name in ("a", "b")]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    files = [one for one in tmp_path.iterdir() if one.suffix != ".lock"]
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(files) > 10
    assert sorted((one["writer"], one["number"]) for one in found) == [(n, i) for n in "ab" for i in range(3000)]


def test_a_file_that_was_renamed_a_moment_ago_is_begun_again(tmp_path, monkeypatch):
    path = tmp_path / "requests.jsonl"
    file = RotatedFile(path, 4096, 3)
    file.append(b"%4000d\n" % 1)
    rotate = RotatedFile._rotate

    def renamed_meanwhile(self, num_bytes):
        path.rename(tmp_path / "requests.jsonl.1")
        rotate(self, num_bytes)

    monkeypatch.setattr(RotatedFile, "_rotate", renamed_meanwhile)
    file.append(b"%4000d\n" % 2)
    assert [int(one.read_text()) for one in (tmp_path / "requests.jsonl.1", path)] == [1, 2]


def test_a_fixed_number_of_files_is_kept_also_after_the_number_was_lowered(tmp_path):
    path = tmp_path / "requests.jsonl"
    for num_files in (6, 3):
        file = RotatedFile(path, 4096, num_files)
        for number in range(100):
            file.append(b"%1000d\n" % number)
        names = {one.name for one in tmp_path.iterdir() if one.suffix != ".lock"}
        assert names == {path.name, *(f"{path.name}.{number}" for number in range(1, num_files))}
        assert all(one.stat().st_size <= 4096 for one in tmp_path.iterdir())
        assert path.read_bytes().endswith(b"99\n")


def test_a_slow_disk_delays_no_request(recommender, tmp_path, monkeypatch):
    resume = threading.Event()
    monkeypatch.setattr(RotatedFile, "append", lambda self, line: resume.wait(30))
    app = app_of(recommender, tmp_path / "requests.jsonl")
    client = app.test_client()
    assert all(client.get("/recommendations/103").status_code == 200 for _ in range(1100))
    assert outcome(app, "dropped") >= 99
    resume.set()
    app.extensions["towers"].request_log.close()


def test_a_path_that_cannot_be_written_is_one_line_at_the_start(tmp_path):
    with pytest.raises(DataError, match=r"^request_log: .*none/requests.jsonl cannot be written"):
        RotatedFile(tmp_path / "none" / "requests.jsonl", 4096, 2).check()
    with pytest.raises(DataError, match="is not a file"):
        RotatedFile(tmp_path, 4096, 2).check()
    RotatedFile(tmp_path / "requests.jsonl", 4096, 2).check()


def test_half_lines_are_counted_and_named_and_no_line_at_all_is_an_error(recommender, tmp_path):
    path = tmp_path / "requests.jsonl"
    lines_after(app_of(recommender, path), path, *["/recommendations/103"] * 3)
    whole = path.read_text()
    path.rename(tmp_path / "requests.jsonl.1")
    path.write_text(whole.splitlines()[0][:50] + "\n\n" + whole + '{"time": "now"}\n{"time": NaN}')
    read = read_requests(path)
    assert (len(read.answers), read.num_lines) == (6, 9)
    assert read.unreadable == ("requests.jsonl, line 1", "requests.jsonl, line 6", "requests.jsonl, line 7")
    assert read.notes[0].startswith("request log: 3 of 9 lines cannot be read")
    assert read.shown["position"].tolist() == [*range(1, 11)] * 6
    (tmp_path / "other").write_text("no log\n")
    with pytest.raises(DataError, match="none of its 1 lines can be read"):
        read_requests(tmp_path / "other")
    with pytest.raises(DataError, match="no such file"):
        read_requests(tmp_path / "none")
