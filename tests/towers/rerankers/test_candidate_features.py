"""The features of the learned ranker, beside loops over the same tables, and what they must not see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from features.sequences.sequences import Sequences
from tests.towers.rerankers.test_item_statistics import COLUMNS, NUM_ITEMS, make_catalog, make_events, sequences_of
from towers.rerankers.candidate_features import HALF, NEWEST, PAST, SPANS, RankFeatures
from towers.rerankers.item_statistics import FOLLOWING, TOGETHER, ItemStatistics
from towers.rerankers.reranker import Shortlist

DAY = 86_400


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


VECTORS = unit(np.random.default_rng(7).normal(size=(NUM_ITEMS, 8)))


def shortlist_of(frame: pd.DataFrame, user: int, now: int, rows: list[int]) -> Shortlist:
    """What `user`, who had what is in `frame` before `now`, is asked about."""
    mine = frame[(frame["user"] == user) & (frame["time"] < now)]
    had = mine["item"].to_numpy(np.int64)
    vector = unit(VECTORS[had].sum(axis=0) + 0.1)
    rows_ = np.array(sorted(rows, key=lambda row: -float(VECTORS[row] @ vector)), dtype=np.int64)
    return Shortlist(
        user_vector=vector,
        history_rows=had,
        history_vectors=VECTORS[had],
        history_times=mine["time"].to_numpy(np.int64),
        now=now,
        rows=rows_,
        vectors=VECTORS[rows_],
        scores=(VECTORS[rows_] @ vector).astype(np.float32),
    )


def obvious(frame: pd.DataFrame, shortlist: Shortlist) -> pd.DataFrame:
    """Every feature of every candidate, one after the other, as its name says it."""
    had, now = shortlist.history_rows.tolist(), shortlist.now
    past = had[::-1][:PAST]
    newest = past[:NEWEST]
    earlier = frame[frame["time"] < now]
    catalog = make_catalog().frame
    tags = [set(filter(None, cell.split("|"))) for cell in catalog["tags"]]
    price = catalog["price"].to_numpy(float)
    price = (price - np.nanmean(price)) / np.nanstd(price)
    times = {item: group["time"].to_numpy() for item, group in earlier.groupby("item")}
    follows, together = pair_weights(frame)

    def count(item: int, seconds: float = math.inf) -> int:
        return int((times.get(item, np.zeros(0)) >= now - seconds).sum())

    found = []
    for place, (row, score) in enumerate(zip(shortlist.rows.tolist(), shortlist.scores.tolist(), strict=True)):
        similar = [float(VECTORS[row] @ VECTORS[item]) for item in past]
        mainstream = np.mean([math.log1p(count(item)) for item in newest])
        prices = [price[item] for item in newest if not np.isnan(price[item])]
        share = [np.mean([tag in tags[item] for item in newest]) for tag in tags[row]]
        last = [tag in tags[newest[0]] for tag in tags[row]]
        found.append(
            {
                "score": score,
                "score_below_best": max(shortlist.scores.tolist()) - score,
                "place": math.log2(2 + place),
                "similar_last": similar[0],
                "similar_before_last": similar[1],
                "similar_newest_mean": np.mean(similar[:NEWEST]),
                "similar_newest_max": max(similar[:NEWEST]),
                "similar_past": np.mean(similar),
                "follows_last": follows.get((newest[0], row), 0),
                "follows_newest": sum(follows.get((item, row), 0) * 0.5 ** (n / HALF) for n, item in enumerate(newest)),
                "together_last": together.get((newest[0], row), 0),
                "together_newest": sum(
                    together.get((item, row), 0) * 0.5 ** (n / HALF) for n, item in enumerate(newest)
                ),
                "together_past": np.mean([together.get((item, row), 0) for item in past]),
                "count": math.log1p(count(row)),
                **{f"count_{name}": math.log1p(count(row, seconds)) for name, seconds in SPANS.items()},
                "rising": math.log((1 + count(row, 7 * DAY)) / (1 + count(row, 30 * DAY))),
                "age_days": math.log1p((now - times[row].min()) / DAY) if row in times else np.nan,
                "idle_days": math.log1p((now - times[row].max()) / DAY) if row in times else np.nan,
                "history": math.log1p(len(had)),
                "idle_user_days": math.log1p((now - shortlist.history_times[-1]) / DAY),
                "mainstream": mainstream,
                "beyond_mainstream": math.log1p(count(row)) - mainstream,
                "tags_last": np.mean(last) if last else np.nan,
                "tags_newest": np.mean(share) if share else np.nan,
                "price_value": price[row],
                "price_beyond_newest": price[row] - np.mean(prices) if prices else np.nan,
            }
        )
    return pd.DataFrame(found)


def pair_weights(frame: pd.DataFrame) -> tuple[dict, dict]:
    had = frame["item"].value_counts()
    follows: dict[tuple[int, int], float] = {}
    together: dict[tuple[int, int], float] = {}
    for _, mine in frame.groupby("user"):
        items = mine["item"].tolist()
        for place, item in enumerate(items):
            for apart, other in enumerate(items[place + 1 : place + 1 + TOGETHER], start=1):
                if item == other:
                    continue
                if apart <= FOLLOWING:
                    follows[item, other] = follows.get((item, other), 0) + 1 / apart / had[item]
                for pair in ((item, other), (other, item)):
                    together[pair] = together.get(pair, 0) + 1 / np.sqrt(had[item] * had[other])
    return follows, together


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    return make_events()


@pytest.fixture(scope="module")
def features(events: pd.DataFrame) -> RankFeatures:
    return RankFeatures(ItemStatistics.of(sequences_of(events), make_catalog(), COLUMNS))


@pytest.mark.parametrize("user", [0, 7, 24])
@pytest.mark.parametrize("day", [60, 89])
def test_each_feature_is_what_its_name_says(features: RankFeatures, events: pd.DataFrame, user: int, day: int):
    now = 1_700_000_000 + day * DAY
    shortlist = shortlist_of(events, user, now, list(range(0, NUM_ITEMS, 2)))
    expected = obvious(events, shortlist)
    found = pd.DataFrame(features.of(shortlist), columns=features.names)
    assert list(expected.columns) == features.names
    pd.testing.assert_frame_equal(found, expected.astype(np.float32), rtol=1e-4, atol=1e-5)


def test_no_feature_of_a_question_sees_its_answer_or_anything_later(events: pd.DataFrame):
    """What training makes of the events without the answers is what it would make had they never come."""
    last = events.groupby("user")["time"].idxmax()
    train = events.drop(last).reset_index(drop=True)
    facts = ItemStatistics.of(sequences_of(train), make_catalog(), COLUMNS)
    for event in events.loc[last].itertuples():
        if (train["user"] == event.user).sum() < 2:
            continue
        earlier = train[train["time"] < event.time]
        shortlist = shortlist_of(train, event.user, event.time, list(range(NUM_ITEMS)))
        found = RankFeatures(facts).of(shortlist)
        counted = found[:, RankFeatures(facts).names.index("count")]
        as_of = earlier.groupby("item").size().reindex(shortlist.rows, fill_value=0)
        np.testing.assert_allclose(np.expm1(counted), as_of, rtol=1e-4)
        # Another answer would have left every feature as it is.
        other = events.copy()
        other.loc[event.Index, "item"] = (event.item + 1) % 27
        same = ItemStatistics.of(sequences_of(other.drop(last).reset_index(drop=True)), make_catalog(), COLUMNS)
        np.testing.assert_array_equal(RankFeatures(same).of(shortlist), found)


def test_items_that_came_later_have_what_the_model_makes_of_them_and_nothing_else(features, events):
    shortlist = shortlist_of(events, 3, 1_700_000_000 + 89 * DAY, [1, 2, 3, 4, 5, 6])
    whole = features.of(shortlist)
    some = features.of(replace(shortlist, rows=np.where(shortlist.rows == 4, -1, shortlist.rows)))
    is_new = shortlist.rows == 4
    np.testing.assert_array_equal(some[~is_new], whole[~is_new])
    number = features.names.index("follows_last")
    np.testing.assert_array_equal(some[is_new, :number], whole[is_new, :number])
    assert np.isnan(some[is_new, number:]).all()


def test_candidates_of_which_all_came_later_have_features(features, events):
    shortlist = shortlist_of(events, 3, 1_700_000_000 + 89 * DAY, [1, 2, 3])
    found = features.of(replace(shortlist, rows=np.full(3, -1)))
    number = features.names.index("follows_last")
    np.testing.assert_array_equal(found[:, :number], features.of(shortlist)[:, :number])
    assert np.isnan(found[:, number:]).all()


def test_somebody_without_a_past_has_features_all_the_same(features, events):
    shortlist = shortlist_of(events, 3, 1_700_000_000 - 5, [1, 2, 3])
    assert not len(shortlist.history_rows)
    found = pd.DataFrame(features.of(shortlist), columns=features.names)
    unknown = found.columns[found.isna().all()]
    assert set(unknown) >= {"similar_last", "similar_past", "mainstream", "tags_newest", "idle_user_days"}
    assert found[["score", "count", "follows_newest", "together_past"]].notna().all(axis=None)


def test_where_nobody_knows_times_features_of_time_are_unknown(events):
    untimed: Sequences = sequences_of(events, has_times=False)
    features = RankFeatures(ItemStatistics.of(untimed, make_catalog(), COLUMNS))
    shortlist = shortlist_of(events, 3, 1_700_000_000 + 89 * DAY, [1, 2, 3])
    found = pd.DataFrame(features.of(replace(shortlist, history_times=None, now=None)), columns=features.names)
    timed = [*(f"count_{span}" for span in SPANS), "rising", "age_days", "idle_days", "idle_user_days"]
    assert found[timed].isna().all(axis=None)
    assert found["count"].tolist() == pytest.approx(
        [math.log1p((events["item"] == row).sum()) for row in shortlist.rows]
    )
