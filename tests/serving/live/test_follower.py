"""Live writes: whatever arrives in whatever order, the answers are those of an index made anew from tables with it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from features.errors import UnavailableError
from features.sequences.sequences import UNKNOWN_TIME
from features.tables.rows import typed_rows
from features.tables.tables import Catalog, read_tables
from serving.deploy.hot_reload import _LiveOrStale
from serving.errors import NotReady
from serving.jobs.precompute import precompute_top_k
from serving.live import delta as delta_module
from serving.live import follower as live_module
from serving.live.compaction import compact
from serving.live.follower import LiveRecommender, encoded, vector_to_json
from serving.live.log import Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.rules import Boost, Rules
from serving.search.faiss_index import ItemIndex
from serving.search.index_config import IndexConfig
from serving.search.tuning import Chosen
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import FakeBundle, country, make_features, make_tables, unit, vector_of
from towers.bundle.bundle import ModelBundle

ITEMS = [f"item-{number:03d}" for number in range(30)]
NEW = ["new-1", "new-2", "new-3"]
TITLES = ["Chair", "Table", "Lamp"]


class TitledBundle(FakeBundle):
    """Items have vectors by id and title, so that a changed item is another."""

    def encode_items(self, catalog):
        titles = catalog.frame["title"].astype(object)
        return unit(
            np.stack(
                [
                    vector_of(item_id) + (0 if pd.isna(title) else vector_of(title))
                    for item_id, title in zip(catalog.item_ids, titles, strict=True)
                ]
            )
        )


def shop():
    rng = np.random.default_rng(3)
    weights = 1 / (1 + np.arange(30.0))
    histories = {
        user: rng.choice(ITEMS, size=rng.integers(1, 9), replace=False, p=weights / weights.sum()).tolist()
        for user in range(100, 106)
    }
    users = pd.DataFrame({"user_id": list(range(100, 108)), "country": ["de", "fr"] * 3 + ["de", None]})
    return make_tables(histories, ITEMS, titles=[f"Thing {item}" for item in ITEMS], users=users)


def make_timed(tables, times):
    interactions = replace(tables.interactions, frame=tables.interactions.frame.assign(timestamp=times))
    return replace(tables, interactions=interactions)


# When the tables' events were: those of a user an hour apart, the newest of all at LAST.
LAST, HOUR = 1_700_000_000, 3600


def timed_shop():
    tables = shop()
    users = tables.interactions.frame["user_id"]
    left = users.groupby(users).cumcount(ascending=False).to_numpy()
    return make_timed(tables, pd.Series(LAST - HOUR * left, dtype="int64[pyarrow]"))


def positioned_shop():
    """Whose events have an order of their own, and times that are another."""
    tables = timed_shop()
    times = tables.interactions.frame["timestamp"].to_numpy()
    shuffled = LAST - HOUR * np.random.default_rng(4).permutation(len(times))
    frame = tables.interactions.frame.assign(
        timestamp=pd.Series(shuffled, dtype="int64[pyarrow]"),
        position=pd.Series(np.arange(len(times)), dtype="int64[pyarrow]"),
    )
    return replace(tables, interactions=replace(tables.interactions, frame=frame))


SHOPS = {"without times": shop, "with times": timed_shop, "with positions": positioned_shop}
EXACT, GRAPH = IndexConfig(), IndexConfig(kind="hnsw", m=16, ef_search=64)


def base_of(tables, plan=EXACT, half_precision=False):
    bundle = TitledBundle("bundle", make_features(user=country()))

    def chosen(vectors, asking):
        return Chosen(ItemIndex.build(vectors, plan), 1.0, None, len(asking))

    snapshot = Snapshot.build(bundle, tables, choose=chosen, half_precision=half_precision)
    # What nobody's writes have touched is looked up.
    return Recommender(bundle, snapshot.with_precomputed(precompute_top_k(Recommender(bundle, snapshot), 10)))


def put(item_id, title="Chair"):
    return Write("item", {"item_id": item_id, "cells": {} if title is None else {"title": title}})


def deletion(item_id):
    return Write("deletion", {"item_id": item_id})


def event(user_id, item_id, time=1_800_000_000, key=None):
    return Write("event", {"user_id": user_id, "item_id": item_id, "time": time}, key)


def content(answer):
    return None if answer is None else ([(i.item_id, i.score, i.rank, i.title) for i in answer.items], answer.fallback)


def answers(recommender):
    """Everything that can be asked, of everyone."""
    users = [*range(100, 110), "nobody"]
    found = {}
    for k, where in ((40, ()), (5, ()), (5, recommender.state.filters.parse({"title": {"not": ["Chair"]}}))):
        found |= {
            (user, k, where): content(recommender.recommend(user, RecommendRequest(k, where=where))) for user in users
        }
        found |= {
            (item, k, where): content(recommender.similar(item, RecommendRequest(k, where=where)))
            for item in (*ITEMS[:3], *NEW[:2])
        }
    rules = Rules(
        pin=[NEW[0], ITEMS[1]],
        boosts=[Boost(recommender.state.filters.parse({"title": "Lamp"}), 0.3)],
        demote=[recommender.state.filters.parse({"title": "Table"})],
        at_most=[("title", 2)],
        diversity=0.3,
    )
    for user in users[::3]:
        found["arranged", user] = content(
            recommender.recommend(user, RecommendRequest(10, rules=rules, exclude=[ITEMS[2]]))
        )
    history = [*ITEMS[:3], *NEW]
    described = recommender.recommend(UserProfile(history, {"country": "de"}), 40)
    found["described"] = content(described), described.unknown_items
    found |= {("history", user): content_of_history(recommender, user) for user in users}
    return found


def content_of_history(recommender, user):
    """Nothing, too, of someone unknown: to an index made anew, someone is who had only items that are gone."""
    return [item.item_id for item in recommender.history(user, 50) or []]


def assert_same(found, expected, within=2e-6):
    assert found.keys() == expected.keys()
    for asked, answer in expected.items():
        assert rounded(found[asked], within) == rounded(answer, within), asked


def rounded(value, within=2e-6):
    if isinstance(value, float):
        return pytest.approx(value, abs=within)
    if isinstance(value, list | tuple):
        return [rounded(inner, within) for inner in value]
    return value


@pytest.fixture
def store(tmp_path):
    store = SqliteLog(tmp_path / "live.db")
    yield store
    store.close()


def writes_to(tables):
    """Writes; of events some late, some repeated, and some that the tables hold."""
    frame = tables.interactions.frame
    times = [7, LAST - HOUR, LAST - HOUR - 1, LAST, LAST + 1, 1_800_000_000]
    events = [
        st.builds(
            event, st.sampled_from([*range(100, 110)]), st.sampled_from([*ITEMS[:6], *NEW]), st.sampled_from(times)
        )
    ]
    if "timestamp" in frame:
        held = list(frame[["user_id", "item_id", "timestamp"]].itertuples(index=False, name=None))
        events.append(st.sampled_from(held).map(lambda one: event(*one)))
    return st.one_of(
        st.builds(put, st.sampled_from([*ITEMS[:6], *NEW]), st.sampled_from([*TITLES, None])),
        st.builds(deletion, st.sampled_from([*ITEMS[:6], *NEW])),
        *events,
    )


@pytest.mark.parametrize("tables", [make() for make in SHOPS.values()], ids=SHOPS)
@given(data=st.data())
@settings(max_examples=2, phases=[Phase.generate])
def test_answers_are_those_of_an_index_made_anew(tables, data, tmp_path_factory):
    batches = data.draw(st.lists(st.lists(writes_to(tables), min_size=1, max_size=8), min_size=1, max_size=4))
    store = SqliteLog(tmp_path_factory.mktemp("log") / "live.db")
    base = base_of(tables)
    live = LiveRecommender(base, store)
    untouched = answers(base)
    for batch in batches:
        store.append(batch)
        now = live.current()
    folded, _ = compact(tables, store)
    expected = answers(base_of(folded))
    assert_same(answers(now), expected)
    assert_same(answers(LiveRecommender(base, store).current()), expected)  # taken in at once, as after a start
    assert answers(base) == untouched
    store.close()


@pytest.mark.parametrize(
    ("plan", "half_precision"),
    [(EXACT, False), (GRAPH, False), (EXACT, True)],
    ids=["exact", "graph", "half precision"],
)
def test_many_writes_are_the_same_too(store, monkeypatch, plan, half_precision):
    """More rows that do not hold than are passed over, and so many that some are removed."""
    monkeypatch.setattr(live_module, "_MIN_TO_COMPACT", 10)
    monkeypatch.setattr(delta_module, "_EXCLUDED_ROWS", 3)
    rng = np.random.default_rng(0)
    tables = shop()
    live = LiveRecommender(base_of(tables, plan, half_precision), store)
    for _ in range(30):
        store.append(
            [
                put(rng.choice([*ITEMS[:20], *NEW]), rng.choice(TITLES)),
                put(rng.choice([*ITEMS[:20], *NEW]), rng.choice(TITLES)),
                deletion(rng.choice(ITEMS[:20])),
                event(int(rng.integers(100, 110)), rng.choice(ITEMS)),
            ]
        )
        now = live.current()
        assert now.recommend(100, 40).items
    folded, _ = compact(tables, store)
    assert len(live._items._vectors) < 60, "rows that do not hold were removed"
    assert_same(answers(now), answers(base_of(folded)), within=1e-3 if half_precision else 2e-6)


def test_a_recommender_stays_as_it_was_whatever_arrives(store):
    live = LiveRecommender(base_of(shop()), store)
    store.append([put("new-1"), put(ITEMS[0], "Lamp"), event(100, "new-1"), deletion(ITEMS[1])])
    then = live.current()
    before = answers(then)
    rng = np.random.default_rng(1)
    for _ in range(100):
        store.append([put(rng.choice([*ITEMS, *NEW]), rng.choice(TITLES)), deletion(rng.choice(ITEMS))])
        store.append([event(int(rng.integers(100, 120)), rng.choice(ITEMS))])
        live.current()
    after = answers(then)
    for asked, answer in before.items():
        if "popular" in str(answer):  # how often items were had may be newer than the rest
            continue
        assert after[asked] == answer, asked


def test_an_item_is_found_right_after_it_was_put_and_not_after_it_was_deleted(store):
    live = LiveRecommender(base_of(shop()), store)
    store.append([put("new-1", "Lamp")])
    now = live.current()
    assert now.state.items.row("new-1") is not None
    assert [item.item_id for item in now.similar(ITEMS[0], 40).items].count("new-1") == 1
    assert "new-1" in [item.item_id for item in now.recommend(106, 40).items]
    assert {
        i.item_id
        for i in now.recommend(106, RecommendRequest(40, where=now.state.filters.parse({"title": "Lamp"}))).items
    } == {"new-1"}
    assert next(i for i in now.recommend(106, 40).items if i.item_id == "new-1").title == "Lamp"
    store.append([deletion("new-1"), deletion(ITEMS[5])])
    now = live.current()
    for item_id in ("new-1", ITEMS[5]):
        assert now.state.items.row(item_id) is None
        assert now.similar(item_id, 1) is None
        assert item_id not in [item.item_id for item in now.recommend(106, 40).items]
    assert len(now.recommend("nobody", 40).items) == 29


def test_an_item_that_was_put_several_times_can_be_filtered_by_its_id(store):
    live = LiveRecommender(base_of(shop()), store)
    for title in ("Chair", "Lamp", "Table"):
        store.append([put("new-1", title), put("new-2", title)])
        recommender = live.current()
        cases = [({"item_id": "new-1"}, {"new-1"}), ({"item_id": {"not": [*ITEMS, "new-1"]}}, {"new-2"})]
        for where, expected in cases:
            answer = recommender.recommend(106, RecommendRequest(10, where=recommender.state.filters.parse(where)))
            assert {item.item_id for item in answer.items} == expected
        # Rows of the index and of what arrived, in an order that is not that of the rows.
        rows = np.array([recommender.state.items.row(item_id) for item_id in ("new-2", ITEMS[3], "new-1", ITEMS[0])])
        assert recommender.state.filters.cells(rows)["title"].iloc[[0, 2]].tolist() == [title, title]
        assert recommender.state.filters.cells(rows)["item_id"].tolist() == ["new-2", ITEMS[3], "new-1", ITEMS[0]]


def test_an_event_counts_in_the_next_answer(store):
    tables = shop()
    live = LiveRecommender(base_of(tables), store)
    best = live.current().recommend(106, 1).items[0].item_id
    store.append([event(106, best)])
    after = live.current().recommend(106, 40)
    assert best not in [item.item_id for item in after.items]
    assert live.current().history(106, 1)[0].item_id == best
    expected = unit(vector_of("country=de") + live.current().bundle.encode_items(tables.catalog)[ITEMS.index(best)])
    row = live.current().state.items.row(after.items[0].item_id)
    assert after.items[0].score == pytest.approx(float(expected @ live.current().state.vectors[np.array([row])][0]))


def test_what_writes_do_not_touch_is_looked_up_and_nothing_else(store, monkeypatch):
    searched = []
    search = ItemIndex.search
    monkeypatch.setattr(ItemIndex, "search", lambda self, *asked: searched.append(1) or search(self, *asked))
    base = base_of(shop())
    live = LiveRecommender(base, store)
    third, *_, far = base.recommend(101, 10).items[2:]
    taste = base.snapshot.user_vectors[base.state.users.row(101)]
    names = [f"new-{number}" for number in range(500)]
    new = {float(unit(2 * vector_of(name)) @ taste): name for name in names}
    assert min(new) < third.score - 0.1 < third.score + 0.1 < max(new)

    def first_three():
        searched.clear()
        return [item.item_id for item in live.current().recommend(101, 3).items], bool(searched)

    before = first_three()
    assert before == ([item.item_id for item in base.recommend(101, 3).items], False)
    store.append([event(100, ITEMS[1]), event(999, ITEMS[2]), deletion(far.item_id), put(new[min(new)], new[min(new)])])
    assert first_three() == before
    assert live.current().recommend(100, 3) != base.recommend(100, 3)
    store.append([put(new[max(new)], new[max(new)])])
    now, was_searched = first_three()
    assert (new[max(new)] in now, was_searched) == (True, True)
    store.append([deletion(new[max(new)])])
    assert first_three() == before
    store.append([deletion(third.item_id)])
    now, was_searched = first_three()
    assert (third.item_id in now, was_searched) == (False, True)


def test_a_new_user_is_known_from_his_first_event(store):
    live = LiveRecommender(base_of(shop()), store)
    assert live.current().recommend(999, 3).fallback == "popular"
    store.append([event(999, ITEMS[7])])
    now = live.current()
    assert now.recommend("999", 3).fallback is None
    assert content(now.recommend(999, 5)) == content(now.recommend(UserProfile([ITEMS[7]]), 5))


def test_late_events_take_their_place_by_time_among_those_that_came_live(store):
    live = LiveRecommender(base_of(shop()), store)
    store.append([event(200, ITEMS[1], 50), event(200, ITEMS[2], 30), event(200, ITEMS[3], 40)])
    assert content_of_history(live.current(), 200) == [ITEMS[1], ITEMS[3], ITEMS[2]]


def test_an_item_that_comes_back_brings_its_events_with_it(store):
    live = LiveRecommender(base_of(shop()), store)
    store.append([event(200, ITEMS[1]), deletion(ITEMS[1])])
    assert live.current().recommend(200, 3).fallback == "popular"
    store.append([put(ITEMS[1], "Lamp")])
    assert content_of_history(live.current(), 200) == [ITEMS[1]]
    assert live.current().recommend(200, 3).fallback is None


def test_everyone_sees_what_another_process_wrote(store, tmp_path):
    live = LiveRecommender(base_of(shop()), store)
    live.current()
    elsewhere = SqliteLog(tmp_path / "live.db")
    assert elsewhere.state() == store.state()
    position = elsewhere.append([event(200, ITEMS[1])]).position
    assert live.current().state.position == position
    elsewhere.close()


def test_the_same_user_item_and_second_is_the_same_event_as_in_tables(store):
    live = LiveRecommender(base_of(shop()), store)
    store.append([event(200, ITEMS[1], 50), event(200, ITEMS[1], 50, "by another name"), event(200, ITEMS[1], 51)])
    assert content_of_history(live.current(), 200) == [ITEMS[1]] * 2


def test_what_an_index_was_made_of_is_not_laid_over_it_again(store):
    tables = shop()
    store.append([put("new-1", "Lamp"), event(100, "new-1"), event(100, "new-1", 1_800_000_001)])
    folded, until = compact(tables, store)
    bundle = TitledBundle("bundle", make_features(user=country()))
    base = Recommender(bundle, Snapshot.build(bundle, folded, live=until))
    live = LiveRecommender(base, store)
    assert_same(answers(live.current()), answers(base))
    assert live.current().state.position == until.position
    store.append([event(100, "new-1", 1_800_000_002)])
    assert content_of_history(live.current(), 100)[:4].count("new-1") == 3


def test_another_log_is_laid_over_from_its_beginning(store, tmp_path):
    other = SqliteLog(tmp_path / "other.db")
    other.append([event(100, ITEMS[0])] * 5)
    folded, until = compact(shop(), other)
    bundle = TitledBundle("bundle", make_features(user=country()))
    store.append([put("new-1", "Lamp")])
    live = LiveRecommender(Recommender(bundle, Snapshot.build(bundle, folded, live=until)), store)
    assert live.current().state.items.row("new-1") is not None
    other.close()


def test_events_that_the_tables_are_new_enough_to_hold_are_not_counted_twice(store, monkeypatch):
    tables = shop()
    newest = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    frame = tables.interactions.frame
    times = pd.Series(np.full(len(frame), int(newest)), dtype="int64[pyarrow]")
    tables = make_timed(tables, times)
    for received, item in ((newest - 1, ITEMS[8]), (newest + 1, ITEMS[9])):
        monkeypatch.setattr("serving.live.log.time.time", lambda received=received: received)
        store.append([event(200, item)])
    assert content_of_history(LiveRecommender(base_of(tables), store).current(), 200) == [ITEMS[9]]


def test_the_newest_interaction_of_the_tables_counts_once_though_it_stands_in_the_log_too(store, monkeypatch):
    """Tables know whole seconds, and a log when it received something to the fraction of one."""
    tables = timed_shop()
    user, item, newest = tables.interactions.frame.sort_values("timestamp").iloc[-1][
        ["user_id", "item_id", "timestamp"]
    ]
    assert newest == LAST
    other = next(item_id for item_id in ITEMS if item_id not in tables.interactions.frame["item_id"].tolist())
    monkeypatch.setattr("serving.live.log.time.time", lambda: LAST + 0.4)
    store.append([event(int(user), item, LAST), event(int(user), other, LAST)])
    base = base_of(tables)
    now = LiveRecommender(base, store).current()
    counts = [one.state.popularity.shares(np.array([base.state.items.row(item)]))[0] for one in (base, now)]
    total = len(tables.interactions)
    assert counts[1] == pytest.approx(counts[0] * total / (total + 1))
    assert content_of_history(now, int(user)) == [other, *content_of_history(base, int(user))]


def test_ids_that_cannot_be_ids_here_are_left_out(store):
    """A log outlives the tables: another catalogue may know items by other ids and columns."""
    live = LiveRecommender(base_of(shop()), store)
    store.append([event("Ann", ITEMS[0]), event("101", ITEMS[0])])
    store.append([Write("item", {"item_id": "new-1", "cells": {"title": 7, "colour": "red"}})])
    now = live.current()
    assert now.state.users.row("Ann") is None
    assert content_of_history(now, 101)[0] == ITEMS[0]
    row = now.state.items.row("new-1")
    assert now.state.titles[row] == "new-1"


def test_an_item_that_the_model_cannot_place_is_left_out_and_those_beside_it_are_not(store, monkeypatch, caplog):
    live = LiveRecommender(base_of(shop()), store)
    place = TitledBundle.encode_items

    def lost(bundle, catalog):
        return np.where((catalog.frame["title"] == "Nowhere").to_numpy()[:, None], np.nan, place(bundle, catalog))

    monkeypatch.setattr(TitledBundle, "encode_items", lost)
    store.append([put("new-1", "Lamp"), put("new-2", "Nowhere"), put("new-3", "Chair")])
    now = live.current()
    assert [now.state.items.row(item_id) is not None for item_id in NEW] == [True, False, True]
    assert {*NEW} & {item.item_id for item in now.recommend(106, 40).items} == {"new-1", "new-3"}
    assert (
        "record 2 of the log of live writes, item 'new-2', is skipped: the model cannot encode this item" in caplog.text
    )


def test_writes_during_searches_never_give_a_wrong_answer(store):
    """Each write puts an item, deletes the one before it and lets a user have it; every answer knows all or none."""
    live = LiveRecommender(base_of(shop()), store)
    done, wrong = threading.Event(), []

    def ask():
        while not done.is_set():
            now = live.current()
            found = [item.item_id for item in now.recommend(106, 40).items]
            new = [item_id for item_id in found if item_id.startswith("n")]
            at = now.state.position // 2
            expected = [f"n{at}"] if at else []
            if new != expected or len(found) != 30 + len(expected) or len(set(found)) != len(found):
                wrong.append((now.state.position, found))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 151):
        store.append([deletion(f"n{number - 1}"), put(f"n{number}", "Lamp")])
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_item_of_the_table_that_is_put_as_it_is_has_the_very_same_features_and_vector(real_bundle):
    """What JSON says of an item and what the table says of it meet the model as the same numbers."""
    catalog = read_tables(real_bundle.config.features, real_bundle.tables_folder).catalog
    rows = json.loads(catalog.frame.to_json(orient="records", double_precision=15))
    again = typed_rows(catalog.frame, rows)
    pd.testing.assert_frame_equal(again, catalog.frame)
    from_table = real_bundle.featurizer.item_features(catalog)
    one_by_one = [real_bundle.featurizer.items.encode(typed_rows(catalog.frame, [row])) for row in rows[:20]]
    for number, features in enumerate(one_by_one):
        taken = from_table.take(torch.tensor([number]))
        assert features.dense.equal(taken.dense)
        assert features.sparse.select(["title"]).values.equal(taken.sparse.select(["title"]).values)
    whole = real_bundle.encode_items(catalog)
    single = np.concatenate([encoded(real_bundle, typed_rows(catalog.frame, [row])) for row in rows])
    np.testing.assert_allclose(single, whole, atol=1e-6)


@pytest.mark.parametrize("name", ["model", "timed"])
def test_a_real_model_answers_as_one_whose_index_was_made_anew(pristine, store, name):
    """Also one that looks at the clock, whose events have times and whose users' vectors are made when they ask."""
    bundle = ModelBundle.open(pristine / "runs" / name)
    tables = read_tables(bundle.config.features, bundle.tables_folder)
    clock = lambda: 1_700_200_000.0  # noqa: E731
    live = LiveRecommender(Recommender(bundle, Snapshot.build(bundle, tables), clock=clock), store)
    cells = {"title": "red wooden chair", "price": 12.5, "tags": "red|chair"}
    store.append([Write("item", {"item_id": "new", "cells": cells}), deletion("p3")])
    store.append([Write("item", {"item_id": "p1", "cells": {"title": "blue steel lamp"}})])
    users = [*range(1000, 1020), 5000]
    for place, user in enumerate(users[::2]):
        store.append([event(user, f"p{place}", 1_700_150_100 + place), event(user, "new", 1_700_150_000 + place)])
    now = live.current()
    folded, _ = compact(tables, store)
    anew = Recommender(bundle, Snapshot.build(bundle, folded), clock=clock)
    for user in users:
        # Of the same items in the same order; near ties may fall either way, as vectors are rounded in other batches.
        assert content_of_history(now, user) == content_of_history(anew, user)
        found, expected = now.recommend(user, 20), anew.recommend(user, 20)
        assert found.fallback == expected.fallback
        np.testing.assert_allclose(
            [item.score for item in found.items], [item.score for item in expected.items], atol=1e-5
        )
    assert UNKNOWN_TIME not in (now.state.user_store.histories(np.arange(3)).times if name == "timed" else [])


def test_the_plan_of_a_large_index_still_decides(store):
    base = base_of(shop(), GRAPH)
    assert not LiveRecommender(base, store).current().state.search.is_exact


def test_a_log_that_stands_still_holds_one_request_at_a_time(store, monkeypatch):
    kept_up = _LiveOrStale(LiveRecommender(base_of(shop()), store))
    looked = []

    def change_token():
        looked.append(True)
        time.sleep(0.2)
        raise NotReady("it stands still")

    monkeypatch.setattr(store, "change_token", change_token)
    for _ in range(2):  # all wait for the first, and nobody once it is known
        began, threads = time.monotonic(), [threading.Thread(target=kept_up, args=(False,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(looked) <= 2
        assert time.monotonic() - began < 1
        looked.clear()
    monkeypatch.undo()
    store.append([put("new-1")])
    deadline = time.monotonic() + 5
    while kept_up(False).state.items.row("new-1") is None:
        assert time.monotonic() < deadline, "the log is not looked at again"
        time.sleep(0.05)


def test_no_request_waits_long_for_a_log_that_is_known_to_stand_still(store, monkeypatch):
    kept_up = _LiveOrStale(LiveRecommender(base_of(shop()), store))
    hangs = threading.Event()

    def change_token():
        hangs.wait(20)
        raise NotReady("it stands still")

    monkeypatch.setattr(store, "change_token", change_token)
    monkeypatch.setattr("serving.deploy.hot_reload._SECONDS_TO_TRY", 0.1)
    hangs.set()
    kept_up(False)
    hangs.clear()
    time.sleep(0.6)
    began = time.monotonic()
    assert kept_up(False).state.items.row("new-1") is None
    with pytest.raises(NotReady):
        kept_up(True)
    assert time.monotonic() - began < 5
    monkeypatch.undo()
    store.append([put("new-1")])
    hangs.set()
    deadline = time.monotonic() + 20
    while kept_up(False).state.items.row("new-1") is None:
        assert time.monotonic() < deadline, "the log is not looked at again"
        time.sleep(0.05)


def test_an_item_that_came_with_a_vector_of_this_model_is_not_encoded_again(store, monkeypatch):
    """Requests wait for what a worker has to encode, so only the worker that took the item does."""
    live = LiveRecommender(base_of(shop()), store)
    vector = np.zeros(live.latest.state.vectors.shape[1], np.float32)
    vector[1] = 1
    sent = vector_to_json(live.latest.model, vector)
    damaged = [
        {**sent, "model": "another"},
        {**sent, "float32": sent["float32"][:-4]},
        {**sent, "float32": "?"},
        {**sent, "float32": 7},
        vector_to_json(live.latest.model, 2 * vector),
        vector_to_json(live.latest.model, np.full_like(vector, np.nan)),
        "no vector",
        None,
    ]
    encode, num_encoded = TitledBundle.encode_items, []
    monkeypatch.setattr(TitledBundle, "encode_items", lambda *given: num_encoded.append(given) or encode(*given))
    store.append([Write("item", {"item_id": "sent", "cells": {"title": "Lamp"}, "vector": sent})])
    now = live.current()
    assert not num_encoded
    np.testing.assert_array_equal(now.state.vectors[[now.state.items.row("sent")]], vector[None])
    bodies = [{"item_id": f"n{place}", "cells": {"title": "Lamp"}, "vector": one} for place, one in enumerate(damaged)]
    store.append([Write("item", body) for body in bodies])
    now = live.current()
    assert len(num_encoded) == 1
    for body in bodies:
        expected = encode(now.bundle, Catalog(pd.DataFrame({"item_id": [body["item_id"]], "title": ["Lamp"]})))
        np.testing.assert_array_equal(now.state.vectors[[now.state.items.row(body["item_id"])]], expected)


def test_an_item_whose_vector_cannot_be_made_now_is_not_lost(store, monkeypatch):
    live = LiveRecommender(base_of(shop()), store)
    store.append([put("new-1", "Lamp")])
    encode = TitledBundle.encode_items

    def away(*_):
        raise UnavailableError("https://vectors: no answer")

    monkeypatch.setattr(TitledBundle, "encode_items", away)
    with pytest.raises(NotReady, match="items in the log of live writes cannot be encoded"):
        live.current()
    monkeypatch.setattr(TitledBundle, "encode_items", encode)
    assert live.current().state.items.row("new-1") is not None


def test_cells_of_the_log_that_do_not_fit_are_named(store, caplog):
    live = LiveRecommender(base_of(shop()), store)
    store.append([Write("item", {"item_id": "new-1", "cells": {"title": 7}})])
    live.current()
    assert "records 1 to 1 of the log of live writes: a cell is left out: title: expected text, found 7" in caplog.text
