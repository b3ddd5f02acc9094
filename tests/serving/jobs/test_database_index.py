"""An index in a vector database, from `towers index` to answers, swap and rollback, with engines that tests start."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack

import numpy as np
import psutil
import pytest

from features.errors import DataError, UnavailableError
from features.files import move_link
from serving.config import ServingConfig, read_settings
from serving.deploy.prepare import ensure_index
from serving.deploy.swap import roll_back, swap_bundle
from serving.errors import NotReady
from serving.jobs import database_index
from serving.jobs.build_index import build_index
from serving.live.follower import LiveRecommender
from serving.live.log import Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest
from serving.search.databases import database_search as search_module
from serving.search.databases.database import Asked
from serving.search.databases.open_database import open_database
from tests.running import free_port
from towers.bundle.bundle import ModelBundle


@pytest.fixture(autouse=True)
def few_items(monkeypatch):
    """120 items are searched in the database, too, not only compared."""
    monkeypatch.setattr(search_module, "FIRST_LEVEL", 20)


@pytest.fixture
def settings(index_address):
    settings = ServingConfig(index=index_address, index_timeout_seconds=30, index_keep=1)
    yield settings
    open_database(settings.database).close()
    open_database.cache_clear()


@pytest.fixture
def runs(two_models, tmp_path):
    """Bundles `one` and `two` with their indexes, and the link `production` to `one`."""
    shutil.copytree(two_models, tmp_path / "runs")
    move_link(tmp_path / "runs" / "production", tmp_path / "runs" / "one")
    return tmp_path / "runs"


def indexed(path, settings, **options):
    return build_index(ModelBundle.open(path), {}, database=settings.database, **options)


def opened(path, settings):
    return Recommender.open(path, database=settings.database)


def requests(recommender):
    """Plain, deep, filtered, and by a filter that leaves few."""
    parse = recommender.state.filters.parse
    wheres = [{}, {"price": {"max": 25}}, {"tags": ["red", "lamp"], "price": {"min": 5}}, {"title": {"not": ["a"]}}]
    return [RecommendRequest(k=10, offset=offset, where=parse(where)) for where in wheres for offset in (0, 7)]


def answers(recommender, request):
    users = [1001, 1002, 1003, 1005]
    return [
        [(item.item_id, item.score) for item in response.items]
        for response in recommender.recommend_many(users, request)
    ]


def test_the_service_answers_from_the_database_as_from_the_bundle(runs, settings, capsys):
    snapshot = indexed(runs / "one", settings, precomputed=0)
    assert "120 items in the vector database, 4 columns to filter by, recall@100 1.000" in capsys.readouterr().out
    there, here = opened(runs / "one", settings), Recommender.open(runs / "one")
    database, asked = there.indexed.search.database, []
    nearest = database.nearest
    database.nearest = lambda *arguments: asked.append(arguments[-1]) or nearest(*arguments)
    for request in requests(there):
        assert answers(there, request) == answers(here, request)
    assert {one.where[0].column for one in asked if one.where} == {"price", "title"}
    assert len(asked) == len(requests(there))
    assert there.similar("p7", 5).items == here.similar("p7", 5).items
    assert database.current() == there.indexed.search.collection == f"{database.alias}_{snapshot.manifest.identity}"
    del database.nearest


def test_a_new_index_is_another_collection_and_the_old_one_goes_at_last(runs, settings):
    indexed(runs / "one", settings, precomputed=0)
    before = opened(runs / "one", settings)
    expected = answers(before, requests(before)[0])
    indexed(runs / "one", settings, precomputed=3)
    after = opened(runs / "one", settings)
    database = after.indexed.search.database
    assert list(database.collections()) == [after.indexed.search.collection] == [database.current()]
    # With index_keep = 1, a worker that has not reloaded finds its collection gone, and answers all the same.
    open_database(settings.database).close()
    assert answers(before, requests(before)[0]) == expected


def test_what_an_interrupted_run_left_goes_before_the_collection_in_service(runs, settings, monkeypatch):
    settings = settings.model_copy(update={"index_keep": 2})
    indexed(runs / "one", settings, precomputed=0)
    in_service = opened(runs / "one", settings).indexed.search.collection

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(database_index, "with_effort", interrupted)
        with pytest.raises(KeyboardInterrupt):
            indexed(runs / "one", settings, precomputed=3)
    indexed(runs / "one", settings, precomputed=4)
    newest = opened(runs / "one", settings).indexed.search
    assert set(newest.database.collections()) == {newest.collection, in_service}
    newest.database.close()


def test_deploy_and_rollback_move_the_alias_to_what_is_served(runs, settings, capsys):
    link = runs / "production"
    for name in ("one", "two"):
        indexed(runs / name, settings, precomputed=0)
    database = open_database(settings.database)
    one, two = (
        f"{database.alias}_{opened(runs / name, settings).snapshot.manifest.identity}" for name in ("one", "two")
    )
    assert set(database.collections()) == {one, two}, "of each model one is kept"
    database.close()
    swap_bundle(runs / "one", link, settings)
    assert database.current() == one
    swap_bundle(runs / "two", link, settings)
    assert database.current() == two
    roll_back(link, settings)
    assert database.current() == one
    assert "note:" not in capsys.readouterr().err


def test_a_collection_that_does_not_fit_is_refused_before_it_is_served(runs, settings):
    indexed(runs / "one", settings, precomputed=0)
    link, database = runs / "production", open_database(settings.database)
    with pytest.raises(DataError, match="which the bundle's index needs; write it with `towers index`"):
        ensure_index(runs / "two", settings)
    with pytest.raises(DataError, match="which the bundle's index needs"):
        swap_bundle(runs / "two", link, settings)
    assert link.resolve() == runs / "one"
    collection = database.current()
    database.reseal(collection, database.seal(collection).model_copy(update={"weights_digest": "0" * 64}))
    with pytest.raises(DataError, match="does not fit this bundle: its weights_digest is 000000000000, that of"):
        ensure_index(runs / "one", settings)
    with pytest.raises(DataError, match="does not fit this bundle"):
        opened(runs / "one", settings)


def test_live_writes_arrive_in_the_collection_once(runs, settings, tmp_path):
    indexed(runs / "one", settings, precomputed=0)
    base, store = opened(runs / "one", settings), SqliteLog(tmp_path / "live.db")
    workers = [LiveRecommender(base, store), LiveRecommender(opened(runs / "one", settings), store)]
    search = base.indexed.search
    whole = Asked(base.indexed.vectors[:1], 200, 200)

    def keys():
        (found,) = search.database.nearest(search.collection, search.check().columns, whole)
        return sorted(found.tolist())

    def wait_for(expected):
        deadline = time.monotonic() + 60
        while keys() != expected:
            assert time.monotonic() < deadline, keys()
            time.sleep(0.02)

    def item(name, title):
        return Write("item", {"item_id": name, "cells": {"title": title, "price": 3.5, "tags": "red|new"}})

    store.append([item("new-1", "red lamp"), item("p7", "blue lamp"), Write("deletion", {"item_id": "p9"})])
    for worker in workers:
        assert worker.current().state.items.row("new-1") is not None
    gone = [base.indexed.items.row(name) for name in ("p7", "p9")]
    wait_for(sorted({*range(120)} - {*gone} | {121, 122}))
    store.append([Write("deletion", {"item_id": "new-1"}), item("p9", "steel bowl")])
    parse = base.state.filters.parse
    for worker in workers:
        found = worker.current().popular(RecommendRequest(k=130, where=parse({"tags": "new"})))
        assert len(found.rows) == 2
        everything = worker.current().recommend(1001, RecommendRequest(k=200)).items
        assert "new-1" not in {one.item_id for one in everything}
        assert "p9" in {one.item_id for one in worker.current().similar("p7", 200).items}
    wait_for(sorted({*range(120)} - {*gone} | {122, 125}))
    # Another log: the collection keeps what it has.
    other = SqliteLog(tmp_path / "other.db")
    other.append([Write("deletion", {"item_id": "p1"})])
    refused = LiveRecommender(base, other)
    refused.current()
    refused._mirror._thread.shutdown()
    assert refused._mirror._is_refused
    assert keys() == sorted({*range(120)} - {*gone} | {122, 125})
    store.close()
    other.close()


def test_without_its_database_a_service_answers_or_refuses_as_the_operator_says(runs, caplog):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    pytest.importorskip("pgvector", reason="pgvector is not installed")
    address = f"postgresql://towers:never-shown@127.0.0.1:{free_port()}/postgres?table=items"
    local, strict = (ServingConfig(index=address, index_fallback=name) for name in ("local", "none"))
    ensure_index(runs / "one", local)
    away, here = opened(runs / "one", local), Recommender.open(runs / "one")
    assert answers(away, requests(away)[2]) == answers(here, requests(here)[2])
    assert "the bundle's own index is searched, until the vector database can be used" in caplog.text
    for act in (lambda: opened(runs / "one", strict), lambda: ensure_index(runs / "one", strict)):
        with pytest.raises(UnavailableError, match="the vector database cannot be used") as refused:
            act()
        assert "\n" not in str(refused.value)
        assert "never-shown" not in str(refused.value) + caplog.text
    manifest = (runs / "one" / "index" / "manifest.json").read_bytes()
    with pytest.raises(UnavailableError, match="the vector database cannot be used"):
        indexed(runs / "one", local, precomputed=0)
    assert (runs / "one" / "index" / "manifest.json").read_bytes() == manifest
    open_database.cache_clear()


def test_a_database_that_stands_still_is_not_waited_for(runs, pgvector):
    import psycopg

    patient = ServingConfig(index=f"{pgvector}?table=still", index_timeout_seconds=30)
    indexed(runs / "one", patient, precomputed=0)
    hasty = ServingConfig(index=f"{pgvector}?table=still", index_timeout_seconds=0.3)
    strict = ServingConfig(index=f"{pgvector}?table=still", index_timeout_seconds=0.3, index_fallback="none")
    recommenders = [opened(runs / "one", one) for one in (hasty, strict)]
    request = requests(recommenders[0])[0]
    expected = answers(recommenders[0], request)
    collection = recommenders[0].indexed.search.collection
    with psycopg.connect(pgvector) as held:
        held.execute(f"LOCK TABLE {collection} IN ACCESS EXCLUSIVE MODE")
        assert answers(recommenders[0], request) == expected
        with pytest.raises(NotReady, match="the vector database does not answer"):
            answers(recommenders[1], request)
    for one in (patient, hasty, strict):
        open_database(one.database).close()
    open_database.cache_clear()


def test_a_run_ends_when_its_database_hangs_but_not_while_it_works(runs, pgvector, monkeypatch):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    from serving.search.databases import pgvector as pgvector_module

    monkeypatch.setattr(pgvector_module, "_SECONDS_OF_SILENCE", 0.2)
    monkeypatch.setattr(pgvector_module, "_SECONDS_TO_PROVE_ALIVE", 2)
    settings, hung, make_indexes = ServingConfig(index=f"{pgvector}?table=hung"), [], pgvector_module._make_indexes

    def slow(connection, *arguments):
        connection.execute("SELECT pg_sleep(0.7)")
        make_indexes(connection, *arguments)

    def hanging(connection, *arguments):
        backend = psutil.Process(connection.info.backend_pid)
        hung.extend([backend, backend.parent()])
        for process in hung:
            process.suspend()
        make_indexes(connection, *arguments)

    monkeypatch.setattr(pgvector_module, "_make_indexes", slow)
    before = indexed(runs / "one", settings, precomputed=0).manifest.identity
    monkeypatch.setattr(pgvector_module, "_make_indexes", hanging)
    try:
        with pytest.raises(UnavailableError, match="and takes no other connections"):
            indexed(runs / "one", settings, precomputed=3)
    finally:
        for process in hung:
            process.resume()
    assert opened(runs / "one", settings).snapshot.manifest.identity == before
    database = open_database(settings.database)
    assert list(database.collections()) == [database.current()] == [f"hung_{before}"]
    database.close()
    open_database.cache_clear()


def test_a_database_that_was_restarted_is_searched_at_once(runs, pgvector):
    """However many connections it closed: a worker has as many as it answered requests at once."""
    import psycopg

    settings = ServingConfig(index=f"{pgvector}?table=restarted", index_timeout_seconds=30, index_fallback="none")
    indexed(runs / "one", settings, precomputed=0)
    recommender = opened(runs / "one", settings)
    request, database = requests(recommender)[0], recommender.indexed.search.database
    expected = answers(recommender, request)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(database._reading())
    with psycopg.connect(pgvector, autocommit=True) as connection:
        others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        connection.execute(f"SELECT pg_terminate_backend(pid, 500) {others}")
    assert answers(recommender, request) == expected
    database.close()
    open_database.cache_clear()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mysql://user:never-shown@host/shop", r"found mysql://\.\.\."),
        ("runs/index:never-shown", "found no address"),
        ("postgresql://user:never-shown@host/shop", r"expected postgresql://USER@HOST/DATABASE\?table=NAME"),
        ("postgresql://user:never-shown@host/shop?table=Items", "small letters, digits and _"),
        (
            "postgresql://user:never@shown@host/shop?table=items",
            "in a password write @ as %40",
        ),
        ("qdrant://key:never-shown@host?collection=items", "a key belongs into index_key"),
        ("qdrant://host:never-shown?collection=items", "a key belongs into index_key"),
        ("qdrant:///never-shown", r"expected qdrant://HOST:PORT\?collection=NAME"),
    ],
)
def test_an_address_that_cannot_be_meant_is_one_line_without_its_password(address, message):
    for module in ("pgvector", "psycopg", "qdrant_client", "qdrant_edge"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    with pytest.raises(DataError, match=message) as refused:
        open_database(ServingConfig(index=address).database)
    assert "shown" not in str(refused.value)
    assert "never" not in repr(ServingConfig(index=address))


def test_the_engine_in_the_process_has_one_worker():
    given = {"TOWERS_INDEX": "qdrant:///vectors?collection=items", "TOWERS_WORKERS": "2"}
    with pytest.raises(DataError, match="workers = 2, but one process at a time can open the collections of"):
        read_settings(environment=given)


def test_vectors_that_pgvector_cannot_index_are_refused_before_anything_is_written(pgvector):
    from serving.search.databases.database import Points, Seal

    database = open_database(ServingConfig(index=f"{pgvector}?table=wide").database)
    seal = Seal(
        model="m", weights_digest="w", catalog_digest="c", index="i", num_items=1, width=2001, created="2026-01-01"
    )
    with pytest.raises(DataError, match="at most 2,000 dimensions, found 2,001"):
        database.write("wide_i", seal, Points(np.zeros(1, np.int64), np.ones((1, 2001), np.float32)), print)
    assert database.collections() == {}
    database.close()


def test_a_table_of_somebody_else_is_not_replaced(pgvector):
    import psycopg

    with psycopg.connect(pgvector, autocommit=True) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    database = open_database(ServingConfig(index=f"{pgvector}?table=customers").database)
    with pytest.raises(DataError, match="a table or view 'customers' that `towers index` did not make"):
        database.point_alias("customers_one")
    database.close()
