from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest

from features.config import FeatureSettings
from features.errors import DataError
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.response import Recommendation
from serving.recommend.vector_cache import UserVectorCache
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import (
    FakeBundle,
    best,
    country,
    make_features,
    make_recommender,
    make_tables,
    unit,
    vector_of,
)


def histories_of(tables):
    frame = tables.interactions.frame
    return {user: group["item_id"].tolist() for user, group in frame.groupby("user_id")}


def ids(answer):
    return [item.item_id for item in answer.items]


def person(tables, user_id):
    vector = np.sum([vector_of(item) for item in histories_of(tables).get(user_id, [])], axis=0)
    row = tables.users.frame.set_index("user_id")["country"].get(user_id)
    return unit(vector + (0 if row is None or pd.isna(row) else vector_of(f"country={row}")))


def country_of(tables, user_id):
    return tables.users.frame.set_index("user_id")["country"].get(user_id)


def test_known_users_get_the_best_items_that_they_did_not_have(shop, recommender):
    for user_id, history in histories_of(shop).items():
        answer = recommender.recommend(user_id, 10)
        assert ids(answer) == best(shop, person(shop, user_id), 10, excluded=history)
        assert answer.fallback is None


def test_an_item_says_its_id_score_rank_and_title(shop, recommender):
    vector = person(shop, 100)
    item = recommender.recommend(100, 3).items[1]
    assert isinstance(item, Recommendation)
    assert item.rank == 2
    assert item.title == f"Thing {item.item_id}"
    assert item.score == pytest.approx(float(vector @ vector_of(item.item_id)), abs=1e-6)
    assert type(item.item_id) is str


def test_without_titles_an_item_has_none():
    tables = make_tables({1: ["a"], 2: ["b"]}, ["a", "b", "c"])
    assert make_recommender(tables).recommend(1, 1).items[0].title is None


def test_seen_items_come_back_where_people_buy_again(shop):
    again = make_recommender(shop, user=country(), recommend_seen=True)
    assert ids(again.recommend(100, 100)) == best(shop, person(shop, 100), 100)


def test_the_bundle_decides_about_seen_items_unless_the_operator_does(shop):
    bundle = FakeBundle("bundle", make_features(recommend_seen=True, user=country()))
    snapshot = Snapshot.build(bundle, shop)
    assert len(Recommender(bundle, snapshot).recommend(100, 100).items) == 100
    assert len(Recommender(bundle, snapshot, recommend_seen=False).recommend(100, 100).items) < 100


def test_k_is_met_when_the_catalogue_allows_and_else_everything_left_is_given(shop, recommender):
    had = set(histories_of(shop)[103])
    for k in (1, 50, 100 - len(had), 100, 1000):
        found = ids(recommender.recommend(103, k))
        assert len(found) == min(k, 100 - len(had))
        assert len(set(found)) == len(found)
        assert not had & set(found)


def test_someone_unknown_gets_what_is_popular_and_is_told(shop, recommender):
    counts = shop.interactions.frame["item_id"].value_counts()
    answer = recommender.recommend(999, 5)
    assert answer.fallback == "popular"
    assert [counts.get(item_id, 0) for item_id in ids(answer)] == sorted(counts, reverse=True)[:5]
    assert answer.items[0].score == pytest.approx(counts.max() / counts.sum())
    assert len(set(ids(recommender.recommend(999, 100)))) == 100


def test_items_equally_popular_come_in_the_order_of_the_catalogue():
    tables = make_tables({1: ["c", "b"], 2: ["b", "a"], 3: ["d"]}, ["d", "c", "b", "a", "e"])
    assert ids(make_recommender(tables).recommend(99, 5)) == ["b", "d", "c", "a", "e"]


def test_a_known_user_without_events_is_answered_from_attributes(shop, recommender):
    answer = recommender.recommend(107, 10)  # country fr
    assert answer.fallback is None
    assert ids(answer) == best(shop, vector_of("country=fr"), 10)


def test_a_known_user_of_whom_nothing_is_known_gets_what_is_popular(shop, recommender):
    assert recommender.recommend(108, 5).fallback == "popular"
    assert ids(recommender.recommend(108, 5)) == ids(recommender.recommend(999, 5))


def test_popular_items_that_the_history_holds_do_not_come_back():
    """A model that reads no attributes knows nothing of someone whose items all left the catalogue."""
    tables = make_tables({1: ["a", "b"], 2: ["a"], 3: ["c"]}, ["a", "b", "c", "d"])
    recommender = make_recommender(tables)
    recommender.state.user_store.is_known = lambda rows, histories: np.zeros(len(rows), dtype=bool)
    assert ids(recommender.recommend(1, 4)) == ["c", "d"]


@pytest.mark.parametrize(("asked", "found"), [(42, True), ("42", True), ("042", False), ("4 2", False), ("+42", False)])
def test_a_path_finds_a_whole_number(asked, found):
    recommender = make_recommender(make_tables({42: ["a"], 7: ["b"]}, ["a", "b", "c"]))
    assert (recommender.recommend(asked, 1).fallback is None) == found


@pytest.mark.parametrize("asked", ["99999999999999999999999", "-9223372036854775809", 10**30, "", "🙂", "a/b"])
def test_ids_of_any_shape_are_unknown_rather_than_an_error(asked):
    recommender = make_recommender(make_tables({42: [1], 7: [2]}, [1, 2, 3]))
    assert recommender.recommend(asked, 1).fallback == "popular"
    assert recommender.similar(asked, 1) is None
    assert recommender.recommend(UserProfile([asked]), 1).unknown_items == (asked,)


def test_rows_are_never_taken_for_ids():
    """Integer ids that are all valid rows, but other ones: every mix-up would show."""
    rng = np.random.default_rng(0)
    items = rng.permutation(50).tolist()
    histories = {user: rng.choice(50, size=5, replace=False).tolist() for user in rng.permutation(20).tolist()}
    tables = make_tables(histories, items)
    recommender = make_recommender(tables)
    for user_id, history in histories.items():
        vector = unit(np.sum([vector_of(item) for item in history], axis=0))
        assert ids(recommender.recommend(user_id, 10)) == best(tables, vector, 10, excluded=history)
    for item_id in items:
        assert ids(recommender.similar(item_id, 5)) == best(tables, vector_of(item_id), 5, excluded=[item_id])


def test_ids_beyond_32_bits_are_kept():
    big = 2**53 + 1
    tables = make_tables({big: [big], 5: [2**62]}, [big, 2**62, 3])
    assert ids(make_recommender(tables).recommend(str(big), 2)) in ([2**62, 3], [3, 2**62])


def test_a_posted_history_is_answered_like_that_of_a_known_user(shop, recommender):
    history = histories_of(shop)[104]
    country_of = shop.users.frame.set_index("user_id")["country"][104]
    posted = recommender.recommend(UserProfile(history, {"country": country_of}), 10)
    known = recommender.recommend(104, 10)
    assert ids(posted) == ids(known)
    assert [item.score for item in posted.items] == pytest.approx([item.score for item in known.items], abs=1e-6)


def test_unknown_items_of_a_history_are_left_aside_and_named(shop, recommender):
    history = histories_of(shop)[104]
    answer = recommender.recommend(UserProfile([*history, "gone", 5, "gone"]), 10)
    assert answer.unknown_items == ("gone", 5)
    assert ids(answer) == ids(recommender.recommend(UserProfile(history), 10))
    assert answer.fallback is None


@pytest.mark.parametrize("history", [[], ["gone"]])
@pytest.mark.parametrize("attributes", [{}, {"country": None}])
def test_someone_described_by_nothing_known_gets_what_is_popular(recommender, history, attributes):
    answer = recommender.recommend(UserProfile(history, attributes), 5)
    assert answer.fallback == "popular"
    assert answer.unknown_items == tuple(history)


def test_attributes_alone_are_answered_by_the_model(shop, recommender):
    answer = recommender.recommend(UserProfile([], {"country": "de"}), 10)
    assert answer.fallback is None
    assert ids(answer) == best(shop, vector_of("country=de"), 10)


def test_attributes_that_the_model_does_not_read_are_refused_by_name(recommender, shop):
    with pytest.raises(DataError, match="the model does not read 'age'; it reads 'country'"):
        recommender.recommend(UserProfile([], {"age": 5}), 10)
    with pytest.raises(DataError, match="the model does not read 'age'; it reads none"):
        make_recommender(shop).recommend(UserProfile([], {"age": 5}), 10)


@pytest.mark.parametrize(
    ("kind", "wrong", "expected"),
    [
        ("number", "old", "a number"),
        ("number", True, "a number"),
        ("vector", [1, "x"], "a list of numbers"),
        ("categories", [[1]], "texts"),
        ("category", ["a"], "text or a number"),
        ("text", {"a": 1}, "text or a number"),
        ("time", [1], "a date or Unix seconds"),
    ],
)
def test_an_attribute_of_the_wrong_type_is_refused(shop, kind, wrong, expected):
    recommender = make_recommender(shop, user={"country": FeatureSettings(kind=kind)})
    with pytest.raises(DataError, match=f"attributes.country: expected {expected}, found"):
        recommender.recommend(UserProfile([], {"country": wrong}), 10)


def test_only_the_newest_events_are_read_but_all_are_seen(shop):
    short = make_recommender(shop, max_history=3)
    for user_id, history in histories_of(shop).items():
        vector = unit(np.sum([vector_of(item) for item in history[-3:]], axis=0))
        expected = best(shop, vector, 10, excluded=history)
        assert ids(short.recommend(user_id, 10)) == expected
        assert ids(short.recommend(UserProfile(history), 10)) == expected


def test_similar_items_leave_the_item_itself_out(shop, recommender):
    assert ids(recommender.similar("item-007", 10)) == best(shop, vector_of("item-007"), 10, excluded=["item-007"])
    assert len(recommender.similar("item-007", 1000).items) == 99
    assert recommender.similar("item-100", 10) is None


def test_only_what_fits_is_recommended_and_as_many_as_there_are(shop, recommender):
    names = recommender.state.filters.parse({"title": {"not": [f"Thing item-{number:03d}" for number in range(50)]}})
    few = recommender.state.filters.parse({"item_id": [f"item-{number:03d}" for number in (3, 60, 70, 80)]})
    for user_id, history in histories_of(shop).items():
        vector = person(shop, user_id)
        had = set(history)
        firsts = [f"item-{number:03d}" for number in range(50)]
        expected = best(shop, vector, 10, excluded=[*had, *firsts])
        assert ids(recommender.recommend(user_id, RecommendRequest(10, where=names))) == expected
        posted = recommender.recommend(
            UserProfile(history, {"country": country_of(shop, user_id)}), RecommendRequest(10, where=names)
        )
        assert ids(posted) == expected
        left = {"item-003", "item-060", "item-070", "item-080"} - had
        assert set(ids(recommender.recommend(user_id, RecommendRequest(10, where=few)))) == left


def test_what_is_popular_is_filtered_too(shop, recommender):
    where = recommender.state.filters.parse({"item_id": {"not": ["item-000", "item-001"]}})
    everything = ids(recommender.recommend(999, 100))
    for answer in (
        recommender.recommend(999, RecommendRequest(100, where=where)),
        recommender.recommend(108, RecommendRequest(100, where=where)),
        recommender.recommend(UserProfile(), RecommendRequest(100, where=where)),
    ):
        assert answer.fallback == "popular"
        assert ids(answer) == [item for item in everything if item not in ("item-000", "item-001")]
    nothing = recommender.state.filters.parse({"item_id": []})
    assert recommender.recommend(999, RecommendRequest(10, where=nothing)).items == []


def test_similar_items_are_filtered(shop, recommender):
    where = recommender.state.filters.parse({"item_id": {"not": ["item-001", "item-002"]}})
    expected = best(shop, vector_of("item-007"), 10, excluded=["item-007", "item-001", "item-002"])
    assert ids(recommender.similar("item-007", RecommendRequest(10, where=where))) == expected
    itself = recommender.state.filters.parse({"item_id": ["item-007"]})
    assert recommender.similar("item-007", RecommendRequest(10, where=itself)).items == []


def test_the_history_of_someone_is_told_newest_first(shop, recommender):
    newest = histories_of(shop)[101][::-1][:3]
    assert [item.item_id for item in recommender.history(101, 3)] == newest
    assert recommender.history(107, 3) == []
    assert recommender.history(555, 3) is None


def test_models_that_look_at_the_clock_are_asked_at_the_time_of_the_request(shop, monkeypatch):
    now = [3600.0 * 8]
    timed = partial(UserVectorCache, clock=lambda: now[0])
    monkeypatch.setattr("serving.recommend.query_encoder.UserVectorCache", timed)
    recommender = make_recommender(shop, clock=lambda: now[0], context={"time": FeatureSettings(kind="time")})
    assert recommender.snapshot.user_vectors is None
    history = histories_of(shop)[100]
    for hour in (8, 20):
        now[0] = 3600.0 * hour
        vector = unit(np.sum([vector_of(item) for item in history], axis=0) + vector_of(f"hour={hour}"))
        expected = best(shop, vector, 10, excluded=history)
        assert ids(recommender.recommend(100, 10)) == expected
        assert ids(recommender.recommend(UserProfile(history), 10)) == expected


def test_threads_that_ask_at_once_get_their_own_answers(shop, recommender):
    asked = [*histories_of(shop), 107, 999] * 10
    expected = [ids(recommender.recommend(user_id, 10)) for user_id in asked]
    answers = [None] * len(asked)

    def ask(place):
        answers[place] = ids(recommender.recommend(asked[place], 10))

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected


def test_many_are_answered_as_each_alone(shop, recommender):
    whom = [
        100,
        UserProfile(["item-001", "gone"]),
        999,
        UserProfile([], {"country": "de"}),
        108,
        "104",
        UserProfile(),
        107,
    ]
    where = recommender.state.filters.parse({"item_id": {"not": ["item-002"]}})
    for wanted in (5, RecommendRequest(7, offset=3, where=where, exclude=["item-003", "gone", "item-009"])):
        assert recommender.recommend_many(whom, wanted) == [recommender.recommend(who, wanted) for who in whom]


def test_attributes_of_several_mean_what_they_mean_alone(shop):
    kinds = {"country": FeatureSettings(kind="category"), "age": FeatureSettings(kind="number")}
    recommender = make_recommender(shop, user=kinds)
    people = [{"country": 7}, {"age": 30}, {}, {"country": "de", "age": 1.5}, {"age": None}]
    whom = [UserProfile(["item-001"], attributes) for attributes in people]
    assert recommender.recommend_many(whom, 5) == [recommender.recommend(who, 5) for who in whom]


def test_offsets_and_exclusions_are_those_of_the_whole_ranking(shop, recommender):
    for user_id, history in histories_of(shop).items():
        everything = best(shop, person(shop, user_id), 100, excluded=[*history, "item-050", "item-051"])
        for k, offset in ((10, 0), (10, 5), (3, 60), (200, 20)):
            answer = recommender.recommend(
                user_id, RecommendRequest(k, offset, exclude=["item-051", "item-050", "gone"])
            )
            assert ids(answer) == everything[offset : offset + k]
            assert [item.rank for item in answer.items] == list(range(offset + 1, offset + 1 + len(answer.items)))
