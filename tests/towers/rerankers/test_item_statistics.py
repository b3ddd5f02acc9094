"""What is known of items, beside what pandas makes of the same tables."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from features.config import FeatureSettings
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog
from towers.rerankers.item_statistics import FOLLOWING, TOGETHER, ItemStatistics

COLUMNS = {
    "item_id": FeatureSettings(kind="id"),
    "tags": FeatureSettings(kind="categories", separator="|"),
    "price": FeatureSettings(kind="number"),
}
NUM_ITEMS = 30


def make_events(seed: int = 0) -> pd.DataFrame:
    """Events of 25 users, in order of user and time."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"user": rng.integers(0, 25, 400), "item": np.minimum(rng.geometric(0.12, 400), 27)})
    frame["time"] = 1_700_000_000 + rng.integers(0, 90 * 86_400, 400)
    return frame.sort_values(["user", "time"], kind="stable", ignore_index=True)


def sequences_of(frame: pd.DataFrame, has_times: bool = True) -> Sequences:
    lengths = frame.groupby("user").size().reindex(range(25), fill_value=0).to_numpy()
    times = frame["time"].to_numpy() if has_times else None
    return Sequences(np.arange(25), offsets_of(lengths), frame["item"].to_numpy(), times, is_ordered=True)


def make_catalog() -> Catalog:
    rng = np.random.default_rng(1)
    tags = ["|".join(rng.choice(["a", "b", "c", "d"], size=rng.integers(0, 3), replace=False)) for _ in range(30)]
    price = [None if row % 7 == 0 else float(row) for row in range(NUM_ITEMS)]
    return Catalog(pd.DataFrame({"item_id": range(NUM_ITEMS), "tags": tags, "price": price}))


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    return make_events()


@pytest.fixture(scope="module")
def facts(events: pd.DataFrame) -> ItemStatistics:
    return ItemStatistics.of(sequences_of(events), make_catalog(), COLUMNS)


ROWS = np.arange(NUM_ITEMS)


@pytest.mark.parametrize("day", [-3, 0, 1, 45, 89, 90, 1000])
def test_counts_are_of_what_was_had_before_the_moment(facts: ItemStatistics, events: pd.DataFrame, day: int):
    moment = 1_700_000_000 + day * 86_400
    before = events[events["time"] < moment]
    expected = before.groupby("item").size().reindex(ROWS, fill_value=0)
    counts = facts.counts(ROWS, moment)
    assert counts.tolist() == expected.tolist()
    newest = before.groupby("item")["time"].max().reindex(ROWS, fill_value=events["time"].max())
    assert facts.last(ROWS, counts).tolist() == newest.tolist()


def test_an_event_at_the_very_moment_is_not_counted(facts: ItemStatistics, events: pd.DataFrame):
    event = events.iloc[17]
    at, after = (int(facts.counts(np.array([event["item"]]), int(event["time"]) + more)[0]) for more in (0, 1))
    same = ((events["item"] == event["item"]) & (events["time"] == event["time"])).sum()
    assert after - at == same >= 1


def test_the_first_time_is_that_of_the_tables_and_the_newest_of_all_for_items_nobody_had(facts, events):
    expected = events.groupby("item")["time"].min().reindex(ROWS, fill_value=events["time"].max())
    assert facts.first(ROWS).tolist() == expected.tolist()


def test_what_follows_an_item_is_weighed_by_how_near_and_how_often(facts: ItemStatistics, events: pd.DataFrame):
    expected: Counter[tuple[int, int]] = Counter()
    for _, mine in events.groupby("user"):
        items = mine["item"].tolist()
        for place, item in enumerate(items):
            for apart, other in enumerate(items[place + 1 : place + 1 + FOLLOWING], start=1):
                if item != other:
                    expected[item, other] += 1 / apart
    had = events["item"].value_counts()
    for item in had.index:
        found = facts.follows.sums(np.array([item]), np.ones(1, np.float32), ROWS)
        np.testing.assert_allclose(found, [expected[item, other] / had[item] for other in ROWS], rtol=1e-5)


def test_what_is_had_together_is_weighed_by_the_cosine(facts: ItemStatistics, events: pd.DataFrame):
    expected: Counter[tuple[int, int]] = Counter()
    for _, mine in events.groupby("user"):
        items = mine["item"].tolist()
        for place, item in enumerate(items):
            for other in items[place + 1 : place + 1 + TOGETHER]:
                if item != other:
                    expected[item, other] += 1
                    expected[other, item] += 1
    had = events["item"].value_counts()
    some, shares = np.array([3, 1, 20]), np.array([1.0, 0.5, 0.25], np.float32)
    sums = [
        sum(
            share * expected[item, other] / np.sqrt(had[item] * had[other])
            for item, share in zip(some.tolist(), shares.tolist(), strict=True)
            if expected[item, other]
        )
        for other in ROWS.tolist()
    ]
    np.testing.assert_allclose(facts.together.sums(some, shares, ROWS), sums, rtol=1e-5)
    shuffled = np.random.default_rng(0).permutation(ROWS)
    np.testing.assert_allclose(facts.together.sums(some, shares, shuffled), np.array(sums)[shuffled], rtol=1e-5)


def test_only_the_strongest_neighbours_are_kept(monkeypatch: pytest.MonkeyPatch, events: pd.DataFrame):
    whole = ItemStatistics.of(sequences_of(events), make_catalog(), COLUMNS).follows
    monkeypatch.setattr("towers.rerankers.item_statistics.NEIGHBOURS", 4)
    few = ItemStatistics.of(sequences_of(events), make_catalog(), COLUMNS).follows
    for item in ROWS:
        weights = whole.weights[whole.offsets[item] : whole.offsets[item + 1]]
        kept = few.weights[few.offsets[item] : few.offsets[item + 1]]
        assert sorted(kept) == sorted(weights)[::-1][:4][::-1]


def test_a_shared_value_counts_by_how_many_of_the_items_have_it(facts: ItemStatistics):
    tags = [set(filter(None, cell.split("|"))) for cell in make_catalog().frame["tags"]]
    some = np.array([2, 9, 9, 14])
    expected = [
        np.mean([np.mean([tag in tags[item] for item in some]) for tag in own]) if own else np.nan for own in tags
    ]
    np.testing.assert_allclose(facts.values["tags"].shared(some, ROWS), expected, rtol=1e-6)
    assert set(facts.values) == {"tags"}


def test_numbers_are_in_units_of_their_spread_and_unknown_ones_stay_unknown(facts: ItemStatistics):
    price = make_catalog().frame["price"].to_numpy(float)
    expected = (price - np.nanmean(price)) / np.nanstd(price)
    np.testing.assert_allclose(facts.numbers["price"], expected, rtol=1e-5)


def test_without_times_counts_are_of_everything(events: pd.DataFrame):
    facts = ItemStatistics.of(sequences_of(events, has_times=False), make_catalog(), COLUMNS)
    assert facts.counts(ROWS, 5).tolist() == events.groupby("item").size().reindex(ROWS, fill_value=0).tolist()


def test_they_come_back_from_disk_as_they_were(facts: ItemStatistics, tmp_path):
    facts.save(tmp_path / "item_statistics.safetensors")
    again = ItemStatistics.load(tmp_path / "item_statistics.safetensors")
    moment = 1_700_000_000 + 40 * 86_400
    assert again.counts(ROWS, moment).tolist() == facts.counts(ROWS, moment).tolist()
    some, shares = np.array([3, 1]), np.ones(2, np.float32)
    for one, other in ((again.follows, facts.follows), (again.together, facts.together)):
        assert one.sums(some, shares, ROWS).tolist() == other.sums(some, shares, ROWS).tolist()
    np.testing.assert_array_equal(again.values["tags"].shared(some, ROWS), facts.values["tags"].shared(some, ROWS))
    np.testing.assert_array_equal(again.numbers["price"], facts.numbers["price"])
    assert again.has_times
