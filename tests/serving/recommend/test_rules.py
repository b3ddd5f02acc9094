"""The order that rules make, against a reference that looks at the whole catalogue for every place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.tables.tables import Catalog
from serving.catalog.filters import Filters
from serving.catalog.ids import IdMap
from serving.live.follower import LiveRecommender
from serving.live.log import Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend import rules as rules_module
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.rules import Boost, Rules, Slate, boost_tiers, build_slate, depth_of
from serving.search import results as hits_module
from serving.search.results import cosines
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import FakeBundle, country, id_series, make_features, make_tables, unit, vector_of
from tests.serving.vectors import unit_vectors

WINDOW = 3


class Shelf:
    """Items with brands (some have none), tags (some have several), vectors and scores whose sums are all exact."""

    def __init__(self, brands, tags, vectors, scores):
        frame = {
            "item_id": id_series([f"i{row}" for row in range(len(brands))]),
            "brand": pd.Series(brands, dtype=pd.ArrowDtype(pa.string())),
            "tags": pd.Series(tags, dtype=pd.ArrowDtype(pa.list_(pa.string()))),
        }
        self.frame = pd.DataFrame(frame)
        self.filters = Filters(Catalog(self.frame))
        self.vectors = np.array(vectors, dtype=np.float32)
        self.scores = np.array(scores, dtype=np.float32) / 8
        self.values = {"brand": [{brand} - {None} for brand in brands], "tags": [set(some) for some in tags]}

    def __len__(self):
        return len(self.frame)

    def fits(self, row, condition):
        column, value = condition
        return value in self.values[column][row]

    def where(self, *conditions):
        return self.filters.parse(dict(conditions))

    def open_rows(self, part, closed):
        mask = np.ones(len(self), dtype=bool) if part.allowed is None else part.allowed.mask
        return np.flatnonzero(mask if closed is None else mask & ~closed).tolist()

    def search(self, part, closed, depth, placed):
        """What an index is to find: the best first, equal ones in the order of rows."""
        placed = set(placed)
        rows = [row for row in self.open_rows(part, closed) if row not in placed]
        rows = np.array(sorted(rows, key=lambda row: (-self.scores[row], row))[:depth], dtype=np.int64)
        return rows, self.scores[rows]


def quickly(shelf, rules, where, num_places):
    tiers = boost_tiers(rules, where, shelf.filters)
    places = Slate(num_places, rules, shelf.filters, shelf.vectors)
    for row in dict.fromkeys(IdMap(shelf.frame["item_id"].to_numpy(object)).rows(rules.pin)[0]):
        if any(part.allows(row) for tier in tiers for part in tier):
            places.pin(row)
    depth = depth_of(rules, num_places)
    first = [shelf.search(part, None, depth, []) for part in tiers[0]]
    build_slate(places, tiers, first, depth, shelf.search)
    return places.rows


def slowly(shelf, num_places, *, diversity, distinct, pin, boosts, demote, at_most, only):
    """The definition, word by word."""

    def relevance(row):
        return float(shelf.scores[row]) + next((by for condition, by in boosts if shelf.fits(row, condition)), 0.0)

    def is_demoted(row):
        return any(shelf.fits(row, condition) for condition in demote)

    def likeness(row, other):
        return float(shelf.vectors[row].astype(float) @ shelf.vectors[other].astype(float))

    def may_stand(row, placed):
        is_new = distinct is None or all(likeness(row, other) < distinct for other in placed)
        return is_new and all(
            sum(value in shelf.values[column][other] for other in placed) < most
            for column, most in at_most
            for value in shelf.values[column][row]
        )

    def worth(row, placed):
        alike = max((likeness(row, other) for other in placed), default=0.0)
        return (1 - diversity) * relevance(row) - diversity * alike

    allowed = [row for row in range(len(shelf)) if only is None or shelf.fits(row, only)]
    ranked = sorted(allowed, key=lambda row: (is_demoted(row), -relevance(row), row))
    placed = [row for row in dict.fromkeys(pin) if row in allowed][:num_places]
    while len(placed) < num_places:
        left = [row for row in ranked if row not in placed and may_stand(row, placed)]
        if not left:
            break
        window = [row for row in left if is_demoted(row) == is_demoted(left[0])][: WINDOW if diversity else 1]
        placed.append(max(window, key=lambda row: worth(row, placed)))
    return placed


conditions = st.tuples(st.just("brand"), st.sampled_from("abcd")) | st.tuples(st.just("tags"), st.sampled_from("xyz"))


@st.composite
def shelves(draw):
    size = draw(st.integers(1, 50))

    def each(strategy):
        return draw(st.lists(strategy, min_size=size, max_size=size))

    return (
        each(st.sampled_from([None, "a", "a", "a", "a", "a", "a", "b", "c"])),
        each(st.lists(st.sampled_from("xyz"), max_size=2)),
        each(st.lists(st.integers(-2, 2), min_size=3, max_size=3)),
        each(st.integers(-8, 8)),
    )


@pytest.fixture
def narrow(monkeypatch):
    """Few candidates at a time, so that searches have to go on."""
    monkeypatch.setattr(rules_module, "WINDOW", WINDOW)
    monkeypatch.setattr(rules_module, "_DEEPEST", 8)


@pytest.mark.usefixtures("narrow")
@settings(max_examples=400)
# What is found of one part must not stand before what was not yet looked for of another.
@example(
    shelf=([*"aaaaaaaaaabc"], [[]] * 11 + [["x"]], [[1, 0, 0]] * 12, [8] * 10 + [7, 8]),
    num_places=2,
    diversity=0.0,
    distinct=None,
    pin=[],
    boosts=[(("tags", "x"), -2.0)],
    demote=[],
    at_most={"brand": 1},
    only=None,
)
@given(
    shelf=shelves(),
    num_places=st.integers(1, 4) | st.integers(1, 30),
    diversity=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    distinct=st.sampled_from([None, None, 1.0, 4.0]),
    pin=st.lists(st.integers(0, 45), max_size=3),
    boosts=st.lists(st.tuples(conditions, st.integers(-16, 16).map(lambda by: by / 8)), max_size=3),
    demote=st.lists(conditions, max_size=2),
    at_most=st.dictionaries(st.sampled_from(["brand", "tags"]), st.sampled_from([1, 1, 2, 3])),
    only=st.none() | conditions,
)
def test_an_answer_is_arranged_as_it_would_be_with_all_items_in_sight(
    shelf, num_places, diversity, distinct, pin, boosts, demote, at_most, only
):
    shelf = Shelf(*shelf)
    rules = Rules(
        diversity=diversity,
        distinct=distinct,
        pin=[f"i{row}" for row in pin],
        boosts=[Boost(shelf.where(condition), by) for condition, by in boosts],
        demote=[shelf.where(condition) for condition in demote],
        at_most=list(at_most.items()),
    )
    where = () if only is None else shelf.where(only)
    expected = slowly(
        shelf,
        num_places,
        diversity=diversity,
        distinct=distinct,
        pin=pin,
        boosts=boosts,
        demote=demote,
        at_most=list(at_most.items()),
        only=only,
    )
    assert quickly(shelf, rules, where, num_places) == expected


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_few_values_in_a_large_catalogue_do_not_mean_that_all_of_it_is_searched(diversity):
    size = 30_000
    rng = np.random.default_rng(0)
    shelf = Shelf(["a", "b", "c"] * (size // 3), [[]] * size, rng.normal(size=(size, 3)), rng.integers(-8, 8, size))
    asked = []

    def search(part, closed, depth, placed):
        asked.append(min(depth, len(shelf.open_rows(part, closed))))
        return shelf.search(part, closed, depth, placed)

    rules = Rules(diversity=diversity, at_most=[("brand", 2)])
    places = Slate(10, rules, shelf.filters, shelf.vectors)
    depth = depth_of(rules, 10)
    tier = boost_tiers(rules, (), shelf.filters)[0]
    build_slate(places, [tier], [search(tier[0], None, depth, [])], depth, search)
    assert len(places.rows) == 6
    assert sum(asked) < 1000


def test_copies_of_what_was_placed_are_not_searched_through_one_by_one():
    size = 30_000
    vectors = np.tile(np.array([1.0, 0, 0]), (size, 1))
    vectors[-1] = [0, 1, 0]
    shelf = Shelf(["a"] * size, [[]] * size, vectors, np.append(np.full(size - 1, 8), 0))
    asked = []

    def search(part, closed, depth, placed):
        asked.append(min(depth, len(shelf.open_rows(part, closed))))
        return shelf.search(part, closed, depth, placed)

    rules = Rules(distinct=0.95)
    places = Slate(2, rules, shelf.filters, shelf.vectors)
    depth = depth_of(rules, 2)
    tier = boost_tiers(rules, (), shelf.filters)[0]
    build_slate(places, [tier], [search(tier[0], None, depth, [])], depth, search)
    assert places.rows == [0, size - 1]
    assert sum(asked) < 1000


@pytest.mark.parametrize("width", [3, 64])
def test_of_exact_copies_one_is_given_and_of_others_all(width):
    vectors = unit_vectors(300, width=width)
    copies = np.concatenate([vectors, vectors[::-1]])
    shelf = Shelf(["a"] * 600, [[]] * 600, copies, np.arange(600) % 7)
    placed = quickly(shelf, Rules(distinct=1.0), (), 600)
    assert sorted(row if row < 300 else 599 - row for row in placed) == list(range(300))


ITEMS = [f"i{number}" for number in range(60)]


@pytest.fixture(scope="module")
def shop():
    """A real recommender over sixty items of six brands; 7 had some of them, of 8 nothing is known."""
    people = pd.DataFrame({"user_id": [7, 8, 9], "country": ["de", None, "fr"]})
    tables = make_tables({7: ITEMS[:4], 9: ITEMS[2:9]}, ITEMS, users=people)
    frame = tables.catalog.frame.assign(brand=[f"b{number % 6}" for number in range(60)])
    bundle = FakeBundle("bundle", make_features(user=country()))
    return Recommender(
        bundle, Snapshot.build(bundle, type(tables)(tables.interactions, Catalog(frame), tables.users, ()))
    )


def ids(answer):
    return [item.item_id for item in answer.items]


WHOM = [7, 8, 9, "nobody", UserProfile(["i5", "i30"]), UserProfile()]


def test_rules_hold_for_everyone_known_described_or_unknown(shop):
    rules = Rules(
        diversity=0.4,
        pin=["i50", "gone", "i51", "i2", "i50"],
        demote=[shop.state.filters.parse({"brand": "b0"})],
        at_most=[("brand", 3)],
    )
    where = shop.state.filters.parse({"item_id": {"not": ["i51"]}})
    wanted = RecommendRequest(18, where=where, exclude=["i40"], rules=rules)
    for who, answer in zip(WHOM, shop.recommend_many(WHOM, wanted), strict=True):
        assert answer == shop.recommend(who, wanted)
        found = ids(answer)
        had = who.history if isinstance(who, UserProfile) else {7: ITEMS[:4], 9: ITEMS[2:9]}.get(who, [])
        pinned = [item for item in ("i50", "i2") if item not in had]
        assert found[: len(pinned)] == pinned
        assert not {*had, "i40", "i51"} & set(found)
        brands = [int(item[1:]) % 6 for item in found]
        assert len(found) == 18
        assert all(brands.count(brand) == 3 for brand in range(6))
        rest = brands[len(pinned) :]
        assert rest == [brand for brand in rest if brand] + [0] * rest.count(0)


@pytest.mark.parametrize("diversity", [0.3, 1.0])
def test_pages_of_an_arranged_answer_fit_together(shop, diversity):
    rules = Rules(
        diversity=diversity, at_most=[("brand", 8)], boosts=[Boost(shop.state.filters.parse({"brand": "b1"}), 0.5)]
    )
    for who in (7, "nobody"):
        everything = ids(shop.recommend(who, RecommendRequest(44, rules=rules)))
        pages = [ids(shop.recommend(who, RecommendRequest(11, offset, rules=rules))) for offset in range(0, 44, 11)]
        assert [item for page in pages for item in page] == everything


def test_scores_stay_those_of_the_model(shop):
    plain = {who: {item.item_id: item.score for item in shop.recommend(who, 60).items} for who in (7, 9, "nobody")}
    rules = Rules(
        0.5,
        ["i33"],
        [Boost(shop.state.filters.parse({"brand": "b1"}), -1.5)],
        [shop.state.filters.parse({"brand": "b2"})],
    )
    for who, scores in plain.items():
        answer = shop.recommend(who, RecommendRequest(60, rules=rules))
        assert {item.item_id: item.score for item in answer.items} == scores


def test_similar_items_can_be_arranged(shop):
    wanted = RecommendRequest(6, rules=Rules(pin=["i3", "i33"], at_most=[("brand", 1)]))
    found = ids(shop.similar("i3", wanted))
    assert found[0] == "i33"
    assert len({int(item[1:]) % 6 for item in found}) == 6
    plain = sorted(set(ITEMS) - {"i3"}, key=lambda item: -float(vector_of(item) @ vector_of("i3")))
    assert found[1] == next(item for item in plain if int(item[1:]) % 6 != 33 % 6)


def test_more_diversity_makes_an_answer_less_alike(shop):
    def likeness(diversity):
        found = ids(shop.recommend(7, RecommendRequest(10, rules=Rules(diversity=diversity))))
        vectors = np.stack([vector_of(item) for item in found])
        return (vectors @ vectors.T)[np.triu_indices(10, 1)].mean()

    measured = [likeness(diversity) for diversity in (0.0, 0.3, 0.7, 1.0)]
    assert measured == sorted(measured, reverse=True)
    assert measured[0] > measured[-1] + 0.05
    assert ids(shop.recommend(7, RecommendRequest(10, rules=Rules()))) == ids(shop.recommend(7, 10))


def by_definition(recommender, who, num_places, rules, where):
    """The definition on the vectors and scores of any index: for every place all that is left is looked at."""
    items, filters = recommender.state.items, recommender.state.filters
    answer = recommender.recommend(who, RecommendRequest(filters.num_items, where=where))
    scale = 1.0 if answer.fallback is None else 1 / recommender.state.popularity.greatest_share
    relevance = {items.row(item.item_id): np.float64(np.float32(item.score)) * scale for item in answer.items}
    for row in relevance:
        relevance[row] += next((boost.by for boost in rules.boosts if filters.mask(boost.where)[row]), 0.0)
    demoted = {row: any(filters.mask(one)[row] for one in rules.demote) for row in relevance}
    values = [(filters.by_value(column, column), most) for column, most in rules.at_most]
    vectors = recommender.state.vectors[np.arange(filters.num_items)]

    alike = cosines(vectors[:, None], vectors[None])

    def likeness(row, placed):
        return alike[row, placed].max(initial=-np.inf)

    def may_stand(row, placed, counts):
        is_new = rules.distinct is None or likeness(row, placed) < rules.distinct
        return is_new and all(
            count[value] < most
            for count, (groups, most) in zip(counts, values, strict=True)
            for value in groups.of_item(row)
        )

    ranked = sorted(relevance, key=lambda row: (demoted[row], -relevance[row], row))
    placed = [row for row in dict.fromkeys(items.rows(rules.pin)[0]) if row in relevance][:num_places]
    while len(placed) < num_places:
        counts = [Counter(value for row in placed for value in groups.of_item(row)) for groups, _ in values]
        left = [row for row in ranked if row not in placed and may_stand(row, placed, counts)]
        if not left:
            break
        window = [row for row in left if demoted[row] == demoted[left[0]]][: WINDOW if rules.diversity else 1]
        weights = (1 - rules.diversity), (rules.diversity if placed else 0.0)
        worth = [weights[0] * relevance[row] - (weights[1] and weights[1] * likeness(row, placed)) for row in window]
        placed.append(window[int(np.argmax(worth))])
    return [items.ids[row] for row in placed]


class NearCopies(FakeBundle):
    """Items in families: some are copies of others to the last digit, some nearly."""

    def encode_items(self, catalog):
        families = np.stack([vector_of(int(str(item_id)[1:]) % 12) for item_id in catalog.item_ids])
        each = np.stack([vector_of(item_id) for item_id in catalog.item_ids])
        apart = np.array([[(0.0, 1e-4, 0.3)[int(str(item_id)[1:]) % 3]] for item_id in catalog.item_ids])
        return unit(families + apart * each)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Recommenders over ninety near-copies: as the index was made, and with live writes on top."""
    names = [f"i{number}" for number in range(90)]
    tables = make_tables({7: names[:3], 9: names[2:9]}, names)
    frame = tables.catalog.frame.assign(
        brand=pd.Series([f"b{number % 5}" for number in range(90)], dtype=pd.ArrowDtype(pa.string())),
        tags=pd.Series(
            [["x", "y", "z"][number % 4 :] for number in range(90)], dtype=pd.ArrowDtype(pa.list_(pa.string()))
        ),
    )
    bundle = NearCopies("bundle", make_features())
    base = Recommender(bundle, Snapshot.build(bundle, type(tables)(tables.interactions, Catalog(frame), None, ())))
    store = SqliteLog(tmp_path_factory.mktemp("live") / "live.db")
    cells = {"brand": "b1", "tags": ["x"]}
    store.append([Write("item", {"item_id": f"i{number}", "cells": cells}) for number in (*range(90, 105), 20, 31)])
    store.append([Write("deletion", {"item_id": f"i{number}"}) for number in (0, 45, 100)])
    store.append([Write("event", {"user_id": 7, "item_id": "i91", "time": 10})])
    return base, LiveRecommender(base, store).current()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("seed", range(24))
def test_the_same_items_whatever_the_path_to_a_decision(families, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    recommender = families[seed % 2]
    # The paths: few or many compared at once, the catalogue compared beforehand or not, all pairs exactly or few.
    monkeypatch.setattr(rules_module, "_STAGED", int(rng.integers(1, 40)))
    monkeypatch.setattr(rules_module, "_COMPARED", int(rng.integers(1, 40)))
    monkeypatch.setattr(rules_module, "_FEW_PLACED", float(rng.choice([0.0, 0.5, 1.1])))
    monkeypatch.setattr(hits_module, "_COMPARED_PAIRS", int(rng.integers(1, 500)))
    monkeypatch.setattr(hits_module, "_COMPARED_AT_ONCE", int(rng.integers(1, 50)))
    monkeypatch.setattr(hits_module, "_MANY_MATTER", float(rng.choice([0.0, 0.2, 1.0])))
    vectors, of = recommender.state.vectors, recommender.state.filters.parse
    pair = vectors[rng.choice(90, 2)]
    rules = Rules(
        diversity=float(rng.choice([0.0, 0.3, 1.0])),
        # Where a decision is closest: the very cosine of two items.
        distinct=[None, float(cosines(pair[0], pair[1])), 0.5, 0.99999][rng.integers(4)],
        pin=[f"i{number}" for number in rng.integers(105, size=rng.integers(4))],
        boosts=[Boost(of({"tags": tag}), float(rng.normal())) for tag in rng.choice(["x", "y"], rng.integers(3))],
        demote=[of({"brand": brand}) for brand in rng.choice(["b0", "b3"], rng.integers(2))],
        at_most=[("brand", int(rng.integers(1, 9))), ("tags", int(rng.integers(5, 30)))][: rng.integers(3)],
    )
    where = () if rng.random() < 0.7 else of({"brand": {"not": ["b2"]}})
    num_places = int(rng.integers(1, 50))
    for who in (7, "nobody", UserProfile(["i5", "i30"])):
        expected = by_definition(recommender, who, num_places, rules, where)
        assert ids(recommender.recommend(who, RecommendRequest(num_places, where=where, rules=rules))) == expected
