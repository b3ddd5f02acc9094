"""What contributed most, against asking anew without each item of the history."""

from __future__ import annotations

import numpy as np
import pytest

from serving.recommend import explanations as reasons_module
from serving.recommend.request import RecommendRequest, UserProfile
from tests.serving.doubles import make_recommender, make_tables


def slowly(recommender, history, item_id, country, times=None):
    """By how much the score of an item falls if one item had not been in the history, for each, newest first."""

    def score(left):
        kept = [place for place, item in enumerate(history) if item in left]
        who = UserProfile(
            [history[place] for place in kept], country, None if times is None else [times[at] for at in kept]
        )
        only = recommender.state.filters.parse({"item_id": item_id})
        return recommender.recommend(who, RecommendRequest(1, where=only)).items[0].score

    everything = set(history)
    return {item: score(everything) - score(everything - {item}) for item in dict.fromkeys(reversed(history))}


def history_of(recommender, user_id):
    return [item.item_id for item in recommender.history(user_id, 1000)][::-1]


@pytest.mark.parametrize("user_id", [100, 103, 106])
def test_reasons_are_the_items_without_which_the_score_would_be_lowest(shop, recommender, user_id):
    country = {"country": shop.users.frame.set_index("user_id")["country"][user_id]}
    history = history_of(recommender, user_id)
    known = recommender.recommend(user_id, RecommendRequest(4, reasons=3))
    posted = recommender.recommend(UserProfile(history, country), RecommendRequest(4, reasons=3))
    for item, same in zip(known.items, posted.items, strict=True):
        expected = slowly(recommender, history, item.item_id, country)
        best = sorted((item for item in expected if expected[item] > 0), key=lambda item: -expected[item])[:3]
        assert [reason.item_id for reason in item.because] == best
        assert [reason.contribution for reason in item.because] == pytest.approx(
            [expected[one] for one in best], abs=1e-6
        )
        assert [reason.title for reason in item.because] == [f"Thing {one}" for one in best]
        assert [reason.item_id for reason in same.because] == best


def test_an_item_that_was_had_several_times_is_left_out_altogether():
    tables = make_tables({1: ["a", "b", "a", "c", "a"]}, ["a", "b", "c", "d", "e"])
    recommender = make_recommender(tables)
    for item in recommender.recommend(1, RecommendRequest(2, reasons=5)).items:
        expected = slowly(recommender, history_of(recommender, 1), item.item_id, {})
        assert {reason.item_id: reason.contribution for reason in item.because} == pytest.approx(
            {item: value for item, value in expected.items() if value > 0}, abs=1e-6
        )


def test_only_the_newest_items_are_weighed(shop, recommender, monkeypatch):
    monkeypatch.setattr(reasons_module, "MOST_WEIGHED", 2)
    newest = history_of(recommender, 103)[-2:]
    named = {
        reason.item_id
        for item in recommender.recommend(103, RecommendRequest(50, reasons=10)).items
        for reason in item.because
    }
    assert named == set(newest)


def test_there_are_no_reasons_without_a_history_or_when_nobody_asked(recommender):
    wanted = RecommendRequest(3, reasons=2)
    for who in (107, 108, "nobody", UserProfile(), UserProfile([], {"country": "de"})):
        assert [item.because for item in recommender.recommend(who, wanted).items] == [()] * 3
    assert all(item.because is None for item in recommender.recommend(103, 3).items)


def test_reasons_go_with_the_items_whatever_the_rules_and_the_page(recommender):
    everything = {
        item.item_id: item.because for item in recommender.recommend(103, RecommendRequest(100, reasons=1)).items
    }
    for item in recommender.recommend(103, RecommendRequest(5, offset=7, reasons=1)).items:
        assert item.because == everything[item.item_id]
    several = recommender.recommend_many([103, "nobody", 104], RecommendRequest(5, reasons=1))
    assert [item.because for item in several[0].items] == list(everything.values())[:5]
    assert several[2] == recommender.recommend(104, RecommendRequest(5, reasons=1))


def test_contributions_are_those_of_a_sum_where_a_user_is_the_sum_of_his_items():
    """By hand: vectors at right angles, each item alone pointing to itself."""
    from features.sequences.sequences import Sequences

    vectors = np.eye(3, dtype=np.float32)
    history = Sequences(np.array([5]), np.array([0, 3]), np.array([0, 1, 0]), None, is_ordered=True)

    def encode(histories):
        return np.stack(
            [vectors[histories.items_of(user)].sum(axis=0) for user in range(len(histories))], dtype=np.float32
        )

    had, contributed = reasons_module.contributions(history, vectors, encode, 100)
    assert had.tolist() == [0, 1]
    assert contributed.tolist() == [[2, 0, 0], [0, 1, 0]]
    assert reasons_module.most(np.array([[0.5, 0.0, 2.0, -1.0]]).T, 3) == [[(2, 2.0), (0, 0.5)]]
