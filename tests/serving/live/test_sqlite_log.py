"""The contract of a log, the same for each that there is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from features.errors import DataError
from serving.errors import NotReady
from serving.live.log import Write
from serving.live.open_log import open_log
from serving.live.sqlite_log import SqliteLog
from tests import postgres as postgres_server
from tests import running


@pytest.fixture(scope="module")
def postgres():
    """The address of a PostgreSQL server; the test is skipped where the machine has none."""
    programs = [running.postgres_program(name) for name in ("initdb", "postgres")]
    if not all(programs):
        pytest.skip("no PostgreSQL on this machine")
    with postgres_server.server(*(str(Path(name).resolve()) for name in programs)) as (address, _):
        yield address


@pytest.fixture(params=["sqlite", "postgres"])
def address(request, tmp_path):
    """A log that is empty."""
    if request.param == "sqlite":
        return str(tmp_path / "live.db")
    import psycopg

    server = request.getfixturevalue("postgres")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS towers_log, towers_about")
    return server


@pytest.fixture
def opened(address):
    """Opens the same log once more."""
    stores = []

    def open_again():
        stores.append(open_log(address))
        return stores[-1]

    yield open_again
    for store in stores:
        store.close()


def event(number, key=None):
    return Write("event", {"number": number, "text": "ä\0"}, key)


def numbers(records):
    return [record.body["number"] for record in records]


def test_what_was_appended_comes_back_in_order_with_its_types(opened):
    store = opened()
    first = store.append([event(1), event("2")])
    second = store.append([Write("deletion", {"number": 3})])
    records = store.read_after(0)
    assert numbers(records) == [1, "2", 3]
    assert [record.kind for record in records] == ["event", "event", "deletion"]
    assert records[0].body["text"] == "ä\0"
    assert records[1].position == first.position < records[2].position == second.position
    assert numbers(store.read_after(first.position)) == [3]
    assert store.read_after(second.position) == []
    assert abs(records[0].received - records[2].received) < 60


def test_a_key_counts_once(opened):
    store = opened()
    assert store.append([event(1, "a"), event(2, "a"), event(3)]).num_repeated == 1
    assert store.append([event(4, "a")]).num_repeated == 1
    assert opened().append([event(5, "a"), event(6, "b")]).num_repeated == 1
    assert numbers(store.read_after(0)) == [1, 3, 6]


def test_the_version_changes_with_every_write_of_anyone_and_not_without(opened):
    store, other = opened(), opened()
    assert store.state() == other.state()
    seen = store.change_token()
    assert store.change_token() == seen
    for writer in (store, other, store):
        writer.append([event(1)])
        assert store.change_token() != seen
        seen = store.change_token()
        assert store.change_token() == seen


def test_many_writers_lose_nothing_and_readers_see_a_prefix_at_any_time(opened):
    stores = [opened() for _ in range(3)]
    acknowledged, seen, done = [], [], threading.Event()

    def write(store, name):
        names = [f"{name}-{number}" for number in range(40)]
        acknowledged.extend((store.append([event(name)]).position, name) for name in names)

    def read(store):
        position = 0
        while not done.is_set() or store.read_after(position):
            for record in store.read_after(position):
                seen.append(record.body["number"])
                position = record.position

    writers = [threading.Thread(target=write, args=(store, place)) for place, store in enumerate(stores)]
    reader = threading.Thread(target=read, args=(opened(),))
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen == numbers(stores[0].read_after(0))
    assert sorted(seen) == sorted(number for _, number in acknowledged)


def test_more_than_is_given_at_once_is_read_in_several_goes(opened, monkeypatch):
    for name in ("sqlite_log", "postgres_log"):
        monkeypatch.setattr(f"serving.live.{name}.MOST_AT_ONCE", 3)
    store = opened()
    store.append([event(number) for number in range(8)])
    assert numbers(store.read_after(0)) == [0, 1, 2]
    assert numbers(store.read_after(store.read_after(0)[-1].position)) == [3, 4, 5]


WRITER = """
import sys
from serving.live.log import Write
from serving.live.open_log import open_log
store = open_log(sys.argv[1])
for number in range(10**9):
    store.append([Write("event", {"number": number})])
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(opened, address):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, address],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    acknowledged = [int(writer.stdout.readline()) for _ in range(100)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    writer.stdout.close()
    kept = numbers(opened().read_after(0))
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) - len(acknowledged) <= 1, "one more may have been on the disk before anybody heard of it"


def test_sqlite_keeps_its_log_on_the_disk_before_it_says_so(tmp_path):
    store = SqliteLog(tmp_path / "live.db")
    writer = store._file().writer
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,), "2 is FULL"
    store.close()


def test_a_file_that_is_something_else_is_one_clear_line(tmp_path):
    (tmp_path / "products.csv").write_text("a,b\n1,2\n" * 500)
    with pytest.raises(DataError, match=r"products.csv: cannot be used for live writes \(.*\); name another file"):
        open_log(str(tmp_path / "products.csv"))


def test_an_address_of_another_kind_is_one_clear_line():
    with pytest.raises(DataError, match=r"live: expected a file, sqlite:///FILE or postgresql://.*, found mysql://"):
        open_log("mysql://x")


@pytest.mark.parametrize("spelling", ["{}", "sqlite:///{}"])
def test_a_file_can_be_spelt_in_several_ways(tmp_path, spelling, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_log(spelling.format("live.db")).close()
    open_log(spelling.format(tmp_path / "sub" / "live.db")).close()
    assert (tmp_path / "live.db").exists()
    assert (tmp_path / "sub" / "live.db").exists()


def test_a_log_that_is_closed_or_broken_says_so_instead_of_losing_a_write(address):
    store = open_log(address)
    store.close()
    for asked in (lambda: store.append([event(1)]), lambda: store.read_after(0), store.change_token):
        with pytest.raises(NotReady, match="the log of live writes cannot be"):
            asked()


def test_a_database_that_stands_still_is_not_waited_for(postgres, monkeypatch):
    import psycopg

    for name in ("_SECONDS_TO_READ", "_SECONDS_TO_WRITE"):
        monkeypatch.setattr(f"serving.live.postgres_log.{name}", 0.3)
    store = open_log(postgres)
    held = psycopg.connect(postgres, options="-c lock_timeout=20s")
    held.execute("LOCK TABLE towers_log IN ACCESS EXCLUSIVE MODE")
    # Not even the server's own time limit: what stands still does not look at its clock.
    began = time.monotonic()
    for ask in (store.change_token, lambda: store.append([event(1, "still")])):
        connection = store._reader if ask == store.change_token else store._writer
        connection.do(lambda one: one.execute("SET statement_timeout = 0"))
        with pytest.raises(NotReady, match=r"did not respond within 0\.3 s"):
            ask()
    assert time.monotonic() - began < 2
    held.close()
    store.change_token()
    assert store.append([event(1, "goes on")]).position > 0
    store.close()


def test_while_a_write_waits_for_the_database_others_are_refused_at_once(postgres, monkeypatch):
    import psycopg

    monkeypatch.setattr("serving.live.postgres_log._SECONDS_TO_WRITE", 1.0)
    store = open_log(postgres)

    def write():
        with suppress(NotReady):
            store.append([event(1)])

    held = psycopg.connect(postgres, options="-c lock_timeout=20s")
    held.execute("LOCK TABLE towers_log IN EXCLUSIVE MODE")
    write()
    waiting = threading.Thread(target=write)
    waiting.start()
    while not store._writer._lock.locked():
        time.sleep(0.001)
    for _ in range(5):
        with pytest.raises(NotReady, match="the database does not respond"):
            store.append([event(1)])
    assert waiting.is_alive()
    waiting.join()
    held.close()
    assert store.append([event(1)]).position > 0
    store.close()


def test_after_the_database_closed_a_connection_the_next_request_opens_another(postgres):
    import psycopg

    store = open_log(postgres)
    store.append([event(1, "before")])
    store.change_token()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    for ask in (store.change_token, lambda: store.append([event(2, "lost")])):
        with pytest.raises(NotReady, match="the log of live writes cannot be"):
            ask()
    assert store.append([event(2, "after")]).num_repeated == 0
    assert numbers(store.read_after(0))[-1] == 2
    store.close()


def test_a_database_that_does_not_answer_is_one_clear_line():
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(DataError, match=r"live: the database cannot be used .*; check that it runs, and the address"):
        open_log(f"postgresql://towers@127.0.0.1:{running.free_port()}/postgres")
