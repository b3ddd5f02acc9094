"""The contract of a searcher, held by each vector database as by FAISS: against real engines, started by the tests."""

from __future__ import annotations

import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from features.errors import DataError, UnavailableError
from serving.errors import NotReady
from serving.search.conditions import OPERATORS, Condition
from serving.search.databases import database_search as search_module
from serving.search.databases import qdrant_points
from serving.search.databases.columns import kinds_of, storable
from serving.search.databases.database import Asked, LiveChange, Points, Seal, check_complete
from serving.search.databases.database_search import DatabaseSearch
from serving.search.databases.open_database import open_database
from serving.search.databases.settings import DatabaseSettings
from serving.search.faiss_index import ItemIndex
from serving.search.results import AllowedItems
from tests.serving.vectors import by_hand, clustered_vectors, ragged, some_allowed

ITEMS, USERS = 4000, 40
VECTORS, QUERIES = clustered_vectors(ITEMS), clustered_vectors(USERS, seed=1)
VECTORS[np.random.default_rng(0).integers(ITEMS, size=40)] = VECTORS[0]  # copies, whose scores are equal
VECTORS[5] = 0  # of which the model knows nothing
PLACES = np.random.default_rng(3).permutation(ITEMS)
FLOOR = 0.98
SHARES = [0, 0.0005, 0.001, 0.01, 0.1, 0.29, 0.4, 0.9, 0.9995, 1]


def cells_of(num_items=ITEMS):
    """Columns of each kind, some cells of which are empty."""
    rng, there = np.random.default_rng(1), np.random.default_rng(2).random(num_items) > 0.1
    words = np.array(["red", "green", "blue", "Ärger 'quoted'", "null"])
    return {
        "place": pa.array(PLACES[:num_items], pa.int64()),
        "wide": pa.array((2**60 + PLACES[:num_items] % 7).tolist(), pa.int64(), mask=~there),
        "weight": pa.array(rng.random(num_items).astype(np.float32).round(2), mask=~there),
        "price": pa.array(rng.lognormal(3, 1, num_items).round(2), mask=~there),
        "colour": pa.array(np.where(there, rng.choice(words, num_items), None).tolist(), pa.string()),
        "is_new": pa.array(np.where(there, rng.random(num_items) < 0.3, None).tolist(), pa.bool_()),
        "tags": pa.array([rng.choice(words, rng.integers(3)).tolist() if one else None for one in there]),
        "größe 1.5": pa.array(rng.integers(5, size=num_items), pa.int64()),
        "codes": pa.array([rng.integers(9, size=2).tolist() for _ in there], pa.list_(pa.int64())),
    }


CELLS = cells_of()
EXACT = ItemIndex.build(VECTORS)


def seal(**changes):
    content = {
        "model": "model",
        "weights_digest": "weights",
        "catalog_digest": "catalogue",
        "index": "one",
        "num_items": ITEMS,
        "width": VECTORS.shape[1],
        "columns": dict(kinds_of(CELLS)),
        "effort": 256,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Seal(**content | changes)


def write(database, sealed=None):
    """Write all items into a collection and return its name."""
    sealed = sealed or seal()
    collection = f"{database.alias}_{sealed.index}"
    counted = []
    database.write(collection, sealed, Points(np.arange(ITEMS), VECTORS, CELLS), counted.append)
    assert sum(counted) == ITEMS
    return collection


def searcher(database, settings=None, **changes):
    return DatabaseSearch(database, seal(**changes), EXACT, settings or DatabaseSettings("", timeout_seconds=30))


@pytest.fixture(scope="module", params=["pgvector", "qdrant"])
def address(request, tmp_path_factory):
    if request.param == "pgvector":
        return f"{request.getfixturevalue('pgvector')}?table=contract"
    pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")
    return f"qdrant:///{tmp_path_factory.mktemp('qdrant')}?collection=contract"


@pytest.fixture(scope="module")
def database(address):
    """A database with one collection of all items."""
    opened = open_database(DatabaseSettings(address, timeout_seconds=30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdrant_points, "INDEXED_KILOBYTES", 10)  # so few items would have no graph
        write(opened)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def index(database):
    return searcher(database)


def below(share):
    """A filter on a column, and the items that it lets through."""
    most = round(share * ITEMS) - 1
    return AllowedItems(most >= PLACES, (Condition("place", "max", (most,)),))


@pytest.mark.parametrize("k", [0, 1, 100, 1999, ITEMS, 5000])
def test_returns_as_many_as_there_are_each_once_and_in_order(index, k):
    for asked in (QUERIES[:3], QUERIES[:1]):
        hits = index.search(asked, k)
        for user in range(len(asked)):
            rows, scores = hits.of(user)
            assert len(set(rows.tolist())) == len(rows) == min(k, ITEMS)
            assert (np.diff(scores) <= 0).all()
            true = VECTORS[rows] @ asked[user]
            np.testing.assert_allclose(scores[:100], true[:100], atol=1e-6)
            np.testing.assert_allclose(scores, np.minimum.accumulate(true), atol=1e-6)
    assert hits.share_of(EXACT.scan(asked, k)) >= FLOOR


@pytest.mark.parametrize("k", [10, 100])
def test_finds_nearly_all_of_the_best(index, k):
    assert index.search(QUERIES, k).share_of(EXACT.scan(QUERIES, k)) >= FLOOR


@pytest.mark.parametrize("num_excluded", [5, 300, 3500, 3995, ITEMS])
def test_leaves_out_what_is_excluded_and_still_returns_all_it_can(index, num_excluded):
    best_first = np.argsort(-(QUERIES[:3] @ VECTORS.T), axis=1)
    excluded = ragged(best_first[:, :num_excluded])
    hits, true = index.search(QUERIES[:3], 10, excluded), EXACT.scan(QUERIES[:3], 10, excluded)
    np.testing.assert_array_equal(np.diff(hits.offsets), min(10, ITEMS - num_excluded))
    for user in range(3):
        assert not np.isin(hits.of(user)[0], best_first[user, :num_excluded]).any()
    assert hits.share_of(true) >= FLOOR


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("compared", [0, 20_000], ids=["by the graph", "all compared"])
def test_finds_as_many_allowed_items_as_there_are_at_every_selectivity(index, share, compared, monkeypatch):
    monkeypatch.setattr(search_module, "_COMPARED_ITEMS", compared)
    allowed = below(share)
    for asked in [QUERIES, *(QUERIES[user : user + 1] for user in range(5))]:
        hits, true = index.search(asked, 20, allowed=allowed), EXACT.scan(asked, 20, allowed=allowed)
        np.testing.assert_array_equal(np.diff(hits.offsets), min(20, len(allowed)))
        assert allowed.mask[hits.rows].all()
        assert hits.share_of(true) >= (FLOOR if len(asked) > 1 else 0.7)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.7, 0.999])
def test_a_mask_without_conditions_is_kept_to(index, share):
    allowed = some_allowed(ITEMS, share)
    hits, true = index.search(QUERIES, 20, allowed=allowed), EXACT.scan(QUERIES, 20, allowed=allowed)
    np.testing.assert_array_equal(hits.offsets, true.offsets)
    assert allowed.mask[hits.rows].all()
    assert hits.share_of(true) >= FLOOR


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_filter_that_lets_through_only_what_a_user_likes_or_dislikes_is_no_harder(index, nearest, share):
    scores = VECTORS @ QUERIES[0]
    edge = np.quantile(scores, 1 - share if nearest else share)
    allowed = AllowedItems(scores > edge if nearest else scores < edge)
    found, true = index.search(QUERIES[:1], 50, allowed=allowed), EXACT.scan(QUERIES[:1], 50, allowed=allowed)
    assert len(found.rows) == 50
    assert found.share_of(true) >= 0.96


@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
def test_filters_and_exclusions_work_together(index, share):
    allowed = below(share)
    best_first = np.argsort(-(QUERIES[:4] @ VECTORS.T), axis=1)
    # What would come first among the allowed, all of the allowed but three, half of everything, and nothing.
    firsts = [[row for row in best_first[user] if allowed.mask[row]] for user in range(4)]
    excluded = [firsts[0][:40], firsts[1][3:], best_first[2][: ITEMS // 2], []]
    for users in [[0, 1, 2, 3], [0], [1], [2], [3]]:
        some = ragged([excluded[user] for user in users])
        hits, true = (one(QUERIES[users], 10, some, allowed) for one in (index.search, EXACT.scan))
        np.testing.assert_array_equal(hits.offsets, true.offsets)
        for place, user in enumerate(users):
            rows = hits.of(place)[0]
            assert allowed.mask[rows].all()
            assert not np.isin(rows, excluded[user]).any()
        assert hits.share_of(true) >= 0.9


@pytest.mark.parametrize("where", ["all", "half", "a tenth", "a mask"])
def test_every_answer_is_a_cut_of_one_order(index, where, monkeypatch):
    """However many are asked for, whatever little is excluded, whatever is closed, and whoever else asks."""
    monkeypatch.setattr(search_module, "_COMPARED_ITEMS", 0)
    allowed = {"all": None, "half": below(0.5), "a tenth": below(0.1), "a mask": some_allowed(ITEMS, 0.5)}[where]
    orders = [index.search(QUERIES[user : user + 1], ITEMS, allowed=allowed).of(0) for user in range(4)]
    rng = np.random.default_rng(5)
    for size in (1, 3, 24):
        users = rng.integers(4, size=size)
        k = int(rng.choice([1, 10, 100, 128, 200, 700]))
        excluded = [
            np.append(orders[user][0][: rng.choice([0, 5, 50])], rng.integers(ITEMS, size=10)) for user in users
        ]
        closed = rng.random(ITEMS) < 0.5 if size == 3 else None
        hits = index.search(QUERIES[users], k, ragged(excluded), allowed, closed)
        for place, user in enumerate(users.tolist()):
            rows, scores = orders[user]
            kept = ~np.isin(rows, excluded[place]) & (True if closed is None else ~closed[rows])
            np.testing.assert_array_equal(hits.of(place)[0], rows[kept][:k])
            np.testing.assert_array_equal(hits.of(place)[1], scores[kept][:k])


CONDITIONS = [
    ("place", (0, 7, 3999, 10_000)),
    ("place", (6.5,)),
    ("wide", (2**60 + 3,)),
    ("weight", (0.1, 0.25)),
    ("price", (20.5, 7)),
    ("colour", ("red", "Ärger 'quoted'", "null", "none of them")),
    ("is_new", (True,)),
    ("tags", ("red", "green")),
    ("größe 1.5", (2,)),
    ("codes", (3, 5)),
]


@pytest.mark.parametrize(("column", "values"), CONDITIONS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_database_lets_through_what_the_mask_does(database, column, values, operator):
    is_ordered = column in ("place", "wide", "weight", "price", "größe 1.5")
    if operator in ("min", "max"):
        if not is_ordered:
            pytest.skip("the column has no order")
        values = values[-1:]
    from serving.search.databases.columns import pushed_down

    where = pushed_down((Condition(column, operator, values),), kinds_of(CELLS))
    expected = [meets(cell, operator, values, column) for cell in CELLS[column].to_pylist()]
    if not where:  # 6.5 is no value of a column of whole numbers
        assert expected.count(True) == (0 if operator == "any" else ITEMS)
        return
    asked = Asked(QUERIES[:1], ITEMS, 100, is_exact=True, where=where)
    (found,) = database.nearest(f"{database.alias}_one", kinds_of(CELLS), asked)
    if column == "wide" and "qdrant" in type(database).__module__ and operator in ("min", "max"):
        assert set(np.flatnonzero(expected)) <= set(found.tolist()), "doubles let through too many, never too few"
        return
    assert np.sort(found).tolist() == np.flatnonzero(expected).tolist()


def meets(cell, operator, values, column):
    """What the table of conditions says, cell by cell."""
    if column == "weight":
        values = [float(np.float32(one)) for one in values]
    if operator in ("min", "max"):
        return cell is not None and (cell >= values[0] if operator == "min" else cell <= values[0])
    has_any = cell is not None and bool(set(cell if isinstance(cell, list) else [cell]) & set(values))
    return has_any if operator == "any" else not has_any


def test_copies_of_an_item_come_in_the_order_of_their_rows(index):
    copies = np.flatnonzero((VECTORS[0] == VECTORS).all(axis=1))
    rows, scores = index.search(VECTORS[:1], 20).of(0)
    assert rows.tolist() == by_hand(VECTORS, VECTORS[0], 20)
    assert np.isin(rows, copies).all()
    assert len(set(scores.tolist())) == 1


class Tampered:
    """A database that answers otherwise."""

    def __init__(self, database, change):
        self._database, self._change = database, change

    def __getattr__(self, name):
        return getattr(self._database, name)

    def nearest(self, *arguments):
        return self._change(self._database.nearest(*arguments))


def to_each(change):
    """Return what changes the answer for each user."""
    return lambda found: [change(keys) for keys in found]


def test_a_search_that_was_cut_off_is_made_up_by_comparing_all(database):
    """As Qdrant's engine once returned one of a hundred."""
    index = searcher(Tampered(database, to_each(lambda keys: keys[-1:])))
    for allowed in (None, below(0.4)):
        hits, true = index.search(QUERIES, 10, allowed=allowed), EXACT.scan(QUERIES, 10, allowed=allowed)
        np.testing.assert_array_equal(hits.rows, true.rows)


@pytest.mark.parametrize(
    "change",
    [
        to_each(lambda keys: np.append(keys[1:], keys[1])),
        to_each(lambda keys: keys - ITEMS),
        to_each(lambda keys: np.append(keys, keys[0] + ITEMS)),
        lambda found: found[1:],
        lambda found: [],
    ],
    ids=["twice", "no rows", "too many", "a user missing", "nothing"],
)
def test_an_answer_that_cannot_be_right_counts_as_none(database, change, caplog):
    index = searcher(Tampered(database, change))
    np.testing.assert_array_equal(index.search(QUERIES, 10).rows, EXACT.scan(QUERIES, 10).rows)
    assert "the bundle's own index is searched, until the vector database can be used: it returned" in caplog.text
    strict = searcher(Tampered(database, change), DatabaseSettings("", fallback="none"))
    with pytest.raises(NotReady, match="the vector database does not answer"):
        strict.search(QUERIES, 10)


def test_what_belongs_to_another_bundle_is_refused_in_one_line(database):
    assert searcher(database).check().recall_at_100 == 0
    wrong = (
        "index: the collection .* does not fit this bundle: its weights_digest is weights, that of the bundle's index"
    )
    with pytest.raises(DataError, match=wrong) as refused:
        searcher(database, weights_digest="others").check()
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=r"has no collection contract_absent, .*; write it with `towers index`"):
        searcher(database, index="absent").check()


def test_the_alias_moves_forth_and_back(database):
    first_seal, second_seal = (
        seal(index=f"alias{number}", created=f"2026-01-0{number + 1}T00:00:00+00:00") for number in (1, 2)
    )
    first, second = write(database, first_seal), write(database, second_seal)
    assert list(database.collections())[:2] == [second, first]
    for collection in (first, second, first):
        database.point_alias(collection)
        assert database.current() == collection
    database.drop(second)
    assert second not in database.collections()
    assert database.seal(second) is None
    assert database.seal(first) == first_seal
    database.reseal(first, first_seal.model_copy(update={"effort": 512}))
    assert database.seal(first).effort == 512


def test_a_collection_that_lost_items_is_refused(database):
    sealed = seal(index="fewer")
    collection = f"{database.alias}_fewer"
    few = Points(np.arange(200), VECTORS[:200], {name: column[:200] for name, column in CELLS.items()})
    database.write(collection, sealed, few, lambda written: None)
    check_complete(database, collection, seal(index="fewer", num_items=200))
    with pytest.raises(DataError, match=r"collection \w+_fewer has 200 items, expected 4,000: .*; write it again"):
        check_complete(database, collection, sealed)
    database.apply(collection, LiveChange("log", 0, 1, None, np.array([3])))
    check_complete(database, collection, sealed)
    database.drop(collection)


def test_live_writes_are_applied_once_and_in_place(database):
    collection = write(database, seal(index="live"))
    new = Points(np.array([ITEMS + 7]), QUERIES[:1], {name: column[:1] for name, column in CELLS.items()})
    best = EXACT.scan(QUERIES[:1], 5).rows
    asked = Asked(QUERIES[:1], 5, 256)

    def found():
        return database.nearest(collection, kinds_of(CELLS), asked)[0].tolist()

    assert database.apply(collection, LiveChange("log", 0, 7, new, best[:2]))
    assert found() == [ITEMS + 7, *best[2:], *EXACT.scan(QUERIES[:1], 6).rows[5:]]
    assert database.apply(collection, LiveChange("log", 0, 7, new, best[:2]))
    assert database.apply(collection, LiveChange("log", 7, 9, None, np.array([ITEMS + 7])))
    assert ITEMS + 7 not in found()
    # Another worker that is behind: what it writes is in the collection already.
    assert database.apply(collection, LiveChange("log", 0, 7, new, best[:2]))
    assert ITEMS + 7 not in found()
    assert not database.apply(collection, LiveChange("another log", 0, 1, None, best[2:3]))
    assert best[2] in found()
    # A searcher of the index passes over live items, which it searches in memory, and over deleted ones.
    hits = searcher(database, index="live").search(QUERIES, 20, ragged([best[:2]] * USERS))
    np.testing.assert_array_equal(np.diff(hits.offsets), 20)
    assert not np.isin(hits.rows, best[:2]).any()


def test_threads_that_search_at_once_get_their_own_answers(index):
    expected = index.search(QUERIES, 10)
    answers = {}

    def ask(user):
        answers[user] = index.search(QUERIES[user : user + 1], 10).rows.tolist()

    threads = [threading.Thread(target=ask, args=(user,)) for user in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[user] == expected.of(user)[0].tolist() for user in range(16))


class Away:
    """A database that can be switched off."""

    def __init__(self, database):
        self.database, self.is_away, self.num_asked = database, False, 0

    def __getattr__(self, name):
        return getattr(self.database, name)

    def nearest(self, *arguments):
        self.num_asked += 1
        if self.is_away:
            raise UnavailableError("connection refused")
        return self.database.nearest(*arguments)


def test_while_it_is_away_the_bundles_index_answers_and_few_requests_try(database, monkeypatch, caplog):
    away, true = Away(database), EXACT.scan(QUERIES[:1], 10).rows
    index = searcher(away, DatabaseSettings("", retries=2))
    away.is_away = True
    for _ in range(20):
        np.testing.assert_array_equal(index.search(QUERIES[:1], 10).rows, true)
    assert away.num_asked == 3  # the first request tries three times, the others not at all
    away.is_away = False
    index.search(QUERIES[:1], 10)
    assert away.num_asked == 3
    monkeypatch.setattr(search_module.time, "monotonic", lambda: later)
    later = time.perf_counter() + 1e6
    index.search(QUERIES[:1], 10)
    assert away.num_asked == 4
    assert [line for line in caplog.messages if "answers again" in line]


def test_columns_that_a_database_cannot_hold_exactly_stay_out_of_it():
    cells = {
        "fine": pa.array(["a", None]),
        "nul": pa.array(["a\0b", None]),
        "infinite": pa.array([np.inf, 1.0]),
        "missing": pa.array([None, 1.0]),
        "lists": pa.array([["a"], ["b\0"]]),
    }
    assert list(storable(cells)) == ["fine", "missing"]
