"""The log of live writes damaged, lost, replaced or put back while a service runs: each has one right answer.

A write is acknowledged only when whoever opens the file next finds it there; answers go on with what is known; and as
soon as there is a log again, the service takes it up by itself.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import time
from contextlib import closing
from itertools import pairwise

import orjson
import pytest

from features.errors import DataError
from serving.config import ServingConfig
from serving.deploy import hot_reload as source
from serving.errors import NotReady
from serving.http.app import create_app
from serving.live import sqlite_log as store
from serving.live.follower import LiveRecommender
from serving.live.log import Write, readable
from serving.live.open_log import open_log
from serving.live.sqlite_log import SqliteLog
from serving.snapshot.manifest import LogOffset
from tests.serving.doubles import make_recommender, make_tables


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(store, "_SECONDS_TO_WAIT", 0.05)
    monkeypatch.setattr(store, "_SECONDS_TO_READ", 0.02)
    monkeypatch.setattr(source, "_SECONDS_BETWEEN_CHECKS", 0.0)


@pytest.fixture(scope="module")
def recommender():
    """A small one, made once: nothing here changes it."""
    items = [f"item-{number:03d}" for number in range(20)]
    return make_recommender(
        make_tables({user: items[user - 100 :][:3] for user in range(100, 110)}, items, titles=items)
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "live.db"


@pytest.fixture
def client(recommender, path):
    """A service that was written a first item."""
    client = create_app(recommender, ServingConfig(live=str(path))).test_client()
    assert put(client, "first").status_code == 201
    assert is_known(client, "first")
    return client


def item(item_id):
    return Write("item", {"item_id": item_id, "cells": {"title": "Thing"}})


def put(client, item_id):
    return client.put(f"/items/{item_id}", json={"title": "Thing"})


def is_known(client, item_id):
    return client.get(f"/items/{item_id}/similar").status_code == 200


def kept(path):
    """The items in the log, as whoever opens it next finds them."""
    opened = SqliteLog(path)
    found = [record.body["item_id"] for record in opened.read_after(0)]
    opened.close()
    return found


def set_aside(path):
    """Keep a whole copy of a log elsewhere, and return how to put it back."""
    aside = path.parent.with_name("aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    with closing(sqlite3.connect(path)) as log, closing(sqlite3.connect(aside / path.name)) as copy:
        log.backup(copy)

    def put_back():
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(aside, path.parent)

    return put_back


def _overwrite(path):
    path.write_bytes(b"garbage " * (path.stat().st_size // 8))


def _instead(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


def _away_with_the_folder(path):
    path.parent.rename(path.parent.with_name("elsewhere"))


DAMAGES = {
    "unlinked": lambda path: path.unlink(),
    "with its whole folder": _away_with_the_folder,
    "overwritten": _overwrite,
    "emptied": lambda path: os.truncate(path, 0),
    "cut off": lambda path: os.truncate(path, 4096),
    "an empty file": _instead(lambda path: path.touch()),
    "another file": _instead(lambda path: path.write_text("a,b\n" * 2000)),
    "a folder": _instead(lambda path: path.mkdir()),
    "a pipe": _instead(os.mkfifo),
    "a device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a loop": _instead(lambda path: path.symlink_to(path)),
    "without its newest": lambda path: path.with_name("live.db-wal").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_while_it_is_read_takes_no_write_and_comes_back_by_itself(recommender, path, damage):
    log = SqliteLog(path)
    live = LiveRecommender(recommender, log)
    log.append([item("first")])
    assert live.current().state.items.row("first") is not None
    put_back = set_aside(path)
    damage(path)
    for _ in range(2):
        with pytest.raises(NotReady, match="the log of live writes cannot be written to"):
            log.append([item("second")])
        assert live.latest.state.items.row("first") is not None, "what was known is not forgotten"
    put_back()
    log.append([item("third")])
    assert [live.current().state.items.row(name) is not None for name in ("first", "second", "third")] == [
        True,
        False,
        True,
    ]
    assert kept(path) == ["first", "third"]


def test_a_service_whose_log_is_lost_says_503_to_writes_answers_go_on_and_it_comes_back_by_itself(client, path, caplog):
    for damage in (DAMAGES["unlinked"], DAMAGES["overwritten"]):
        put_back = set_aside(path)
        damage(path)
        for _ in range(2):
            refused = put(client, "second")
            assert (refused.status_code, refused.mimetype) == (503, "application/problem+json")
            assert "the log of live writes cannot be" in refused.json["detail"]
            assert client.get("/recommendations/101").status_code == 200
            assert is_known(client, "first")
        put_back()
    assert put(client, "third").status_code == 201
    assert is_known(client, "third")
    assert kept(path) == ["first", "third"]
    assert not [record for record in caplog.records if record.exc_info]


def test_a_log_that_was_replaced_by_another_is_taken_up_instead(client, path, caplog):
    put(client, "second")
    shutil.rmtree(path.parent)
    other = SqliteLog(path)
    other.append([item("elsewhere")])
    assert is_known(client, "elsewhere")
    assert not is_known(client, "second")
    assert "the log of live writes was replaced or restored; all of it is read again" in caplog.text
    assert put(client, "third").status_code == 201
    assert kept(path) == ["elsewhere", "third"]


def test_a_log_that_was_put_back_to_what_it_was_is_read_again(client, path):
    put_back = set_aside(path)
    put(client, "second")
    assert is_known(client, "second")
    put_back()
    assert not is_known(client, "second")
    put(client, "third")
    assert (is_known(client, "first"), is_known(client, "second"), is_known(client, "third")) == (True, False, True)


def test_a_log_that_ends_before_what_was_folded_into_the_index_loses_no_later_write(
    recommender, path, caplog, monkeypatch
):
    opened = SqliteLog(path)
    opened.append([item("old")])
    before = opened.state().log_id
    monkeypatch.setitem(recommender.snapshot.manifest.__dict__, "live", LogOffset(log_id=before, position=9))
    live = LiveRecommender(recommender, opened)
    assert live.current().state.items.row("old") is not None
    assert opened.state().log_id != before, "from here on it is not the log that was folded in"
    assert "ends before the position that the index contains" in caplog.text
    opened.append([item("new")])
    for reader in (live, LiveRecommender(recommender, opened)):
        assert reader.current().state.items.row("new") is not None


UNREADABLE = [
    (b"{", "item"),
    (b"[1]", "item"),
    (b"\xff\xfe", "item"),
    (b'{"cells": {}}', "item"),
    (b'{"item_id": [1], "cells": {}}', "item"),
    (b'{"item_id": "a"}', "item"),
    (b'{"item_id": "a", "cells": "b"}', "item"),
    (b'{"item_id": "a", "cells": {}}', "wish"),
    (b'{"item_id": "item-001", "time": 1}', "event"),
    (b'{"item_id": "item-001", "user_id": 101, "time": null}', "event"),
    (b'{"item_id": "item-001", "user_id": 101, "time": 9999999999999999999}', "event"),
    (b'{"item_id": {}, "user_id": 101, "time": 1}', "event"),
    (b'{"item_id": true, "user_id": 101, "time": 1}', "event"),
]
ODD_CELLS = [{"title": {"b": [1]}}, {"title": 3, "c": {"d": 1}}, {"": None}]


def test_records_that_cannot_be_read_are_left_out_with_a_line_and_the_others_go_on(client, path, caplog):
    with closing(sqlite3.connect(path)) as log, log:
        log.executemany("INSERT INTO log (received, kind, body) VALUES (3e9, ?, ?)", [(k, b) for b, k in UNREADABLE])
    assert client.get("/recommendations/101").status_code == 200
    assert put(client, "second").status_code == 201
    assert is_known(client, "second")
    assert not [record for record in caplog.records if record.exc_info]
    lines = re.findall(r"records? (\d+)(?: to (\d+))? of the log of live writes: invalid and skipped: ", caplog.text)
    skipped = [position for first, last in lines for position in range(int(first), int(last or first) + 1)]
    assert skipped == [*range(2, 2 + len(UNREADABLE))]


def test_an_item_of_other_columns_is_one_all_the_same_and_one_that_cannot_be_placed_keeps_no_other_away(client, path):
    bodies = [{"item_id": f"odd-{place}", "cells": cells} for place, cells in enumerate(ODD_CELLS)]
    with closing(sqlite3.connect(path)) as log, log:
        rows = [(orjson.dumps(body),) for body in bodies]
        log.executemany("INSERT INTO log (received, kind, body) VALUES (3e9, 'item', ?)", rows)
    assert put(client, "second").status_code == 201
    assert is_known(client, "second")


def test_nothing_but_records_that_cannot_be_read_does_not_hide_what_comes_after_them(path, monkeypatch, caplog):
    monkeypatch.setattr(store, "MOST_AT_ONCE", 2)
    opened = SqliteLog(path)
    with closing(sqlite3.connect(path)) as log, log:
        log.executemany("INSERT INTO log (received, kind, body) VALUES (?, 'item', ?)", [(1.0, b"{")] * 5)
        log.execute("INSERT INTO log (received, kind, body) VALUES ('x', 'item', 'x')")
    opened.append([Write("item", {"item_id": "item", "cells": {}})])
    found = []
    while records := opened.read_after(found[-1] if found else 0):
        readable(records)
        found += [record.position for record in records]
    assert found == [*range(1, 8)]
    assert caplog.text.count("skipped: ") == 4, "one line for neighbours with the same reason"


def test_a_file_that_another_process_keeps_to_itself_is_a_503_and_answers_do_not_wait(client, path, caplog):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = put(client, "second")
        assert refused.status_code == 503
        assert "database is locked" in caplog.text
        assert is_known(client, "first")
        other.execute("ROLLBACK")
    assert put(client, "second").status_code == 201


def test_a_full_disk_is_a_503_and_nothing_of_the_write_is_there_later(client, path, caplog):
    writer = client.application.extensions["towers"].provider.store._file().writer
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages}")
    refused = client.put("/items/second", json={"title": "x" * 20_000})
    assert refused.status_code == 503
    assert "full" in caplog.text
    writer.execute("PRAGMA max_page_count = 1000000")
    assert put(client, "third").status_code == 201
    assert kept(path) == ["first", "third"]


def test_a_clock_that_is_set_back_loses_no_write(client, recommender, monkeypatch, path):
    newest = time.time() - 60  # before the index was made
    monkeypatch.setitem(recommender.snapshot.manifest.__dict__, "newest_event", newest)
    monkeypatch.setattr("serving.live.log.time.time", lambda: 1_000_000.0)
    for service in (client, create_app(recommender, ServingConfig(live=str(path))).test_client()):
        user = 5000 + (service is client)
        assert service.post("/events", json={"events": [{"user_id": user, "item_id": "item-001"}]}).status_code == 200
        assert service.get(f"/recommendations/{user}").json["fallback"] is None, "the event is heard"
    opened = SqliteLog(path)
    received = [record.received for record in opened.read_after(0)]
    assert received == sorted(received)


def test_two_services_of_other_ids_share_a_log_and_each_leaves_out_what_is_not_its_own(recommender, path):
    numbered = make_recommender(make_tables({1: [10, 11], 2: [11, 12]}, [10, 11, 12, 13]))
    text, numbers = (create_app(one, ServingConfig(live=str(path))).test_client() for one in (recommender, numbered))
    assert put(text, "lamp").status_code == 201
    assert numbers.put("/items/14", json={}).status_code == 201
    for client in (text, numbers):
        assert client.get("/readyz").headers["Towers-Live"] == "2"
    assert is_known(text, "lamp")
    assert is_known(numbers, "14")
    assert not is_known(numbers, "lamp")


BAD_AT_START = {
    "another file": lambda path: path.write_text("a,b\n" * 2000),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("make", BAD_AT_START.values(), ids=BAD_AT_START)
def test_what_is_no_log_at_the_start_is_one_clear_line(tmp_path, make):
    make(tmp_path / "live.db")
    with pytest.raises(DataError, match=r"live.db: cannot be used for live writes \(.*\); name another file$"):
        open_log(str(tmp_path / "live.db"))


def test_a_worker_that_is_started_again_begins_no_other_log_where_one_was_lost(client, recommender, path, tmp_path):
    path.unlink()
    again = create_app(recommender, ServingConfig(live=str(path)), shared=tmp_path).test_client()
    assert again.get("/recommendations/101").status_code == 200
    assert put(again, "second").status_code == 503
    assert not path.exists()


def test_a_write_is_read_back_as_it_was_written(path):
    opened = SqliteLog(path)
    opened.append([Write("item", {"item_id": "ä", "cells": {"a": None}})])
    with closing(sqlite3.connect(path)) as log:
        assert [orjson.loads(body) for (body,) in log.execute("SELECT body FROM log")] == [
            {"item_id": "ä", "cells": {"a": None}}
        ]


def test_whatever_bit_of_the_file_is_turned_an_acknowledged_write_is_found_by_the_next_reader(tmp_path):
    """A file of many pages, in its place, as a broken disk does it; half of the bits are where pages are described."""
    whole = tmp_path / "whole.db"
    opened = SqliteLog(whole)
    opened.append(
        [Write("item", {"item_id": f"n{place}", "cells": {"title": "x" * 50}}, f"k{place}") for place in range(400)]
    )
    opened.close()
    del opened
    with closing(sqlite3.connect(whole)) as log:
        log.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = whole.read_bytes()
    generator = random.Random(0)
    places = [generator.randrange(len(content)) for _ in range(150)]
    places += [page + generator.randrange(100) for page in range(0, len(content), 4096) for _ in range(6)]
    num_skipped = num_written = 0
    for number, place in enumerate(places):
        path = tmp_path / f"{number}.db"
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            log = SqliteLog(path)
            log.append([item("later")])
        except (NotReady, DataError):
            continue
        num_written += 1
        found = _all_of(SqliteLog(path))
        assert [record for record in found if record.body.get("item_id") == "later"], place
        assert len(readable(found)) >= 250, "only what shares a page with the damage is lost"
        num_skipped += len(readable(found)) < 401
    assert num_written > len(places) // 2
    assert num_skipped > 5


def _all_of(log):
    found, position = [], 0
    while records := log.read_after(position):
        assert all(before.position < after.position for before, after in pairwise(records))
        assert records[0].position > position
        found += records
        position = records[-1].position
    return found
